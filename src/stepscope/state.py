"""The state that objects lead to: found by walking, remembered, and restored.

A loss reaches more than its model: a teacher in a closure, a critic that it is a method of, a queue in a list. An
optimizer keeps more than its ``state``: attributes of its parameters, dictionaries by identity, closures, counters on
its class. `State` finds all of that by one walk and can restore it.
"""

from __future__ import annotations

import collections
import collections.abc
import copy
import functools
import itertools
import operator
import random
import sys
import sysconfig
import types
import weakref
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import weak

from stepscope.errors import UsageError

T = TypeVar("T")

_ATOMS = {
    type(None), bool, int, float, complex, str, bytes, type, range, slice, type(Ellipsis), torch.dtype, torch.device,
    torch.Size, torch.layout, torch.memory_format,
}  # fmt: skip

# Packages whose objects are no state of a loss: they log, load data, schedule, or run threads of their own.
_FOREIGN = frozenset(sys.stdlib_module_names) | {
    "accelerate", "aim", "clearml", "comet_ml", "dask", "datasets", "deepspeed", "filelock", "huggingface_hub",
    "joblib", "lightning", "lightning_fabric", "loguru", "matplotlib", "mlflow", "neptune", "numpy", "pandas",
    "pyarrow",
    "pytest", "_pytest", "pytorch_lightning", "ray", "rich", "safetensors", "scipy", "stepscope", "tensorboard",
    "tensorboardX", "tokenizers", "torch", "tqdm", "wandb",
}  # fmt: skip
_FOREIGN_MODULES = (
    "transformers.trainer",
    "transformers.integrations",
    "transformers.data",
    "transformers.tokenization",
)

# Containers of the standard library and of torch that are plain objects inside.
_CONTAINERS = (
    types.SimpleNamespace, collections.UserDict, collections.UserList, collections.ChainMap,
    weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weak.WeakIdKeyDictionary, weak.WeakTensorKeyDictionary,
)  # fmt: skip

_MANY = 10_000
"""Elements of a container that are walked into; a container of more is data, not state."""

_LARGE = 2**26
"""Bytes of a numpy array of which a copy is kept."""

_MISSING = object()

_ITERATING = ("builtins", "itertools", "torch.utils.data")

_COPIES = sys.version_info < (3, 14)
"""Later Pythons don't copy iterators."""


