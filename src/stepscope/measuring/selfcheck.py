"""Whether a model can be measured at all: three checks on the user's own model, at its present parameters."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from stepscope.errors import UsageError
from stepscope.measuring.curvature import Method, curvature
from stepscope.measuring.gradient_differences import difference
from stepscope.objective import Direction, Objective, UnitDirection, dtensors, vectors

ANOTHER_GRADIENT = (
    "the gradient isn't that of the loss (a straight-through estimator, a stop-gradient, a gradient reversal, a custom "
    "autograd function); slope and sharpness are those of the gradient, landscapes and decreases those of the loss"
)

Verdict = Literal["agrees", "kinked", "disagrees", "not compared"]


@dataclass(frozen=True)
class SelfCheck:
    """The results of the three checks.

    Attributes:
        loss: ``f(x)``.
        repeatable: two evaluations of the loss agree up to rounding.
        loss_difference: the difference of these evaluations.
        second_derivative: ``uᵀHu`` by double backward against differences of gradients, ``u`` along the gradient.
            ``"agrees"``: within the error bar. ``"kinked"``: the error bar is over a tenth of the value, so the loss
            has kinks (or noise) on the scale of the step: use ``sharpness_finite``. ``"disagrees"``: the differences
            agree with one another and not with double backward, which is then wrong. ``"not compared"``: the model
            has no double backward, or a wrong one.
        by_autograd: ``uᵀHu`` by double backward; ``None`` without it.
        by_difference: ``uᵀHu`` by differences.
        numerical_error: error bar of `by_difference`.
        symmetric: ``aᵀHb = bᵀHa`` up to rounding, for the gradient and a random direction; ``None`` without double
            backward.
        gradient_agrees: whether the gradient is that of the loss, by differences of losses along it.
        method: the method to measure with.
        seconds_loss: time of one evaluation of the loss.
        seconds_gradient: time of one gradient.
        suspicions: sentences that say what is wrong and what it means; empty if all is well.
    """

    loss: float
    repeatable: bool
    loss_difference: float
    second_derivative: Verdict
    by_autograd: float | None
    by_difference: float
    numerical_error: float
    symmetric: bool | None
    gradient_agrees: bool
    method: Method
    seconds_loss: float
    seconds_gradient: float
    suspicions: tuple[str, ...]


def self_check(objective: Objective) -> SelfCheck:
    """Checks an objective at the model's present parameters, which costs about 20 forward passes; leaves no trace.

    Args:
        objective: the loss.

    Raises:
        UsageError: the loss isn't scalar or finite.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> check = self_check(Objective(model, lambda m, x: m(x).square().mean(), [torch.ones(3, 2)]))
        >>> check.second_derivative, check.suspicions
        ('agrees', ())
    """
    suspicions: list[str] = []
    with objective.measuring():
        started = time.perf_counter()
        first = objective.loss()
        seconds_loss = time.perf_counter() - started
        started = time.perf_counter()
        differentiated, gradient = objective.gradient()
        seconds_gradient = time.perf_counter() - started
        again = objective.loss_beside(differentiated)
        loss_difference = min(abs(again - first), abs(again - differentiated))
        eps = max(torch.finfo(p.dtype).eps for p in objective.parameters.values())
        repeatable = loss_difference <= 64 * eps * abs(first)
        if not repeatable:
            suspicions.append(
                f"two evaluations of the same loss differ by {loss_difference:.3g}: it draws random numbers that "
                "torch.manual_seed doesn't reach, or keeps state from call to call"
            )
        along = _random_direction(objective, 1) if vectors.norm(gradient) == 0 else gradient
        directions = {"a": along, "b": _random_direction(objective, 2)}
        units = {label: UnitDirection.of(d, objective.parameters) for label, d in directions.items()}
        exact, asymmetry = _by_autograd(objective, units)
        finite = difference(objective, {"a": units["a"]})
        by_difference, error_bar = objective.mean(finite.sharpness["a"]), finite.numerical_error["a"]
    verdict = _verdict(exact, by_difference, error_bar)
    slopes = finite.slope_checks["a"]
    if not slopes.agrees:
        suspicions.append(
            f"along its gradient the loss changes by {slopes.by_losses:.4g} a unit of length, and the gradient says "
            f"{slopes.by_gradients:.4g}: {ANOTHER_GRADIENT}"
        )
    elif verdict == "disagrees":
        suspicions.append(
            f"double backward gives uᵀHu = {exact:.4g}, differences of gradients {by_difference:.4g} "
            f"± {error_bar:.2g}: an operation of the model has a wrong second derivative, so differences are used"
        )
    symmetric = None if asymmetry is None else asymmetry <= 1e-3
    if symmetric is False and verdict != "disagrees" and slopes.agrees:
        verdict = "disagrees"
        suspicions.append("aᵀHb and bᵀHa differ: an operation has a wrong second derivative, so differences are used")
    return SelfCheck(
        loss=first,
        repeatable=repeatable,
        loss_difference=loss_difference,
        second_derivative=verdict,
        by_autograd=exact,
        by_difference=by_difference,
        numerical_error=error_bar,
        symmetric=symmetric,
        gradient_agrees=slopes.agrees,
        method="difference" if verdict in ("disagrees", "not compared") else "autograd",
        seconds_loss=seconds_loss,
        seconds_gradient=seconds_gradient,
        suspicions=tuple(suspicions),
    )


def _verdict(exact: float | None, finite: float, error_bar: float) -> Verdict:
    if exact is None:
        return "not compared"
    if error_bar > 0.1 * max(abs(exact), abs(finite)) or (error_bar > abs(finite) and error_bar > 1e-3 * abs(exact)):
        return "kinked"
    return "agrees" if abs(exact - finite) <= 2 * error_bar else "disagrees"


class _Crossed:
    """Collects ``aᵀHb`` and ``bᵀHa``, and the lengths of ``Ha`` and ``Hb``."""

    def __init__(self, units: dict[str, UnitDirection]) -> None:
        self._units = units
        self.clear()

    def __call__(self, label: str, weight: float, vector: Direction, product: Direction) -> None:
        del vector
        weight *= self._units[label].length  # of a product with the unit vector
        other = self._units["b" if label == "a" else "a"]
        self.crossed[label] += weight * vectors.dot(other.vector, product) / other.length
        self.sizes[label] += weight * vectors.norm(product)

    def clear(self) -> None:
        self.crossed, self.sizes = {"a": 0.0, "b": 0.0}, {"a": 0.0, "b": 0.0}


def _by_autograd(objective: Objective, units: dict[str, UnitDirection]) -> tuple[float | None, float | None]:
    """``aᵀHa``, and the difference of ``aᵀHb`` and ``bᵀHa`` relative to ``‖Ha‖``; ``None`` without double backward."""
    if objective.obstacle(asked=False):
        return None, None
    observer = _Crossed(units)
    try:
        terms = curvature(objective, units, "autograd", observer)
    except UsageError:  # the model has no second derivative, or a wrong one
        return None, None
    largest = max(observer.sizes.values())
    asymmetry = abs(observer.crossed["a"] - observer.crossed["b"]) / largest if largest > 0 else 0.0
    return objective.mean(terms.sharpness["a"]), asymmetry


def _random_direction(objective: Objective, seed: int) -> Direction:
    direction = {}
    for index, (name, parameter) in enumerate(objective.parameters.items()):
        # Parts of the same shape on several ranks, which may be the same part, get the same numbers.
        generator = torch.Generator().manual_seed(1000 * index + seed)
        part = torch.randn(dtensors.part(parameter).shape, generator=generator, device="cpu")
        direction[name] = dtensors.from_parts(part.to(parameter.device, parameter.dtype), parameter)
    return direction
