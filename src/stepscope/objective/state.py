"""The state that objects lead to, as it is now: it is remembered and restored.

A loss reaches more than its model: a teacher in a closure, a critic that it is a method of, a queue in a list. An
optimizer keeps more than its ``state``: attributes of its parameters, dictionaries by identity, closures, counters on
its class. `Walk` visits all of that, and `State` can restore it.
"""

from __future__ import annotations

import copy
import itertools
import sys
from collections.abc import Container, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.objective.state_kinds import Place
from stepscope.objective.state_walk import Walk

T = TypeVar("T")

_COPIES = sys.version_info < (3, 14)
"""Later Pythons don't copy iterators."""


class State:
    """Everything that some objects lead to and that can change, as it is now.

    Followed are: attributes, slots, items of containers, closures, defaults, the globals and the attributes of modules
    that a function names, bound methods, partials, weak references, and what the classes of a user hold. Not followed
    are objects that log, load data or run threads (`FOREIGN`).

    Args:
        roots: ``{name: object}`` to begin with; the names are the beginnings of paths.
        through: types of objects that are followed although their package isn't, such as `Optimizer`.

    Attributes:
        modules: ``{path: module}``, each module once.
        tensors: ``{path: tensor}``, each tensor once: parameters and buffers too.

    Example:
        >>> seen = [1]
        >>> state = State({"loss": lambda x: seen.append(x)})
        >>> seen.append(2); state.changed(); state.restore(); seen
        ['seen']
        [1]
    """

    def __init__(self, roots: Mapping[str, Any], through: tuple[type, ...] = ()) -> None:
        self._walk = Walk(through)
        self._iterates = False
        self._restored: list[Place] = []
        self.modules, self.tensors = self._walk.modules, self._walk.tensors
        self.add(roots)

    def add(self, roots: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Follows further objects, as they are now. Gives the modules that were not known before, by path."""
        known, before = len(self), set(self.modules)
        self._walk.follow(roots)
        self.enter(known)
        return {path: module for path, module in self.modules.items() if path not in before}

    def enter(self, start: int = 0) -> None:
        """Makes the present state the one that `reset` returns to; `restore` returns to the first state.

        Args:
            start: how many places are left out, those that were found first.
        """
        for place in self._walk.places[start:]:
            place.enter()

    def __len__(self) -> int:
        """How many places were found."""
        return len(self._walk.places)

    def changed(self) -> list[Place]:
        """The places whose content has changed since the last `enter`."""
        return [place for place in self._walk.places if place.differs()]

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """Puts other objects in the places of some, by their identity: in attributes, lists, closures and globals."""
        for place in self._walk.places:
            place.replace(substitutes)

    def spare_iterators(self) -> None:
        """Until `restore`, no iterator is read: an item that it has given can't be given again.

        A copy takes the place of each. Where an iterator can't be copied, reading it raises a `UsageError`.
        """
        iterators, self._walk.iterators = self._walk.iterators, {}
        if not iterators:
            return
        self._iterates = True
        copied: tuple[type, ...] = (
            itertools.count,
            itertools.repeat,
            type(iter([])),
            type(iter(())),
            type(iter(range(0))),
        )
        self.replace(
            {
                id(iterator): copy.copy(iterator) if type(iterator) in copied and _COPIES else _Unreadable(path)
                for path, iterator in iterators.items()
            }
        )

    def restore(self) -> None:
        """Restores the first state of everything."""
        self._restored = [place for place in self._walk.places if not place.is_restored()]
        for place in self._restored:
            place.restore()
        for tensor, grad in self._walk.grads:
            if tensor.grad is not grad:
                tensor.grad = None
        for tensor, data in self._walk.data:
            if not _is_same_memory(tensor, data):
                tensor.data = data
        # Last, for a gradient must be of its parameter's dtype.
        for tensor, grad in self._walk.grads:
            if tensor.grad is not grad:
                tensor.grad = grad
        if changed := [(tensor, version) for _, tensor, version in self._walk.versions if tensor._version != version]:
            torch._C._autograd._unsafe_set_version_counter(*zip(*changed, strict=True))

    def renew(self) -> bool:
        """Makes the present state the first one without a walk, which takes a third of the time.

        Returns:
            Whether that could be done. If not, something leads to an object that was not visited: make another `State`.
        """
        walk = self._walk
        if self._iterates or not all(place.renew(walk.objects) for place in walk.places):
            return False
        walk.grads = [(tensor, tensor.grad) for tensor, _ in walk.grads]
        walk.data = [(tensor, tensor.data) for tensor, _ in walk.data]
        walk.versions = [(path, tensor, tensor._version) for path, tensor, _ in walk.versions]
        return True

    def forget_gradients(self) -> None:
        """Holds gradients no longer: they are others at each step, and would stay in memory."""
        walk = self._walk
        ids = {id(grad) for _, grad in walk.grads if grad is not None}
        walk.grads = [(tensor, None) for tensor, _ in walk.grads if id(tensor) not in ids]
        walk.data = [(tensor, data) for tensor, data in walk.data if id(tensor) not in ids]
        walk.versions = [entry for entry in walk.versions if id(entry[1]) not in ids]
        for path in [path for path, tensor in self.tensors.items() if id(tensor) in ids]:
            del self.tensors[path]
        for identity in ids:
            walk.objects.pop(identity, None)

    def unrestored(self) -> list[str]:
        """After `restore`, the paths to all that couldn't be restored."""
        return [place.path for place in self._restored if not place.is_restored()]

    def written(self) -> dict[str, Tensor]:
        """The tensors that were written to since they were met, by path."""
        return {path: tensor for path, tensor, version in self._walk.versions if tensor._version != version}

    def instances(self, kind: type[T]) -> list[T]:
        """All objects of a type that the walk met."""
        return [value for value in self._walk.objects.values() if isinstance(value, kind)]

    def exchangeable(self) -> list[Tensor]:
        """The tensors whose data can be exchanged until `restore`, without gradients."""
        gradients = {id(grad) for _, grad in self._walk.grads}
        return [tensor for tensor, _ in self._walk.data if id(tensor) not in gradients]

    def stand_in(self, excluded: Container[int] = ()) -> list[Tensor]:
        """Until `restore`, tensors have copies of their data; those that share memory share its copy.

        Args:
            excluded: identities of tensors that keep their data.

        Returns:
            The tensors that have one.
        """
        sharing: dict[tuple[torch.device, int], list[tuple[Tensor, Tensor]]] = {}
        for tensor, data in self._walk.data:
            if not data.is_meta and id(tensor) not in excluded:
                memory = data.device, data.untyped_storage().data_ptr()
                sharing.setdefault(memory, []).append((tensor, data))
        for group in sharing.values():
            if len(group) == 1 and group[0][1].is_contiguous() and not group[0][1].storage_offset():
                group[0][0].data = group[0][1].clone()
                continue
            copied = group[0][1].untyped_storage().clone()  # type: ignore[no-untyped-call]
            for tensor, data in group:
                place = data.storage_offset(), data.size(), data.stride()
                tensor.data = torch.empty(0, dtype=data.dtype, device=data.device).set_(copied, *place)
        return [tensor for group in sharing.values() for tensor, _ in group]


class _Unreadable:
    """Stands for an iterator."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __iter__(self) -> _Unreadable:
        return self

    def __next__(self) -> Any:
        raise UsageError(
            f"{self._path} is an iterator, and what it gives can't be given again: measuring would use it up"
        )


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
