"""Where a loss along a step returns to its value at the start: a root, from few evaluations.

``φ(t) = (f(x + t·d) − f(x)) / t`` has the same roots as the change of the loss, none of them at 0, and its value at 0
is the slope. On a quadratic it is a straight line, so polynomials through few of its points say where to look next. A
root is looked for outward from ``t = 1``, and its bracket is closed from both sides, an evaluation a side.
"""

from __future__ import annotations

import math

from stepscope.measuring.line_search import Polynomial

WIDTH = 1 / 16
"""The ends of a bracket are to lie within this part of one another."""
MAX_GROWTH, MAX_SHRINKING = 16.0, 64.0
"""How far beyond what was evaluated a polynomial is believed."""
GROWTH = 4.0
"""How far the next multiple lies from the last where nothing foretells a root."""
BESIDE = 1 + 0.45 * WIDTH
"""How far beside a root that is foretold the loss is evaluated: the other side is next, and both close the bracket."""
MISTRUST = 1.5
"""Each time that the loss has no root where one was foretold, the next is looked for this factor farther."""
NODES = 3
"""A polynomial goes through as many points: of more, the far ones would bend it."""

Bracket = tuple[float | None, float | None]
"""The largest multiple that lowers the loss before the root, and the smallest beyond that raises it."""


class Crossing:
    """The change of a loss at multiples of a step, as far as it is known.

    Args:
        slope: ``gᵀd``; ``None`` where it isn't known.

    Attributes:
        changes: ``{t: f(x + t·d) − f(x)}``, ``t > 0``; infinite where the loss isn't finite.
        noise: of a change of this size or less the sign isn't known.
    """

    def __init__(self, slope: float | None = None) -> None:
        self.slope = slope
        self.changes: dict[float, float] = {}
        self.noise = 0.0

    def bracket(self) -> Bracket:
        """The ends between which the loss first rises above ``f(x)``, as it is met outward from 1."""
        known = sorted(t for t, change in self.changes.items() if abs(change) > self.noise)
        if not known:
            return None, None
        first = min(known, key=lambda t: abs(math.log(t)))
        if self.changes[first] < 0:
            rises = [t for t in known if t > first and self.changes[t] > 0]
            upper = rises[0] if rises else None
            return max(t for t in known if upper is None or t < upper), upper
        falls = [t for t in known if t < first and self.changes[t] < 0]
        lower = falls[-1] if falls else None
        return lower, min(t for t in known if lower is None or t > lower)

    def root(self) -> float | None:
        """The root within the bracket, interpolated; ``None`` without both ends."""
        lower, upper = self.bracket()
        if lower is None or upper is None:
            return None
        return self._foretold(lower, upper) or math.sqrt(lower * upper)

    def next(self) -> float | None:
        """The multiple to evaluate next; ``None`` where the bracket is as narrow as it gets."""
        lower, upper = self.bracket()
        if lower is not None and upper is not None:
            return self._within(lower, upper) if upper > lower * (1 + WIDTH) * (1 + 1e-9) else None
        if lower is not None:
            return self._beyond(lower)
        if upper is None:
            return GROWTH * max(self.changes)
        return None if self.slope is not None and self.slope >= 0 else self._before(upper)

    def _beyond(self, lower: float) -> float:
        """A multiple that may raise the loss, beyond the last that lowers it."""
        root = self._foretold(lower, MAX_GROWTH * lower)
        if root is None:
            return lower * (MAX_GROWTH if len(self._nodes(lower)) > 1 else GROWTH)
        failed = sum(t > 1 for t in self.changes)
        return max(root * BESIDE * MISTRUST**failed, lower * (1 + WIDTH))

    def _before(self, upper: float) -> float:
        """A multiple that may lower the loss, before the first that raises it."""
        root = self._foretold(upper / MAX_SHRINKING, upper)
        if root is None:
            return upper / GROWTH
        failed = sum(t < 1 for t in self.changes)
        return min(root / BESIDE / MISTRUST**failed, upper / (1 + WIDTH))

    def _within(self, lower: float, upper: float) -> float | None:
        """A multiple within a bracket, on the side of the root where its end is farther away.

        It closes the bracket where it can and the root lies surely before it; else it is next to the root.
        """
        root = self._foretold(lower, upper) or math.sqrt(lower * upper)
        near, far, side = (lower, upper, 1) if upper / root > root / lower else (upper, lower, -1)
        t = near * (1 + WIDTH) ** side
        if (t / root) ** side < 1 + 0.2 * WIDTH:
            t = root * BESIDE**side
        if (far / t) ** side < 1 + WIDTH / 4:
            t = math.sqrt(root * far)
        return None if any(abs(t / other - 1) < WIDTH / 8 for other in self.changes) else t

    def foretold_near(self, t: float) -> float | None:
        """What polynomials foretell of the change at a small multiple; ``None`` where too little is known."""
        nodes = self._nearest(t)
        if self.slope is not None:
            nodes = [(0.0, self.slope), *nodes[: NODES - 1]]
        return Polynomial.through(nodes)(t) * t if len(nodes) > 1 else None

    def _foretold(self, low: float, high: float) -> float | None:
        """A root of the polynomial through the points nearest to an interval, of the highest order that has one."""
        nodes = self._nodes(math.sqrt(low * high))
        for count in range(len(nodes), 1, -1):
            if (root := Polynomial.through(nodes[:count]).root(low, high)) is not None and low < root < high:
                return root
        return None

    def _nodes(self, t: float) -> list[tuple[float, float]]:
        """Points of φ, the nearest to a multiple first, and the slope where these are few."""
        nodes = self._nearest(t)
        return [*nodes, (0.0, self.slope)] if self.slope is not None and len(nodes) < NODES else nodes

    def _nearest(self, t: float) -> list[tuple[float, float]]:
        finite = [(s, change / s) for s, change in self.changes.items() if math.isfinite(change)]
        return sorted(finite, key=lambda point: abs(math.log(point[0] / t)))[:NODES]
