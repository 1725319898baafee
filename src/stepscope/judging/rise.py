"""How far the loss of a training came to lie above its start, and whether it stayed finite."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stepscope.judging.trust import terms_of
from stepscope.runs import StepRecord

_IN_A_ROW = 5
"""One batch says little: medians are those of so many measured steps in a row."""

_ROSE = 2.0
"""A training is thrown off where its loss had come to so many times the first one before it wasn't finite, or a step
was to bring more than all of it: one that isn't finite all of a sudden may have met a damaged example."""


@dataclass(frozen=True)
class Rise:
    """What became of the loss of the batches, before each measured step.

    Attributes:
        highest: by which part of the start, the median of the first five, the largest median of five in a row lies
            above it.
        is_finite: whether the losses before and after all measured steps are finite.
        thrown_off: the measured step from which on the loss isn't finite, where that step itself did it, or the loss
            rose before, or a step was to bring more than all of it; ``None`` without one.
    """

    highest: float = 0.0
    is_finite: bool = True
    thrown_off: int | None = None


def rise_of(records: Sequence[StepRecord]) -> Rise:
    """Holds the losses of a training's batches against the first of them.

    With the losses ``f₁, f₂, …`` of the measured steps on their own batches, before each step, and
    ``f₀ = median(f₁ … f₅)``: ``highest`` is ``max_k [median(f_k … f_k+4) − f₀] / |f₀|``.

    Args:
        records: the steps of one training, in order.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "batch_slope": -1.0, "batch_change": -0.5}
        >>> losses = [1.0] * 5 + [2.5] * 4 + [3.0]
        >>> rise_of([StepRecord(**place, step=n, batch_loss=loss) for n, loss in enumerate(losses)])
        Rise(highest=1.5, is_finite=True, thrown_off=None)
    """
    losses = [record.batch_loss or 0.0 for record in records if _is_finite(record.batch_loss)]
    rows = [losses[place : place + _IN_A_ROW] for place in range(max(1, len(losses) - _IN_A_ROW + 1))]
    start = statistics.median(rows[0]) if losses else 0.0
    above = max((statistics.median(row) - start for row in rows if row), default=0.0)
    lost = next((place for place, record in enumerate(records) if is_not_finite(record)), None)
    return Rise(
        highest=above / abs(start) if start else math.copysign(math.inf, above) if above else 0.0,
        is_finite=lost is None,
        thrown_off=None if lost is None or not _is_thrown_off(records, lost) else records[lost].step,
    )


def is_not_finite(record: StepRecord) -> bool:
    """Whether the loss of a step's batch wasn't finite, before the step or after it."""
    return record.batch_slope is not None and terms_of(record) is None


def _is_thrown_off(records: Sequence[StepRecord], lost: int) -> bool:
    """Whether the loss wasn't finite any more from a step on, and that or those before did it."""
    before, first, later = records[:lost], records[lost], records[lost + 1 :]
    if any(_is_finite(record.batch_loss) for record in later):
        return False
    if _is_finite(first.batch_loss) and math.isfinite(first.batch_slope or 0.0) and first.batch_slope:
        return True
    known = [(record.batch_loss or 0.0, record.batch_slope) for record in before if _is_finite(record.batch_loss)]
    return any(loss > _ROSE * known[0][0] > 0 or (slope is not None and -slope > loss > 0) for loss, slope in known)


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)
