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
    """This rank's part of a tensor, in the same memory; a tensor that isn't spread, itself. Without a graph.

    It counts writes to the tensor (`_version`), which a part of a detached one wouldn't.
    """
    if not is_spread(tensor):
        return tensor.detach()
    with torch.no_grad():
        return tensor.to_local().detach()  # type: ignore[attr-defined, no-any-return]


def shards(tensor: Any) -> int:
    """In how many parts a tensor lies, each of which as many ranks hold: 1 if it isn't spread."""
    if not is_spread(tensor):
        return 1
    sizes = zip(tensor.placements, tensor.device_mesh.shape, strict=True)
    return math.prod(size for placement, size in sizes if not placement.is_replicate())


def holders(tensor: Any) -> float:
    """How many ranks hold each coordinate: all of them, if the tensor isn't spread."""
    return torch.distributed.get_world_size() / shards(tensor)


def spans_all(tensors: Iterable[Any]) -> bool:
    """Whether one of the tensors that are spread lies on all ranks, as parameters of one model do."""
    most = max((tensor.device_mesh.size() for tensor in tensors if is_spread(tensor)), default=0)
    return most == 0 or most == torch.distributed.get_world_size()


def without_terms(tensor: Any) -> Any:
    """A spread tensor whose coordinates lie in terms of a sum on several ranks (`Partial`), with these sums."""
    if not is_spread(tensor) or not any(placement.is_partial() for placement in tensor.placements):
        return tensor
    from torch.distributed.tensor import Replicate

    whole = [Replicate() if placement.is_partial() else placement for placement in tensor.placements]
    return tensor.redistribute(tensor.device_mesh, whole)


def on_any_rank(found: bool, tensors: Iterable[Tensor]) -> bool:
    """Whether something was found of one of the tensors; if one is spread, on any rank."""
    tensors = list(tensors)
    if not any(map(is_spread, tensors)):
        return found
    return any(flag for [flag] in _of_all([float(found)], tensors[0].device))


def is_same_on_all(value: float, tensors: Iterable[Tensor]) -> bool:
    """Whether all ranks give the same number, where one of the tensors is spread."""
    tensors = list(tensors)
    if not any(map(is_spread, tensors)):
        return True
    return len({number for [number] in _of_all([value], tensors[0].device)}) == 1


def is_like(tensor: Any, other: Any) -> bool:
    """Whether two tensors of one shape lie in the same parts on the same ranks."""
    if not (is_spread(tensor) and is_spread(other)):
        return is_spread(tensor) == is_spread(other)
    same_mesh: bool = tensor.device_mesh == other.device_mesh
    return same_mesh and tensor.placements == other.placements


def placed_like(tensor: Any, other: Any) -> Any:
    """A spread tensor in the parts of another: sums that lie in terms on several ranks are made (`Partial`)."""
    return tensor if is_like(tensor, other) else tensor.redistribute(other.device_mesh, other.placements)


def cut_like(whole: Tensor, like: Any) -> Any:
    """A tensor that each rank has, in the parts of another, without an exchange."""
    if not is_spread(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensor: Any) -> Tensor:
    """All of a tensor, on each rank."""
    return tensor.full_tensor() if is_spread(tensor) else tensor  # type: ignore[no-any-return]


def place_of(tensor: Any) -> tuple[int, ...]:
    """Which part of a tensor this rank has: ranks with the same place have copies of one another."""
    if not is_spread(tensor):
        return ()
    coordinates = zip(tensor.device_mesh.get_coordinate(), tensor.placements, strict=True)
    return tuple(coordinate for coordinate, placement in coordinates if not placement.is_replicate())


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


def whole_lengths(lengths: Sequence[float], tensors: Iterable[Tensor]) -> list[float]:
    """The Euclidean norm over all coordinates of each tensor, from that of this rank's part of it; see `summed`."""
    tensors = list(tensors)
    if not any(map(is_spread, tensors)):
        return list(lengths)
    return [math.sqrt(square) for square in summed([length * length for length in lengths], tensors)]


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
