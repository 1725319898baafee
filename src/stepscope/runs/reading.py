"""Reading a run directory, which changes nothing in it, also while another process writes to it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

from stepscope.errors import UsageError
from stepscope.runs.head import Head, is_run, read_head
from stepscope.runs.records import AnyRecord, latest
from stepscope.runs.step_record import StepRecord
from stepscope.runs.storage import lines_of, reason, show

MEASUREMENTS_FILE = "measurements.jsonl"
STEPS_FILE = "steps.jsonl"


def read_run(
    path: str | os.PathLike[str], record: type[AnyRecord] | Callable[[Head], type[AnyRecord]]
) -> tuple[Head, list[AnyRecord]]:
    """Reads a run directory without changing it, also while another process writes to it.

    Args:
        path: the run directory.
        record: the type of its records, or what says it of the content of `run.json`.

    Returns:
        The content of `run.json`, and the records in the order in which they were measured (see `latest`). A torn last
        line is left out.

    Raises:
        UsageError: it is no run directory, a newer stepscope wrote it, or it is damaged.
    """
    head = read_head(path)
    kind: type[AnyRecord] = record if isinstance(record, type) else record(head)
    records, _ = read_records(Path(path) / MEASUREMENTS_FILE, kind)
    return head, latest(records)


def read_steps(path: str | os.PathLike[str]) -> list[StepRecord]:
    """Reads what a run directory holds of the steps that were made, as `read_run` does its measurements.

    Args:
        path: the run directory.

    Returns:
        The records of `steps.jsonl` in order (see `latest`); none where there is no such file.

    Raises:
        UsageError: as `read_run`.
    """
    read_head(path)
    records, _ = read_records(Path(path) / STEPS_FILE, StepRecord)
    return latest(records)


def holds_measurements(path: str | os.PathLike[str]) -> bool:
    """Whether a directory is that of a run in which something was measured."""
    try:
        return is_run(path) and any(file.stat().st_size for file in Path(path).glob("*.jsonl"))
    except OSError:
        return True  # what can't be looked at isn't taken for empty


def read_records(file: Path, kind: type[AnyRecord]) -> tuple[list[AnyRecord], int]:
    """The whole records of a file, and the number of bytes that they take."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return [], 0
    except OSError as error:
        raise UsageError(f"cannot read {show(file)}: {reason(error)}") from error
    records: list[AnyRecord] = []
    whole = 0
    for line_number, line in enumerate(lines_of(content), start=1):
        try:
            values = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, dict):
            if whole + len(line) == len(content):
                break  # the last line: a writer was stopped in the middle of it
            raise UsageError(f"{show(file)}, line {line_number} is not a JSON object: repair or delete that line")
        try:
            records.append(kind.from_json(values))
        except (ValueError, OverflowError) as error:
            raise UsageError(f"{show(file)}, line {line_number}: {error}: repair or delete that line") from error
        whole += len(line)
    return records, whole
