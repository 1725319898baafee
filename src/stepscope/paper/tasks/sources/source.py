"""Where data come from: the first source that works, or the user's own file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from stepscope.errors import MissingExtraError, UsageError
from stepscope.paper.tasks.downloads import UnavailableError, file_sha256
from stepscope.paper.tasks.hub import HubDataset, cached_dataset, dataset_rows
from stepscope.paper.tasks.task import Source

Raw = TypeVar("Raw")
Clean = TypeVar("Clean", bound=Sized)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading(Generic[Raw]):
    """What a source gave, and what identifies it.

    Attributes:
        data: as they were read, uncleaned.
        sha256: digest of the file or files that they were read from, hexadecimal.
        version: what was read exactly, to stand behind the source's title.
    """

    data: Raw
    sha256: str
    version: str


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
    read: Callable[[], Reading[Raw]]


def load_first(
    source: str,
    known: Sequence[DataSource[Raw]],
    clean: Callable[[Raw], Clean],
    *,
    own: Callable[[Path], Reading[Raw]],
    things: str,
    suffix: str,
    content: str,
) -> tuple[Clean, Source]:
    """Gives the data of the source that was asked for, or of the first of those known that works.

    Args:
        source: ``"auto"``, a key, or the path of a file.
        known: the sources, in the order in which ``"auto"`` tries them.
        clean: makes examples of what a source gave; raises ``UnavailableError`` where that leaves too little.
        own: reads the user's file.
        things: what the data are, such as ``"sentence pairs"``.
        suffix: by which a path is known as one, also if there is no such file.
        content: what such a file holds, for the error.

    Raises:
        UsageError: none works, the one asked for doesn't, or there is none of that name.
    """
    candidates = [origin for origin in known if source in ("auto", origin.key)]
    if not candidates:
        if not source.endswith(suffix) and not Path(source).is_file():
            keys = ", ".join(origin.key for origin in known)
            raise UsageError(f"no source {source!r}: auto, {keys}, or the path of a {suffix} file")
        title = things[0].upper() + things[1:]
        candidates = [DataSource("file", title, "unknown", lambda: own(Path(source)))]
    reasons = []
    for origin in candidates:
        try:
            reading = origin.read()
            data = clean(reading.data)
        except (UnavailableError, MissingExtraError) as error:
            reasons.append(f"{origin.key}: {error}")
            _log.info("nothing from %s", reasons[-1])
        else:
            title = f"{origin.title}, {reading.version}"
            return data, Source(origin.key, title, origin.license, reading.sha256, len(data))
    remedy = f"get online, or pass the path of a {content}"
    raise UsageError(f"no {things} ({'; '.join(reasons)}): {remedy}")


def read_hub(dataset: HubDataset, column: str, convert: Callable[[Iterator[dict[str, Any]]], Raw]) -> Reading[Raw]:
    """Reads a dataset of the Hub.

    Args:
        dataset: which one.
        column: a column that its rows have.
        convert: makes data of the rows.
    """
    file, revision = cached_dataset(dataset)
    version = f"{dataset.repository} {dataset.config} at {revision[:12]}"
    return Reading(convert(dataset_rows(file, column=column)), file_sha256(file), version)


def read_bytes(path: Path) -> bytes:
    """The content of the user's file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def table_rows(path: Path, columns: str) -> list[tuple[str, str]]:
    """Reads a UTF-8 file of two columns; empty lines are passed over.

    Args:
        path: the file.
        columns: what a line holds, such as ``"english<TAB>french"``.

    Raises:
        UsageError: it cannot be read, is not UTF-8, or a line has not two columns with something in each.
    """
    content = read_bytes(path)
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
