"""All that a training reaches, as flat comparable values: what measuring has to leave as it is.

Objects are walked from named roots: attributes, items, closures, defaults, bound objects, parts of partials, data on
the classes of this package, gradients and attributes of tensors, states of random generators.
"""

import enum
import functools
import pickle
import random
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Values = dict[str, Any]

_STEP_HOOKS = (
    "_optimizer_step_pre_hooks", "_optimizer_step_post_hooks", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
)  # fmt: skip
_HELD = re.compile(r"\._(?:modules|buffers|parameters)\['([^']+)'\]")
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size, enum.Enum, slice)
_OPAQUE = (types.ModuleType, types.BuiltinFunctionType, types.CodeType, property, staticmethod, classmethod)


def snapshot(roots: Mapping[str, Any], *, step_hooks: bool = True) -> Values:
    """The values of everything that `roots` reach, by their paths, and the global random states.

    Args:
        roots: ``{name: object}``.
        step_hooks: whether the hooks on optimizers' steps count: a probe has its own there while it is attached.
    """
    walk = _Walk(step_hooks)
    for root in roots.values():
        if isinstance(root, nn.Module):
            walk.names |= {id(p): f"<{name}>" for name, p in root.named_parameters()}
    for name, root in roots.items():
        walk.visit(name, root)
    walk.found["random: torch"] = _bytes(torch.get_rng_state())
    walk.found["random: python"] = random.getstate()
    walk.found["random: numpy"] = pickle.dumps(np.random.get_state())
    walk.found["mode: gradients"] = torch.is_grad_enabled()
    walk.found["mode: autocast"] = torch.is_autocast_enabled("cpu")
    return walk.found


def differences(first: Values, second: Values) -> list[str]:
    """The paths whose values differ, or that only one has; modules, buffers and parameters by their own names."""
    missing = object()
    found = [path for path in {**first, **second} if first.get(path, missing) != second.get(path, missing)]
    return [_HELD.sub(r".\1", path) for path in found]


class _Walk:
    def __init__(self, step_hooks: bool) -> None:
        self.found: Values = {}
        self.names: dict[int, str] = {}
        self._step_hooks = step_hooks
        self._paths: dict[int, str] = {}
        self._alive: list[Any] = []  # an id says nothing of an object that is gone

    def visit(self, path: str, thing: Any) -> None:
        if isinstance(thing, _PLAIN):
            self.found[path] = repr(thing) if isinstance(thing, float | complex) else thing
        elif isinstance(thing, _OPAQUE):
            self.found[path] = type(thing).__name__
        elif id(thing) in self._paths:
            self.found[path] = f"the same as {self._paths[id(thing)]}"
        else:
            self._paths[id(thing)] = path
            self._alive.append(thing)
            self._describe(path, thing)

    def _describe(self, path: str, thing: Any) -> None:
        if isinstance(thing, Tensor):
            self._tensor(path, thing)
        elif isinstance(thing, np.ndarray):
            self.found[path] = (str(thing.dtype), thing.shape, thing.tobytes())
        elif isinstance(thing, torch.Generator):
            self.found[path] = _bytes(thing.get_state())
        elif isinstance(thing, random.Random):
            self.found[path] = thing.getstate()
        elif isinstance(thing, np.random.Generator):
            self.found[path] = repr(thing.bit_generator.state)
        elif isinstance(thing, types.FunctionType):
            self._function(path, thing)
        elif isinstance(thing, types.MethodType):
            self.visit(f"{path}.__self__", thing.__self__)
            self.visit(f"{path}.__func__", thing.__func__)
        elif isinstance(thing, functools.partial):
            for name in ("func", "args", "keywords"):
                self.visit(f"{path}.{name}", getattr(thing, name))
        elif isinstance(thing, type):
            self._class(thing)
            self.found[path] = thing.__qualname__
        elif isinstance(thing, Mapping):
            self._mapping(path, thing)
        elif isinstance(thing, list | tuple | set | frozenset) or type(thing).__name__ in ("deque", "odict_values"):
            self._sequence(path, thing)
        else:
            self._object(path, thing)

    def _tensor(self, path: str, tensor: Tensor) -> None:
        self.found[path] = (type(tensor).__name__, str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad)
        self.found[f"{path} values"] = _bytes(tensor)
        if tensor.is_leaf:
            self.visit(f"{path}.grad", tensor.grad)
        for name, value in sorted(vars(tensor).items()):
            self.visit(f"{path}.{name}", value)

    def _function(self, path: str, function: types.FunctionType) -> None:
        self.found[path] = function.__qualname__
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                self.visit(f"{path}[{name}]", cell.cell_contents)
            except ValueError:
                self.found[f"{path}[{name}]"] = "empty"
        for name in ("__defaults__", "__kwdefaults__", "__dict__"):
            self.visit(f"{path}.{name}", getattr(function, name))

    def _class(self, kind: type) -> None:
        """Counters and other state on a class of the tests' own."""
        for base in kind.__mro__:
            if base.__module__.startswith("drawn") and f"class {base.__qualname__}" not in self.found:
                self.found[f"class {base.__qualname__}"] = True
                for name, value in sorted(vars(base).items()):
                    if not name.startswith("__") and not callable(value):
                        self.visit(f"{base.__qualname__}.{name}", value)

    def _mapping(self, path: str, mapping: Mapping[Any, Any]) -> None:
        self.found[path] = (type(mapping).__name__, len(mapping))
        hooks = path.endswith("_hooks")  # their keys count up in the process
        for number, (key, value) in enumerate(mapping.items()):
            self.visit(f"{path}[{number if hooks else self._key(key, number)}]", value)

    def _key(self, key: Any, number: int) -> str:
        """An id and a tensor are other ones in each run: the parameter's name, or the position."""
        if isinstance(key, int) and key in self.names:
            return f"id of {self.names[key]}"
        if isinstance(key, str | int | float | tuple) and not (isinstance(key, int) and key > 2**32):
            return repr(key)
        return self.names.get(id(key), f"{type(key).__name__} {number}")

    def _sequence(self, path: str, items: Any) -> None:
        self.found[path] = (type(items).__name__, len(items))
        if isinstance(items, set | frozenset):
            items = sorted(items, key=repr)
        for number, item in enumerate(items):
            self.visit(f"{path}[{number}]", item)

    def _object(self, path: str, thing: Any) -> None:
        kind = type(thing)
        self.found[path] = f"{kind.__module__}.{kind.__qualname__}"
        self._class(kind)
        slots = [name for base in kind.__mro__ for name in getattr(base, "__slots__", ()) if name != "__weakref__"]
        values = {name: getattr(thing, name) for name in slots if isinstance(name, str) and hasattr(thing, name)}
        values |= getattr(thing, "__dict__", {})
        if not values:
            self.found[path] = repr(thing) if kind.__module__ == "itertools" else self.found[path]
        for name in ("_parameters", "_buffers", "_modules"):
            if isinstance(thing, nn.Module):  # their order is that of a state dict
                self.found[f"{path} order of {name}"] = list(values[name])
        for name, value in sorted(values.items()):
            if self._step_hooks or name not in _STEP_HOOKS:
                self.visit(f"{path}.{name}", value)


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu()
    if plain.layout != torch.strided:
        plain = plain.to_dense()
    return bytes(plain.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
