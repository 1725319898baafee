"""Thresholds fixed on half of the tasks, judged on the other half, all ways."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepscope.calibration.analysis import SHIPPED, Case, Errors, errors_of, with_thresholds

SHORT = (0.93, 0.95, 0.96, 0.97, 0.98, 0.99)
BENT = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
LITTLE = (0.75, 1.5, 3.0)

_MOST_ALARMS = 0.05
"""The part of the best rates that may be called wrong on the half that thresholds are fixed on."""


@dataclass(frozen=True)
class Split:
    """One way to divide the tasks.

    Attributes:
        fixed: the thresholds that did best on one half.
        errors: theirs on the other half.
        shipped: those of the rule that ships, there.
    """

    fixed: tuple[float, float, float]
    errors: Errors
    shipped: Errors


def splits(cases: Sequence[Case]) -> Iterator[Split]:
    """Each way to fix thresholds on half of the tasks and judge them on the others.

    Fixed are those that find the most rates which are ten times off, among those that call at most 5% of the best rates
    too short and at most 5% too long; the strictest ones where none does.

    Args:
        cases: of a study.
    """
    by_task: dict[str, list[Case]] = {}
    for case in cases:
        by_task.setdefault(case.record.task, []).append(case)
    grid = list(itertools.product(SHORT, BENT, LITTLE))
    counted = {
        place: {task: errors_of(found, with_thresholds(*place)) for task, found in by_task.items()} for place in grid
    }
    shipped = {task: errors_of(found, SHIPPED) for task, found in by_task.items()}
    for half in itertools.combinations(by_task, len(by_task) // 2):
        others = [task for task in by_task if task not in half]
        if half and others:
            best = max(grid, key=lambda place: _worth(_sum([counted[place][task] for task in half]), place))
            errors = _sum([counted[best][task] for task in others])
            yield Split(best, errors, _sum([shipped[task] for task in others]))


def _sum(errors: Sequence[Errors]) -> Errors:
    return functools.reduce(lambda one, two: one + two, errors)


def _worth(errors: Errors, place: tuple[float, float, float]) -> tuple[bool, float, float, float, float]:
    quiet = part(errors.best_short) <= _MOST_ALARMS and part(errors.best_long) <= _MOST_ALARMS
    found = part(errors.small_found) + part(errors.large_found)
    return quiet, found if quiet else 0.0, place[0], -place[1], -place[2]


def part(counts: tuple[int, int]) -> float:
    """So many of how many, as a part of 1; 0 of none.

    Example:
        >>> part((1, 4)), part((0, 0))
        (0.25, 0.0)
    """
    times, of = counts
    return times / of if of else 0.0
