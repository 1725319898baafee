"""What is written to tensors that were there before: noticed just before it happens, and restored."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode


class WatchedWrites(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, each tensor that was there before is copied just before an operation first writes to it.

    Whatever a rule or a loss reaches, by whatever way, is so restored to the bit by `restore`. Writes to tensors that
    are made inside are nobody's business. Kernels that write by raw pointers pass by unnoticed.

    Args:
        spared: memories (`memory_of`) that are nobody's business either.

    Attributes:
        written: one tensor of each memory that was written to, in order.
        dtypes: the types of the tensors that were made.

    Example:
        >>> queue = torch.zeros(3)
        >>> with WatchedWrites() as writes: _ = queue[1:].add_(1)
        >>> queue.tolist(), len(writes.written); writes.restore(); queue.tolist()
        ([0.0, 1.0, 1.0], 1)
        [0.0, 0.0, 0.0]
    """

    supports_higher_order_operators = True

    def __init__(self, spared: Iterable[int] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes: set[torch.dtype] = set()
        self._made: set[int] = set(spared)
        self._kept: dict[int, tuple[Tensor, torch.UntypedStorage, torch.UntypedStorage, int | None]] = {}

    @property
    def written(self) -> list[Tensor]:
        """One tensor of each memory that was written to, in order."""
        return [tensor for tensor, *_ in self._kept.values()]

    def has_kept(self, tensor: Tensor) -> bool:
        """Whether the memory of a tensor was written to."""
        return memory_of(tensor) in self._kept

    def restore(self) -> None:
        """All memory that was there before is as it was, its version too: a graph that holds it stays valid."""
        for tensor, memory, kept, version in self._kept.values():
            memory.copy_(kept)
            if version is not None:
                torch._C._autograd._unsafe_set_version_counter((tensor,), (version,))

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operation."""
        if any(issubclass(kind, FakeTensor) for kind in types):
            return function(*args, **(kwargs or {}))  # what DTensor tries, to know a shape
        if any(kind not in (Tensor, nn.Parameter) for kind in types):
            return NotImplemented  # what a tensor subclass does with the tensors inside it comes here next
        kwargs = kwargs or {}
        written = list(written_by(function, args, kwargs))
        for tensor in written:
            self._keep(tensor)
        result = self.perform(function, args, kwargs, written)
        self._note_made(function, result, args, kwargs)
        return result

    def perform(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], written: Sequence[Tensor]) -> Any:
        """Carries an operation out that writes to some tensors."""
        del written
        return function(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # that nothing is traced here costs time at each operation

    def _keep(self, tensor: Tensor) -> None:
        memory = memory_of(tensor)
        if memory is None or memory in self._made or memory in self._kept:
            return
        version = None if tensor.is_inference() else tensor._version
        # The storage itself: a rule may give the tensor another.
        here = tensor.untyped_storage()
        self._kept[memory] = tensor, here, here.clone(), version  # type: ignore[no-untyped-call]

    def _note_made(self, function: Any, result: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        lifted = "lift" in function.__name__  # a constant, whose memory is as new
        if _gives_views(function) and not lifted:
            return
        # Some operations give views and don't say so.
        given = set() if lifted else {memory_of(t) for t in _tensors((*args, *kwargs.values()))}
        for tensor in _tensors((result,)):
            self.dtypes.add(tensor.dtype)
            memory = memory_of(tensor)
            if memory is not None and memory not in given and memory not in self._kept:
                self._made.add(memory)


def memory_of(tensor: Tensor) -> int | None:
    """What identifies the memory that a tensor lies in; ``None`` for one that has none of its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):
        return None


def written_by(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that an operation writes to."""
    for position, name in _mutable(function):
        value = args[position] if position < len(args) else kwargs.get(name)
        yield from _tensors((value,))


@cache
def _mutable(function: Any) -> tuple[tuple[int, str], ...]:
    schema = getattr(function, "_schema", None)
    if schema is None:
        return ()
    # Batch normalization in training mode writes to its running statistics, and its schema doesn't say so.
    hidden = {"running_mean", "running_var"} if "batch_norm" in schema.name else set()
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments)
        if argument.name in hidden or (argument.alias_info is not None and argument.alias_info.is_write)
    )


@cache
def _gives_views(function: Any) -> bool:
    """Whether what an operation gives is, or is part of, what it was given."""
    schema = getattr(function, "_schema", None)
    return schema is not None and any(given.alias_info is not None for given in schema.returns)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
