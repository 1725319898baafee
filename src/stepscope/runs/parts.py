"""A run that several processes make: each writes a part, which is a run directory of its own below that of the run.

A part is claimed by the lock of its directory, which dies with its holder, so any number of processes share the parts
out. Its configuration is that of the run, and its name. What the parts hold is the run's: whoever reads sees it, and
`gather` puts it into the run's own files, in the order of the parts' names, whichever was made first. What several of
them hold counts once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError
from stepscope.runs.directory import PARTS_FOLDER, DirectoryInUseError, RunDirectory
from stepscope.runs.head import Head, is_run, merged, read_head
from stepscope.runs.reading import read_run
from stepscope.runs.records import AnyRecord, latest

_NAME = "part"
"""Of the field of a part's configuration that holds its name."""


def read_whole(
    path: str | os.PathLike[str], record: type[AnyRecord] | Callable[[Head], type[AnyRecord]]
) -> tuple[Head, list[AnyRecord]]:
    """Reads a run with what its parts hold, also while other processes write to them.

    Args:
        path: the run directory.
        record: as for `stepscope.runs.read_run`.

    Returns:
        The content of `run.json`, of the first part where the run has none of its own yet, with what the others add to
        its context; and the records.

    Raises:
        UsageError: as `read_run`.
    """
    found = []
    for part in parts_of(path):
        try:
            found.append(read_run(part, record))
        except UsageError:
            if is_run(part):
                raise  # it is damaged; what is no longer there was gathered, and is read below
    if is_run(path) or not found:
        found.insert(0, read_run(path, record))
    head = dict(found[0][0])
    head["configuration"] = {name: value for name, value in head["configuration"].items() if name != _NAME}
    for other, _ in found[1:]:
        head["context"] = merged(head["context"], other["context"])
    return head, latest(record for _, records in found for record in records)


def parts_of(path: str | os.PathLike[str]) -> list[Path]:
    """The directories of a run's parts, by name."""
    return sorted(part for part in Path(path).glob(f"{PARTS_FOLDER}/*") if is_run(part))


def check_whole(path: str | os.PathLike[str], configuration: Mapping[str, Any]) -> bool:
    """Refuses what can't be continued, the run or a part of it, and leaves the disk as it was.

    Args:
        path: the run directory.
        configuration: of the run.

    Returns:
        Whether anything of it is there.

    Raises:
        UsageError: as `RunDirectory.check`.
    """
    begun = RunDirectory.check(path, configuration) is not None
    parts = parts_of(path)
    for part in parts:
        RunDirectory.check(part, {**configuration, _NAME: read_head(part)["configuration"].get(_NAME)})
    return begun or bool(parts)


def open_part(
    path: str | os.PathLike[str],
    name: str,
    record: type[AnyRecord],
    configuration: Mapping[str, Any],
    context: Mapping[str, Any],
) -> RunDirectory[AnyRecord]:
    """Claims a part of a run: `RunDirectory.open` of its directory.

    Args:
        path: the run directory.
        name: of the part.
        record: the type of its records.
        configuration: of the run.
        context: of the part.

    Raises:
        DirectoryInUseError: another process is at it.
        UsageError: as `RunDirectory.open`.
    """
    return RunDirectory.open(Path(path) / PARTS_FOLDER / name, record, {**configuration, _NAME: name}, context=context)


def gather(
    path: str | os.PathLike[str],
    record: type[AnyRecord],
    configuration: Mapping[str, Any],
    in_order: Callable[[Sequence[AnyRecord]], Sequence[AnyRecord]] = list,
) -> int:
    """Puts what the parts hold into the files of the run, and deletes them. One that is being written to is left alone.

    A process that dies amid it loses nothing: a part goes when its records are safely on the disk, and none is taken
    twice.

    Args:
        path: the run directory.
        record: the type of its records.
        configuration: of the run.
        in_order: puts the run's records and then those of the parts, by name, into another order.

    Returns:
        How many records the run gained.

    Raises:
        UsageError: as `RunDirectory.open`.
    """
    with contextlib.ExitStack() as stack:
        parts: list[RunDirectory[AnyRecord]] = []
        for part in parts_of(path):
            with contextlib.suppress(DirectoryInUseError):
                parts.append(stack.enter_context(open_part(path, part.name, record, configuration, {})))
        if not parts:
            return 0
        context: dict[str, Any] = {}
        for each in parts:
            context = merged(context, each.context)
        with RunDirectory.open(path, record, configuration, context=context) as whole:
            whole.merge(context)
            known = {one.key for one in whole.records()}
            found = latest(one for each in parts for one in each.records() if one.key not in known)
            new = {one.key for one in found}
            gained = [one for one in in_order([*whole.records(), *found]) if one.key in new]
            whole.append(gained)
        for each in parts:
            each.delete()
    with contextlib.suppress(OSError):
        (Path(path) / PARTS_FOLDER).rmdir()  # where it is empty
    return len(gained)
