"""The walk from some objects to all that they lead to and that can change."""

from __future__ import annotations

import collections
import collections.abc
import contextvars
import functools
import logging
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from stepscope.objective import dtensors, state_kinds
from stepscope.objective.state_kinds import Place
from stepscope.objective.stateless_packages import (
    ATOMS,
    CONTAINERS,
    FOREIGN,
    is_foreign,
    is_users,
    names_in,
    written_by_user,
)

_logger = logging.getLogger("stepscope")

_MANY = 100_000
"""Elements of a container that are visited; a container of more is data, not state."""

_LONG = 300
"""Characters of a path."""

_OPAQUE = sys.stdlib_module_names | {"torch", "stepscope"}
"""Packages of whose objects not even the attributes that a function names are followed."""

_ITERATING = ("builtins", "itertools", "torch.utils.data")


class Walk:
    """Visits each object once, and notes what can change: see `State` for what is followed.

    Args:
        through: types of objects that are followed although their package isn't.

    Attributes:
        modules: ``{path: module}``.
        tensors: ``{path: tensor}``.
        places: what can change beside tensors and iterators.
        data: each tensor whose memory can be exchanged, with that memory.
        grads: each leaf with its gradient.
        versions: path, tensor and the number of writes to it so far.
        iterators: ``{path: iterator}`` of those that a reader uses up.
        objects: ``{identity: object}``, all that were visited.
    """

    def __init__(self, through: tuple[type, ...]) -> None:
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.places: list[Place] = []
        self.data: list[tuple[Tensor, Tensor]] = []
        self.grads: list[tuple[Tensor, Tensor | None]] = []
        self.versions: list[tuple[str, Tensor, int]] = []
        self.iterators: dict[str, Any] = {}
        self.objects: dict[int, Any] = {}
        self._through = through
        self._todo: list[tuple[str, Any]] = []
        self._classes: set[type] = set()
        self._modules: set[tuple[int, frozenset[str]]] = set()
        self._names: set[str] = set()
        self._foreign: dict[str, Any] = {}

    def follow(self, roots: Mapping[str, Any]) -> None:
        """Visits objects and all that they lead to, except what was visited before.

        Args:
            roots: ``{name: object}``; the names are the beginnings of paths.
        """
        self._todo = list(roots.items())[::-1]
        followed: set[tuple[str, str]] = set()
        while self._todo or self._follow_named(followed):
            path, value = self._todo.pop()
            try:
                self._visit(path, value)
            except Exception as error:  # an object of another's, which doesn't let itself be looked at
                _logger.debug("%s isn't followed", path, exc_info=error)

    def _visit(self, path: str, value: Any) -> None:
        if type(value) in weakref.ProxyTypes:
            value = value.__reduce_ex__.__self__  # an attribute of what it stands for
        if type(value) in ATOMS or id(value) in self.objects:
            return
        self.objects[id(value)] = value
        kind: Any = type(value)
        visit = _visit_of(kind, value.__class__)
        visit(self, path, value)

    def _later(self, path: str, value: Any) -> None:
        if type(value) not in ATOMS:
            self._todo.append((path if len(path) < _LONG else f"{path[:_LONG]}…{len(self.objects)}", value))

    def _tensor(self, path: str, tensor: Tensor) -> None:
        self.tensors[path] = tensor
        if dtensors.is_spread(tensor):
            self._later(path, tensor._local_tensor)  # type: ignore[attr-defined]  # in a slot
        if not tensor.is_inference():
            self.versions.append((path, tensor, tensor._version))
        leaf = _is_leaf(tensor)
        if leaf is not False and _is_plain(tensor):
            self.data.append((tensor, tensor.data))
        if leaf:
            self.grads.append((tensor, tensor.grad))
            if tensor.grad is not None:
                self._later(f"{path}.grad", tensor.grad)
        if vars(tensor) or isinstance(tensor, nn.Parameter):  # a rule may keep its first state there
            self._attributes(path, tensor)

    def _scripted(self, path: str, module: torch.jit.ScriptModule) -> None:
        # Its state lies outside of Python, and its submodules are created at each access.
        self.modules |= {f"{path}.{name}".rstrip("."): inner for name, inner in module.named_modules()}
        for name, parameter in module.named_parameters():
            self._later(f"{path}.{name}", parameter)

    def _module(self, path: str, module: nn.Module) -> None:
        self.modules[path] = module
        self._attributes(path, module)
        self._class(path, type(module))

    def _method(self, path: str, method: types.MethodType) -> None:
        self._later(path, method.__func__)
        self._later(path.rpartition(".")[0] or path, method.__self__)
        self._named(path, method.__self__)

    def _partial(self, path: str, function: functools.partial[Any]) -> None:
        self._later(path, function.func)
        self.places.append(state_kinds.Arguments(path, function))
        self._items(path, function.args)
        for name, argument in function.keywords.items():
            self._later(f"{path}.{name}", argument)

    def _sequence(self, path: str, sequence: Any) -> None:
        self.places.append(state_kinds.Sequence(path, sequence))
        self._items(path, sequence)
        self._instance(path, sequence)

    def _set(self, path: str, members: set[Any]) -> None:
        self.places.append(state_kinds.Set(path, members))
        self._items(path, members)

    def _reference(self, path: str, reference: weakref.ref[Any]) -> None:
        self._later(path, reference())

    def _context_variable(self, path: str, variable: contextvars.ContextVar[Any]) -> None:
        self.places.append(state_kinds.context_variable(path, variable))
        self._later(path, variable.get(None))

    def _cached(self, path: str, function: Any) -> None:
        self.places.append(state_kinds.Cache(path, function))
        self._later(path, function.__wrapped__)

    def _builtin(self, path: str, method: Any) -> None:
        if not isinstance(method.__self__, types.ModuleType):
            self._later(path, method.__self__)

    def _other(self, path: str, value: Any) -> None:
        if isinstance(value, types.ModuleType):
            return
        if isinstance(value, collections.abc.Iterator) and type(value).__module__.startswith(_ITERATING):
            self.iterators[path] = value
        elif (place := state_kinds.numbers_of(path, value)) is not None:
            self.places.append(place)
        else:
            self._instance(path, value)

    def _items(self, path: str, items: Iterable[Any]) -> None:
        for index, item in enumerate(items):
            if index == _MANY:
                return
            self._later(f"{path}[{index}]", item)

    def _mapping(self, path: str, mapping: dict[Any, Any], *, dotted: bool = False) -> None:
        self.places.append(state_kinds.Dictionary(path, mapping))
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
        self.places.append(state_kinds.Dictionary(path, attributes))
        for name, attribute in attributes.items():
            # What is registered on a step belongs to who registered it, and isn't called while measuring.
            if isinstance(value, Optimizer) and name.endswith("_hooks"):
                continue
            inside = attribute if name in ("_parameters", "_buffers", "_modules") else None
            if isinstance(value, nn.Module) and isinstance(inside, dict):
                self.objects[id(inside)] = inside
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
                    place = state_kinds.slot_of(f"{path}.{name}", slot, value)
                    self.places.append(place)
                    self._later(place.path, place.first)
        self._class(path, kind, optimizer=isinstance(value, Optimizer))

    def _class(self, path: str, kind: type, *, optimizer: bool = False) -> None:
        """What a user's class holds: counters and tables, and the functions that a method names."""
        for base in kind.__mro__:
            users = is_users(base)
            if base is Optimizer or base in self._classes or not (users or optimizer):
                continue
            self._classes.add(base)
            self.places.append(state_kinds.ClassNames(path, base))
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
                    self.places.append(state_kinds.attribute_of_class(f"{path}.{name}", base, name))
                    self._later(f"{path}.{name}", attribute)

    def _function(self, path: str, function: types.FunctionType) -> None:
        whose = f"{path}'s "
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            place = state_kinds.variable_of(whose + name, cell)
            self.places.append(place)
            self._later(place.path, place.first)
        for name in ("__defaults__", "__kwdefaults__"):
            self.places.append(state_kinds.attribute_of(f"{path}'s default", function, name))
            self._later(f"{path}'s default", getattr(function, name))
        self._mapping(path, function.__dict__, dotted=True)
        if not written_by_user(function.__code__.co_filename):
            return
        names, stored = names_in(function.__code__)
        self._names |= names
        scope = function.__globals__
        self._names_of(scope, names, "")
        for name in stored - scope.keys():
            self.places.append(state_kinds.item_of(name, scope, name))

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
                    self.places.append(state_kinds.item_of(inside, scope, name))
                self._later(inside, value)

    def _named(self, path: str, value: Any) -> None:
        if is_foreign(type(value)) and isinstance(getattr(value, "__dict__", None), dict):  # type: ignore[arg-type]
            self._foreign.setdefault(path, value)

    def _follow_named(self, followed: set[tuple[str, str]]) -> bool:
        """Of an object whose package isn't followed, the attributes that a function of the user's names."""
        for path, value in list(self._foreign.items()):
            if type(value).__module__.partition(".")[0] in _OPAQUE:
                continue
            for name in sorted(self._names & vars(value).keys()):
                if (path, name) not in followed:
                    followed.add((path, name))
                    self._later(f"{path}.{name}", vars(value)[name])
        return bool(self._todo)


