"""What a method for ``uᵀHu`` is given, and what it gives: any function of the form `CurvatureMethod`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from stepscope.measuring.slopes import SlopeCheck
from stepscope.objective import Direction, Objective, UnitDirection


class Observer(Protocol):
    """Sees each product ``Hu`` that a method computes on the way."""

    def __call__(self, label: str, weight: float, vector: Direction, product: Direction) -> None:
        """A product of a micro-batch ``b``: ``weight · vectorᵀproduct`` are the parts that ``uᵀHu`` is the sum of.

        Args:
            label: of the direction.
            weight: that of the micro-batch in the pooled loss, over the squared length of `vector`.
            vector: `UnitDirection.vector`.
            product: ``H_b · vector``.
        """

    def clear(self) -> None:
        """Forgets all products: the method failed, and another begins."""


@dataclass
class Curvature:
    """The loss to second order at one point, along several directions.

    Attributes:
        method: the method that was used.
        loss: ``f(x)``.
        gradient: ``∇f(x)``, without the parameters that the loss doesn't use.
        sharpness: for each direction, ``uᵀH_b u`` of each micro-batch ``b`` (loss units per squared unit of length).
        numerical_error: an error bar of the pooled ``uᵀHu`` of each direction. Empty where the method is exact up to
            rounding.
        slope_checks: for each direction, whether the gradient is that of the loss. Empty where the method evaluates no
            losses beside the point.
        reason: why this method was used.
    """

    method: str
    loss: float = 0.0
    gradient: Direction = field(default_factory=dict)
    sharpness: dict[str, list[float]] = field(default_factory=dict)
    numerical_error: dict[str, float] = field(default_factory=dict)
    slope_checks: dict[str, SlopeCheck] = field(default_factory=dict)
    reason: str = "asked for"


class CurvatureMethod(Protocol):
    """A way to compute ``uᵀHu``."""

    def __call__(
        self, objective: Objective, units: Mapping[str, UnitDirection], observe: Observer | None = None
    ) -> Curvature:
        """The loss, its gradient and ``uᵀHu`` at the present parameters.

        Args:
            objective: the loss.
            units: the directions.
            observe: called with the products ``Hu``.
        """
