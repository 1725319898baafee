"""Directional sharpness ``uᵀHu`` by interchangeable methods.

`autograd` is exact and the reference: double backward, where one gradient graph per micro-batch serves all directions.
`difference` needs first derivatives only: central differences of gradients at two step lengths, with an error bar.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch

from stepscope.errors import UsageError
from stepscope.objective import Direction, Objective, check_objective, reached, vectors

Method = Literal["auto", "autograd", "difference"]

Coordinate = tuple[str, int]
"""One coordinate of the parameter space: the name of its tensor, and where it lies in that tensor, flattened."""

_ROWS_AT_ONCE = 16


class Observer(Protocol):
    """Sees each product ``Hu`` that is made on the way."""

    def __call__(self, label: str, share: float, u: Direction, product: Direction) -> None:
        """A product, with its share of the whole."""

    def clear(self) -> None:
        """What was seen so far is void: the method failed, and another begins."""


class _SecondDerivativeError(RuntimeError):
    """The graph of a loss has a node whose second derivative is missing or wrong."""


@dataclass(frozen=True)
class SlopeCheck:
    """Whether a gradient is that of its loss: what both say of a segment ``x ± hu``.

    A straight-through estimator, a stop-gradient, a gradient reversal give other gradients than the loss has.

    Attributes:
        by_losses: ``(f(x + hu) − f(x − hu)) / 2h``, the mean slope of the loss.
        by_gradients: ``(s(−h) + 4s(0) + s(h)) / 6`` with ``s(t) = uᵀ∇f(x + tu)``, the same by Simpson's rule.
        tolerance: by how much they may differ: by the change of ``s`` over the segment, and by rounding.
    """

    by_losses: float
    by_gradients: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than the tolerance."""
        return abs(self.by_losses - self.by_gradients) <= self.tolerance


@dataclass
class Curvature:
    """The loss to second order at one point, along several directions.

    Attributes:
        method: the method that was used.
        loss: ``f(x)``.
        gradient: ``∇f(x)``; parameters that the loss doesn't use are left out.
        sharpness: for each direction, ``uᵀH_b u`` of each micro-batch ``b`` (loss units per squared unit of length).
        numerical_error: for each direction, an error bar of the pooled ``uᵀHu``; ``None`` where only rounding is left.
        slope_checks: for each direction, whether the gradient is that of the loss; where the method evaluates losses
            beside the point.
        reason: why this method was used.
    """

    method: str
    loss: float = 0.0
    gradient: Direction = field(default_factory=dict)
    sharpness: dict[str, list[float]] = field(default_factory=dict)
    numerical_error: dict[str, float | None] = field(default_factory=dict)
    slope_checks: dict[str, SlopeCheck] = field(default_factory=dict)
    reason: str = "asked for"


def curvature(
    objective: Objective,
    units: Mapping[str, Direction],
    method: Method = "auto",
    observe: Observer | None = None,
) -> Curvature:
    """The loss, its gradient, and ``uᵀHu`` along each unit direction ``u``, at the present parameters.

    Args:
        objective: what is measured.
        units: ``{label: u}``, of length 1 and in the parameters' dtype (`vectors.UnitDirection`).
        method: ``"autograd"``, ``"difference"``, or ``"auto"``: autograd where the model has a second
            derivative that can be trusted.
        observe: called with the products that the method makes.

    Raises:
        UsageError: the method is unknown, or the model rules it out.
    """
    check_objective(objective)
    if method == "difference":
        return difference(objective, units, observe)
    if method not in ("auto", "autograd"):
        raise UsageError(f"unknown method {method!r}: choose auto, autograd or difference")
    try:
        result = autograd(objective, units, observe, trusting=method == "autograd")
    except RuntimeError as error:
        obstacle = _missing_second_derivative(error)
        if obstacle is None:
            raise
    else:
        if _is_finite(result):
            if method == "auto":
                result.reason = "double backward runs on this model"
            return result
        obstacle = "double backward gives infinite or NaN values (a root or a norm at zero)"
    if method == "autograd":
        raise UsageError(f'{obstacle}: use method="difference"')
    if observe is not None:
        observe.clear()
    result = difference(objective, units, observe)
    result.reason = obstacle
    return result


