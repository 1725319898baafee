"""The statistics of claims: from what was measured on one seed to one number.

A *point* is a step of a trajectory, as ``{direction: record}``. A *ratio* there is a direction's sharpness divided by
|SGD's|, or by SGD's robust value where its sharpness is negative (the paper's eq. 4). Statistics of several optimizers
take those that count: on each task those that the paper compares there, or all. Each raises `Unmeasured` where a number
that it needs is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from stepscope.paper.claims.verdicts import Unmeasured, needed
from stepscope.paper.records import BoundRecord, CorrelationRecord, Rank, SmoothnessRecord
from stepscope.paper.statistics import ranks, spearman
from stepscope.report import BASELINE, baseline_scale
from stepscope.runs import DirectionRecord, RecordedMagnitudes, RecordedShare, family

ADAPTIVE = ("adam", "adafactor", "lion", "signsgd")
UNCLIPPED = ("sgd", "normalized sgd", *ADAPTIVE)

ADAM_CLIPPED = "adam clip 50% (first moment)"
"""What the published code does; so is Adafactor's."""
ADAFACTOR_CLIPPED = "adafactor clip 50% (numerator)"
AHEAD_OF_SGD = (*ADAPTIVE, "sgd clip 10%", ADAM_CLIPPED, ADAFACTOR_CLIPPED)

NAMED = frozenset((*UNCLIPPED, *AHEAD_OF_SGD))
"""All that a statistic of several optimizers may take."""

TAIL = 0.001
"""The part of the coordinates that is left out at either end of the span of magnitudes."""

FEWEST = 3
"""Optimizers that a ranking needs."""

Point = Mapping[str, DirectionRecord]


@dataclass(frozen=True)
class Points:
    """What was measured on one seed.

    Attributes:
        at: the points.
        counted: the optimizers that count where a statistic is one of several.
    """

    at: Sequence[Point]
    counted: frozenset[str]

    def counting(self, names: Iterable[str]) -> tuple[str, ...]:
        """Of these names those that count."""
        return tuple(name for name in names if name in self.counted)


def largest_ratio(average: Callable[[list[float]], float]) -> Callable[[Points], float]:
    """The largest, or the median, over points of the largest ratio of an adaptive method."""
    return lambda points: average([max(own) for own in _ratios(points)])


def median_ratio(points: Points) -> float:
    """Over points and adaptive methods."""
    return median(value for own in _ratios(points) for value in own)


def lowered(variant: str) -> Callable[[Points], float]:
    """The median of a variant's sharpness divided by its original's, over the points where the latter is positive."""
    original = family(variant)

    def statistic(points: Points) -> float:
        pairs = [_values(point, (original, variant)) for point in points.at]
        ratios = [pair[variant] / pair[original] for pair in pairs if pair[original] > 0]
        return _median(ratios, f"the sharpness of {original} is positive nowhere")

    return statistic


def lowest(points: Points) -> float:
    """The share of points where Adafactor's sharpness is the lowest of the unclipped."""
    by_point = [_values(point, points.counting(UNCLIPPED)) for point in points.at]
    return fmean(all(adafactor < other for other in others) for adafactor, others in map(_adafactor, by_point))


def not_the_best(points: Points) -> float:
    """The share of descending points where another unclipped method's best decrease is larger than Adafactor's."""
    by_point = _descending(points, points.counting(UNCLIPPED))
    return fmean(any(adafactor < other for other in others) for adafactor, others in map(_adafactor, by_point))


def least_often_ahead(points: Points) -> float:
    """The share of descending points where a best decrease is larger than SGD's, for the method with the fewest."""
    names = points.counting(AHEAD_OF_SGD)
    by_point = _descending(points, (BASELINE, *names))
    return min(fmean(values[name] > values[BASELINE] for values in by_point) for name in names)


def carried(points: Points) -> float:
    """The median share of SGD's sharpness, where that is positive, that its 10% largest coordinates carry."""
    records = [point[BASELINE] for point in points.at if _values(point, [BASELINE])[BASELINE] > 0]
    shares = [
        needed((record.top or {}).get("0.1", RecordedShare()).sharpness, "sharpness of SGD's largest coordinates")
        / needed(record.sharpness, "sharpness of sgd")
        for record in records
    ]
    return _median(shares, "SGD's sharpness is positive nowhere")


def decades_spanned(points: Points) -> float:
    """The median over points of the decades that the magnitudes of SGD's coordinates span."""
    return median(decades(point[BASELINE].magnitudes if BASELINE in point else None) for point in points.at)


