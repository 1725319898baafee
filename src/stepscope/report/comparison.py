"""The comparison with SGD: sharpness as a ratio to SGD's, by trajectory, step and direction, over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from stepscope.runs import DirectionRecord, StepRecord

BASELINE = "sgd"
"""The direction that the others are compared with."""

NO_DESCENT = "no descent"
"""The status of a landscape along which the loss falls nowhere."""

Point = tuple[str, int, int]
"""Trajectory, step, seed."""


def directions_of(records: Iterable[DirectionRecord]) -> list[str]:
    """The names of the directions, in the order in which they were first measured."""
    return list(dict.fromkeys(record.direction for record in records))


def trajectories_of(records: Iterable[DirectionRecord | StepRecord]) -> list[str]:
    """The names of the trajectories, in the order in which they were first measured."""
    return list(dict.fromkeys(record.trajectory for record in records))


def points_of(records: Iterable[DirectionRecord]) -> dict[Point, dict[str, DirectionRecord]]:
    """Records by point of the run, then by direction; of two measurements of the same, the later counts."""
    points: dict[Point, dict[str, DirectionRecord]] = {}
    for record in records:
        points.setdefault((record.trajectory, record.step, record.seed), {})[record.direction] = record
    return points


def baseline_scale(records: Iterable[DirectionRecord]) -> tuple[float | None, str]:
    """What sharpnesses are divided by: |SGD's|, or SGD's robust value where its sharpness is negative.

    Args:
        records: the records of one trajectory, step and seed.

    Returns:
        The positive divisor, or None if SGD has none; and how it came about: `"sharpness"`, `"robust"` (SGD's
        is negative, and `uᵀ∇²f(x + εu)u`, the paper's eq. 4, stands in), `"negative"` (there is no such
        value, so it is |SGD's| itself), `"none"`.

    Example:
        >>> place = {"trajectory": "sgd", "seed": 0, "step": 1, "direction": "sgd"}
        >>> baseline_scale([DirectionRecord(**place, sharpness=-2.0, sharpness_robust=8.0)])
        (8.0, 'robust')
    """
    baseline = next((record for record in records if record.direction == BASELINE), None)
    sharpness = baseline.sharpness if baseline else None
    if baseline is None or not sharpness:
        return None, "none"
    if sharpness > 0:
        return sharpness, "sharpness"
    robust = baseline.sharpness_robust
    return (abs(robust), "robust") if robust else (-sharpness, "negative")


@dataclass(frozen=True)
class Row:
    """One direction at one step of one trajectory; means over seeds, None where nothing was measured.

    Attributes:
        step: the training step.
        direction: the direction's name.
        seeds: how many seeds the sharpness is a mean over.
        sharpness: `uᵀHu`, divided by |SGD's| if `relative`; sign kept.
        sharpness_spread: standard deviation over seeds; None for one seed.
        relative: whether the sharpness is a ratio.
        baseline: what it was divided by; see [`baseline_scale`]. `"robust"` are the steps that the
            paper marks (its eq. 4); with several seeds, if it holds for one of them.
        correlation: `gᵀd / (‖g‖‖d‖)`; negative if the direction descends.
        best_step: the step length of the first minimum along the unit direction.
        best_decrease: how far the loss falls there.
        best_decrease_spread: standard deviation over seeds; None for one seed.
        no_descent: whether the loss was found to fall nowhere along the direction, with any seed.
    """

    step: int
    direction: str
    seeds: int
    sharpness: float | None
    sharpness_spread: float | None
    relative: bool
    baseline: str
    correlation: float | None
    best_step: float | None
    best_decrease: float | None
    best_decrease_spread: float | None
    no_descent: bool


def sharpness_rows(records: Sequence[DirectionRecord], trajectory: str, seed: int | None = None) -> list[Row]:
    """Directional sharpness as a ratio to |SGD's|, with what goes with it, for each step and direction.

    Where SGD's own sharpness is negative, its robust sharpness (the paper's eq. 4) is the divisor and the rows are
    marked. Signs are those that were measured: SGD's own ratio is then negative. Without SGD, sharpness is absolute.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.
        seed: one seed; None takes the mean over all.

    Returns:
        Rows by step, then in the order in which directions were first measured.

    Example:
        >>> at = {"trajectory": "sgd", "seed": 0, "step": 20}
        >>> sharpness = {"sgd": 8.0, "adam": -2.0}
        >>> records = [DirectionRecord(**at, direction=d, sharpness=s) for d, s in sharpness.items()]
        >>> rows = sharpness_rows(records, "sgd")
        >>> [(row.direction, row.sharpness) for row in rows]
        [('sgd', 1.0), ('adam', -0.25)]
    """
    chosen = [record for record in records if record.trajectory == trajectory]
    points = {point: there for point, there in points_of(chosen).items() if seed is None or point[2] == seed}
    rows = []
    for step in sorted({point[1] for point in points}):
        seeds = [there for point, there in points.items() if point[1] == step]
        names = [name for name in directions_of(chosen) if any(name in there for there in seeds)]
        rows += [_row(step, name, seeds) for name in names]
    return rows


def _row(step: int, direction: str, seeds: Sequence[dict[str, DirectionRecord]]) -> Row:
    scales = [baseline_scale(there.values()) for there in seeds]
    relative = any(scale is not None for scale, _ in scales)
    ratios = []
    for there, (scale, _) in zip(seeds, scales, strict=True):
        sharpness = there[direction].sharpness if direction in there else None
        # Seeds without a divisor are left out of a mean of ratios: they have another unit.
        if sharpness is not None and (scale is not None or not relative):
            ratios.append(sharpness / (scale or 1.0))
    origins = {origin for _, origin in scales}
    origin = next(name for name in ("robust", "negative", "sharpness", "none") if name in origins)

    def values(name: str) -> list[float]:
        measured = (getattr(there[direction], name) for there in seeds if direction in there)
        return [value for value in measured if value is not None]

    decreases = values("best_decrease")
    found = [there[direction].landscape for there in seeds if direction in there]
    return Row(
        step, direction, len(ratios), _mean(ratios), _spread(ratios), relative, origin,
        _mean(values("correlation")), _mean(values("best_step")), _mean(decreases), _spread(decreases),
        all(landscape is not None and landscape.status == NO_DESCENT for landscape in found),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