def _is_finite(found: Curvature) -> bool:
    return all(math.isfinite(value) for values in found.sharpness.values() for value in values)


def autograd(
    objective: Objective,
    units: Mapping[str, Direction],
    observe: Observer | None = None,
    *,
    trusting: bool = False,
) -> Curvature:
    """``uᵀHu`` by double backward (Pearlmutter, 1994): ``Hu`` is the derivative of ``uᵀ∇f``.

    Cost: a forward and a backward for the shared graph, then about two backwards a direction.

    Args:
        objective: what is measured.
        units: ``{label: u}``.
        observe: see `Observer`.
        trusting: whether a custom `torch.autograd.Function` in the graph is taken at its word.

    Raises:
        RuntimeError: there is no second derivative, or none to be trusted.
    """
    result = Curvature("autograd", sharpness={label: [] for label in units})
    result.numerical_error = dict.fromkeys(units)
    with objective.measuring():
        for share, loss in objective.losses():
            result.loss += share * objective.finite(loss)
            custom = _custom_function(loss)
            if custom is not None and not trusting:
                raise _SecondDerivativeError(
                    f"{custom} is a custom autograd function, which may lack a second derivative"
                )
            if custom is not None:
                result.reason = f"asked for; {custom} is a custom autograd function, taken at its word"
            gradient = objective.derivative(loss, create_graph=True)
            _accumulate(result.gradient, gradient, share)
            for label, u in units.items():
                product = _hessian_product(objective, gradient, u)
                result.sharpness[label].append(vectors.dot(u, product))
                if observe is not None:
                    observe(label, share, u, product)
            del loss, gradient  # one graph at a time
    reached(result.gradient)
    return result


def hessian_rows(objective: Objective, coordinates: Sequence[Coordinate]) -> Iterator[Direction]:
    """Rows of the Hessian, ``(eᵢᵀH)ⱼ = ∂²f / ∂xᵢ∂xⱼ``, by double backward, at the present parameters.

    Cost: about two backwards a row, and a forward and a backward for each 16 of them, of which so many are held at a
    time. The model is as it was found whenever a row is given.

    Args:
        objective: what is measured.
        coordinates: the ``i``, in any order.

    Yields:
        The row of each coordinate in turn, by parameter; a parameter that is left out has zeros there.

    Raises:
        UsageError: a coordinate isn't the model's, or the model has no second derivative that can be trusted.

    Example:
        >>> w = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(1))})
        >>> f = Objective(w, lambda m, _: (m["a"] ** 3).sum() + 5 * m["a"][1] * m["b"].sum(), [0], lambda _: 1)
        >>> [{name: part.tolist() for name, part in row.items()} for row in hessian_rows(f, [("a", 1), ("b", 0)])]
        [{'a': [0.0, 6.0], 'b': [5.0]}, {'a': [0.0, 5.0]}]
    """
    for name, index in coordinates:
        if name not in objective.parameters:
            raise UsageError(f"{name!r} is not a trainable parameter: a coordinate is (name, index)")
        if not 0 <= index < (count := objective.parameters[name].numel()):
            raise UsageError(f"{name} has {count} coordinates: there is none at {index}")
    for start in range(0, len(coordinates), _ROWS_AT_ONCE):
        yield from _some_rows(objective, coordinates[start : start + _ROWS_AT_ONCE])


def _some_rows(objective: Objective, coordinates: Sequence[Coordinate]) -> list[Direction]:
    rows = [Direction() for _ in coordinates]
    try:
        with objective.measuring():
            for share, loss in objective.losses():
                objective.finite(loss)
                if custom := _custom_function(loss):
                    raise _SecondDerivativeError(f"{custom} is a custom autograd function")
                gradient = objective.derivative(loss, create_graph=True)
                for row, (name, index) in zip(rows, coordinates, strict=True):
                    parameter = objective.parameters[name]
                    one = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
                    one.view(-1)[index] = 1
                    _accumulate(row, _hessian_product(objective, gradient, {name: one}), share)
                del loss, gradient  # one graph at a time
    except RuntimeError as error:
        obstacle = _missing_second_derivative(error)
        if obstacle is None:
            raise
        raise UsageError(f"{obstacle}: rows of its Hessian can't be had") from error
    return rows


