"""Arithmetic on directions: vectors of the parameter space, kept as ``{parameter name: tensor}``, never flattened.

A tensor may lie in parts on several ranks (`dtensors`): then all ranks call these functions together. Sums over
coordinates are accumulated in float64 (float32 on devices without it): a model has millions of
coordinates, and a float32 sum of that many squares loses the digits that results are compared by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from stepscope.objective import dtensors

Direction = dict[str, Tensor]
"""A vector of the parameter space, by the names of ``model.named_parameters()``."""

PIECE, PIECE_ON_DEVICE = 2**17, 2**23
"""Coordinates that are looked at together on a CPU, and on another device."""


def accumulator(tensor: Tensor) -> torch.dtype:
    """The type that sums over coordinates are accumulated in: float64, float32 on devices without it."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of one shape, cut at the same places into flat pieces that fit a processor's cache.

    What is computed piece by piece, such as a copy in float64, takes the memory of a piece.

    Example:
        >>> [(len(x), len(y)) for x, y in pieces(torch.zeros(200, 1000), torch.zeros(1000, 200).T)]
        [(131000, 131000), (69000, 69000)]
    """
    tensors = tuple(tensor.detach() for tensor in tensors)
    size = PIECE if tensors[0].device.type == "cpu" else PIECE_ON_DEVICE
    if all(tensor.is_contiguous() for tensor in tensors):
        if tensors[0].numel() <= size:  # most parameters of a model; a split takes longer
            yield tuple(tensor.view(-1) for tensor in tensors)
            return
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)
        return
    longest = max(range(tensors[0].dim()), key=lambda dimension: tensors[0].shape[dimension])
    rows = max(1, size * tensors[0].shape[longest] // max(1, tensors[0].numel()))
    for cut in zip(*(torch.split(tensor, rows, longest) for tensor in tensors), strict=True):
        yield tuple(tensor.reshape(-1) for tensor in cut)


def joined_pieces(tensors: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """The pieces of many tensors, small ones of one kind together: most parameters of a model are small.

    Example:
        >>> [x.tolist() for (x,) in joined_pieces([(torch.zeros(2),), (torch.ones(1, 2),)])]
        [[0.0, 0.0, 1.0, 1.0]]
    """
    waiting: list[tuple[Tensor, ...]] = []
    size, kind = 0, None
    for piece in (piece for shaped in tensors for piece in pieces(*shaped)):
        own = [(part.dtype, part.device) for part in piece]
        if waiting and (own != kind or size + piece[0].numel() > PIECE):
            yield _joined(waiting)
            waiting, size = [], 0
        waiting.append(piece)
        size, kind = size + piece[0].numel(), own
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))


def numbers(scalars: Iterable[Tensor]) -> list[float]:
    """Scalar tensors as numbers: a device is waited for once, not for each.

    Example:
        >>> numbers([torch.tensor(1.0), torch.tensor(2.0)])
        [1.0, 2.0]
    """
    scalars = list(scalars)
    if len({scalar.device for scalar in scalars}) == 1:
        return list(torch.stack(scalars).tolist())
    return [float(scalar) for scalar in scalars]


def places(chosen: Tensor) -> Tensor:
    """Where a flat tensor of booleans is true, as indices. On a CPU numpy is three times as fast as torch.

    Example:
        >>> places(torch.tensor([False, True, True]))
        tensor([1, 2])
    """
    if chosen.device.type == "cpu":
        with suppress(RuntimeError):  # numpy is missing
            return torch.from_numpy(chosen.numpy().nonzero()[0])
    return chosen.nonzero().view(-1)


def dots(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """Inner products ``aᵢᵀbᵢ`` of the tensors that both have, by their names.

    Example:
        >>> dots({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0]), "b": torch.ones(1)})
        {'w': 11.0}
    """
    names, products = [], []
    for name in a:
        if name in b:
            for x, y in pieces(dtensors.part(a[name]), dtensors.part(b[name])):
                names.append(name)
                products.append(torch.dot(x.to(accumulator(x)), y.to(accumulator(x))))
    values = dict.fromkeys(names, 0.0)
    for name, value in zip(names, numbers(products), strict=True):
        values[name] += value
    return dict(zip(values, dtensors.summed(list(values.values()), (a[name] for name in values)), strict=True))


def dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Inner product ``aᵀb``; a tensor that only one of them has counts as zero in the other.

    Example:
        >>> dot({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 4.0]), "b": torch.ones(1)})
        11.0
    """
    return math.fsum(dots(a, b).values())