_VISITS: tuple[tuple[Any, Callable[[Walk, str, Any], None]], ...] = (
    (Tensor, Walk._tensor),
    (torch.jit.ScriptModule, Walk._scripted),
    (nn.Module, Walk._module),
    (types.FunctionType, Walk._function),
    (types.MethodType, Walk._method),
    (functools.partial, Walk._partial),
    (dict, Walk._mapping),
    (list | collections.deque, Walk._sequence),
    (tuple | frozenset, Walk._items),
    (set, Walk._set),
    (weakref.ref, Walk._reference),
    (type, Walk._class),
    (contextvars.ContextVar, Walk._context_variable),
    (functools._lru_cache_wrapper, Walk._cached),
    (types.BuiltinMethodType | types.MethodWrapperType, Walk._builtin),
    (object, Walk._other),
)
"""What is visited how: the first row that an object is an instance of."""


@functools.lru_cache(maxsize=4096)
def _visit_of(kind: Any, named: Any) -> Callable[[Walk, str, Any], None]:
    """How an object is visited, by its type and by the class that it names, which may be that of what it stands for."""
    return next(visit for types_of, visit in _VISITS if issubclass(kind, types_of) or issubclass(named, types_of))


def _is_leaf(tensor: Tensor) -> bool | None:
    """Whether no graph made it; ``None`` where torch doesn't say so, of some views that were made without gradients."""
    try:
        return tensor.is_leaf
    except RuntimeError:
        return None


def _is_plain(tensor: Tensor) -> bool:
    """Whether its data is memory of its own, also where its class is a user's."""
    return tensor.layout == torch.strided and type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__
