"""Tensors that lie in parts on several ranks (`DTensor`): this rank's part, and numbers of the whole.

What is computed elementwise is computed on the parts. A sum over coordinates is that of the parts of all ranks. A part
that several ranks hold is a fraction of it on each, so nothing has to know which rank counts.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_spread(tensor: Any) -> bool:
    """Whether a tensor lies in parts on several ranks.

    Example:
        >>> is_spread(torch.ones(2))
        False
    """
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, in the same memory; a tensor that isn't spread, itself. Without a graph."""
    return tensor.detach().to_local() if is_spread(tensor) else tensor.detach()  # type: ignore[attr-defined]


def holders(tensor: Any) -> float:
    """How many ranks hold each coordinate: all of them, if the tensor isn't spread."""
    shards = 1
    if is_spread(tensor):
        sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
        shards = math.prod(size for placement, size in sizes if not placement.is_replicate())
    return torch.distributed.get_world_size() / shards


def is_like(tensor: Any, other: Any) -> bool:
    """Whether two tensors of one shape lie in the same parts on the same ranks."""
    if not (is_spread(tensor) and is_spread(other)):
        return is_spread(tensor) == is_spread(other)
    same_mesh: bool = tensor.device_mesh == other.device_mesh
    return same_mesh and tensor.placements == other.placements


def placed_like(tensor: Any, other: Any) -> Any:
    """A spread tensor in the parts of another: sums that lie in terms on several ranks are made (`Partial`)."""
    return tensor if is_like(tensor, other) else tensor.redistribute(other.device_mesh, other.placements)


def from_parts(own: Tensor, like: Any) -> Any:
    """A spread tensor of parts, one on each rank, that lies as another does."""
    if not is_spread(like):
        return own
    return type(like).from_local(
        own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def summed(values: Sequence[float], tensors: Iterable[Tensor]) -> list[float]:
    """Sums over all coordinates of tensors, from those over this rank's parts.

    Args:
        values: a sum over the part of each tensor.
        tensors: of which they are sums; if one is spread, all ranks do this together.
    """
    tensors = list(tensors)
    if not any(map(is_spread, tensors)):
        return list(values)
    own = [value / holders(tensor) for value, tensor in zip(values, tensors, strict=True)]
    return [math.fsum(parts) for parts in zip(*_of_all(own, tensors[0].device), strict=True)]


def whole_length(lengths: Sequence[float], tensors: Iterable[Tensor]) -> float:
    """The Euclidean norm over all coordinates of tensors, from the norms of this rank's parts; see `summed`."""
    tensors = list(tensors)
    if not any(map(is_spread, tensors)):
        return math.hypot(*lengths)
    own = math.hypot(*(length / math.sqrt(holders(t)) for length, t in zip(lengths, tensors, strict=True)))
    return math.hypot(*(parts[0] for parts in _of_all([own], tensors[0].device)))


def _of_all(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """The numbers of each rank, equally many: sums of them in this order are the same on all ranks, to the bit."""
    own = torch.tensor(values, dtype=torch.float64, device=device)
    everyone = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everyone, own)
    return [numbers.tolist() for numbers in everyone]