def difference(objective: Objective, units: Mapping[str, Direction], observe: Observer | None = None) -> Curvature:
    """``uᵀHu`` by central differences of the slope ``s(t) = uᵀ∇f(x+tu)``, at two step lengths.

    ``D(h) = (s(h) − s(−h)) / 2h`` has an error of order ``h²`` on smooth losses, which ``(4D(h/2) − D(h)) / 3`` cancels
    (Richardson). The error bar is ``|D(h) − D(h/2)|`` plus the noise of the slopes, both estimated by their dtype's
    rounding and measured: ``δ(h) − 4δ(h/2)`` with ``δ(t) = s(t) − 2s(0) + s(−t)`` is noise and ``O(h⁴)`` alone. A kink
    within the segment shows in the bar.

    Cost: a forward and a backward, then four of each a direction.
    """
    result = Curvature("difference")
    with objective.measuring():
        result.loss, result.gradient = objective.gradient()
        h = difference_step(objective)
        for label, u in units.items():
            product: Direction | None = None if observe is None else {}
            # (4D(h/2) − D(h)) / 3, written out.
            (f, a), (e, b) = (_slopes_at(objective, u, t, product, -1 / (6 * t)) for t in (h, -h))
            (_, c), (_, d) = (_slopes_at(objective, u, t, product, 2 / (3 * t)) for t in (h / 2, -h / 2))
            wide = [(ahead - behind) / (2 * h) for ahead, behind in zip(a, b, strict=True)]
            narrow = [(ahead - behind) / h for ahead, behind in zip(c, d, strict=True)]
            result.sharpness[label] = [(4 * n - w) / 3 for n, w in zip(narrow, wide, strict=True)]
            s0 = vectors.dot(u, result.gradient)
            truncation = abs(objective.mean(wide) - objective.mean(narrow))
            bend_wide = objective.mean(a) - 2 * s0 + objective.mean(b)
            bend_narrow = objective.mean(c) - 2 * s0 + objective.mean(d)
            noise = 4 * _rounding(objective, result.gradient, u) + 2 * abs(bend_wide - 4 * bend_narrow)
            result.numerical_error[label] = truncation + noise / h
            slopes = objective.mean(b), s0, objective.mean(a)
            result.slope_checks[label] = _slope_check(objective, h, objective.mean(e), slopes, objective.mean(f))
            if observe is not None and product is not None:
                observe(label, 1.0, u, product)
    return result


def segment(objective: Objective, u: Direction, h: float, slope: float) -> tuple[float, SlopeCheck]:
    """The mean of ``uᵀHu`` over the segment ``x ± hu``, and whether the gradient is that of the loss there.

    The mean is ``(uᵀ∇f(x+hu) − uᵀ∇f(x−hu)) / 2h``.

    Args:
        objective: what is measured.
        u: a unit direction.
        h: half-length of the segment.
        slope: ``uᵀ∇f(x)``.

    Raises:
        UsageError: the loss isn't finite at an end.
    """
    with objective.measuring():
        (ahead, after), (behind, before) = (_slopes_at(objective, u, t) for t in (h, -h))
        slopes = objective.mean(before), slope, objective.mean(after)
        check = _slope_check(objective, h, objective.mean(behind), slopes, objective.mean(ahead))
        return (slopes[2] - slopes[0]) / (2 * h), check


def _slope_check(
    objective: Objective, h: float, behind: float, slopes: tuple[float, float, float], ahead: float
) -> SlopeCheck:
    """Of the losses at the ends of a segment, and the slopes at its ends and its middle."""
    before, here, after = slopes
    by_gradients = (before + 4 * here + after) / 6
    eps = max(torch.finfo(parameter.dtype).eps for parameter in objective.parameters.values())
    rounding = 8 * eps * max(abs(behind), abs(ahead)) / h
    change = abs(here - before) + abs(after - here)
    return SlopeCheck((ahead - behind) / (2 * h), by_gradients, change + rounding + 1e-3 * abs(by_gradients))


