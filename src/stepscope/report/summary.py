"""The sentence that sums a run up, computed from its records."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from stepscope.report.comparison import BASELINE, points_of
from stepscope.runs import DirectionRecord, family
from stepscope.shown import printable


def summary_sentence(records: Sequence[DirectionRecord]) -> str:
    """One sentence that says what these records show, and nothing that they don't.

    Args:
        records: all records of a run.

    Returns:
        At how many points SGD's sharpness is the largest among unclipped directions, by what median factor Adam's
        is lower, and which direction had the best local decrease most often. All as far as they were measured.
    """
    if not records:
        return "Nothing has been measured yet."
    said = [clause for clause_of in CLAUSES if (clause := clause_of(records))]
    joined = said[0] if len(said) == 1 else ", ".join(said[:-1]) + f", and {said[-1]}"
    seeds = len({record.seed for record in records})
    return ("With one seed, " if seeds == 1 else f"Over {seeds} seeds, ") + joined + "."


def _sharpness(at_point: Mapping[str, DirectionRecord], direction: str) -> float | None:
    return at_point[direction].sharpness if direction in at_point else None


def _share(count: int, total: int) -> str:
    """So many of several points, in words."""
    if count == total:
        return f"at all {total}"
    return f"at {count} of {total}" if count else f"at none of the {total}"


def _sharpest(records: Sequence[DirectionRecord]) -> str:
    """Whether SGD's direction is the sharpest; where that wasn't measured, how much was."""
    points = points_of(records)
    seeds = len({seed for _, _, seed in points})
    counted = "(trajectory and step)" if seeds == 1 else "(trajectory, step and seed)"
    compared, largest = 0, 0
    for at_point in points.values():
        others = [
            sharpness
            for name, record in at_point.items()
            if name != BASELINE and family(name) == name and (sharpness := record.sharpness) is not None
        ]
        own = _sharpness(at_point, BASELINE)
        if own is not None and others:
            compared += 1
            largest += own > max(others)
    if not compared:
        names = {name for at_point in points.values() for name in at_point}
        directions = "1 direction was" if len(names) == 1 else f"{len(names)} directions were"
        return f"{directions} measured at {len(points)} point{'s' * (len(points) > 1)} {counted}"
    largest_of = "the largest directional sharpness of all unclipped directions"
    where = "" if compared == len(points) else " where it was compared"
    if compared == 1:
        return f"SGD {'had' if largest else 'did not have'} {largest_of} at the only measured point{where} {counted}"
    return f"SGD had {largest_of} {_share(largest, compared)} measured points{where} {counted}"


def _adam(records: Sequence[DirectionRecord]) -> str:
    """By what factor Adam's sharpness is lower than SGD's."""
    factors = []
    both = 0
    for at_point in points_of(records).values():
        sgd, adam = _sharpness(at_point, BASELINE), _sharpness(at_point, "adam")
        if sgd is not None and adam is not None:
            both += 1
            if sgd > 0 and adam > 0:
                factors.append(sgd / adam)
    if not factors:
        return ""
    factor = statistics.median(factors)
    where = "" if len(factors) == both else f" over the {len(factors)} of {both} points where both were positive"
    by = "a factor" if len(factors) == 1 else "a median factor"
    if factor == 1:
        return f"Adam's was as large as SGD's{where}"
    return (
        f"Adam's was {'lower' if factor > 1 else 'higher'} than SGD's by {by} of {max(factor, 1 / factor):.3g}{where}"
    )


def _decrease(records: Sequence[DirectionRecord]) -> str:
    """Which direction had the best local decrease most often."""
    wins: dict[str, int] = {}
    compared = 0
    for at_point in points_of(records).values():
        decreases = {
            name: decrease for name, record in at_point.items() if (decrease := record.best_decrease) is not None
        }
        if len(decreases) > 1:
            compared += 1
            best = max(decreases.values())
            for name, decrease in decreases.items():
                if decrease == best and best > 0:
                    wins[name] = wins.get(name, 0) + 1
    if not compared:
        return ""
    if not wins:
        return "no direction lowered the loss"
    most = max(wins.values())
    winners = [printable(name) for name, count in wins.items() if count == most]
    named = winners[0] if len(winners) == 1 else ", ".join(winners[:-1]) + f" and {winners[-1]}"
    if compared == 1:
        return f"{named} had the best local decrease"
    if len(winners) > 1:
        return f"{named} had the best local decrease equally often (at {most} of {compared} points each)"
    if most == compared:
        return f"{named} had the best local decrease at all {compared} points"
    return f"{named} had the best local decrease most often ({_share(most, compared)} points)"


CLAUSES: tuple[Callable[[Sequence[DirectionRecord]], str], ...] = (_sharpest, _adam, _decrease)
"""What the sentence says, in this order: each a function of all records that gives a clause, empty for nothing."""