def norm(a: Mapping[str, Tensor]) -> float:
    """Euclidean norm ``‖a‖`` over all coordinates.

    Example:
        >>> norm({"w": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        5.0
    """
    return dtensors.whole_length(_lengths(a), a.values())


def norms(a: Mapping[str, Tensor]) -> dict[str, float]:
    """The Euclidean norm of each tensor, by its name.

    Example:
        >>> norms({"w": torch.tensor([3.0, 4.0]), "b": torch.ones(1)})
        {'w': 5.0, 'b': 1.0}
    """
    return dict(zip(a, dtensors.whole_lengths(_lengths(a), a.values()), strict=True))


def _lengths(a: Mapping[str, Tensor]) -> list[float]:
    """Of each tensor, or of this rank's part of it."""
    return numbers(torch.linalg.vector_norm(dtensors.part(x), dtype=accumulator(x)) for x in a.values())


def moving(a: Mapping[str, Tensor]) -> set[str]:
    """The names of the tensors that aren't all zero.

    Example:
        >>> moving({"w": torch.tensor([0.0, 4.0]), "b": torch.zeros(1)})
        {'w'}
    """
    counts = [float(dtensors.part(tensor).any()) for tensor in a.values()]
    return {name for name, count in zip(a, dtensors.summed(counts, a.values()), strict=True) if count}


def is_finite(a: Mapping[str, Tensor]) -> bool:
    """Whether no coordinate is infinite or NaN.

    Example:
        >>> is_finite({"w": torch.tensor([3e38, 3e38])}), is_finite({"w": torch.tensor([math.inf, -math.inf])})
        (True, False)
    """
    # A sum is quicker than a test of each coordinate. It isn't finite where one isn't, but can overflow where all are.
    parts = map(dtensors.part, a.values())
    finite = all(bool(part.sum().isfinite()) or bool(part.isfinite().all()) for part in parts)
    return not dtensors.on_any_rank(not finite, a.values())


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


def absorb(total: Direction, direction: Direction, factor: float) -> None:
    """Adds ``factor · direction`` to `total` as `add` does, and empties `direction`: no tensor outlives its addition.

    Example:
        >>> total, d = {}, {"w": torch.tensor([3.0])}
        >>> absorb(total, d, 0.5); total, d
        ({'w': tensor([1.5000])}, {})
    """
    for name in list(direction):
        add(total, {name: direction.pop(name)}, factor)


@dataclass(frozen=True)
class UnitDirection:
    """A direction ``d`` of length ``‖d‖``, and its unit vector.

    Attributes:
        direction: ``d``.
        norm: ``‖d‖``.
        parameters: whose dtypes and devices the unit vector has.
    """

    direction: Direction
    norm: float
    parameters: Mapping[str, Tensor]

    @classmethod
    def of(cls, direction: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> UnitDirection:
        """The unit direction of ``d``, of any length but zero.

        Example:
            >>> UnitDirection.of({"w": torch.tensor([3.0, 4.0])}, {"w": torch.zeros(2)}).u
            {'w': tensor([0.6000, 0.8000])}
        """
        return cls({name: tensor.detach() for name, tensor in direction.items()}, norm(direction), parameters)

    @property
    def u(self) -> Direction:
        """``d / ‖d‖``, computed at each access: of many directions only the one in use takes memory."""
        u = {}
        for name, tensor in self.direction.items():
            like = self.parameters[name]
            exact = tensor.to(like.device, torch.promote_types(tensor.dtype, like.dtype))
            u[name] = (exact / self.norm).to(like.dtype).contiguous()
        return u

    @property
    def vector(self) -> Direction:
        """A multiple of ``u``: ``d`` itself, which takes no memory, where its tensors are as the parameters are."""
        return self.direction if self._is_ready else self.u

    @property
    def length(self) -> float:
        """The length of `vector`."""
        return self.norm if self._is_ready else 1.0

    @property
    def _is_ready(self) -> bool:
        # Far beyond these lengths a product with the Hessian could leave the range of its type.
        return 1e-12 < self.norm < 1e12 and all(
            (tensor.dtype, tensor.device) == (self.parameters[name].dtype, self.parameters[name].device)
            and tensor.dtype in (torch.float32, torch.float64)
            and tensor.is_contiguous()
            for name, tensor in self.direction.items()
        )
