"""Whether tensors lie in the same memory: a step that moves one would move the other."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def shared_memory(tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """The names of two tensors that have an element in common, the same name twice of one that has its own twice.

    Disjoint views of one buffer share nothing, also where they are interleaved, as its columns are.

    Example:
        >>> buffer = torch.zeros(4, 3)
        >>> shared_memory({"a": buffer[:, 0], "b": buffer[:, 1:]})
        >>> shared_memory({"a": buffer[:, 0], "b": buffer[1]})
        ('a', 'b')
    """
    by_storage: dict[tuple[torch.device, int], list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or not tensor.numel():
            continue
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            return name, name
        by_storage[tensor.device, tensor.untyped_storage().data_ptr()].append(name)
    for names in by_storage.values():
        if pair := _shared_in_storage(names, [tensors[name] for name in names]):
            return pair
    return None


def _shared_in_storage(names: Sequence[str], tensors: Sequence[Tensor]) -> tuple[str, str] | None:
    spans = sorted((*_span(tensor), index) for index, tensor in enumerate(tensors))
    if all(end <= start for (_, end, _), (start, _, _) in itertools.pairwise(spans)):
        return None
    # Their spans overlap, and so may their elements: each marks its own.
    unit = min(tensor.element_size() for tensor in tensors)
    marks = torch.zeros(max(end for _, end, _ in spans) // unit, dtype=torch.int32, device=tensors[0].device)
    for index, tensor in enumerate(tensors):
        width = tensor.element_size() // unit
        strides = [stride * width for stride in tensor.stride()]
        own = marks.as_strided((*tensor.shape, width), (*strides, 1), tensor.storage_offset() * width)
        if taken := int(own.max()):
            return names[taken - 1], names[index]
        own.fill_(index + 1)
    return None


def _span(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor begins and ends in its storage, in bytes."""
    last = sum((int(size) - 1) * int(stride) for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()
