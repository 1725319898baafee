"""Rows of the Hessian, for the coordinates that somebody chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from stepscope.errors import UsageError
from stepscope.measuring.double_backward import SecondDerivativeError, check_graph, hessian_product, obstacles
from stepscope.objective import Direction, Objective, vectors

Coordinate = tuple[str, int]
"""One coordinate of the parameter space: the name of its tensor, and its index in that tensor, flattened."""

_ROWS_AT_ONCE = 16


def hessian_rows(objective: Objective, coordinates: Sequence[Coordinate]) -> Iterator[Direction]:
    """Rows of the Hessian, ``(eᵢᵀH)ⱼ = ∂²f / ∂xᵢ∂xⱼ``, by double backward, at the present parameters.

    Cost: about two backwards a row, and a forward and a backward for each block of 16 rows. One block is in memory at a
    time. Between two rows the model is as it was.

    Args:
        objective: the loss.
        coordinates: the ``i``, in any order.

    Yields:
        The row of each coordinate in turn, by parameter. A parameter that is left out has zeros there.

    Raises:
        UsageError: a coordinate isn't the model's, or the model has no second derivative that can be trusted.

    Example:
        >>> w = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.ones(1))})
        >>> f = Objective(w, lambda m, _: (m["a"] ** 3).sum() + 5 * m["a"][1] * m["b"].sum(), [0], lambda _: 1)
        >>> [{name: x.tolist() for name, x in row.items()} for row in hessian_rows(f, [("a", 1), ("b", 0)])]
        [{'a': [0.0, 6.0], 'b': [5.0]}, {'a': [0.0, 5.0]}]
    """
    objective.check_alone("rows of the Hessian")
    for name, index in coordinates:
        if name not in objective.parameters:
            raise UsageError(f"{name!r} is not a trainable parameter: a coordinate is (name, index)")
        if not 0 <= index < (count := objective.parameters[name].numel()):
            raise UsageError(f"{name} has {count} coordinates: there is none at {index}")
    for start in range(0, len(coordinates), _ROWS_AT_ONCE):
        yield from _block(objective, coordinates[start : start + _ROWS_AT_ONCE])


def _block(objective: Objective, coordinates: Sequence[Coordinate]) -> list[Direction]:
    rows = [Direction() for _ in coordinates]
    try:
        with obstacles(), objective.measuring():
            for weight, loss in objective.losses():
                objective.finite(loss)
                if custom := check_graph(loss):
                    raise SecondDerivativeError(f"{custom} is a custom autograd function")
                gradient = objective.derivative(loss, create_graph=True)
                for row, (name, index) in zip(rows, coordinates, strict=True):
                    parameter = objective.parameters[name]
                    axis = torch.zeros(parameter.shape, dtype=parameter.dtype, device=parameter.device)
                    axis.view(-1)[index] = 1
                    vectors.add(row, hessian_product(objective, gradient, {name: axis}), weight)
                del loss, gradient  # one graph at a time
    except SecondDerivativeError as error:
        raise UsageError(f"{error}: rows of its Hessian can't be computed") from error
    return rows
