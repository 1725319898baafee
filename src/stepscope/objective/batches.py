"""What a batch is: tensors in any nesting of mappings, sequences and objects."""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import types
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from stepscope.errors import UsageError, said

_SHARED: tuple[Any, ...] = (
    str,
    bytes,
    int,
    float,
    complex,
    type(None),
    type,
    types.ModuleType,
    types.FunctionType,
    types.MethodType,
)
_SHARED += (partial, nn.Module, Optimizer, Dataset, DataLoader)
"""Objects that a batch may refer to without holding them: they are neither walked nor copied."""

_IN_C = (types.BuiltinFunctionType, types.WrapperDescriptorType, types.MethodDescriptorType)


def tensors(batch: Any, *, of_objects: bool = True) -> Iterator[Tensor]:
    """The tensors of a batch in order, each once: all that `moved` copies.

    Args:
        batch: a micro-batch.
        of_objects: whether to look into objects that are neither mappings, sequences nor dataclasses.
    """
    seen: set[int] = set()

    def walk(value: Any) -> Iterator[Tensor]:
        if isinstance(value, _SHARED) or id(value) in seen:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            yield value
        elif of_objects or isinstance(value, Mapping | list | tuple) or dataclasses.is_dataclass(value):
            for item in _contents(value):
                yield from walk(item)

    return walk(batch)


def packed(batch: Any) -> Iterator[PackedSequence]:
    """The packed sequences of a batch, whose tensors have a row for each of their elements."""
    if isinstance(batch, PackedSequence):
        yield batch
    elif isinstance(batch, Mapping | list | tuple):
        for value in batch.values() if isinstance(batch, Mapping) else batch:
            yield from packed(value)


def rows(batch: Any, *, of_objects: bool = True) -> int | None:
    """How many examples a batch has: the length of its first tensor that isn't a scalar.

    A packed sequence has a row for each element, so its tensors count only where the batch has no others.

    Args:
        batch: a micro-batch.
        of_objects: see `tensors`.

    Example:
        >>> sequences = nn.utils.rnn.pack_sequence([torch.zeros(4), torch.zeros(1)])
        >>> rows(torch.zeros(3, 2)), rows((sequences, torch.zeros(2))), rows(sequences)
        (3, 2, 5)
    """
    inside = {id(tensor) for one in packed(batch) for tensor in one}
    found = [tensor for tensor in tensors(batch, of_objects=of_objects) if tensor.dim()]
    return min(found, key=lambda tensor: id(tensor) in inside).shape[0] if found else None


def digest(batches: Iterable[Any]) -> str | None:
    """What tells examples from others: SHA-256 of their tensors, however they are cut into batches.

    Args:
        batches: micro-batches.

    Returns:
        64 hexadecimal digits; ``None`` where a tensor has no bytes of its own, as sparse ones.

    Example:
        >>> x = torch.arange(6).view(3, 2)
        >>> digest([{"x": x}]) == digest([{"x": x[:1]}, {"x": x[1:]}]), digest([{"x": x}]) == digest([{"x": x + 1}])
        (True, False)
    """
    digests: list[Any] = []
    try:
        for batch in batches:
            for place, tensor in enumerate(tensors(batch)):
                if place == len(digests):
                    digests.append(hashlib.sha256(str(tensor.dtype).encode()))
                flat = tensor.detach().cpu().contiguous().reshape(-1)
                digests[place].update(ctypes.string_at(flat.data_ptr(), flat.nbytes))  # numpy may be missing
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return hashlib.sha256(b"".join(each.digest() for each in digests)).hexdigest()


def moved(batch: Any, device: torch.device, dtype_of: Callable[[torch.dtype], torch.dtype]) -> Any:
    """A copy of the batch with its tensors on `device`, floating-point ones in ``dtype_of(their dtype)``.

    Mappings, sequences and objects that hold tensors are copied, with all their attributes and without a call of their
    constructors; all else is shared.

    Raises:
        UsageError: an object that holds tensors can't be copied.
    """

    def copied(tensor: Tensor) -> Tensor:
        # Copied also where it fits: a loss may write to its batch.
        new = tensor.to(device, dtype_of(tensor.dtype) if tensor.is_floating_point() else tensor.dtype, copy=True)
        for name, value in vars(tensor).items():
            vars(new).setdefault(name, value)
        return new

    return mapped(batch, copied)


