"""Two micro-batches as one, and one as two: along a dimension that examples lie along."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from stepscope.objective.batches import mapped, packed, tensors


def joined(a: Any, b: Any, along: int) -> Any | None:
    """Both in one batch, along one dimension; ``None`` where their shapes or anything else in them differ.

    Example:
        >>> joined({"x": torch.ones(1), "scale": 2}, {"x": torch.zeros(2), "scale": 2}, 0)
        {'x': tensor([1., 0., 0.]), 'scale': 2}
    """
    tensors_a, tensors_b = list(tensors(a)), list(tensors(b))
    length_a, length_b = length(a, along), length(b, along)
    if length_a is None or length_b is None or len(tensors_a) != len(tensors_b) or _skeleton(a) != _skeleton(b):
        return None
    joint: dict[int, Tensor] = {}
    for x, y in zip(tensors_a, tensors_b, strict=True):
        y = y.to(x.device)
        place = min(along, x.dim() - 1)
        if x.dtype == y.dtype and x.dim() and x.dim() == y.dim() and x.shape[place] == length_a:
            if y.shape[place] != length_b or _sizes_beside(x, place) != _sizes_beside(y, place):
                return None
            joint[id(x)] = torch.cat([x, y], place)
        elif x.dtype != y.dtype or not torch.equal(x, y):
            return None
        else:
            joint[id(x)] = x
    return mapped(a, lambda tensor: joint[id(tensor)])


def splits(batch: Any) -> Iterator[tuple[Any, Any]]:
    """The rows of a batch in two batches, of unequal and of equal sizes; nothing where it has fewer than two rows.

    Example:
        >>> [(len(a), len(b)) for a, b in splits(torch.ones(4))]
        [(1, 3), (2, 2), (3, 1)]
    """
    rows = length(batch, 0)
    if rows is None or rows < 2:
        return
    for cut in sorted({1, rows // 2, rows - 1}):
        yield rows_of(batch, 0, cut), rows_of(batch, cut, rows)


def rows_of(batch: Any, start: int, stop: int) -> Any:
    """Some rows of a batch; what has no dimension of its rows is in each part.

    Example:
        >>> rows_of({"x": torch.arange(4), "scale": torch.tensor(2)}, 1, 3)
        {'x': tensor([1, 2]), 'scale': tensor(2)}
    """
    rows = length(batch, 0)
    return mapped(batch, lambda t: t[start:stop] if t.dim() and len(t) == rows else t)


def length(batch: Any, along: int) -> int | None:
    """A dimension of a batch's first tensor that has it; ``None`` if it is no plain batch of tensors."""
    if not isinstance(batch, Mapping | list | tuple | Tensor) and not hasattr(batch, "__dict__"):
        return None
    if next(packed(batch), None) is not None:
        return None
    if any(isinstance(value, list) for value in _values(batch)):
        return None  # a list of something for each example, such as boxes
    return next((tensor.shape[along] for tensor in tensors(batch) if tensor.dim() > along), None)


def _values(batch: Any) -> list[Any]:
    if isinstance(batch, Mapping):
        return list(batch.values())
    return list(batch) if isinstance(batch, list | tuple) else list(getattr(batch, "__dict__", {}).values())


def _sizes_beside(tensor: Tensor, place: int) -> list[int]:
    """The sizes of all dimensions except one."""
    return [size for dimension, size in enumerate(tensor.shape) if dimension != place]


def _skeleton(batch: Any) -> Any:
    """The structure of a batch, and all in it that is no tensor; to be compared."""
    if isinstance(batch, Tensor):
        return Tensor
    if isinstance(batch, Mapping):
        return [(key, _skeleton(value)) for key, value in batch.items()]
    if isinstance(batch, list | tuple):
        return [_skeleton(value) for value in batch]
    attributes = getattr(batch, "__dict__", None)
    if attributes is not None and not callable(batch):
        return [(key, _skeleton(value)) for key, value in attributes.items()]
    return batch
