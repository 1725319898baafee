"""What each layer's part of a step should be multiplied by, as the loss's second-order model says, and one loss tries.

Layers interact: the best multiple of one depends on those of the others. The products that tell the sharpness within
layers hold these interactions too. The model is trusted within a box alone, and only where the loss itself is lower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stepscope.measuring.breakdown import Grouping, grouping
from stepscope.measuring.curvature import Method, curvature
from stepscope.measuring.slopes import largest_eps
from stepscope.objective import Direction, Objective, UnitDirection, check_objective, vectors

BOX = (0.5, 2.0)
"""The multipliers lie in it: farther away the second-order model often raises the loss."""
SWEEPS = 1000


@dataclass(frozen=True)
class LayerMultipliers:
    """What the layers' parts ``d_ℓ`` of a step are multiplied by.

    Attributes:
        multipliers: ``s_ℓ`` by layer; ``None`` unless ``f(x + Σ s_ℓd_ℓ)`` is below ``f(x + d)`` by more than rounding.
        predicted_gain: how much lower the second-order model is there than at ``x + d``; not negative.
        gain: how much lower the loss is there, as measured.
        slopes: ``gᵀd_ℓ`` by layer.
        interactions: ``A_ℓm = d_ℓᵀHd_m`` by layers, symmetric.
    """

    multipliers: dict[str, float] | None
    predicted_gain: float
    gain: float
    slopes: dict[str, float]
    interactions: dict[str, dict[str, float]]


def layer_multipliers(
    objective: Objective,
    direction: Mapping[str, Tensor],
    layer: Grouping | Mapping[str, str] | None = None,
    method: Method = "auto",
) -> LayerMultipliers:
    """The multipliers ``s`` of layers in a box that minimize ``½sᵀAs + Σ s_ℓgᵀd_ℓ``, tried by one loss.

    They describe this step. Steps that are best one by one lose in the long run: it is no rule for learning rates.

    Args:
        objective: the loss and the micro-batches that it is measured on.
        direction: the step ``d`` itself, with the learning rate in it.
        layer: the layer of a parameter: a function of its name, or a mapping from prefixes of names to layers.
            ``None``: each module's own parameters.
        method: how the products ``Hd_ℓ`` are computed; see `stepscope.measure`. There is one for each layer.

    Raises:
        UsageError: the step doesn't fit the model or is zero, or the method doesn't work on this model.

    Example:
        >>> w = {name: torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for name in ("a", "b")}
        >>> model = torch.nn.ParameterDict(w)
        >>> f = Objective(model, lambda m, _: (m["a"] ** 2 + 10 * m["b"] ** 2).sum(), [0], lambda _: 1)
        >>> found = layer_multipliers(f, {"a": torch.tensor([-0.8]), "b": torch.tensor([-1.5])})
        >>> {name: round(value, 3) for name, value in found.multipliers.items()}, round(found.gain, 3)
        ({'a': 1.25, 'b': 0.667}, 2.54)
    """
    check_objective(objective)
    objective.check_direction("step", direction)
    layer_of = grouping(layer, objective.parameters)
    parts: dict[str, Direction] = {}
    moving = vectors.moving(direction)
    for name, tensor in direction.items():
        if name in moving:
            parts.setdefault(layer_of(name), {})[name] = tensor
    with objective.measuring():
        units = {label: UnitDirection.of(part, objective.parameters) for label, part in parts.items()}
        observer = _Interactions(units)
        terms = curvature(objective, units, method, observer)
        slopes = {label: _dot(unit, terms.gradient) for label, unit in units.items()}
        matrix = (observer.matrix + observer.matrix.T) / 2
        linear = torch.tensor(list(slopes.values()), dtype=torch.float64, device="cpu")
        found = box_minimum(matrix, linear)
        scaled = {name: float(s) * t for s, part in zip(found, parts.values(), strict=True) for name, t in part.items()}
        before, after = objective.loss_at(direction, 1.0), objective.loss_at(scaled, 1.0)
        rounding = 8 * largest_eps(objective) * abs(terms.loss)
    ones = torch.ones_like(found)
    return LayerMultipliers(
        multipliers=dict(zip(parts, found.tolist(), strict=True)) if before - after > rounding else None,
        predicted_gain=float(_model(matrix, linear, ones) - _model(matrix, linear, found)),
        gain=before - after,
        slopes=slopes,
        interactions={
            label: dict(zip(parts, row, strict=True)) for label, row in zip(parts, matrix.tolist(), strict=True)
        },
    )


class _Interactions:
    """Adds ``d_mᵀHd_ℓ`` up from the products of a curvature method; an `Observer`."""

    def __init__(self, units: Mapping[str, UnitDirection]) -> None:
        self._units = units
        self._places = {label: place for place, label in enumerate(units)}
        self.clear()

    def __call__(self, label: str, weight: float, vector: Direction, product: Direction) -> None:  # noqa: ARG002
        """Adds the product of one micro-batch."""
        unit = self._units[label]
        for other, place in self._places.items():
            dot = _dot(self._units[other], product)
            self.matrix[self._places[label], place] += weight * unit.length * unit.norm * dot

    def clear(self) -> None:
        """Starts again from zero."""
        self.matrix = torch.zeros(len(self._units), len(self._units), dtype=torch.float64, device="cpu")


def box_minimum(matrix: Tensor, linear: Tensor) -> Tensor:
    """A minimum of ``½sᵀAs + sᵀb`` with all ``s`` in `BOX`, by descent from 1 in one coordinate after another.

    It is the minimum where ``A`` is positive semidefinite, and nowhere higher than at ones.

    Args:
        matrix: ``A``, symmetric.
        linear: ``b``.

    Example:
        >>> box_minimum(torch.diag(torch.tensor([1.0, 1.0, -1.0])), torch.tensor([-1.5, -9.0, 0.0]))
        tensor([1.5000, 2.0000, 2.0000])
    """
    low, high = BOX
    s = torch.ones_like(linear)
    for _ in range(SWEEPS):
        before = s.clone()
        for i in range(len(s)):
            curvature_there = float(matrix[i, i])
            slope = float(matrix[i] @ s + linear[i]) - curvature_there * float(s[i])
            if curvature_there > 0:
                s[i] = min(max(-slope / curvature_there, low), high)
            else:
                ends = [slope * end + curvature_there * end**2 / 2 for end in BOX]
                s[i] = low if ends[0] < ends[1] else high
        if torch.equal(s, before):
            break
    return s


def _dot(unit: UnitDirection, vector: Direction) -> float:
    """``dᵀv``."""
    return vectors.dot(unit.vector, vector) * unit.norm / unit.length


def _model(matrix: Tensor, linear: Tensor, s: Tensor) -> Tensor:
    return s @ matrix @ s / 2 + s @ linear