def mapped(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of the batch with other tensors in it; see `moved`."""
    return _Copier(batch, function).copy(batch)


class _Copier:
    """Copies all objects that hold tensors; an object that occurs twice in a batch is one object in the copy."""

    def __init__(self, batch: Any, copied: Callable[[Tensor], Tensor]) -> None:
        self._holders = _holders_of_tensors(batch)
        self._copied = copied
        self._copies: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        if isinstance(value, weakref.ref):  # of a part to the whole
            target = self._copies.get(id(value()))
            return value if target is None else weakref.ref(target)
        if id(value) not in self._holders:
            return value
        if id(value) not in self._copies:
            if isinstance(value, Tensor):
                self._copies[id(value)] = self._copied(value)
            else:
                self._copy_holder(value)
        return self._copies[id(value)]

    def _copy_holder(self, value: Any) -> None:
        kind: Any = type(value)
        if isinstance(value, tuple):
            content: tuple[list[Any], ...] = ([self.copy(item) for item in tuple.__iter__(value)],)
            if isinstance(value, PackedSequence):
                content[0][1] = value.batch_sizes.clone()  # which torch wants on the CPU
        else:
            content = ()
        try:
            new = _in_c(kind, "__new__")(kind, *content)
        except Exception as error:
            raise UsageError(
                f"a batch holds a {kind.__name__} that can't be copied ({said(error)}): "
                "give its tensors in a dict or a tuple"
            ) from error
        self._copies[id(value)] = new  # before its content, which may refer to it
        if isinstance(value, dict):
            for key, item in _in_c(kind, "items")(value):
                _in_c(kind, "__setitem__")(new, key, self.copy(item))
        elif isinstance(value, list):
            list.extend(new, [self.copy(item) for item in list.__iter__(value)])
        if (attributes := _attributes(value)) is not None:
            object.__getattribute__(new, "__dict__").update({n: self.copy(v) for n, v in attributes.items()})
        for slot in _slots(kind):
            if (held := _value(slot, value)) is not _EMPTY:
                slot.__set__(new, self.copy(held))


def _holders_of_tensors(batch: Any) -> set[int]:
    """The identities of a batch's tensors, and of all objects that hold one, directly or not."""
    holders_of: dict[int, list[int]] = {id(batch): []}
    waiting, reached = [batch], []
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            reached.append(id(value))
            continue
        for item in _contents(value):
            if isinstance(item, _SHARED):
                continue
            if id(item) not in holders_of:
                holders_of[id(item)] = []
                waiting.append(item)
            holders_of[id(item)].append(id(value))
    holders: set[int] = set()
    while reached:
        if (key := reached.pop()) not in holders:
            holders.add(key)
            reached += holders_of[key]
    return holders


def _contents(value: Any) -> Iterator[Any]:
    """The elements or values of an object, then its attributes."""
    if isinstance(value, _SHARED):
        return
    kind: Any = type(value)
    if isinstance(value, dict):
        yield from _in_c(kind, "values")(value)
    elif isinstance(value, types.MappingProxyType):
        yield from value.values()
    elif isinstance(value, list):
        yield from list.__iter__(value)
    elif isinstance(value, tuple):
        yield from tuple.__iter__(value)
    yield from (_attributes(value) or {}).values()
    yield from (held for slot in _slots(kind) if (held := _value(slot, value)) is not _EMPTY)


def _attributes(value: Any) -> dict[str, Any] | None:
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return attributes if isinstance(attributes, dict) else None


_EMPTY = object()


def _value(slot: types.MemberDescriptorType, holder: Any) -> Any:
    try:
        return slot.__get__(holder)
    except AttributeError:
        return _EMPTY


@lru_cache(maxsize=1024)
def _slots(kind: type) -> tuple[types.MemberDescriptorType, ...]:
    """The slots of a class, those of its bases first; slots of classes in C can't be written and are left out."""
    written = [base for base in reversed(kind.__mro__) if "__slots__" in vars(base) or base is defaultdict]
    return tuple(slot for b in written for slot in vars(b).values() if isinstance(slot, types.MemberDescriptorType))


def _in_c(kind: type, name: str) -> Callable[..., Any]:
    """A method of the base class in C, without the overrides of its subclasses."""
    return next(vars(base)[name] for base in kind.__mro__ if isinstance(vars(base).get(name), _IN_C))  # type: ignore[no-any-return]
