"""Interval arithmetic on tensors: bounds that hold at every point of a set, not only where it was sampled.

Results are rounded to nearest, not outwards: they hold but for the rounding of float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import NamedTuple

import torch
from torch import Tensor

GELU_MINIMUM = -0.7517915246935644
"""Where ``zΦ(z)`` is least: the root of ``Φ(z) + zφ(z)``."""


class Interval(NamedTuple):
    """Numbers of which only is known that they lie between `low` and `high`, two tensors of one shape.

    Example:
        >>> a, b = Interval(torch.tensor(-1.0), torch.tensor(2.0)), Interval(torch.tensor(3.0), torch.tensor(4.0))
        >>> product = a.times(b)
        >>> float(product.low), float(product.high), float(product.magnitude())
        (-4.0, 8.0, 8.0)
    """

    low: Tensor
    high: Tensor

    def times(self, other: Interval | Tensor) -> Interval:
        """All products, of an interval or of exact numbers."""
        factors = other if isinstance(other, Interval) else (other,)
        ends = [end * factor for end in self for factor in factors]
        low, high = ends[0], ends[0]
        for end in ends[1:]:
            low, high = torch.minimum(low, end), torch.maximum(high, end)
        return hull(low, high)

    def plus(self, other: Interval) -> Interval:
        """All sums."""
        return Interval(self.low + other.low, self.high + other.high)

    def sum(self, dim: int) -> Interval:
        """All sums along a dimension."""
        return Interval(self.low.sum(dim), self.high.sum(dim))

    def at(self, *index: slice | int | EllipsisType | None) -> Interval:
        """A part of the tensors."""
        return Interval(self.low[index], self.high[index])

    def magnitude(self) -> Tensor:
        """The largest absolute value."""
        return torch.maximum(self.low.abs(), self.high.abs())


def hull(a: Tensor, b: Tensor) -> Interval:
    """The interval between two ends, in either order."""
    return Interval(torch.minimum(a, b), torch.maximum(a, b))


def image(function: Callable[[Tensor], Tensor], x: Interval, critical: Sequence[float]) -> Interval:
    """All values of a smooth function of one variable, from its values at the ends and at its critical points.

    Args:
        function: elementwise.
        x: where.
        critical: all points at which its derivative is zero.

    Example:
        >>> image(torch.cos, Interval(torch.tensor(-1.0), torch.tensor(0.5)), [0.0]).high
        tensor(1.)
    """
    low, high = hull(function(x.low), function(x.high))
    for point in critical:
        value = function(torch.full_like(low, point))
        inside = (x.low <= point) & (point <= x.high)
        low = torch.where(inside, torch.minimum(low, value), low)
        high = torch.where(inside, torch.maximum(high, value), high)
    return Interval(low, high)


def gelu(z: Interval) -> Interval:
    """``zΦ(z)``."""
    return image(torch.nn.functional.gelu, z, [GELU_MINIMUM])


def gelu_slope(z: Interval) -> Interval:
    """Its derivative ``Φ(z) + zφ(z)``, whose own is zero at ``±√2``."""
    return image(lambda t: torch.special.ndtr(t) + t * _density(t), z, [-math.sqrt(2), math.sqrt(2)])


def gelu_bend(z: Interval) -> Interval:
    """Its second derivative ``(2 − z²)φ(z)``, whose own ``(z³ − 4z)φ(z)`` is zero at 0 and ``±2``."""
    return image(lambda t: (2 - t * t) * _density(t), z, [-2.0, 0.0, 2.0])


def sigmoid(z: Interval) -> Interval:
    """``σ(z)``, which grows."""
    return image(torch.sigmoid, z, [])


def sigmoid_slope(z: Interval) -> Interval:
    """Its derivative ``σ(z)σ(−z)``, which is largest at 0."""
    return image(lambda t: torch.sigmoid(t) * torch.sigmoid(-t), z, [0.0])


def _density(t: Tensor) -> Tensor:
    return torch.exp(-t * t / 2) / math.sqrt(2 * math.pi)
