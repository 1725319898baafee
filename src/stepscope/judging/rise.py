"""How far the loss of a training came to lie above its start."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stepscope.judging.trust import terms_of
from stepscope.runs import StepRecord

_IN_A_ROW = 5
"""One batch says little: medians and least losses are those of so many measured steps in a row."""


@dataclass(frozen=True)
class Rise:
    """How far the loss of the batches came to lie above its start, the median of the first five.

    Attributes:
        highest: the largest median of five measured steps in a row, by which part of the start it lies above it.
        lasting: the same of the least loss of five in a row: a few bad batches don't make it large.
        thrown_off: the measured step that led from a finite loss to one that isn't, where none was finite after it;
            ``None`` without one.
        is_finite: whether the losses before and after all measured steps are.
    """

    highest: float = 0.0
    lasting: float = 0.0
    thrown_off: int | None = None
    is_finite: bool = True


def rise_of(records: Sequence[StepRecord]) -> Rise:
    """Holds the losses of a training's batches against the first of them.

    With the losses ``f₁, f₂, …`` of the measured steps on their own batches, before each step, and
    ``f₀ = median(f₁ … f₅)``: ``highest`` is ``max_k [median(f_k … f_k+4) − f₀] / |f₀|``, and ``lasting`` is
    ``max_k [min(f_k … f_k+4) − f₀] / f₀``; of a start at zero or below there is none.

    Args:
        records: the steps of one training, in order.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "batch_slope": -1.0, "batch_change": -0.5}
        >>> losses = [1.0] * 5 + [2.5] * 4 + [3.0]
        >>> rise_of([StepRecord(**place, step=n, batch_loss=loss) for n, loss in enumerate(losses)])
        Rise(highest=1.5, lasting=1.5, thrown_off=None, is_finite=True)
    """
    losses = [record.batch_loss or 0.0 for record in records if _is_finite(record.batch_loss)]
    rows = [losses[place : place + _IN_A_ROW] for place in range(max(1, len(losses) - _IN_A_ROW + 1))]
    start = statistics.median(rows[0]) if losses else 0.0
    above = max((statistics.median(row) - start for row in rows if row), default=0.0)
    least = max((min(row) - start for row in rows[1:]), default=0.0)
    thrown = [place for place, record in enumerate(records) if is_not_finite(record)]
    return Rise(
        highest=above / abs(start) if start else math.copysign(math.inf, above) if above else 0.0,
        lasting=max(least, 0.0) / start if start > 0 else 0.0,
        thrown_off=records[thrown[0]].step if thrown and _is_thrown_off(records[thrown[0] :]) else None,
        is_finite=not thrown,
    )


def is_not_finite(record: StepRecord) -> bool:
    """Whether the loss of a step's batch wasn't finite, before the step or after it."""
    return record.batch_slope is not None and terms_of(record) is None


def _is_thrown_off(records: Sequence[StepRecord]) -> bool:
    """Whether the first step did it, all being finite before, and it stayed so."""
    first, *later = records
    slope = first.batch_slope or 0.0
    return (
        _is_finite(first.batch_loss)
        and math.isfinite(slope)
        and slope != 0
        and not any(_is_finite(record.batch_loss) for record in later)
    )


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)
