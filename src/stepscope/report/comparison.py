"""The comparison with SGD: sharpness as a ratio to SGD's, by trajectory, step and direction, over seeds."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.runs import Record, number

BASELINE = "sgd"
"""The direction that the others are compared with."""

Point = tuple[str, int | float, Any]
"""Trajectory, step, seed."""


def family(direction: str) -> str:
    """What a direction is a variant of: its name up to the word "clip".

    Example:
        >>> family("adam clip 50% (update)"), family("muon")
        ('adam', 'muon')
    """
    return re.split(r"\s+clip\b", direction, maxsplit=1)[0]


def directions_of(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """The names of the directions, in the order in which they were first measured."""
    return list(dict.fromkeys(str(record.get("direction")) for record in records))


def trajectories_of(records: Iterable[Record]) -> list[str]:
    """The names of the trajectories, in the order in which they were first measured."""
    return list(dict.fromkeys(str(record.get("trajectory")) for record in records))


def points_of(records: Iterable[Record]) -> dict[Point, dict[str, Record]]:
    """Records by point of the run, then by direction; of two measurements of the same, the later counts."""
    points: dict[Point, dict[str, Record]] = {}
    for record in records:
        if number(record, "step") is not None:
            point = (str(record.get("trajectory")), record["step"], record.get("seed"))
            points.setdefault(point, {})[str(record.get("direction"))] = record
    return points


def is_own(record: Record) -> bool:
    """Whether a record is of the update that the training optimizer itself was about to make, as a probe measures it.

    Example:
        >>> [is_own({"direction": name}) for name in ("own AdamW", "own AdamW clip 50%", "sgd")]
        [True, False, False]
    """
    direction = str(record.get("direction"))
    return direction.startswith("own ") and family(direction) == direction


def baseline_scale(records: Iterable[Record]) -> tuple[float | None, str]:
    """What sharpnesses are divided by: |SGD's|, or SGD's robust value where its sharpness is negative.

    Args:
        records: the records of one trajectory, step and seed.

    Returns:
        The positive divisor, or None if SGD has none; and how it came about: `"sharpness"`, `"robust"` (SGD's
        is negative, and `uᵀ∇²f(x + εu)u`, the paper's eq. 4, stands in), `"negative"` (there is no such
        value, so it is |SGD's| itself), `"none"`.

    Example:
        >>> baseline_scale([{"direction": "sgd", "sharpness": -2.0, "sharpness_robust": 8.0}])
        (8.0, 'robust')
    """
    baseline = next((record for record in records if record.get("direction") == BASELINE), None)
    sharpness = number(baseline, "sharpness") if baseline else None
    if baseline is None or not sharpness:
        return None, "none"
    if sharpness > 0:
        return sharpness, "sharpness"
    robust = number(baseline, "sharpness_robust")
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
    """

    step: int | float
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


def sharpness_rows(records: Sequence[Record], trajectory: str, seed: int | None = None) -> list[Row]:
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
        >>> rows = sharpness_rows(
        ...     [{**at, "direction": "sgd", "sharpness": 8.0}, {**at, "direction": "adam", "sharpness": -2.0}], "sgd"
        ... )
        >>> [(row.direction, row.sharpness) for row in rows]
        [('sgd', 1.0), ('adam', -0.25)]
    """
    chosen = [record for record in records if str(record.get("trajectory")) == trajectory]
    points = {point: found for point, found in points_of(chosen).items() if seed is None or point[2] == seed}
    rows = []
    for step in sorted({point[1] for point in points}):
        seeds = [found for point, found in points.items() if point[1] == step]
        names = [name for name in directions_of(chosen) if any(name in found for found in seeds)]
        rows += [_row(step, name, seeds) for name in names]
    return rows


def _row(step: int | float, direction: str, seeds: Sequence[dict[str, Record]]) -> Row:
    scales = [baseline_scale(found.values()) for found in seeds]
    relative = any(scale is not None for scale, _ in scales)
    ratios = []
    for found, (scale, _) in zip(seeds, scales, strict=True):
        sharpness = number(found.get(direction, {}), "sharpness")
        # Seeds without a divisor are left out of a mean of ratios: they have another unit.
        if sharpness is not None and (scale is not None or not relative):
            ratios.append(sharpness / (scale or 1.0))
    origins = {origin for _, origin in scales}
    origin = next(name for name in ("robust", "negative", "sharpness", "none") if name in origins)

    def values(name: str) -> list[float]:
        found_values = (number(found.get(direction, {}), name) for found in seeds)
        return [value for value in found_values if value is not None]

    decreases = values("best_decrease")
    return Row(
        step, direction, len(ratios), _mean(ratios), _spread(ratios), relative, origin,
        _mean(values("correlation")), _mean(values("best_step")), _mean(decreases), _spread(decreases),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None