class State:
    """Everything that some objects lead to and that can change, as it is now.

    Followed are: attributes, slots, items of containers, closures, defaults, the globals and the attributes of modules
    that a function names, bound methods, partials, weak references, and what the classes of a user hold. Not followed
    are objects that log, load data or run threads (`_FOREIGN`).

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
        self._nodes: list[Node] = []
        self._data: list[tuple[Tensor, Tensor]] = []
        self._grads: list[tuple[Tensor, Tensor | None]] = []
        self._versions: list[tuple[str, Tensor, int]] = []
        self._iterators: dict[str, Any] = {}
        self._seen: dict[int, Any] = {}
        self._classes: set[type] = set()
        self._names: set[str] = set()
        self._foreign: dict[str, Any] = {}
        self.add(roots)

    def add(self, roots: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Follows further objects, as they are now. Gives the modules that were not known before, by path."""
        known, before = len(self._nodes), set(self.modules)
        self._todo: list[tuple[str, Any]] = list(roots.items())[::-1]
        followed: set[tuple[str, str]] = set()
        while self._todo or self._follow_named(followed):
            self._visit(*self._todo.pop())
        for node in self._nodes[known:]:
            node.enter()
        return {path: module for path, module in self.modules.items() if path not in before}

    def enter(self) -> None:
        """What is there now is what `reset` goes back to; `restore` goes back to what was there first."""
        for node in self._nodes:
            node.enter()

    def changed(self) -> list[Node]:
        """What differs from what was there at the last `enter`."""
        return [node for node in self._nodes if node.differs()]

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """Puts other objects in the places of some, by their identity: in attributes, lists, closures and globals."""
        for node in self._nodes:
            node.replace(substitutes)

    def spare_iterators(self) -> None:
        """Until `restore`, iterators are left alone: copies are read in their place, where there can be one.

        What they have given can't be taken back. One that can't be copied raises a `UsageError` when it is read.
        """
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
                for path, iterator in self._iterators.items()
            }
        )

    def restore(self) -> None:
        """Everything is as it was when it was found."""
        for node in self._nodes:
            node.restore()
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

    def written(self) -> dict[str, Tensor]:
        """The tensors that were written to since they were met, by path."""
        return {path: tensor for path, tensor, version in self._versions if tensor._version != version}

    def found(self, kind: type[T]) -> list[T]:
        """What was met of a type."""
        return [value for value in self._seen.values() if isinstance(value, kind)]

    def exchangeable(self) -> list[Tensor]:
        """The tensors whose data can be exchanged until `restore`, but for gradients."""
        gradients = {id(grad) for _, grad in self._grads}
        return [tensor for tensor, _ in self._data if id(tensor) not in gradients]

    def stand_in(self, but: Container[int] = ()) -> list[Tensor]:
        """Until `restore`, tensors have copies of their data; those that share memory share its copy.

        Args:
            but: identities of tensors that keep theirs.

        Returns:
            The tensors that have one.
        """
        sharing: dict[tuple[torch.device, int], list[tuple[Tensor, Tensor]]] = {}
        for tensor, data in self._data:
            if not data.is_meta and id(tensor) not in but:
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
        kind = type(value)
        if kind in _ATOMS or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, Tensor):
            self._tensor(path, value)
        elif isinstance(value, torch.jit.ScriptModule):
            self.modules[path] = value  # what it holds lies outside of Python
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
            self._items(path, value.args)
            self._mapping(path, value.keywords)
        elif isinstance(value, dict):
            self._mapping(path, value)
        elif isinstance(value, list | collections.deque):
            self._nodes.append(_Sequence(path, value))
            self._items(path, value)
            self._instance(path, value)
        elif isinstance(value, tuple | frozenset):
            self._items(path, value)
        elif isinstance(value, set):
            self._nodes.append(_Set(path, value))
            self._items(path, value)
        elif isinstance(value, collections.abc.Iterator) and kind.__module__.startswith(_ITERATING):
            self._iterators[path] = value
        elif isinstance(value, weakref.ref):
            self._later(path, value())
        elif isinstance(value, type):
            self._class(path, value)
        elif (accessors := _generator_state(value)) is not None:
            self._nodes.append(_Generator(path, *accessors))
        elif kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            if value.nbytes <= _LARGE and value.dtype != object:
                self._nodes.append(_Array(path, value))
        elif isinstance(value, types.BuiltinMethodType | types.MethodWrapperType):
            if not isinstance(value.__self__, types.ModuleType):
                self._later(path, value.__self__)
        elif not isinstance(value, types.ModuleType):
            self._instance(path, value)

    def _later(self, path: str, value: Any) -> None:
        if type(value) not in _ATOMS:
            self._todo.append((path, value))

    def _tensor(self, path: str, tensor: Tensor) -> None:
        self.tensors[path] = tensor
        if not tensor.is_inference():
            self._versions.append((path, tensor, tensor._version))
        leaf = _is_leaf(tensor)
        if leaf is not False and type(tensor.data) is Tensor and tensor.layout == torch.strided:
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
        self._nodes.append(_Mapping(path, mapping))
        for index, (key, value) in enumerate(mapping.items()):
            if index == _MANY:
                break
            name = key if isinstance(key, str | int) else type(key).__name__
            self._later(f"{path}.{name}" if dotted or isinstance(key, str) else f"{path}[{name}]", value)
            self._later(f"{path}[{index}]", key)
        if type(mapping) is not dict:
            self._instance(path, mapping)

    def _attributes(self, path: str, value: Any) -> None:
        """What an object's ``__dict__`` holds."""
        attributes = vars(value)
        self._nodes.append(_Mapping(path, attributes))
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
        """An object of any other class: its attributes and slots, and what its class holds."""
        kind = type(value)
        if _is_foreign(kind) and not isinstance(value, (*_CONTAINERS, *self._through)):  # type: ignore[arg-type]
            self._named(path, value)
            return
        if isinstance(getattr(value, "__dict__", None), dict):
            self._attributes(path, value)
        for base in kind.__mro__:
            for name, slot in vars(base).items():
                if isinstance(slot, types.MemberDescriptorType) and not base.__module__.startswith("torch"):
                    node = _slot_of(f"{path}.{name}", slot, value)
                    self._nodes.append(node)
                    self._later(node.path, node.first)
        self._class(path, kind, optimizer=isinstance(value, Optimizer))

    def _class(self, path: str, kind: type, *, optimizer: bool = False) -> None:
        """What a user's class holds: counters and tables, and the functions that a method names."""
        for base in kind.__mro__:
            users = _is_users(base)
            if base is Optimizer or base in self._classes or not (users or optimizer):
                continue
            self._classes.add(base)
            self._nodes.append(_Names(path, base))
            for name, attribute in list(vars(base).items()):
                function = getattr(attribute, "__func__", getattr(attribute, "fget", attribute))
                if isinstance(function, types.FunctionType):
                    if users:
                        self._later(f"{path}.{name}", function)
                elif not (name.startswith("__") or hasattr(type(attribute), "__get__")):
                    self._nodes.append(_attribute_of_class(f"{path}.{name}", base, name))
                    self._later(f"{path}.{name}", attribute)

    def _function(self, path: str, function: types.FunctionType) -> None:
        whose = f"{path}'s "
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            node = _variable_of(whose + name, cell)
            self._nodes.append(node)
            self._later(node.path, node.first)
        self._items(f"{path}'s default", function.__defaults__ or ())
        self._later(f"{path}'s default", function.__kwdefaults__)
        self._mapping(path, function.__dict__, dotted=True)
        if not _written_by_user(function.__code__.co_filename):
            return
        names, stored = _names_in(function.__code__)
        self._names |= names
        scope = function.__globals__
        for name in names & scope.keys():
            value = scope[name]
            if isinstance(value, types.ModuleType):
                if value.__name__.partition(".")[0] not in _FOREIGN:
                    for attribute in names & vars(value).keys():
                        self._later(f"{name}.{attribute}", vars(value)[attribute])
            else:
                self._later(name, value)
        for name in stored:
            self._nodes.append(_item_of(name, scope, name))

    def _named(self, path: str, value: Any) -> None:
        if _is_foreign(type(value)) and isinstance(getattr(value, "__dict__", None), dict):  # type: ignore[arg-type]
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


