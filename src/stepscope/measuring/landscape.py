"""The loss along a direction: ``t ↦ f(x + t·u)`` for ``t ≥ 0``, by a line search that finds its own scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from stepscope.objective import Direction, Objective, vectors

Status = Literal["bracketed", "no descent", "unbounded"]

MAX_DOUBLINGS = 40
MAX_QUARTERINGS = 16
# Width of the final bracket in units of the best step: a parabola's minimum is then met to 1% of its depth.
NARROW = 0.25
GOLDEN = (3 - math.sqrt(5)) / 2
# Multiples of the best step that a figure needs points near.
FIGURE_GRID = (0.25, 0.5, 0.75, 1.5, 2.0)


@dataclass(frozen=True)
class Landscape:
    """The loss along a unit direction.

    Attributes:
        steps: lengths ``t`` at which the loss was evaluated, ascending, the first 0.
        losses: ``f(x + t·u)``, the same length; ``math.inf`` where it isn't finite.
        status: ``"bracketed"``: a local minimum lies between two points with larger losses. ``"no descent"``: no
            point is below ``f(x)`` by more than rounding. ``"unbounded"``: the loss still falls at the last point.
        best_step: the ``t`` of the first minimum that the line search meets: the lowest loss up to twice that ``t``.
            There may be a lower one beyond. 0 without descent.
        best_decrease: ``f(x) − f(x + best_step·u)``, ``≥ 0``.
    """

    steps: tuple[float, ...]
    losses: tuple[float, ...]
    status: Status
    best_step: float
    best_decrease: float


def scan(
    objective: Objective, u: Direction, *, slope: float, sharpness: float, also: Sequence[float] = ()
) -> Landscape:
    """Evaluates the loss along a unit direction ``u`` until the first local minimum is bracketed, then refines it.

    Natural scales of directions differ by 10⁴ and more. So the first step comes from the second-order model, and the
    next ones double (or shrink) from there. On return the parameters are ``x`` again, bit for bit.

    Args:
        objective: the loss; it is evaluated 15 to 25 times.
        u: the unit direction.
        slope: ``∇f(x)ᵀu``.
        sharpness: ``uᵀHu``.
        also: further steps to evaluate the loss at.
    """
    with objective.measuring():
        eps = max(torch.finfo(objective.parameters[name].dtype).eps for name in u)
        scale = vectors.norm(objective.parameters) or 1.0
        line = _Line(lambda step: objective.loss_at(u, step), noise=8 * eps)
        for step in also:
            line(step)
        return _line_search(line, slope, _first_step(line.start, slope, sharpness, scale))


class _Line:
    """A function of ``t`` that remembers where it was evaluated."""

    def __init__(self, function: Callable[[float], float], noise: float) -> None:
        self._function = function
        self.values: dict[float, float] = {}
        self.start = self(0.0)
        # A smaller decrease than this may be rounding.
        self.noise = noise * abs(self.start)

    def __call__(self, step: float) -> float:
        if step not in self.values:
            value = self._function(step)
            self.values[step] = value if math.isfinite(value) else math.inf
        return self.values[step]

    def descends(self, step: float) -> bool:
        return self(step) < self.start - self.noise

    def result(self, status: Status, best: float) -> Landscape:
        steps = tuple(sorted(self.values))
        decrease = max(self.start - self(best), 0.0)
        return Landscape(steps, tuple(self.values[step] for step in steps), status, best, decrease)


def _first_step(loss: float, slope: float, sharpness: float, scale: float) -> float:
    if slope >= 0 or not math.isfinite(slope):
        return 1e-3 * scale
    # A quarter of the model's best step, or a step at which its tangent falls by a thousandth of the loss. A larger one
    # could step across the first minimum.
    if sharpness > 0:
        return min(-slope / sharpness / 4, scale)
    return min(1e-3 * abs(loss) / -slope, scale) or 1e-3 * scale


def _line_search(line: _Line, slope: float, first: float) -> Landscape:
    bracket = _bracket(line, slope, first)
    if bracket is None:
        for factor in FIGURE_GRID:
            line(factor * first)
        return line.result("no descent", 0.0)
    low, best, high = bracket
    if math.isinf(high):
        return line.result("unbounded", best)
    best = _refine(line, low, best, high)
    _fill(line, best)
    # A figure's point may show a lower minimum that the doubling stepped over.
    while (lower := min((step for step in line.values if step <= 2 * best), key=line)) != best:
        line(2 * lower)
        known = sorted(line.values)
        place = known.index(lower)
        best = _refine(line, known[place - 1], lower, known[place + 1])
        _fill(line, best)
    return line.result("bracketed", best)


def _fill(line: _Line, best: float) -> None:
    """Evaluates the points that a figure needs, where no point is near."""
    for factor in FIGURE_GRID:
        step = factor * best
        if all(abs(step - known) > 0.1 * step for known in line.values):
            line(step)


def _bracket(line: _Line, slope: float, first: float) -> tuple[float, float, float] | None:
    """``low < best < high`` with the lowest loss at `best`; infinite ``high``: unbounded; ``None``: no descent."""
    if line.descends(first):
        low, best = 0.0, first
        for _ in range(MAX_DOUBLINGS):
            if line(2 * best) >= line(best):
                return low, best, 2 * best
            low, best = best, 2 * best
        return low, best, math.inf
    high = first
    for _ in range(MAX_QUARTERINGS):
        # Even at a constant slope the loss would fall by less than rounding: no smaller step can show a descent.
        if slope * high / 4 > -line.noise:
            return None
        if line.descends(high / 4):
            return 0.0, high / 4, high
        high /= 4
    return None


def _refine(line: _Line, low: float, best: float, high: float) -> float:
    """The minimum within a bracket: golden section until it is narrow, then the vertex of a parabola."""
    while high - low > NARROW * best:
        step = best + GOLDEN * (high - best) if high - best > best - low else best - GOLDEN * (best - low)
        if line(step) < line(best):
            low, best, high = (best, step, high) if step > best else (low, step, best)
        else:
            low, high = (low, step) if step > best else (step, high)
    vertex = _vertex((low, line(low)), (best, line(best)), (high, line(high)))
    if vertex is None or not low < vertex < high or abs(vertex - best) < 1e-6 * best:
        return best
    return vertex if line(vertex) < line(best) else best


def _vertex(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float | None:
    """Where the parabola through three points has its minimum; ``None`` where it has none."""
    (x0, y0), (x1, y1), (x2, y2) = a, b, c
    if not (math.isfinite(y0) and math.isfinite(y2)):
        return None
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    bend = (right - left) / (x2 - x0)
    if bend <= 0:
        return None
    return 0.5 * (x0 + x1) - left / (2 * bend)
