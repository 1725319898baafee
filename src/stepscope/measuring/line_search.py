"""The first minimum of a function of one variable, from its slope and curvature at 0 and few evaluations.

Polynomials through the derivatives at 0 and the points that were evaluated say where to evaluate next. The search ends
when the minimum lies between larger values, a polynomial foretold the lowest value, and none promises 0.4% more.
Where polynomials fail, at kinks and walls, golden sections keep it going. The tolerances were chosen on the landscapes
that `docs/reproduction` stores and on 136 directions of two small tasks (`benchmarks/line_search.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["bracketed", "no descent", "unbounded"]
Bracket = tuple[float, float, float]
"""``low < best < high``: the lowest value lies at `best`; `high` is infinite where nothing was evaluated beyond it."""

MAX_EVALUATIONS = 60
MAX_SHRINKINGS = 16
MAX_GROWTH = 4.0
PROMISE = 0.004
"""The search ends where no polynomial promises more than this part of the decrease."""
FORETOLD = 0.01
"""A value was foretold if the error of the polynomial was at most this part of the decrease."""
NARROW = 0.08
"""The search ends at this width of the bracket, in units of the best step, whatever polynomials say."""
APART = 0.1
"""Points nearer to one another than this part of the bracket count as one: their difference is noise."""
GOLDEN = (3 - math.sqrt(5)) / 2
FIGURE = (0.5, 2.0)
"""Multiples of the best step that a figure needs a point near."""


class Line:
    """A function of ``t ≥ 0``, with what is known of it.

    Args:
        function: the function; a value that isn't finite counts as infinite.
        start: its value at 0.
        slope: its derivative at 0.
        sharpness: its second derivative at 0.
        noise: a smaller decrease may be rounding.

    Attributes:
        values: ``{t: value}`` where it was evaluated, 0 included.
        errors: ``{t: error}`` of the polynomial that foretold that value.
    """

    def __init__(
        self, function: Callable[[float], float], start: float, slope: float, sharpness: float, noise: float
    ) -> None:
        self._function = function
        self.values = {0.0: start}
        self.errors: dict[float, float] = {}
        self.start, self.slope, self.sharpness, self.noise = start, slope, sharpness, noise

    def __call__(self, t: float, models: Sequence[Polynomial] = ()) -> float:
        """The value at ``t``, evaluated once.

        Args:
            t: where.
            models: what foretells the value; by default, the derivatives at 0.
        """
        if t not in self.values:
            value = self._function(t)
            self.values[t] = value if math.isfinite(value) else math.inf
            taylor = Polynomial.through([], (self.start, self.slope, self.sharpness / 2))
            self.errors[t] = min(abs(model(t) - self.values[t]) for model in models or [taylor])
        return self.values[t]

    def bracket(self) -> Bracket | None:
        """Around the lowest known point up to twice its ``t``, the first of such; ``None`` where none descends."""
        steps = sorted(self.values)
        losses = [self.values[t] for t in steps]
        falls = [i for i, loss in enumerate(losses) if loss < self.start - self.noise]
        minima = [i for i in falls if i + 1 == len(steps) or losses[i] <= losses[i + 1]]
        if not minima:
            return None
        place = minima[0]
        while (lower := min(range(len(steps)), key=lambda i: (steps[i] > 2 * steps[place], losses[i]))) != place:
            place = lower
        return steps[place - 1], steps[place], steps[place + 1] if place + 1 < len(steps) else math.inf

    def models(self, bracket: Bracket) -> list[tuple[float, Polynomial]]:
        """The two polynomials that know most of the function within a bracket, each with where its minimum lies.

        Where the derivatives at 0 still say something, one of the two has them. A polynomial without a minimum within
        the bracket gives way to one of lower order.
        """
        low, best, high = bracket
        end = high if math.isfinite(high) else best
        points: list[tuple[float, float]] = []
        for point in sorted(self.values.items(), key=lambda point: abs(point[0] - best)):
            if math.isfinite(point[1]) and all(abs(point[0] - other) >= APART * (end - low) for other, _ in points):
                points.append(point)
        without = [Polynomial.through(points[:count]) for count in range(min(4, len(points)), 2, -1)]
        kinds = [[polynomial] for polynomial in without]
        if self.slope < 0 and (low == 0 or self.sharpness * best < -4 * self.slope):
            derivatives = (self.start, self.slope, self.sharpness / 2)
            beyond = [(t, value) for t, value in points if t >= APART * end][:3]
            kinds = [[Polynomial.through(beyond[:n], derivatives) for n in range(len(beyond), -1, -1)], without]
        minima = [
            [(t, p) for p in kind if (t := p.minimum(low, min(high, MAX_GROWTH * best))) is not None] for kind in kinds
        ]
        return [kind[0] for kind in minima if kind]


@dataclass(frozen=True)
class Polynomial:
    """A polynomial in Newton's form: ``c₀ + c₁(t − t₀) + c₂(t − t₀)(t − t₁) + …``."""

    nodes: tuple[float, ...]
    coefficients: tuple[float, ...]

    @classmethod
    def through(cls, points: Sequence[tuple[float, float]], taylor: Sequence[float] = ()) -> Polynomial:
        """The polynomial through some points that has given Taylor coefficients at 0.

        Args:
            points: ``(t, value)``, at distinct ``t``; none at 0 where `taylor` is given.
            taylor: value, first derivative, half the second derivative, and so on.

        Example:
            >>> Polynomial.through([(2.0, 8.0)], taylor=(0.0, 0.0, 0.0))(3.0)  # t³
            27.0
        """
        nodes = [0.0] * len(taylor) + [t for t, _ in points]
        column = [*taylor[:1]] * len(taylor) + [value for _, value in points]
        coefficients = column[:1]
        for order in range(1, len(nodes)):
            column = [
                taylor[order]
                if nodes[i + order] == nodes[i]
                else (column[i + 1] - column[i]) / (nodes[i + order] - nodes[i])
                for i in range(len(column) - 1)
            ]
            coefficients.append(column[0])
        return cls(tuple(nodes), tuple(coefficients))

    def __call__(self, t: float) -> float:
        """Its value."""
        value = 0.0
        for node, coefficient in zip(reversed(self.nodes), reversed(self.coefficients), strict=True):
            value = value * (t - node) + coefficient
        return value

    def root(self, low: float, high: float) -> float | None:
        """Its first root between two positive points; ``None`` where it has none.

        Example:
            >>> round(Polynomial.through([(1.0, -1.0), (3.0, 3.0)]).root(1.0, 3.0), 12)
            1.5
        """
        grid = [low * (high / low) ** (i / 64) for i in range(64)] + [high]
        for start, end in itertools.pairwise(grid):
            if self(start) * self(end) <= 0:
                return _bisection(self, start, end)
        return None

    def minimum(self, low: float, high: float) -> float | None:
        """Its first local minimum strictly between two points; ``None`` where it has none."""
        grid = [low + (high - low) * i / 64 for i in range(65)]
        values = [self(t) for t in grid]
        for i in range(1, 64):
            if values[i] < values[i - 1] and values[i] <= values[i + 1]:
                return _golden_section(self, grid[i - 1], grid[i], grid[i + 1])
        return None