# --------------------------------------------------------------------------------------------------------- what is kept


class Node:
    """One thing that can change.

    Attributes:
        path: how it is reached.
    """

    path: str

    def enter(self) -> None:
        """What is there now is what `reset` goes back to."""

    def differs(self) -> bool:
        """Whether it is another than at `enter`."""
        raise NotImplementedError

    def only_counts(self) -> bool:
        """Whether it differs as a counter or a log does: by whole numbers, or a list that has grown."""
        return False

    def reset(self) -> None:
        """As it was at `enter`."""
        raise NotImplementedError

    def restore(self) -> None:
        """As it was first."""
        raise NotImplementedError

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """Puts other objects in the places of some, by their identity."""

    def __repr__(self) -> str:
        return repr(self.path)


class _Mapping(Node):
    """A dictionary, an object's attributes among them."""

    def __init__(self, path: str, mapping: dict[Any, Any]) -> None:
        self.path, self._mapping = path, mapping
        self._first = self._entered = dict(mapping)

    def enter(self) -> None:
        if not _identical(self._mapping, self._first):
            self._entered = dict(self._mapping)

    def differs(self) -> bool:
        return not _identical(self._mapping, self._entered)

    def only_counts(self) -> bool:
        return (
            all(map(operator.is_, self._mapping, self._entered))
            and all(map(_is_or_counts, self._mapping.values(), self._entered.values()))
            and len(self._mapping) == len(self._entered)
        )

    def reset(self) -> None:
        self._become(self._entered)

    def restore(self) -> None:
        self._become(self._first)

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        for key, value in self._mapping.items():
            if id(value) in substitutes:
                self._mapping[key] = substitutes[id(value)]

    def _become(self, wanted: dict[Any, Any]) -> None:
        if _identical(self._mapping, wanted):
            return
        # Not by the object's own methods: a subclass may do more in them.
        kind: Any = collections.OrderedDict if isinstance(self._mapping, collections.OrderedDict) else dict
        kind.clear(self._mapping)
        for key, value in wanted.items():
            kind.__setitem__(self._mapping, key, value)


