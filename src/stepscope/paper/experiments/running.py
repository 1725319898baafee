"""What the experiments' runners share: trajectories that are continued, progress, settings, data, a training step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.objective import averaged_over, predicts_next_token
from stepscope.paper.tasks import Batch, Task
from stepscope.paper.tasks.images import ImagesConfig
from stepscope.paper.tasks.task import placed
from stepscope.runs import Record, RunDirectory, read_run

Progress = Callable[[float, str], None]
"""Called with the part of the whole that has been done (0 to 1), and what is going on."""


class AlongTrajectories(Protocol):
    """An experiment that measures along one training run for each seed and each training optimizer.

    Attributes:
        source: where its data come from.
        seeds: of the weights and of the order of the batches.
        training_lr: ``{training optimizer: learning rate}``.
    """

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def seeds(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def training_lr(self) -> Mapping[str, float]: ...  # noqa: D102

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""


def run_trajectories(
    experiment: AlongTrajectories,
    out: str | os.PathLike[str],
    progress: Progress,
    *,
    make: Callable[[int, str], Task],
    describe: Callable[[Task], dict[str, Any]],
    missing: Callable[[Sequence[Record], int, str], Any],
    run_one: Callable[[RunDirectory, Task, int, str, Progress], None],
) -> int:
    """Runs what is missing of an experiment along trajectories, into a run directory.

    Args:
        experiment: what to run.
        out: the run directory; created if missing.
        progress: told how far it is.
        make: ``(seed, source) -> task``.
        describe: the context of a run, of its task.
        missing: ``(records, seed, training optimizer)``: what has not been measured, empty if all has.
        run_one: trains with one optimizer on a fresh model of the seed, and measures what is missing.

    Returns:
        How many records were made; 0 if the run was complete already.

    Raises:
        UsageError: the directory can't be used (see `RunDirectory`), there are no data or they have changed since, or
            some of the trainings failed; the others have been measured then.
    """
    configuration = experiment.configuration()
    begun = RunDirectory.check(out, configuration)
    runs = [(seed, name) for seed in experiment.seeds for name in experiment.training_lr]
    if begun is not None:
        _, records = read_run(out)
        if not any(missing(records, seed, name) for seed, name in runs):
            return 0
    progress(0.0, "preparing the data")
    task = make(runs[0][0], source_of(begun, experiment.source))
    context = describe(task)
    check_data(begun, context, out)
    with RunDirectory.open(out, configuration, context=context) as run:
        before = len(run.records())
        failed = []
        for number, (seed, name) in enumerate(runs):
            if missing(run.records(), seed, name):
                try:
                    run_one(run, task.seeded(seed), seed, name, part_of(progress, number, len(runs)))
                except UsageError as error:
                    failed.append(str(error))  # one that diverges is no reason to lose the others
        if failed:
            raise UsageError("; ".join(dict.fromkeys(failed)))
        return len(run.records()) - before


def part_of(progress: Progress, number: int, count: int) -> Progress:
    """The progress of part `number` of `count`, told as that of the whole."""

    def told(part: float, what: str) -> None:
        progress((number + part) / count, what)

    return told


def check_settings(scale: str, scales: Collection[str], seeds: tuple[int, ...]) -> None:
    """Refuses a scale or seeds that can't be used.

    Raises:
        UsageError: unknown scale, or seeds that aren't different whole numbers from 0 to 2^63 - 1.
    """
    if scale not in scales:
        raise UsageError(f"unknown scale {scale!r}: choose {' or '.join(scales)}")
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds are {seeds}: give different whole numbers from 0 to 2^63 - 1")


def source_of(begun: Mapping[str, Any] | None, asked: str) -> str:
    """Where the data come from: a run goes on with the source that it began with, whatever could be had now.

    Args:
        begun: the context of the run that is continued; None for a new one.
        asked: the source that was asked for.
    """
    data = (begun or {}).get("source") or {}
    return data.get("name", "auto") if asked == "auto" else asked


def check_data(begun: Mapping[str, Any] | None, context: Mapping[str, Any], out: str | os.PathLike[str]) -> None:
    """Refuses to continue a run with other data.

    Args:
        begun: the context of the run that is continued; None for a new one.
        context: the same of now.
        out: its directory.

    Raises:
        UsageError: the digests of the data differ.
    """
    data = (begun or {}).get("source") or {}
    if data and data.get("sha256") != context["source"]["sha256"]:
        changed = f"the data of {out} have changed since it began ({context['source']['title']})"
        raise UsageError(f"{changed}: give another directory (--out)")


def model_of(task: Task, title: str) -> dict[str, Any]:
    """What a reader has to know of a task's model.

    Args:
        task: the task.
        title: what its kind of model is called, such as ``"T5"``.
    """
    count = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    return {
        "title": f"{title} of {count:,} parameters",
        "initialisation": task.initialisation,
        "parameters": count,
    }


def unmasked(task: Task) -> Task:
    """The task as the published code has it: padded tokens are attended to."""

    def without(batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name != "attention_mask"}

    return replace(
        task,
        training_batches=lambda: map(without, task.training_batches()),
        eval_batches=tuple(map(without, task.eval_batches)),
        seeded=lambda seed: unmasked(task.seeded(seed)),
    )


GPU_SCALES = ("gpu", "paper")
"""Sizes for one GPU: what is made at these goes there, if there is one."""


def at_home(task: Task, scale: str) -> Task:
    """The task where it is to be run: on the GPU at the scales for one, if there is one."""
    return placed(task, "cuda") if scale in GPU_SCALES and torch.cuda.is_available() else task


def part_size(config: Any, scale: str) -> int | None:
    """How many examples of a training batch are in memory at a time: None is the whole batch.

    A training batch of the paper's doesn't fit with its activations. One that batch norm sees stays whole, since its
    statistics are the batch's.

    Args:
        config: the settings of a task.
        scale: the name of its size.
    """
    whole = scale not in GPU_SCALES or isinstance(config, ImagesConfig)
    return None if whole else int(config.micro_batch_size)


def backward(model: nn.Module, batch: Batch, where: str, part: int | None = None) -> None:
    """The backward pass of a training step; gradients are left on the parameters.

    Args:
        model: gives its loss as ``model(**batch).loss``.
        batch: the training batch.
        where: what to say if it fails, such as ``"sgd trajectory, step 3 (lr 1)"``.
        part: as in `accumulate`.

    Raises:
        UsageError: the loss isn't finite.
    """
    loss = accumulate(model, batch, part)
    if not math.isfinite(loss):
        raise UsageError(f"the training loss is {loss} on the {where}: it has diverged")


def accumulate(model: nn.Module, batch: Batch, part: int | None = None) -> float:
    """Puts the gradient of a batch's mean loss on the parameters, in place of what is there, and gives that loss.

    Args:
        model: gives its loss as ``model(**batch).loss``.
        batch: the training batch.
        part: how many of its examples go through the model at a time, each part counted by what its mean averages
            over; None for all at once.
    """
    model.zero_grad(set_to_none=True)
    size = len(batch["labels"])
    if part is None or part >= size:
        loss: Tensor = model(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
    parts = [{name: value[i : i + part] for name, value in batch.items()} for i in range(0, size, part)]
    terms = [averaged_over(each, shifted=predicts_next_token(model)) for each in parts]
    total = 0.0
    for each, count in zip(parts, terms, strict=True):
        share: Tensor = model(**each).loss * (count / sum(terms))
        share.backward()  # type: ignore[no-untyped-call]
        total += float(share.detach())
    return total
