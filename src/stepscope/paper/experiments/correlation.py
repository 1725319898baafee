"""Experiment D, second part: are the absolute values of Hessian and gradient coordinates correlated (claim C11)?

Of a coordinate ``i``, ``|gᵢ|`` is set against ``|Hᵢᵢ|`` and against the norm ``‖eᵢᵀH‖`` of its row; over many
coordinates, all of a small model's or a random sample of a larger one's, Spearman's rank correlation says whether they
grow together (Pan and Li, §4.2).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stepscope.errors import UsageError
from stepscope.measuring import Coordinate, hessian_rows
from stepscope.objective import Objective, vectors
from stepscope.paper.records import CoordinatePoints, CorrelationRecord, Rank
from stepscope.paper.statistics import rank_correlation

_POINTS = 200
"""Most coordinates whose values a record holds, for a figure."""


@dataclass(frozen=True)
class CoordinateValues:
    """First and second derivatives of coordinates, each float64 and of shape (coordinates,).

    Attributes:
        gradient: ``|gᵢ|`` (loss per length).
        diagonal: ``|Hᵢᵢ|`` (loss per squared length).
        row_norm: ``‖eᵢᵀH‖``, over all coordinates of the model, not the chosen ones alone.
    """

    gradient: Tensor
    diagonal: Tensor
    row_norm: Tensor

    def __len__(self) -> int:
        return len(self.gradient)

    def at(self, chosen: Tensor) -> CoordinateValues:
        """Those of some of the coordinates, by a mask or by their places."""
        return CoordinateValues(self.gradient[chosen], self.diagonal[chosen], self.row_norm[chosen])


def scope_coordinates(
    parameters: Mapping[str, Tensor], scope: str = "", count: int | None = None, seed: int = 0
) -> list[Coordinate]:
    """Coordinates of a part of a model: all of them, or a uniform sample without replacement.

    Args:
        parameters: by name.
        scope: the beginning of the names of the parameters that belong to it; empty for all.
        count: how many to sample; ``None``, or as many as there are or more, for all in their order.
        seed: of the sample.

    Raises:
        UsageError: no parameter's name begins so, or `count` is below 2.

    Example:
        >>> scope_coordinates({"a.weight": torch.zeros(2), "b": torch.zeros(3)}, "a")
        [('a.weight', 0), ('a.weight', 1)]
        >>> len(scope_coordinates({"a.weight": torch.zeros(2), "b": torch.zeros(30)}, count=7))
        7
    """
    sizes = _sizes(parameters, scope)
    total = sum(sizes.values())
    if count is not None and count < 2:
        raise UsageError(f"{count} coordinates are to be sampled: at least 2 are needed")
    chosen: Sequence[int] = range(total)
    if count is not None and count < total:
        chosen = sorted(random.Random(seed).sample(chosen, count))
    coordinates, start, names = [], 0, iter(sizes)
    name = next(names)
    for position in chosen:
        while position - start >= sizes[name]:
            start += sizes[name]
            name = next(names)
        coordinates.append((name, position - start))
    return coordinates


def scope_size(parameters: Mapping[str, Tensor], scope: str = "") -> int:
    """How many coordinates a part of a model has; see `scope_coordinates`."""
    return sum(_sizes(parameters, scope).values())


def _sizes(parameters: Mapping[str, Tensor], scope: str) -> dict[str, int]:
    sizes = {name: p.numel() for name, p in parameters.items() if name.startswith(scope)}
    if not sum(sizes.values()):
        raise UsageError(f"no parameter's name begins with {scope!r} (they are {', '.join(list(parameters)[:3])}, …)")
    return sizes


def coordinate_values(objective: Objective, coordinates: Sequence[Coordinate]) -> CoordinateValues:
    """``|gᵢ|``, ``|Hᵢᵢ|`` and ``‖eᵢᵀH‖`` of coordinates at the present parameters.

    Args:
        objective: what is measured.
        coordinates: the ``i``.

    Raises:
        UsageError: see `stepscope.measuring.curvature.hessian_rows`.
    """
    _, gradient = objective.gradient()
    values = []
    for (name, index), row in zip(coordinates, hessian_rows(objective, coordinates), strict=True):
        slope, diagonal = (abs(float(own[name].view(-1)[index])) if name in own else 0.0 for own in (gradient, row))
        values.append((slope, diagonal, vectors.norm(row) if row else 0.0))
    return CoordinateValues(*torch.tensor(values, dtype=torch.float64).reshape(-1, 3).unbind(1))


def correlation_record(place: CorrelationRecord, values: CoordinateValues, *, resamples: int) -> CorrelationRecord:
    """Rank correlations of coordinates as a record.

    Coordinates with ``gᵢ = 0`` and ``eᵢᵀH = 0``, which the loss doesn't depend on, are left out and counted: they would
    correlate by themselves.

    Args:
        place: the record without what is measured. Its seed is that of the resamples and of the points.
        values: of the coordinates.
        resamples: of the confidence interval (95%), see `stepscope.paper.statistics.rank_correlation`.

    Returns:
        The record with the numbers of coordinates, the correlations, and the values of up to 200 coordinates, to four
        digits.
    """
    used = values.at((values.gradient > 0) | (values.row_norm > 0))

    def rank(other: Tensor) -> Rank:
        if len(used) < 2:
            return Rank()
        return Rank(**rank_correlation(used.gradient, other, resamples=resamples, seed=place.seed)._asdict())

    shown = used.at(torch.randperm(len(used), generator=torch.Generator().manual_seed(place.seed))[:_POINTS])
    return replace(
        place,
        coordinates=len(used),
        left_out=len(values) - len(used),
        diagonal=rank(used.diagonal),
        row_norm=rank(used.row_norm),
        points=CoordinatePoints(
            gradient=_to_four_digits(shown.gradient),
            diagonal=_to_four_digits(shown.diagonal),
            row_norm=_to_four_digits(shown.row_norm),
        ),
    )


def _to_four_digits(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.3e}") for value in values.tolist())