def relative_step(objective: Objective, relative: float) -> float:
    """A step length in proportion to the weights: ``relative · ‖x‖``, or `relative` where all weights are zero."""
    return relative * (vectors.norm(objective.parameters) or 1.0)


def difference_step(objective: Objective) -> float:
    """The step length of `difference`: ``10⁻⁴ ‖x‖`` in float32, ``10⁻⁵ ‖x‖`` in float64.

    It balances the noise of the slopes (``∝ 1/h``) with the truncation that extrapolation leaves (``∝ h⁴``).
    """
    eps = max(torch.finfo(parameter.dtype).eps for parameter in objective.parameters.values())
    return relative_step(objective, 1e-4 if eps > 1e-10 else 1e-5)


def _slopes_at(
    objective: Objective, u: Direction, t: float, total: Direction | None = None, factor: float = 0.0
) -> tuple[list[float], list[float]]:
    """``f(x + tu)`` and ``uᵀ∇f(x + tu)`` of each micro-batch; adds ``factor · ∇f(x + tu)`` to `total`."""
    values, slopes = [], []
    with objective.displaced(u, t):
        for share, loss in objective.losses():
            values.append(objective.finite(loss))  # its gradient may be finite where it isn't
            gradient = objective.derivative(loss)
            slopes.append(vectors.dot(u, gradient))
            if total is not None:
                _accumulate(total, gradient, share * factor)
    return values, slopes


def _hessian_product(objective: Objective, gradient: Direction, u: Direction) -> Direction:
    """``Hu`` from a gradient with its graph; a part of the gradient without one is constant."""
    names = [name for name in u if name in gradient and gradient[name].requires_grad]
    if not names:
        return {}
    parts = torch.autograd.grad(
        [gradient[name] for name in names],
        list(objective.parameters.values()),
        [u[name] for name in names],
        retain_graph=True,
        allow_unused=True,
    )
    return {
        name: part.to_dense() if part.is_sparse else part
        for name, part in zip(objective.parameters, parts, strict=True)
        if part is not None
    }


def _accumulate(total: Direction, part: Direction, share: float) -> None:
    for name, tensor in part.items():
        if name in total:
            total[name].add_(tensor.detach(), alpha=share)
        else:
            total[name] = tensor.detach() * share


def _rounding(objective: Objective, gradient: Direction, u: Direction) -> float:
    """Rounding error to expect of ``uᵀ∇f``: each coordinate's own, added as independent ones."""
    eps = max(torch.finfo(objective.parameters[name].dtype).eps for name in u)
    return eps * vectors.norm({name: gradient[name] * u[name] for name in u if name in gradient})


def _missing_second_derivative(error: RuntimeError) -> str | None:
    """Says of an error in double backward whether it means that an operation has no second derivative."""
    text = str(error)
    if isinstance(error, _SecondDerivativeError):
        return text
    signs: tuple[Callable[[str], bool], ...] = (
        lambda t: "derivative for" in t and "not implemented" in t,
        lambda t: "double backward" in t.lower(),
        lambda t: "trying to differentiate twice" in t,
        lambda t: "not differentiable" in t and "twice" in t,
    )
    if any(sign(text) for sign in signs):
        return f"double backward isn't possible on this model ({text.splitlines()[0][:120]})"
    return None


def _custom_function(loss: torch.Tensor) -> str | None:
    """Names a custom `torch.autograd.Function` in the graph of a loss.

    Its backward is the user's code. Where that is no differentiable function (``once_differentiable``, a fused kernel)
    and the gradient that comes in is constant, as at the end of a loss, the curvature would be lost without an error.

    Raises:
        _SecondDerivativeError: an operation is in the graph whose second derivative torch gets wrong, without an error
            (``weight_norm``: its `gradgradcheck` fails).
    """
    seen: set[Any] = set()
    stack: list[Any] = [loss.grad_fn]
    custom = None
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if "WeightNorm" in type(node).__name__:
            raise _SecondDerivativeError("double backward through weight_norm is wrong in torch")
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            custom = type(node).__name__.removesuffix("Backward")
        stack.extend(below for below, _ in node.next_functions)
    return custom