def search(line: Line, first: float) -> tuple[Status, float]:
    """Looks for the first minimum of a function, and evaluates it beside the minimum too, for figures.

    Args:
        line: the function; what it knows already is used.
        first: where to evaluate it first.

    Returns:
        What was met, and where the lowest value lies (0 where nothing descends). No known point up to twice as far is
        lower.
    """
    line(first)
    status, best = _descend(line)
    if status == "no descent":
        _evaluate_beside(line, first)
    # A point beside the minimum may be lower still.
    while status == "bracketed" and _evaluate_beside(line, best):
        status, best = _descend(line)
    return status, best


def _evaluate_beside(line: Line, best: float) -> bool:
    """Whether points that a figure needs were missing; they are evaluated."""
    others = [t for t in line.values if t != best]
    missing = [t for t in (f * best for f in FIGURE) if not any(0.6 * t <= other <= 1.6 * t for other in others)]
    for t in missing:
        line(t)
    return bool(missing)


def _descend(line: Line) -> tuple[Status, float]:
    """Evaluates until the minimum is bracketed and met."""
    for count in range(MAX_EVALUATIONS):
        bracket = line.bracket()
        if bracket is None:
            nearer = _nearer(line) if count < MAX_SHRINKINGS else None
            if nearer is None:
                return "no descent", 0.0
            line(nearer)
            continue
        low, best, high = bracket
        models = line.models(bracket)
        met = _is_met(line, best, [polynomial(t) for t, polynomial in models])
        if math.isinf(high):
            t = _beyond(best, models, met)
        elif met or high - low <= NARROW * best:
            return "bracketed", best
        else:
            t = _apart(models[0][0], bracket) if models else _golden_point(bracket)
        line(t, [polynomial for _, polynomial in models])
    return ("bracketed" if math.isfinite(high) else "unbounded"), best


def _is_met(line: Line, best: float, minima: Sequence[float]) -> bool:
    """Whether `best` was foretold, it or what was evaluated last, and two polynomials promise little more."""
    decrease = line.start - line(best)
    last = next(reversed(line.values))
    error = min(line.errors[best], line.errors[last])
    return (
        len(minima) == 2
        and line(best) - min(minima) <= max(PROMISE * decrease, line.noise / 4)
        and error <= max(FORETOLD * decrease, line.noise / 4)
    )


def _beyond(best: float, models: Sequence[tuple[float, Polynomial]], met: bool) -> float:
    """Where the minimum may lie, or what is needed to bracket it; farther where nothing foretells one."""
    if not models:
        return 3 * best
    ahead, _ = models[0]
    return 2 * best if met or ahead < 1.3 * best else ahead


def _apart(t: float, bracket: Bracket) -> float:
    """A point within a bracket, moved into its wider side where it would tell no more than the lowest point does."""
    low, best, high = bracket
    if abs(t - best) >= 0.05 * best:
        return t
    wider = high - best if high - best > best - low else low - best
    return best + math.copysign(min(APART * best, abs(wider) / 2), wider)


def _nearer(line: Line) -> float | None:
    """Where the function may descend though it doesn't where it was evaluated; ``None`` where it can't."""
    rises = [t for t in line.values if t > 0 and -line.slope * t > 4 * line.noise]
    # Elsewhere the function falls by less than noise even at a constant slope.
    if not rises:
        return None
    rise = min(rises)
    models = line.models((0.0, rise, rise))
    return min(max(models[0][0], rise / 16), rise / 2) if models else rise / 4


def _bisection(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that costs nothing changes its sign, to the last digit."""
    rises = function(high) > 0 or function(low) < 0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (low, middle) if (function(middle) > 0) == rises else (middle, high)
    return (low + high) / 2


def _golden_section(function: Callable[[float], float], low: float, best: float, high: float) -> float:
    """The minimum within a bracket of a function that costs nothing."""
    for _ in range(24):
        t = _golden_point((low, best, high))
        if function(t) < function(best):
            low, best, high = (best, t, high) if t > best else (low, t, best)
        else:
            low, high = (low, t) if t > best else (t, high)
    return best


def _golden_point(bracket: Bracket) -> float:
    low, best, high = bracket
    return best + GOLDEN * (high - best) if high - best > best - low else best - GOLDEN * (best - low)
