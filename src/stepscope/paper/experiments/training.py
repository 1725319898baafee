"""What the trainings of all experiments share: settings, sizes, and the backward pass of a step."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.paper.experiments.command_lines import SMALL_NORM_BATCHES
from stepscope.paper.experiments.example_weights import terms_of
from stepscope.paper.tasks import Batch, Task
from stepscope.paper.tasks.catalog import TASKS
from stepscope.paper.tasks.images import ImagesConfig
from stepscope.paper.tasks.task import placed


def check_settings(scale: str, scales: Collection[str], seeds: tuple[int, ...]) -> None:
    """Refuses a scale or seeds that can't be used.

    Raises:
        UsageError: unknown scale, or seeds that aren't different whole numbers from 0 to 2^63 - 1.
    """
    if scale not in scales:
        raise UsageError(f"unknown scale {scale!r}: choose {' or '.join(scales)}")
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63 or len(set(seeds)) < len(seeds):
        raise UsageError(f"seeds are {seeds}: give different whole numbers from 0 to 2^63 - 1")


def count_of(seeds: Sequence[int]) -> str:
    """How many seeds, in words.

    Example:
        >>> count_of((0,)), count_of((0, 1, 2))
        ('1 seed', '3 seeds')
    """
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"


GPU_SCALES = ("gpu", "paper")
"""Sizes for one GPU: what is made at these goes there, if there is one."""


def at_home(task: Task, scale: str) -> Task:
    """The task where it is to be run: on the GPU at the scales for one, if there is one."""
    return placed(task, "cuda") if scale in GPU_SCALES and torch.cuda.is_available() else task


NORM_BATCH = 8
"""Images that batch norm sees at a time in the published code."""


def part_size(config: Any, scale: str, released: Collection[str] = ()) -> int | None:
    """How many examples of a training batch are in memory at a time: None is the whole batch.

    A training batch of the paper's doesn't fit with its activations. One that batch norm sees stays whole, since its
    statistics are the batch's, unless it is as the published code has it.

    Args:
        config: the settings of a task.
        scale: the name of its size.
        released: names in `stepscope.paper.experiments.command_lines.RELEASED`.
    """
    if isinstance(config, ImagesConfig) and SMALL_NORM_BATCHES in released:
        return NORM_BATCH
    whole = scale not in GPU_SCALES or isinstance(config, ImagesConfig)
    return None if whole else int(config.micro_batch_size)


def backward(model: nn.Module, batch: Batch, where: str, size: int | None = None) -> None:
    """The backward pass of a training step; gradients are left on the parameters.

    Args:
        model: gives its loss as ``model(**batch).loss``.
        batch: the training batch.
        where: what to say if it fails, such as ``"sgd trajectory, step 3 (lr 1)"``.
        size: as in `accumulate`.

    Raises:
        UsageError: the loss isn't finite.
    """
    loss = accumulate(model, batch, size)
    if not math.isfinite(loss):
        raise UsageError(f"the training loss is {loss} on the {where}: it has diverged")


def accumulate(model: nn.Module, batch: Batch, size: int | None = None) -> float:
    """Puts the gradient of a batch's mean loss on the parameters, in place of what is there, and gives that loss.

    Args:
        model: gives its loss as ``model(**batch).loss``.
        batch: the training batch.
        size: how many of its examples go through the model at a time, each micro-batch weighted by the number of
            terms that its mean averages over; None for all at once.
    """
    model.zero_grad(set_to_none=True)
    examples = len(batch["labels"])
    if size is None or size >= examples:
        loss: Tensor = model(**batch).loss
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())
    micro_batches = [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, examples, size)]
    terms = [terms_of(model, micro_batch) for micro_batch in micro_batches]
    total = 0.0
    for micro_batch, count in zip(micro_batches, terms, strict=True):
        weighted: Tensor = model(**micro_batch).loss * (count / sum(terms))
        weighted.backward()  # type: ignore[no-untyped-call]
        total += float(weighted.detach())
    return total


def sources_by_task(given: Mapping[str, str]) -> dict[str, str]:
    """``{task: where its data come from}`` of all tasks: ``"auto"`` for those not given.

    Raises:
        UsageError: one is given for no task.
    """
    if others := set(given) - set(TASKS):
        raise UsageError(f"a source is given for {', '.join(sorted(others))}: choose of {', '.join(TASKS)}")
    return dict.fromkeys(TASKS, "auto") | dict(given)
