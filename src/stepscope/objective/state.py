"""The state that objects lead to: a walk finds it, and it is remembered and restored.

A loss reaches more than its model: a teacher in a closure, a critic that it is a method of, a queue in a list. An
optimizer keeps more than its ``state``: attributes of its parameters, dictionaries by identity, closures, counters on
its class. `State` finds all of that by one walk and can restore it.
"""

from __future__ import annotations

import array
import collections
import collections.abc
import contextvars
import copy
import functools
import itertools
import logging
import sys
import types
import weakref
from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from stepscope.errors import UsageError
from stepscope.objective import places
from stepscope.objective.places import Place
from stepscope.objective.provenance import ATOMS, CONTAINERS, FOREIGN, is_foreign, is_users, names_in, written_by_user

T = TypeVar("T")

_logger = logging.getLogger("stepscope")

_MANY = 100_000
"""Elements of a container that are walked into; a container of more is data, not state."""

_LARGE = 2**25
"""Bytes of a numpy array of which a copy is kept."""

_LONG = 300
"""Characters of a path."""

_ITERATING = ("builtins", "itertools", "torch.utils.data")

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
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self._through = through
        self._places: list[Place] = []
        self._data: list[tuple[Tensor, Tensor]] = []
        self._grads: list[tuple[Tensor, Tensor | None]] = []
        self._versions: list[tuple[str, Tensor, int]] = []
        self._iterators: dict[str, Any] = {}
        self._seen: dict[int, Any] = {}
        self._classes: set[type] = set()
        self._modules: set[tuple[int, frozenset[str]]] = set()
        self._names: set[str] = set()
        self._foreign: dict[str, Any] = {}
        self.add(roots)

    def add(self, roots: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Follows further objects, as they are now. Gives the modules that were not known before, by path."""
        known, before = len(self._places), set(self.modules)
        self._todo: list[tuple[str, Any]] = list(roots.items())[::-1]
        followed: set[tuple[str, str]] = set()
        while self._todo or self._follow_named(followed):
            path, value = self._todo.pop()
            try:
                self._visit(path, value)
            except Exception as error:  # an object of another's, which doesn't let itself be looked at
                _logger.debug("%s isn't followed", path, exc_info=error)
        for place in self._places[known:]:
            place.enter()
        return {path: module for path, module in self.modules.items() if path not in before}

    def enter(self, start: int = 0) -> None:
        """Makes the present state the one that `reset` returns to; `restore` returns to the first state.

        Args:
            start: how many places are left out, those that were found first.
        """
        for place in self._places[start:]:
            place.enter()

    def __len__(self) -> int:
        """How many places were found."""
        return len(self._places)

    def changed(self) -> list[Place]:
        """The places whose content has changed since the last `enter`."""
        return [place for place in self._places if place.differs()]

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """Puts other objects in the places of some, by their identity: in attributes, lists, closures and globals."""
        for place in self._places:
            place.replace(substitutes)

    def spare_iterators(self) -> None:
        """Until `restore`, no iterator is read: an item that it has given can't be given again.

        A copy takes the place of each. Where an iterator can't be copied, reading it raises a `UsageError`.
        """
        iterators, self._iterators = self._iterators, {}
        if not iterators:
            return
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
        for place in self._places:
            place.restore()
        for tensor, grad in self._grads:
            if tensor.grad is not grad:
                tensor.grad = None
        for tensor, data in self._data:
            if not _is_same_memory(tensor, data):
                tensor.data = data
        # Last, for a gradient must be of its parameter's dtype.
        for tensor, grad in self._grads:
            if tensor.grad is not grad:
                tensor.grad = grad
        if changed := [(tensor, version) for _, tensor, version in self._versions if tensor._version != version]:
            torch._C._autograd._unsafe_set_version_counter(*zip(*changed, strict=True))

    def unrestored(self) -> list[str]:
        """After `restore`, the paths to all that couldn't be restored."""
        return [place.path for place in self._places if not place.is_restored()]

    def written(self) -> dict[str, Tensor]:
        """The tensors that were written to since they were met, by path."""
        return {path: tensor for path, tensor, version in self._versions if tensor._version != version}

    def instances(self, kind: type[T]) -> list[T]:
        """All objects of a type that the walk met."""
        return [value for value in self._seen.values() if isinstance(value, kind)]

    def exchangeable(self) -> list[Tensor]:
        """The tensors whose data can be exchanged until `restore`, without gradients."""
        gradients = {id(grad) for _, grad in self._grads}
        return [tensor for tensor, _ in self._data if id(tensor) not in gradients]

    def stand_in(self, excluded: Container[int] = ()) -> list[Tensor]:
        """Until `restore`, tensors have copies of their data; those that share memory share its copy.

        Args:
            excluded: identities of tensors that keep their data.

        Returns:
            The tensors that have one.
        """
        sharing: dict[tuple[torch.device, int], list[tuple[Tensor, Tensor]]] = {}
        for tensor, data in self._data:
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

    # ------------------------------------------------------------------------------------------------------- walking

    def _visit(self, path: str, value: Any) -> None:
        if type(value) in weakref.ProxyTypes:
            value = value.__reduce_ex__.__self__  # an attribute of what it stands for
        kind = type(value)
        if kind in ATOMS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(path, value)
        elif isinstance(value, torch.jit.ScriptModule):
            # Its state lies outside of Python, and its submodules are created at each access.
            self.modules |= {f"{path}.{name}".rstrip("."): module for name, module in value.named_modules()}
            for name, parameter in value.named_parameters():
                self._later(f"{path}.{name}", parameter)
        elif isinstance(value, nn.Module):
            self.modules[path] = value
            self._attributes(path, value)
            self._class(path, kind)
        elif isinstance(value, types.FunctionType):
            self._function(path, value)
        elif isinstance(value, types.MethodType):
            self._later(path, value.__func__)
            self._later(path.rpartition(".")[0] or path, value.__self__)
            self._named(path, value.__self__)
        elif isinstance(value, functools.partial):
            self._later(path, value.func)
            self._places.append(places.Arguments(path, value))
            self._items(path, value.args)
            for name, argument in value.keywords.items():
                self._later(f"{path}.{name}", argument)
        elif isinstance(value, dict):
            self._mapping(path, value)
        elif isinstance(value, list | collections.deque):
            self._places.append(places.Sequence(path, value))
            self._items(path, value)
            self._instance(path, value)
        elif isinstance(value, tuple | frozenset):
            self._items(path, value)
        elif isinstance(value, set):
            self._places.append(places.Set(path, value))
            self._items(path, value)
        elif isinstance(value, collections.abc.Iterator) and kind.__module__.startswith(_ITERATING):
            self._iterators[path] = value
        elif isinstance(value, weakref.ref):
            self._later(path, value())
        elif isinstance(value, type):
            self._class(path, value)
        elif (generator := places.random_generator(path, value)) is not None:
            self._places.append(generator)
        elif "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray):
            kept = places.Array if value.nbytes <= _LARGE else places.LargeArray
            self._places.append(kept(path, value))
        elif isinstance(value, bytearray | array.array):
            self._places.append(places.Buffer(path, value))
        elif isinstance(value, contextvars.ContextVar):
            self._places.append(places.context_variable(path, value))
            self._later(path, value.get(None))
        elif isinstance(value, functools._lru_cache_wrapper):
            self._places.append(places.Cache(path, value))
            self._later(path, value.__wrapped__)
        elif isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            if not isinstance(value.__self__, types.ModuleType):
                self._later(path, value.__self__)
        elif not isinstance(value, types.ModuleType):
            self._instance(path, value)

    def _later(self, path: str, value: Any) -> None:
        if type(value) not in ATOMS:
            self._todo.append((path if len(path) < _LONG else f"{path[:_LONG]}…{len(self._seen)}", value))

    def _tensor(self, path: str, tensor: Tensor) -> None:
        self.tensors[path] = tensor
        if not tensor.is_inference():
            self._versions.append((path, tensor, tensor._version))
        leaf = _is_leaf(tensor)
        if leaf is not False and _is_plain(tensor):
            self._data.append((tensor, tensor.data))
        if leaf:
            self._grads.append((tensor, tensor.grad))
            if tensor.grad is not None:
                self._later(f"{path}.grad", tensor.grad)
        if vars(tensor) or isinstance(tensor, nn.Parameter):  # a rule may keep its first state there
            self._attributes(path, tensor)

    def _items(self, path: str, items: Iterable[Any]) -> None:
        for index, item in enumerate(items):
            if index == _MANY:
                return
            self._later(f"{path}[{index}]", item)

    def _mapping(self, path: str, mapping: dict[Any, Any], *, dotted: bool = False) -> None:
        self._places.append(places.Dictionary(path, mapping))
        for index, (key, value) in enumerate(dict.items(mapping)):
            if index == _MANY:
                break
            name = key if isinstance(key, str | int) else type(key).__name__
            self._later(f"{path}.{name}" if dotted or isinstance(key, str) else f"{path}[{name}]", value)
            self._later(f"{path}[{index}]", key)
        if type(mapping) is not dict:
            self._instance(path, mapping)

    def _attributes(self, path: str, value: Any) -> None:
        """Follows the attributes in an object's ``__dict__``."""
        attributes = vars(value)
        self._places.append(places.Dictionary(path, attributes))
        for name, attribute in attributes.items():
            # What is registered on a step belongs to who registered it, and isn't called while measuring.
            if isinstance(value, Optimizer) and name.endswith("_hooks"):
                continue
            inside = attribute if name in ("_parameters", "_buffers", "_modules") else None
            if isinstance(value, nn.Module) and isinstance(inside, dict):
                self._seen[id(inside)] = inside
                self._mapping(path, inside, dotted=True)
            else:
                self._later(f"{path}.{name}", attribute)

    def _instance(self, path: str, value: Any) -> None:
        """Follows an object of any other class: its attributes, its slots and its class."""
        kind = type(value)
        if isinstance(value, Dataset | DataLoader):
            return
        if is_foreign(kind) and not isinstance(value, (*CONTAINERS, *self._through)):  # type: ignore[arg-type]
            self._named(path, value)
            return
        if isinstance(getattr(value, "__dict__", None), dict):
            self._attributes(path, value)
        for base in kind.__mro__:
            for name, slot in vars(base).items():
                if isinstance(slot, types.MemberDescriptorType) and not base.__module__.startswith("torch"):
                    place = places.slot_of(f"{path}.{name}", slot, value)
                    self._places.append(place)
                    self._later(place.path, place.first)
        self._class(path, kind, optimizer=isinstance(value, Optimizer))

    def _class(self, path: str, kind: type, *, optimizer: bool = False) -> None:
        """What a user's class holds: counters and tables, and the functions that a method names."""
        for base in kind.__mro__:
            users = is_users(base)
            if base is Optimizer or base in self._classes or not (users or optimizer):
                continue
            self._classes.add(base)
            self._places.append(places.ClassNames(path, base))
            for name, attribute in list(vars(base).items()):
                function = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
                if isinstance(function, types.FunctionType):
                    if users:
                        self._later(f"{path}.{name}", function)
                elif isinstance(attribute, functools._lru_cache_wrapper):
                    self._later(f"{path}.{name}", attribute)
                elif name.startswith("__"):
                    continue
                elif hasattr(type(attribute), "__get__"):
                    if is_users(type(attribute)):  # type: ignore[arg-type]  # a descriptor that keeps something
                        self._later(f"{path}.{name}", attribute)
                else:
                    self._places.append(places.attribute_of_class(f"{path}.{name}", base, name))
                    self._later(f"{path}.{name}", attribute)

    def _function(self, path: str, function: types.FunctionType) -> None:
        whose = f"{path}'s "
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            place = places.variable_of(whose + name, cell)
            self._places.append(place)
            self._later(place.path, place.first)
        for name in ("__defaults__", "__kwdefaults__"):
            self._places.append(places.attribute_of(f"{path}'s default", function, name))
            self._later(f"{path}'s default", getattr(function, name))
        self._mapping(path, function.__dict__, dotted=True)
        if not written_by_user(function.__code__.co_filename):
            return
        names, stored = names_in(function.__code__)
        self._names |= names
        scope = function.__globals__
        self._names_of(scope, names, "")
        for name in stored - scope.keys():
            self._places.append(places.item_of(name, scope, name))

    def _names_of(self, scope: dict[str, Any], names: frozenset[str], path: str) -> None:
        """What the names in a function may mean among its globals, or in a module that they name."""
        for name in names & scope.keys():
            value, inside = scope[name], f"{path}{name}"
            if isinstance(value, types.ModuleType):
                if value.__name__.partition(".")[0] not in FOREIGN and (id(value), names) not in self._modules:
                    self._modules.add((id(value), names))
                    self._names_of(vars(value), names, f"{inside}.")
            else:
                if not isinstance(value, types.FunctionType | type):
                    self._places.append(places.item_of(inside, scope, name))
                self._later(inside, value)

    def _named(self, path: str, value: Any) -> None:
        if is_foreign(type(value)) and isinstance(getattr(value, "__dict__", None), dict):  # type: ignore[arg-type]
            self._foreign.setdefault(path, value)

    def _follow_named(self, followed: set[tuple[str, str]]) -> bool:
        """Of an object whose package isn't followed, the attributes that a function of the user's names."""
        for path, value in list(self._foreign.items()):
            if type(value).__module__.partition(".")[0] in sys.stdlib_module_names | {"torch", "stepscope"}:
                continue
            for name in sorted(self._names & vars(value).keys()):
                if (path, name) not in followed:
                    followed.add((path, name))
                    self._later(f"{path}.{name}", vars(value)[name])
        return bool(self._todo)


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


def _is_leaf(tensor: Tensor) -> bool | None:
    """Whether no graph made it; ``None`` where torch doesn't say so, of some views that were made without gradients."""
    try:
        return tensor.is_leaf
    except RuntimeError:
        return None


def _is_plain(tensor: Tensor) -> bool:
    """Whether its data is memory of its own, also where its class is a user's."""
    return tensor.layout == torch.strided and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
