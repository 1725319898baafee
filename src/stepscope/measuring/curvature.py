"""Directional sharpness ``uᵀHu`` by interchangeable methods, which are the rows of one table."""

from __future__ import annotations

from collections.abc import Mapping

from stepscope.errors import UsageError
from stepscope.measuring.curvature_terms import Curvature, CurvatureMethod, Observer
from stepscope.measuring.double_backward import SecondDerivativeError, autograd, double_backward
from stepscope.measuring.gradient_differences import difference
from stepscope.objective import Objective, UnitDirection, check_objective

Method = str
"""The name of a row of `METHODS`."""


def curvature(
    objective: Objective,
    units: Mapping[str, UnitDirection],
    method: Method = "auto",
    observe: Observer | None = None,
) -> Curvature:
    """The loss, its gradient, and ``uᵀHu`` along each unit direction ``u``, at the present parameters.

    ``uᵀHu`` is the directional sharpness of Pan and Li.

    Args:
        objective: the loss.
        units: ``{label: direction}``.
        method: a name in `METHODS`.
        observe: called with the products ``Hu`` that the method computes.

    Raises:
        UsageError: the method is unknown, or doesn't work on this model.

    Example:
        >>> import torch
        >>> from stepscope.objective import UnitDirection
        >>> w = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.ones(2, dtype=torch.float64))})
        >>> f = Objective(w, lambda m, h: 0.5 * (h * m["x"] ** 2).sum(), [torch.tensor([1.0, 9.0])], lambda _: 1)
        >>> diagonal = UnitDirection.of({"x": torch.ones(2)}, f.parameters)  # H = diag(1, 9): uᵀHu = (1 + 9) / 2
        >>> [round(curvature(f, {"d": diagonal}, name).sharpness["d"][0], 3) for name in ("autograd", "difference")]
        [5.0, 5.0]

    References:
        Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204, §3.
    """
    check_objective(objective)
    if method not in METHODS:
        *most, last = METHODS
        raise UsageError(f"unknown method {method!r}: choose {', '.join(most)} or {last}")
    return METHODS[method](objective, units, observe)


def automatic(objective: Objective, units: Mapping[str, UnitDirection], observe: Observer | None = None) -> Curvature:
    """Double backward where the model has a second derivative that can be trusted, else differences of gradients.

    Args:
        objective: the loss.
        units: ``{label: direction}``.
        observe: see `Observer`.
    """
    try:
        result = double_backward(objective, units, observe, trusting=False)
    except SecondDerivativeError as error:
        obstacle = str(error)
    else:
        result.reason = "double backward runs on this model"
        return result
    if observe is not None:
        observe.clear()
    result = difference(objective, units, observe)
    result.reason = obstacle
    return result


METHODS: dict[Method, CurvatureMethod] = {"auto": automatic, "autograd": autograd, "difference": difference}
"""All methods by name. A new method is a function of this form, and a row here."""