class _Sequence(Node):
    """A list or a deque."""

    def __init__(self, path: str, sequence: Any) -> None:
        self.path, self._sequence = path, sequence
        self._first = self._entered = list(sequence)

    def enter(self) -> None:
        if not self._holds(self._first):
            self._entered = list(self._sequence)

    def differs(self) -> bool:
        return not self._holds(self._entered)

    def only_counts(self) -> bool:
        return len(self._sequence) >= len(self._entered) and all(map(_is_or_counts, self._sequence, self._entered))

    def reset(self) -> None:
        self._become(self._entered)

    def restore(self) -> None:
        self._become(self._first)

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        for index, value in enumerate(self._sequence):
            if id(value) in substitutes:
                self._sequence[index] = substitutes[id(value)]

    def _holds(self, items: list[Any]) -> bool:
        return len(self._sequence) == len(items) and all(map(operator.is_, self._sequence, items))

    def _become(self, wanted: list[Any]) -> None:
        if self._holds(wanted):
            return
        if isinstance(self._sequence, list):
            list.__setitem__(self._sequence, slice(None), wanted)
        else:
            self._sequence.clear()
            self._sequence.extend(wanted)


class _Set(Node):
    """A set."""

    def __init__(self, path: str, members: set[Any]) -> None:
        self.path, self._members = path, members
        self._first = set(members)

    def differs(self) -> bool:
        return {*map(id, self._members)} != {*map(id, self._first)}

    def reset(self) -> None:
        if self.differs():
            set.clear(self._members)
            set.update(self._members, self._first)

    restore = reset


class _Value(Node):
    """A single place: a closure's variable, a slot, a global, an attribute of a class."""

    def __init__(
        self, path: str, read: Callable[[], Any], write: Callable[[Any], object], drop: Callable[[], object]
    ) -> None:
        self.path = path
        self._read, self._write, self._drop = read, write, drop
        self.first = self._entered = read()

    def enter(self) -> None:
        self._entered = self._read()

    def differs(self) -> bool:
        return self._read() is not self._entered

    def only_counts(self) -> bool:
        return _is_or_counts(self._read(), self._entered)

    def reset(self) -> None:
        self._become(self._entered)

    def restore(self) -> None:
        self._become(self.first)

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        if id(self._read()) in substitutes:
            self._write(substitutes[id(self._read())])

    def _become(self, wanted: Any) -> None:
        if self._read() is wanted:
            return
        if wanted is _MISSING:
            self._drop()
        else:
            self._write(wanted)


class _Names(Node):
    """The attributes that a class has, to take new ones away."""

    def __init__(self, path: str, owner: type) -> None:
        self.path, self._owner = f"{path}'s class", owner
        self._first = set(vars(owner))

    def differs(self) -> bool:
        return bool(vars(self._owner).keys() - self._first)

    def reset(self) -> None:
        for name in vars(self._owner).keys() - self._first:
            type.__delattr__(self._owner, name)

    restore = reset


