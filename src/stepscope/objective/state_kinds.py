"""What can change, and how it is remembered and restored: dictionaries, lists, single values, generators, arrays."""

from __future__ import annotations

import array
import collections
import contextvars
import operator
import random
import sys
import types
import zlib
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stepscope.objective.stateless_packages import ATOMS

_MISSING = object()

_LARGE = 2**25
"""Bytes of a numpy array of which a copy is kept."""


class Place:
    """One place whose content can change, and can be changed back.

    Args:
        path: how it is reached.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._first = self._entered = self._content()

    def enter(self) -> None:
        """Makes the present content the one that `reset` returns to."""
        self._entered = self._first if self._holds(self._first) else self._content()

    def differs(self) -> bool:
        """Whether the content has changed since `enter`."""
        return not self._holds(self._entered)

    def reset(self) -> None:
        """Restores the content of the last `enter`."""
        if not self._holds(self._entered):
            self._become(self._entered)

    def restore(self) -> None:
        """Restores the first content."""
        if not self._holds(self._first):
            self._become(self._first)

    def is_restored(self) -> bool:
        """Whether the content is the first."""
        return self._holds(self._first)

    def renew(self, known: Container[int]) -> bool:
        """Makes the present content the first.

        Args:
            known: identities of objects that were visited.

        Returns:
            Whether it leads to none but these; if not, nothing is renewed.
        """
        if self._holds(self._first):
            self._entered = self._first
            return True
        content = self._content()
        held = self._held(content)
        if held is None or not all(type(value) in ATOMS or id(value) in known for value in held):
            return False
        self._first = self._entered = content
        return True

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """Puts other objects in the places of some, by their identity."""

    def _held(self, content: Any) -> Iterable[Any] | None:
        """The objects that a content leads to; ``None`` where that isn't known without a walk."""
        del content
        return None

    def _content(self) -> Any:
        """A copy of the content, one level deep."""
        raise NotImplementedError

    def _holds(self, content: Any) -> bool:
        raise NotImplementedError

    def _become(self, content: Any) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return repr(self.path)


class Dictionary(Place):
    """A dictionary, an object's attributes among them."""

    def __init__(self, path: str, mapping: dict[Any, Any]) -> None:
        self._mapping = mapping
        super().__init__(path)

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """See `Place`."""
        for key, value in dict.items(self._mapping):
            if (new := substituted(value, substitutes)) is not value:
                self._mapping[key] = new

    def _held(self, content: dict[Any, Any]) -> Iterable[Any]:
        return (*content.values(), *content)

    def _content(self) -> dict[Any, Any]:
        return dict.copy(self._mapping)

    def _holds(self, content: dict[Any, Any]) -> bool:
        now = self._mapping
        return (
            dict.__len__(now) == len(content)
            and all(map(operator.is_, dict.values(now), content.values()))
            and all(map(operator.is_, dict.keys(now), content))
        )

    def _become(self, content: dict[Any, Any]) -> None:
        # Not by the object's own methods: a subclass may do more in them.
        kind: Any = collections.OrderedDict if isinstance(self._mapping, collections.OrderedDict) else dict
        kind.clear(self._mapping)
        for key, value in content.items():
            kind.__setitem__(self._mapping, key, value)


class Sequence(Place):
    """A list or a deque."""

    def __init__(self, path: str, sequence: Any) -> None:
        self._sequence = sequence
        super().__init__(path)

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """See `Place`."""
        for index, value in enumerate(self._sequence):
            if (new := substituted(value, substitutes)) is not value:
                self._sequence[index] = new

    def _held(self, content: list[Any]) -> Iterable[Any]:
        return content

    def _content(self) -> list[Any]:
        return list(self._sequence)

    def _holds(self, content: list[Any]) -> bool:
        return len(self._sequence) == len(content) and all(map(operator.is_, self._sequence, content))

    def _become(self, content: list[Any]) -> None:
        if isinstance(self._sequence, list):
            list.__setitem__(self._sequence, slice(None), content)
        else:
            self._sequence.clear()
            self._sequence.extend(content)


