"""``uᵀHu`` by double backward: exact, and the reference for all other methods."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from stepscope.errors import UsageError
from stepscope.measuring.curvature_terms import Curvature, Observer
from stepscope.objective import Direction, Objective, UnitDirection, dtensors, reached, vectors


class SecondDerivativeError(Exception):
    """The second derivative of a loss is missing, wrong or not finite; the message says where."""


def autograd(objective: Objective, units: Mapping[str, UnitDirection], observe: Observer | None = None) -> Curvature:
    """``uᵀHu`` by double backward, for a user who asks for it: custom autograd functions are trusted.

    Args:
        objective: the loss.
        units: ``{label: direction}``.
        observe: see `Observer`.

    Raises:
        UsageError: the model has no second derivative, or a wrong one.
    """
    try:
        return double_backward(objective, units, observe, trusting=True)
    except SecondDerivativeError as error:
        raise UsageError(f'{error}: use method="difference"') from error


def double_backward(
    objective: Objective, units: Mapping[str, UnitDirection], observe: Observer | None, *, trusting: bool
) -> Curvature:
    """``uᵀHu`` by double backward: ``Hu`` is the derivative of ``uᵀ∇f``.

    The graph of one gradient per micro-batch serves all directions. Cost: a forward and a backward for that graph, then
    about two backwards a direction.

    Args:
        objective: the loss.
        units: ``{label: direction}``.
        observe: see `Observer`.
        trusting: whether a custom `torch.autograd.Function` in the graph is trusted to have a second derivative.

    Raises:
        SecondDerivativeError: there is no second derivative, or none that can be trusted.

    References:
        Pearlmutter, *Fast Exact Multiplication by the Hessian*, Neural Computation 6 (1994).
    """
    if reason := objective.obstacle(asked=trusting):
        raise SecondDerivativeError(reason)
    result = Curvature("autograd", sharpness={label: [] for label in units})
    losses: list[float] = []
    with objective.measuring(), objective.whole():
        # Of several ranks, what is observed is the product with the Hessian of all.
        products: dict[str, Direction] = {label: {} for label in units} if observe and not objective.ranks.alone else {}
        along = _whole(units)
        with objective.ranks.agreed("double backward", SecondDerivativeError), obstacles():
            for weight, loss in objective.losses():
                losses.append(objective.finite(loss))
                if (custom := _trusted(loss, trusting=trusting)) is not None:
                    result.reason = f"asked for; {custom} is a custom autograd function, taken at its word"
                gradient = objective.derivative(loss, create_graph=True)
                del loss
                for left, label in zip(reversed(range(len(units))), units, strict=True):
                    vector, square = along.get(label) or units[label].vector, units[label].length ** 2
                    product = hessian_product(objective, gradient, vector, retain_graph=left > 0)
                    result.sharpness[label].append(vectors.dot(vector, product) / square)
                    if label in products:
                        vectors.add(products[label], product, weight / square)
                    elif observe is not None:
                        observe(label, weight / square, vector, product)
                    del vector, product  # one product at a time
                vectors.absorb(result.gradient, gradient, weight)  # and one graph
        result.loss = objective.mean(objective.of_all(losses))
        result.gradient = objective.pooled(result.gradient)
        for label, own in result.sharpness.items():
            result.sharpness[label] = objective.of_all(own)
        for label in list(products):
            assert observe is not None
            observe(label, 1.0, units[label].vector, objective.pooled(products.pop(label)))
    reached(result.gradient)
    if not all(math.isfinite(value) for values in result.sharpness.values() for value in values):
        raise SecondDerivativeError("double backward gives infinite or NaN values (a root or a norm at zero)")
    return result


def _whole(units: Mapping[str, UnitDirection]) -> dict[str, Direction]:
    """The vectors of directions that are sharded, whole on each rank."""
    return {
        label: {name: dtensors.gathered(tensor) for name, tensor in unit.vector.items()}
        for label, unit in units.items()
        if any(map(dtensors.is_spread, unit.direction.values()))
    }


def _trusted(loss: torch.Tensor, *, trusting: bool) -> str | None:
    """The name of a custom autograd function in the graph of a loss, which is trusted.

    Raises:
        SecondDerivativeError: it isn't trusted, or an operation has a wrong second derivative.
    """
    custom = check_graph(loss)
    if custom is not None and not trusting:
        raise SecondDerivativeError(f"{custom} is a custom autograd function, which may lack a second derivative")
    return custom


def hessian_product(objective: Objective, gradient: Direction, u: Direction, *, retain_graph: bool = True) -> Direction:
    """``Hu`` from a gradient with its graph; a tensor of the gradient without a graph is constant.

    Without `retain_graph`, the graph is freed on the way: this is the last product of this gradient.
    """
    names = [name for name in u if name in gradient and gradient[name].requires_grad]
    if not names:
        return {}
    products = torch.autograd.grad(
        [gradient[name] for name in names],
        list(objective.parameters.values()),
        [u[name] for name in names],
        retain_graph=retain_graph,
        allow_unused=True,
    )
    return {
        name: product.to_dense() if product.is_sparse else product.contiguous()
        for name, product in zip(objective.parameters, products, strict=True)
        if product is not None
    }


def check_graph(loss: torch.Tensor) -> str | None:
    """Checks the graph of a loss for operations without a second derivative that can be trusted.

    The backward of a custom `torch.autograd.Function` is the user's code. Where that code isn't differentiable
    (``once_differentiable``, a fused kernel) and the incoming gradient is constant, as at the end of a loss, torch
    loses the curvature without an error.

    Returns:
        The name of a custom `torch.autograd.Function` in the graph; ``None`` if there is none.

    Raises:
        SecondDerivativeError: torch computes a wrong second derivative of an operation in the graph, without an error
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
            raise SecondDerivativeError("double backward through weight_norm is wrong in torch")
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            custom = type(node).__name__.removesuffix("Backward")
        stack.extend(below for below, _ in node.next_functions)
    return custom


@contextmanager
def obstacles() -> Iterator[None]:
    """Inside, torch's error for an operation without a second derivative is a `SecondDerivativeError`."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not any(sign(text) for sign in _SIGNS):
            raise
        raise SecondDerivativeError(
            f"double backward isn't possible on this model ({text.splitlines()[0][:120]})"
        ) from error


_SIGNS: tuple[Callable[[str], bool], ...] = (
    lambda text: "derivative for" in text and "not implemented" in text,
    lambda text: "double backward" in text.lower(),
    lambda text: "trying to differentiate twice" in text,
    lambda text: "not differentiable" in text and "twice" in text,
)
"""How torch's messages say that an operation has no second derivative."""
