"""Where data come from: the first source that works, or the user's own file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from stepscope.errors import UsageError
from stepscope.paper.tasks.downloads import UnavailableError, first_available

Raw = TypeVar("Raw")
Found = TypeVar("Found")


@dataclass(frozen=True)
class DataSource(Generic[Raw]):
    """A place that data come from.

    Attributes:
        key: the name to ask for it.
        title: one line for people.
        license: SPDX identifier where there is one.
        read: fetches if need be and reads; raises ``UnavailableError`` where it cannot.
    """

    key: str
    title: str
    license: str
    read: Callable[[], Raw]


def load_first(
    source: str,
    known: Mapping[str, DataSource[Raw]],
    read: Callable[[DataSource[Raw]], Found],
    *,
    own: DataSource[Raw],
    suffix: str,
    missing: str,
    remedy: str,
) -> Found:
    """Gives what the source that was asked for reads, or the first of those known that works.

    Args:
        source: ``"auto"``, a key, or the path of a file.
        known: the sources by key, in the order in which ``"auto"`` tries them.
        read: reads a source; raises ``UnavailableError`` or ``MissingExtraError`` where it cannot.
        own: the source that reads the file.
        suffix: by which a path is known as one, also if there is no such file.
        missing: what to say if none works.
        remedy: what to do then.

    Raises:
        UsageError: none works, the one asked for doesn't, or there is none of that name.
    """
    if source == "auto":
        candidates = tuple(known.values())
    elif source in known:
        candidates = (known[source],)
    elif source.endswith(suffix) or Path(source).is_file():
        candidates = (own,)
    else:
        raise UsageError(f"no source {source!r}: auto, {', '.join(known)}, or the path of a {suffix} file")
    try:
        return first_available({each.key: partial(read, each) for each in candidates})
    except UnavailableError as error:
        raise UsageError(f"{missing} ({error}): {remedy}") from error


def table_rows(path: Path, columns: str) -> list[tuple[str, str]]:
    """Reads a UTF-8 file of two columns; empty lines are passed over.

    Args:
        path: the file.
        columns: what a line holds, such as ``"english<TAB>french"``.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or a line has not two columns with something in each.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}, line {number}: not UTF-8; save the file as UTF-8") from error
    rows = []
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        first, *rest = text.rstrip("\r").split("\t")
        if len(rest) != 1 or not first.strip() or not rest[0].strip():
            raise UsageError(f"{path}, line {number}: expected {columns}, saw {text[:40]!r}")
        rows.append((first, rest[0]))
    return rows