class Set(Place):
    """A set."""

    def __init__(self, path: str, members: set[Any]) -> None:
        self._members = members
        super().__init__(path)

    def _content(self) -> set[Any]:
        return set(self._members)

    def _holds(self, content: set[Any]) -> bool:
        return {*map(id, self._members)} == {*map(id, content)}

    def _become(self, content: set[Any]) -> None:
        set.clear(self._members)
        set.update(self._members, content)


class Value(Place):
    """A single value: of a closure's variable, a slot, a global, an attribute of a class."""

    def __init__(
        self, path: str, read: Callable[[], Any], write: Callable[[Any], object], drop: Callable[[], object]
    ) -> None:
        self._read, self._write, self._drop = read, write, drop
        super().__init__(path)

    @property
    def first(self) -> Any:
        """The first content."""
        return self._first

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """See `Place`."""
        if (new := substituted(value := self._read(), substitutes)) is not value:
            self._write(new)

    def _held(self, content: Any) -> Iterable[Any]:
        return () if content is _MISSING else (content,)

    def _content(self) -> Any:
        return self._read()

    def _holds(self, content: Any) -> bool:
        return self._read() is content

    def _become(self, content: Any) -> None:
        if content is _MISSING:
            self._drop()
        else:
            self._write(content)


class ClassNames(Place):
    """The attributes that a class has, to take new ones away."""

    def __init__(self, path: str, owner: type) -> None:
        self._owner = owner
        super().__init__(f"{path}'s class")

    def _content(self) -> set[str]:
        return set(vars(self._owner))

    def _holds(self, content: set[str]) -> bool:
        return not vars(self._owner).keys() - content

    def _become(self, content: set[str]) -> None:
        for name in vars(self._owner).keys() - content:
            type.__delattr__(self._owner, name)


class Numbers(Place):
    """What holds numbers alone."""

    def _held(self, content: Any) -> Iterable[Any]:
        del content
        return ()


class RandomGenerator(Numbers):
    """A generator of random numbers."""

    def __init__(self, path: str, read: Callable[[], Any], write: Callable[[Any], object]) -> None:
        self._read, self._become = read, write  # type: ignore[assignment, method-assign]
        super().__init__(path)

    def _content(self) -> Any:
        return self._read()

    def _holds(self, content: Any) -> bool:
        now = self._read()
        return torch.equal(now, content) if isinstance(now, Tensor) else repr(now) == repr(content)


