"""Records: what one line of a run's `measurements.jsonl` holds, validated when it is read."""

from __future__ import annotations

import functools
import math
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, ClassVar, Self, TypeVar

from stepscope.runs.storage import brief, plain


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of `measurements.jsonl`, as a type.

    A kind of record is a frozen dataclass that inherits from this one. Its fields are numbers, strings, booleans,
    tuples, dictionaries by string, other dataclasses, and any of these or ``None``. A field with a default may be
    missing in a file. A name that no field has is ignored: a newer version may have written it.

    Attributes:
        identity: the names of the fields that tell a record from the others of its run.
        renamed: ``{name in version 1: name of the field}``.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Loss(Record):
        ...     identity = ("step",)
        ...     step: int
        ...     loss: float | None = None
        >>> Loss.from_json({"step": 3, "loss": 2})
        Loss(step=3, loss=2.0)
        >>> Loss.from_json({"step": "three"})
        Traceback (most recent call last):
            ...
        ValueError: step is "three", not a whole number
    """

    identity: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """The record that a line holds, whichever version wrote it.

        Args:
            line: a JSON object.

        Raises:
            ValueError: a field is missing, or has a value of another type.
        """
        names = {cls.renamed.get(name, name): value for name, value in line.items()}
        record: Self = _dataclass(cls, names, "")
        return record

    def as_json(self) -> dict[str, Any]:
        """The line that holds this record; a number that isn't finite becomes ``None``."""
        return {field.name: plain(getattr(self, field.name), field.name) for field in fields(self)}

    def as_read(self) -> Self:
        """The record as a file gives it back: what isn't finite is ``None``."""
        return self.from_json(self.as_json())

    def flat(self) -> dict[str, Any]:
        """What of the line is no object of its own: numbers, texts and lists of them, as a row of a table has it."""
        return {name: value for name, value in self.as_json().items() if not isinstance(value, dict)}

    @property
    def key(self) -> tuple[Any, ...]:
        """The values of the fields of `identity`."""
        return tuple(getattr(self, name) for name in self.identity)


AnyRecord = TypeVar("AnyRecord", bound=Record)


def latest(records: Iterable[AnyRecord]) -> list[AnyRecord]:
    """The records without those that were measured again later, which have the same `Record.key`.

    That happens where a training goes on from a checkpoint that is older than its last measurement.

    Args:
        records: in the order in which they were written.
    """
    newest: dict[tuple[Any, ...], AnyRecord] = {}
    for record in records:
        newest.pop(record.key, None)
        newest[record.key] = record
    return list(newest.values())


_WORDS = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}


@functools.cache
def _types_of(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass(kind: type[Any], values: Mapping[str, Any], path: str) -> Any:
    """A dataclass from a JSON object."""
    hints, given = _types_of(typing.cast(Hashable, kind)), {}
    for field in fields(kind):
        name = f"{path}{field.name}"
        if field.name in values:
            given[field.name] = _value(hints[field.name], values[field.name], name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{name} is missing")
    return kind(**given)


@functools.cache
def _parts_of(hint: Any) -> tuple[bool, Any, Any, tuple[Any, ...]]:
    """Whether None is allowed, the type beside it, and what that is made of: a file has a million values."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    (wanted,) = (option for option in options if option is not types.NoneType)
    return types.NoneType in options, wanted, typing.get_origin(wanted), typing.get_args(wanted)


def _value(hint: Any, value: Any, name: str) -> Any:
    """A value of a type hint from what JSON holds."""
    optional, wanted, origin, parameters = _parts_of(hint)
    if value is None and optional:
        return None
    if wanted is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):  # which JSON lacks, and Python reads all the same
            raise ValueError(f"{name} is {brief(value)}, not a finite number")
        return float(value)
    if wanted in _WORDS and type(value) is wanted:
        return value
    if origin is tuple and isinstance(value, list):
        return tuple(_value(parameters[0], item, f"{name}[{place}]") for place, item in enumerate(value))
    if origin is dict and isinstance(value, dict):
        return {key: _value(parameters[1], item, f"{name}.{key}") for key, item in value.items()}
    if is_dataclass(wanted) and isinstance(value, dict):
        return _dataclass(typing.cast(type[Any], wanted), value, f"{name}.")
    raise ValueError(f"{name} is {brief(value)}, not {_words_of(wanted)}")


def _words_of(wanted: Any) -> str:
    return _WORDS.get(wanted) or ("a list" if typing.get_origin(wanted) is tuple else "an object")