def decades(magnitudes: RecordedMagnitudes | None) -> float:
    """Decades between the magnitudes below and above which a thousandth of the coordinates lies each.

    Within a class of the histogram, logarithms are taken as evenly spread.

    Args:
        magnitudes: ``counts[k]`` coordinates have a ``log₁₀`` of at least ``(lowest + k) / per_decade`` and less than
            the next class's.

    Raises:
        Unmeasured: there is no such histogram, or nothing in it.

    Example:
        >>> round(decades(RecordedMagnitudes(zeros=5, lowest=-2, per_decade=4, counts=(100, 0, 100))), 9)
        0.749
    """
    if magnitudes is None or not any(magnitudes.counts) or not magnitudes.per_decade:
        raise Unmeasured("there is no histogram of SGD's magnitudes")
    counts = magnitudes.counts
    tail = TAIL * sum(counts)
    return (len(counts) - _position(counts, tail) - _position(counts[::-1], tail)) / magnitudes.per_decade


def _position(counts: Sequence[int], wanted: float) -> float:
    """How many classes hold so many coordinates, the last one in part."""
    for place, count in enumerate(counts):
        if count and count >= wanted:
            return place + wanted / count
        wanted -= count
    return float(len(counts))


def loss_difference(losses: tuple[float, float]) -> float:
    """Of a variant's final loss and its original's."""
    return losses[0] - losses[1]


def local_against_global(measured: tuple[Points, Mapping[str, float]]) -> float:
    """Spearman's ``ρ`` of each optimizer's mean rank by best decrease and its rank by final loss, lowest first."""
    points, losses = measured
    if len(losses) < FEWEST:
        raise Unmeasured(f"{len(losses)} optimizers have both, {FEWEST} are needed for a ranking")
    by_point = [ranks(list(_values(point, list(losses), "best_decrease").values())) for point in points.at]
    rho = spearman([fmean(own) for own in zip(*by_point, strict=True)], [-loss for loss in losses.values()])
    if rho != rho:
        raise Unmeasured("all optimizers are equal")
    return rho


def ratio(average: Callable[[list[float]], float]) -> Callable[[Sequence[SmoothnessRecord]], float]:
    """The median, or the least, of how many times smoother the loss is."""
    return lambda records: average([needed(r.ratio, f"ratio of {r.group} at a batch") for r in records])


def mean_rho(name: Literal["diagonal", "row_norm"]) -> Callable[[Sequence[CorrelationRecord]], float]:
    """The mean correlation of the gradient with ``"diagonal"`` or ``"row_norm"``."""

    def statistic(records: Sequence[CorrelationRecord]) -> float:
        ranks: list[Rank] = [getattr(record, name) for record in records]
        return fmean(needed(rank.rho, f"rho of the {name} at a step") for rank in ranks)

    return statistic


def violations(records: Sequence[BoundRecord]) -> float:
    """Draws in which a bound was violated; by blocks there is none for some losses."""
    bounds = [[bound for bound in (r.clipped, r.plain, r.block) if bound is not None] for r in records]
    if not all(bounds):
        raise Unmeasured("a record has no bound")
    return sum(bound.violations for own in bounds for bound in own)


def _ratios(points: Points) -> list[list[float]]:
    """The ratios of the adaptive methods at each point."""
    names = points.counting(ADAPTIVE)
    return [_ratios_at(point, names) for point in points.at]


def _ratios_at(point: Point, names: Sequence[str]) -> list[float]:
    scale, _ = baseline_scale(point.values())
    if scale is None:
        raise Unmeasured("SGD has no sharpness at a point")
    values, sgd = _values(point, names).values(), point[BASELINE]
    sharpness, robust = needed(sgd.sharpness, "sharpness of sgd"), sgd.sharpness_robust
    if sharpness > 0 or (robust is not None and robust > 0):
        return [value / scale for value in values]
    # Nothing to be a multiple of: by the ratio alone a method that is sharper than SGD could look much flatter.
    return [max(value / scale, 1.0) if value > sharpness else value / scale for value in values]


def _descending(points: Points, names: Sequence[str]) -> list[dict[str, float]]:
    """The best decreases at the points where any of these descends: where none does, none is better."""
    by_point = [_values(point, names, "best_decrease") for point in points.at]
    descending = [values for values in by_point if max(values.values()) > 0]
    if not descending:
        raise Unmeasured("no direction lowers the loss")
    return descending


def _adafactor(values: Mapping[str, float]) -> tuple[float, list[float]]:
    """Adafactor's value, and the others'."""
    return values["adafactor"], [value for name, value in values.items() if name != "adafactor"]


def _values(
    point: Point, names: Iterable[str], field: Literal["sharpness", "best_decrease"] = "sharpness"
) -> dict[str, float]:
    values = {name: getattr(point[name], field) if name in point else None for name in names}
    return {name: needed(value, f"{field} of {name}") for name, value in values.items()}


def _median(values: Sequence[float], otherwise: str) -> float:
    if not values:
        raise Unmeasured(otherwise)
    return median(values)
