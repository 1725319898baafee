"""What the experiments' runners share: progress, settings, the data of a run that is continued, a training step."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.tasks import Batch

Progress = Callable[[float, str], None]
"""Called with the part of the whole that has been done (0 to 1), and what is going on."""


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


def backward(model: nn.Module, batch: Batch, where: str) -> None:
    """The backward pass of a training step; gradients are left on the parameters.

    Args:
        model: gives its loss as ``model(**batch).loss``.
        batch: the training batch.
        where: what to say if it fails, such as ``"sgd trajectory, step 3 (lr 1)"``.

    Raises:
        UsageError: the loss isn't finite.
    """
    model.zero_grad(set_to_none=True)
    loss: Tensor = model(**batch).loss
    if not math.isfinite(float(loss.detach())):
        raise UsageError(f"the training loss is {float(loss.detach())} on the {where}: it has diverged")
    loss.backward()  # type: ignore[no-untyped-call]
