"""In what the published code differs from the paper's text, each by a name that switches it on alone (``--with``).

Read at its commit d85d3a1. What the code's optimizers do beside that is in `compared_optimizers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.objective import IGNORED_LABEL
from stepscope.paper.experiments.command_lines import (
    EQUAL_WEIGHTS,
    NO_MASKS,
    PADDING_LABELS,
    PLAIN_STEPS,
    RELEASED,
    SHORT_TEXTS,
    SMALL_NORM_BATCHES,
    WIDE_HEAD,
)
from stepscope.paper.experiments.example_weights import average_examples
from stepscope.paper.tasks import Batch, Task

HEAD = 1_000
"""Classes of ImageNet: the published code keeps that head for the ten of CIFAR-10."""

_CONCERNS = {
    SHORT_TEXTS: ("code",),
    NO_MASKS: ("translation", "code", "sentiment"),
    PADDING_LABELS: ("code",),
    EQUAL_WEIGHTS: ("translation", "code"),
    WIDE_HEAD: ("images",),
    SMALL_NORM_BATCHES: ("images",),
    PLAIN_STEPS: (),
}
"""The tasks that each changes; of `PLAIN_STEPS` none, which changes the optimizers of the convergence experiment."""


def check_released(names: Iterable[str]) -> tuple[str, ...]:
    """The same names in the order of `RELEASED`, each once.

    Raises:
        UsageError: one isn't among them.
    """
    given = set(names)
    if unknown := sorted(given - set(RELEASED)):
        raise UsageError(f"--with {unknown[0]}: choose of {', '.join(RELEASED)}")
    return tuple(name for name in RELEASED if name in given)


def concerning(names: Iterable[str], task: str) -> tuple[str, ...]:
    """Those of the names that change a task.

    Example:
        >>> concerning(RELEASED, "images")
        ('wide-head', 'small-norm-batches')
    """
    return tuple(name for name in check_released(names) if task in _CONCERNS[name])


def as_released(task: Task, kind: str, config: Any, names: Iterable[str]) -> Task:
    """A task as the published code has it in these respects.

    Args:
        task: what is changed; its model itself.
        kind: its name in `stepscope.paper.tasks.catalog.TASKS`.
        config: its settings.
        names: of `RELEASED`; those that don't concern the task change nothing.
    """
    chosen = concerning(names, kind)
    if SHORT_TEXTS in chosen:
        task = _with_batches(task, shorten)
    if PADDING_LABELS in chosen:
        task = _with_batches(task, partial(label_padding, length=config.max_tokens))
    if NO_MASKS in chosen:
        task = _with_batches(task, unmasked)
    if EQUAL_WEIGHTS in chosen:
        task = _with_model(task, average_examples)
    if WIDE_HEAD in chosen:
        task = _with_model(task, widen_head)
    return task


def unmasked(batch: Batch) -> Batch:
    """Without a mask: padded tokens are attended to."""
    return {name: value for name, value in batch.items() if name != "attention_mask"}


def shorten(batch: Batch) -> Batch:
    """Cuts texts to unlike lengths, from a quarter of the longest to all of it, which their own tokens decide.

    The paper's texts are whole files, the shorter ones padded. Pieces of files, as they are here, have hardly any
    padding. How much the paper's have isn't known: this is three eighths on average.
    """
    ids = batch["input_ids"]
    longest = ids.shape[1]
    least = max(2, longest // 4)
    lengths = least + ids.sum(1) % (longest - least + 1)
    kept = (torch.arange(longest, device=ids.device) < lengths[:, None]) & (batch["attention_mask"] == 1)
    return {
        "input_ids": ids,
        "attention_mask": kept.long(),
        "labels": torch.where(kept, batch["labels"], IGNORED_LABEL),
    }


def label_padding(batch: Batch, length: int) -> Batch:
    """Pads texts with 0 to one length, and makes the labels a copy of them: what is padding is to be predicted too.

    Args:
        batch: ``input_ids`` and ``attention_mask``.
        length: tokens of every text, at least that of the longest.

    Example:
        >>> ids, mask = torch.tensor([[5, 6, 1], [7, 1, 9]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
        >>> label_padding({"input_ids": ids, "attention_mask": mask}, 4)["labels"].tolist()
        [[5, 6, 1, 0], [7, 1, 0, 0]]
    """
    mask = batch["attention_mask"]
    missing = (0, length - mask.shape[1])
    ids = nn.functional.pad(batch["input_ids"] * mask, missing)
    return {"input_ids": ids, "attention_mask": nn.functional.pad(mask, missing), "labels": ids.clone()}


def widen_head(model: nn.Module) -> nn.Module:
    """Gives a ResNet a head of 1,000 classes, most of which no image has.

    The head is drawn anew where the published code keeps ImageNet's; that of the task's classes stays as it is.
    """
    inside: Any = model
    old: nn.Linear = inside.classifier[-1]
    drawn = torch.Generator().manual_seed(HEAD)
    new = nn.Linear(old.in_features, HEAD)
    bound = old.in_features**-0.5
    with torch.no_grad():
        for part, given in ((new.weight, old.weight), (new.bias, old.bias)):
            values: Tensor = torch.rand(part.shape, generator=drawn) * 2 * bound - bound
            values[: len(given)] = given
            part.copy_(values)
    inside.classifier[-1] = new
    inside.num_labels = inside.config.num_labels = HEAD
    return model


def _with_batches(task: Task, change: Callable[[Batch], Batch]) -> Task:
    return replace(
        task,
        training_batches=lambda: map(change, task.training_batches()),
        eval_batches=tuple(map(change, task.eval_batches)),
        seeded=lambda seed: _with_batches(task.seeded(seed), change),
    )


def _with_model(task: Task, change: Callable[[nn.Module], nn.Module]) -> Task:
    return replace(task, model=change(task.model), seeded=lambda seed: _with_model(task.seeded(seed), change))