class _Generator(Node):
    """A generator of random numbers."""

    def __init__(self, path: str, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self.path, self._read, self._write = path, read, write
        self._first = read()

    def differs(self) -> bool:
        now = self._read()
        return not torch.equal(now, self._first) if isinstance(now, Tensor) else repr(now) != repr(self._first)

    def reset(self) -> None:
        self._write(self._first)

    restore = reset


class _Array(Node):
    """A numpy array."""

    def __init__(self, path: str, array: Any) -> None:
        self.path, self._array = path, array
        self._first = array.copy()

    def differs(self) -> bool:
        return bool(self._array.tobytes() != self._first.tobytes())

    def reset(self) -> None:
        if self.differs():
            self._array[...] = self._first

    restore = reset


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


def _is_or_counts(now: Any, before: Any) -> bool:
    return now is before or type(now) is type(before) is int


def _identical(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a.values(), b.values())) and all(map(operator.is_, a, b))


def _variable_of(path: str, cell: types.CellType) -> _Value:
    write = functools.partial(setattr, cell, "cell_contents")
    return _Value(path, functools.partial(_contents, cell), write, functools.partial(delattr, cell, "cell_contents"))


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _slot_of(path: str, slot: Any, owner: Any) -> _Value:
    read, write = functools.partial(_slot, slot, owner), functools.partial(slot.__set__, owner)
    return _Value(path, read, write, functools.partial(slot.__delete__, owner))


def _slot(slot: Any, value: Any) -> Any:
    try:
        return slot.__get__(value)
    except AttributeError:
        return _MISSING


def _item_of(path: str, mapping: dict[str, Any], name: str) -> _Value:
    return _Value(
        path,
        functools.partial(mapping.get, name, _MISSING),
        functools.partial(mapping.__setitem__, name),
        functools.partial(mapping.pop, name, None),
    )


def _attribute_of_class(path: str, owner: type, name: str) -> _Value:
    return _Value(
        path,
        lambda: vars(owner).get(name, _MISSING),
        functools.partial(type.__setattr__, owner, name),
        functools.partial(type.__delattr__, owner, name),
    )


def _is_leaf(tensor: Tensor) -> bool | None:
    """Whether no graph made it; ``None`` where torch doesn't say so, of some views that were made without gradients."""
    try:
        return tensor.is_leaf
    except RuntimeError:
        return None


def _is_same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())


def _generator_state(value: Any) -> tuple[Callable[[], Any], Callable[[Any], object]] | None:
    """How the state of a generator of random numbers is read and written; ``None`` if it is none."""
    if isinstance(value, torch.Generator):
        return value.get_state, value.set_state
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return value.getstate, value.setstate
    kind = type(value)
    if kind.__module__.startswith("numpy.random"):
        if hasattr(value, "get_state"):
            return value.get_state, value.set_state
        bits = getattr(value, "bit_generator", value)
        if hasattr(bits, "state"):
            return functools.partial(getattr, bits, "state"), functools.partial(setattr, bits, "state")
    return None


# --------------------------------------------------------------------------------------------------- whose code it is


@functools.cache
def _is_foreign(kind: Any) -> bool:
    module = kind.__module__
    return module.partition(".")[0] in _FOREIGN or module.startswith(_FOREIGN_MODULES)


@functools.cache
def _is_users(kind: Any) -> bool:
    """Whether a class is the user's own, and not from an installed package."""
    if kind.__module__ == "builtins" or _is_foreign(kind):
        return False
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is None or _written_by_user(file)


@functools.cache
def _written_by_user(file: str) -> bool:
    if file.startswith("<frozen"):
        return False
    path = Path(file)
    installed = {"site-packages", "dist-packages"}
    return not (installed & set(path.parts) or path.is_relative_to(sysconfig.get_path("stdlib"))
                or path.is_relative_to(Path(__file__).parent))  # fmt: skip


@functools.cache
def _names_in(code: types.CodeType) -> tuple[frozenset[str], frozenset[str]]:
    """The names of globals and attributes in a function and those inside it, and the globals that it sets."""
    import dis

    names = set(code.co_names)
    stored = {i.argval for i in dis.get_instructions(code) if i.opname in ("STORE_GLOBAL", "DELETE_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, inner_stored = _names_in(constant)
            names |= inner
            stored |= inner_stored
    return frozenset(names), frozenset(stored)
