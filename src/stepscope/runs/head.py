"""`run.json`: what was asked for, and what is known of it. It exists in full before the first measurement."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError
from stepscope.runs.storage import BRIEF, brief, reason, show, versions, write_atomically

SCHEMA_VERSION = 2
"""Version 1 had other names for some fields: see `Record.renamed`."""

RUN_FILE = "run.json"

_ABSENT = object()

Head = dict[str, Any]
"""The content of `run.json`: ``schema_version``, ``created``, ``configuration``, ``context``."""


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a directory is that of a run."""
    try:
        return (Path(path) / RUN_FILE).is_file()
    except (OSError, ValueError):
        return False


def read_head(path: str | os.PathLike[str]) -> Head:
    """The content of a run directory's `run.json`.

    Raises:
        UsageError: as `read_run`.
    """
    directory = Path(path)
    try:
        directory.stat()
        is_run = (directory / RUN_FILE).is_file()
    except (OSError, ValueError) as error:
        instead = _instead(directory) if isinstance(error, FileNotFoundError) else ""
        raise UsageError(f"cannot read {show(directory)}: {reason(error)}{instead}") from error
    if not is_run:
        raise UsageError(f"{show(directory)} is not a run directory: it has no {RUN_FILE}{_remedy(directory)}")
    return read_run_file(directory)


_NAMED = 4


def _remedy(path: Path) -> str:
    """Which run directories may have been meant: those in it, or the one that it is a file of."""
    if is_run(path.parent) and path.is_file():
        return f"; give {show(path.parent)}"
    return _one_of(path, ("*",), "those in it")


def _instead(missing: Path) -> str:
    """Which run directories may have been meant: those beside one that isn't there, and those in `runs`."""
    if is_run(missing.parent):
        return f"; give {show(missing.parent)}"
    there = next(path for path in (*missing.parents, Path()) if path.is_dir())
    return _one_of(there, ("*", "runs/*"), "these") or "; give the directory that run_dir= or --out named"


def _one_of(folder: Path, places: tuple[str, ...], which: str) -> str:
    files = sorted(file for place in places for file in folder.glob(f"{place}/{RUN_FILE}"))
    below = [file.parent for file in files if file.is_file()]
    left = len(below) - _NAMED
    more = f" and {left} other{'s' * (left > 1)}" if left > 0 else ""
    return f"; give one of {which}: {', '.join(map(show, below[:_NAMED]))}{more}" if below else ""


def read_run_file(directory: Path) -> Head:
    """The content of `run.json`, checked: as `read_head`, of a directory that is known to hold one."""
    file = directory / RUN_FILE
    try:
        run = json.loads(file.read_bytes())
    except OSError as error:
        raise UsageError(f"cannot read {show(file)}: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{show(file)} is damaged (not JSON): delete the directory and run again") from error
    version = run.get("schema_version") if isinstance(run, dict) else None
    if not isinstance(version, int) or not isinstance(run.get("configuration"), dict):
        raise UsageError(f"{show(file)} was not written by stepscope: give another directory")
    if version > SCHEMA_VERSION:
        supported = f"this stepscope reads up to {SCHEMA_VERSION}"
        raise UsageError(f"{show(file)} has schema version {version}, {supported}: upgrade stepscope")
    if not isinstance(run.get("context"), dict):
        run["context"] = {}
    return dict(run)


def create_or_continue(directory: Path, wanted: dict[str, Any], context: dict[str, Any]) -> Head:
    """Writes `run.json` where there is none, and refuses one with another configuration."""
    if (directory / RUN_FILE).exists():
        run = continued(directory, wanted)
        if run["schema_version"] == SCHEMA_VERSION:
            return run
        run["schema_version"] = SCHEMA_VERSION  # what is appended from now on an older version couldn't read
    else:
        context.setdefault("versions", versions())
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        run = {"schema_version": SCHEMA_VERSION, "created": created, "configuration": wanted, "context": context}
    write_run_file(directory, run)
    return run


def continued(directory: Path, wanted: dict[str, Any]) -> Head:
    """The content of the `run.json` that is there, which has to be of this configuration."""
    run = read_run_file(directory)
    if differences := _differences(run["configuration"], wanted):
        shown = "; ".join(differences[:3]) + ("; …" if len(differences) > 3 else "")
        what = f"{show(directory)} holds a run with another configuration"
        raise UsageError(f"{what} ({shown}): give another directory, or delete it")
    return run


def write_run_file(directory: Path, run: Head) -> None:
    """Writes it, whole or not at all."""
    text = json.dumps(run, indent=2, allow_nan=False)
    write_atomically(directory / RUN_FILE, text.encode() + b"\n")


def merged(first: Any, second: Any) -> Any:
    """Adds to what JSON holds what else holds beside it: names to objects, items to lists. Other values stay.

    Args:
        first: what stays.
        second: what is added.

    Example:
        >>> merged({"a": 1, "seeds": [0]}, {"a": 2, "seeds": [0, 1], "b": {}})
        {'a': 1, 'seeds': [0, 1], 'b': {}}
    """
    if isinstance(first, dict) and isinstance(second, dict):
        return first | {name: merged(first.get(name, value), value) for name, value in second.items()}
    if isinstance(first, list) and isinstance(second, list):
        return [*first, *(item for item in second if item not in first)]
    return first


def _differences(stored: Any, wanted: Any, name: str = "") -> list[str]:
    """The keys under which two configurations differ, each with both values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        keys = list(dict.fromkeys([*wanted, *stored]))
        return [
            line
            for key in keys
            for line in _differences(
                stored.get(key, _ABSENT), wanted.get(key, _ABSENT), f"{name}.{key}" if name else key
            )
        ]
    if stored == wanted and isinstance(stored, bool) == isinstance(wanted, bool):
        return []
    if isinstance(stored, list) and isinstance(wanted, list) and len(json.dumps(stored)) > BRIEF:
        # Cut off, two long lists would look alike.
        only = [item for item in stored if item not in wanted], [item for item in wanted if item not in stored]
        if any(only):
            stored, wanted = only
            return [f"{json.dumps(name)[1:-1]}: {brief(stored)} there alone, {brief(wanted)} asked for alone"]
    return [f"{json.dumps(name)[1:-1]}: {_shown(stored)} there, {_shown(wanted)} asked for"]


def _shown(value: Any) -> str:
    return "nothing" if value is _ABSENT else brief(value)