class Arguments(Place):
    """The arguments that a `functools.partial` holds."""

    def __init__(self, path: str, function: partial[Any]) -> None:
        self._function = function
        super().__init__(path)

    def replace(self, substitutes: Mapping[int, Any]) -> None:
        """See `Place`."""
        args, keywords = self._content()
        new = substituted(args, substitutes), {k: substituted(v, substitutes) for k, v in keywords.items()}
        if not self._holds(new):
            self._become(new)

    def _content(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return self._function.args, dict(self._function.keywords)

    def _holds(self, content: tuple[tuple[Any, ...], dict[str, Any]]) -> bool:
        args, keywords = self._content()
        return (
            args is content[0]
            and keywords.keys() == content[1].keys()
            and all(keywords[name] is value for name, value in content[1].items())
        )

    def _become(self, content: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        self._function.__setstate__((self._function.func, *content, vars(self._function)))  # type: ignore[attr-defined]


class Cache(Place):
    """What `functools.lru_cache` remembers: one that was empty can be emptied again, and another isn't restored."""

    def __init__(self, path: str, function: Any) -> None:
        self._function = function
        super().__init__(path)

    def _content(self) -> tuple[int, int]:
        # A full one takes in what it hasn't at the same size.
        about = self._function.cache_info()
        return about.currsize, about.misses

    def _holds(self, content: tuple[int, int]) -> bool:
        size, misses = self._content()
        return size == content[0] and (not size or misses == content[1])

    def _become(self, content: tuple[int, int]) -> None:
        if not content[0]:
            self._function.cache_clear()


class Buffer(Numbers):
    """A `bytearray`, or an array of Python's own."""

    def __init__(self, path: str, buffer: Any) -> None:
        self._buffer = buffer
        super().__init__(path)

    def _content(self) -> Any:
        return self._buffer[:]

    def _holds(self, content: Any) -> bool:
        return bool(self._buffer == content)

    def _become(self, content: Any) -> None:
        self._buffer[:] = content


class LargeArray(Numbers):
    """A numpy array of which no copy is kept: that it was written to is noticed, and can't be undone."""

    def __init__(self, path: str, array: Any) -> None:
        self._array = array
        super().__init__(path)

    def _content(self) -> int:
        return zlib.crc32(self._array.tobytes())

    def _holds(self, content: int) -> bool:
        return self._content() == content

    def _become(self, content: int) -> None:
        """Nothing can be done."""


class Array(Numbers):
    """A numpy array."""

    def __init__(self, path: str, array: Any) -> None:
        self._array = array
        super().__init__(path)

    def _content(self) -> Any:
        return self._array.copy()

    def _holds(self, content: Any) -> bool:
        return bool(self._array.tobytes() == content.tobytes())

    def _become(self, content: Any) -> None:
        self._array[...] = content


def substituted(value: Any, substitutes: Mapping[int, Any]) -> Any:
    """What takes the place of a value: its substitute, or a tuple with substitutes in it; itself if there are none."""
    if id(value) in substitutes:
        return substitutes[id(value)]
    if type(value) is tuple:
        items = tuple(substituted(item, substitutes) for item in value)
        return value if all(map(operator.is_, items, value)) else items
    return value


def variable_of(path: str, cell: types.CellType) -> Value:
    """The variable of a closure that lies in a cell."""
    write = partial(setattr, cell, "cell_contents")
    return Value(
        path, partial(_read, partial(getattr, cell, "cell_contents")), write, partial(delattr, cell, "cell_contents")
    )


def slot_of(path: str, slot: Any, owner: Any) -> Value:
    """What an object has in a slot of its class."""
    write, drop = partial(slot.__set__, owner), partial(slot.__delete__, owner)
    return Value(path, partial(_read, partial(slot.__get__, owner)), write, drop)


def item_of(path: str, mapping: dict[str, Any], name: str) -> Value:
    """What is in a dictionary under one name, a global say."""
    read, write = partial(mapping.get, name, _MISSING), partial(mapping.__setitem__, name)
    return Value(path, read, write, partial(mapping.pop, name, None))


def attribute_of(path: str, owner: Any, name: str) -> Value:
    """An attribute that an object always has, such as the defaults of a function."""
    write = partial(setattr, owner, name)
    return Value(path, partial(getattr, owner, name), write, partial(write, None))


def context_variable(path: str, variable: contextvars.ContextVar[Any]) -> Value:
    """A context variable; one that had no value keeps what it got."""
    return Value(path, partial(variable.get, _MISSING), variable.set, lambda: None)


def attribute_of_class(path: str, owner: type, name: str) -> Value:
    """An attribute of a class."""
    write, drop = partial(type.__setattr__, owner, name), partial(type.__delattr__, owner, name)
    return Value(path, lambda: vars(owner).get(name, _MISSING), write, drop)


def numbers_of(path: str, value: Any) -> Place | None:
    """The numbers in an object that holds nothing else: a generator of random numbers, or an array."""
    if isinstance(value, bytearray | array.array):
        return Buffer(path, value)
    if "numpy" in sys.modules and isinstance(value, sys.modules["numpy"].ndarray):
        return Array(path, value) if value.nbytes <= _LARGE else LargeArray(path, value)
    return generator_of(path, value)


def generator_of(path: str, value: Any) -> RandomGenerator | None:
    """The state of a generator of random numbers; ``None`` of anything else."""
    if isinstance(value, torch.Generator):
        return RandomGenerator(path, value.get_state, value.set_state)
    if isinstance(value, random.Random) and not isinstance(value, random.SystemRandom):
        return RandomGenerator(path, value.getstate, value.setstate)
    if type(value).__module__.startswith("numpy.random"):
        if hasattr(value, "get_state"):
            return RandomGenerator(path, value.get_state, value.set_state)
        bits = getattr(value, "bit_generator", value)
        if hasattr(bits, "state"):
            return RandomGenerator(path, partial(getattr, bits, "state"), partial(setattr, bits, "state"))
    return None


def _read(read: Callable[[], Any]) -> Any:
    """What is there; `_MISSING` in an empty cell or slot."""
    try:
        return read()
    except (ValueError, AttributeError):
        return _MISSING
