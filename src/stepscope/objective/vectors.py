"""Arithmetic on directions: vectors of the parameter space, kept as ``{parameter name: tensor}``, never flattened.

Sums over coordinates are accumulated in float64 (float32 on devices without it): a model has millions of
coordinates, and a float32 sum of that many squares loses the digits that results are compared by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Direction = dict[str, Tensor]
"""A vector of the parameter space, by the names of ``model.named_parameters()``."""


def accumulator(tensor: Tensor) -> torch.dtype:
    """The type that sums over coordinates are accumulated in: float64, float32 on devices without it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product ``aᵀb``; a tensor that only one of them has counts as zero in the other.

    Example:
        >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0]), "b": torch.ones(1)})
        11.0
    """
    return math.fsum(
        float(torch.sum(a[name].detach().to(accumulator(a[name])) * b[name].detach())) for name in a if name in b
    )


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean norm ``‖a‖`` over all coordinates.

    Example:
        >>> norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        5.0
    """
    return math.hypot(
        *(float(torch.linalg.vector_norm(tensor.detach(), dtype=accumulator(tensor))) for tensor in a.values())
    )


def add(total: Direction, direction: Mapping[str, Tensor], factor: float) -> None:
    """Adds ``factor · direction`` to `total` in place, without its graph.

    Example:
        >>> total = {"w": torch.tensor([1.0])}
        >>> add(total, {"w": torch.tensor([3.0]), "b": torch.tensor([2.0])}, 0.5); total
        {'w': tensor([2.5000]), 'b': tensor([1.])}
    """
    for name, tensor in direction.items():
        if name in total:
            total[name].add_(tensor.detach(), alpha=factor)
        else:
            total[name] = tensor.detach() * factor


@dataclass(frozen=True)
class UnitDirection:
    """A direction ``d`` as its unit vector and its length, which are worked out once.

    Attributes:
        u: ``d / ‖d‖``, each tensor in the dtype and on the device of the parameter of that name.
        norm: ``‖d‖``.
    """

    u: Direction
    norm: float

    @classmethod
    def of(cls, direction: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> UnitDirection:
        """The unit direction of ``d``, of any length but zero.

        Example:
            >>> UnitDirection.of({"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)})
            UnitDirection(u={'w': tensor([0.6000, 0.8000])}, norm=5.0)
        """
        length = norm(direction)
        u = {}
        for name, tensor in direction.items():
            like = parameters[name]
            exact = tensor.detach().to(like.device, torch.promote_types(tensor.dtype, like.dtype))
            u[name] = (exact / length).to(like.dtype)
        return cls(u, length)
