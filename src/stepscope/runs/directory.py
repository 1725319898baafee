"""A run directory: what was asked for (`run.json`) and what was measured (`measurements.jsonl`, `steps.jsonl`).

The directory is made to be read by anything (one JSON object a line: grep, pandas, duckdb) and to survive
anything: `run.json` exists in full before the first measurement, measurements are only ever appended, and
every append is one write that is flushed to the disk. A process that is killed leaves at most one torn last
line, and the next writer cuts that off. One process writes: workers send their records to the one that holds the lock.
Landscapes, of 10 to 25 numbers, are in the line; files beside the records are for large arrays.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, Self

from stepscope.errors import UsageError
from stepscope.runs.head import (
    RUN_FILE,
    Head,
    continued,
    create_or_continue,
    merged,
    read_run_file,
    write_run_file,
)
from stepscope.runs.reading import MEASUREMENTS_FILE, STEPS_FILE, read_records
from stepscope.runs.records import AnyRecord, Record
from stepscope.runs.step_record import StepRecord
from stepscope.runs.storage import encode, plain, reason, show

LOCK_FILE = ".lock"
PARTS_FOLDER = "parts"
"""Of a run that several processes make: see `stepscope.runs.parts`."""


class DirectoryInUseError(UsageError):
    """Another process writes to a run directory."""


class RunDirectory(Generic[AnyRecord]):
    """A run directory that this process may write to; no other can at the same time.

    Made by [`RunDirectory.open`]. Use it as a context manager, or call [`close`].

    Attributes:
        path: the directory.
        configuration: what was asked for, as JSON holds it.
        context: data source, model, versions: as stored when the run began.

    Example:
        >>> import tempfile
        >>> from stepscope.runs import DirectionRecord
        >>> first = DirectionRecord(trajectory="sgd", seed=0, step=20, direction="adam", sharpness=3.5)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with RunDirectory.open(folder + "/run", DirectionRecord, {"steps": [20]}) as run:
        ...         run.append([first])
        ...     with RunDirectory.open(folder + "/run", DirectionRecord, {"steps": [20]}) as run:  # continues
        ...         [record.direction for record in run.records()]
        ['adam']
    """

    def __init__(self, path: Path, run: Head, records: list[AnyRecord], file: BinaryIO, lock: Any) -> None:
        self.path = path
        self.configuration: dict[str, Any] = run["configuration"]
        self.context: dict[str, Any] = run["context"]
        self._records = records
        self._file = file
        self._steps: BinaryIO | None = None
        self._lock = lock

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        record: type[AnyRecord],
        configuration: Mapping[str, Any],
        *,
        context: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> RunDirectory[AnyRecord]:
        """Creates a run directory, or continues one that was made with the same configuration.

        Args:
            path: the directory; created with its parents if missing.
            record: the type of its records.
            configuration: what determines the measurements; anything that JSON can hold.
            context: what else should be known about them; `versions()` is added under `"versions"` if
                missing. Kept from the first opening: a continued run doesn't change it.
            overwrite: whether a run that the directory holds is deleted, of whatever configuration.

        Raises:
            UsageError: the configuration has no JSON form or is not the one that the directory was made with,
                or the directory holds something else, is in use by another process, or cannot be written.
        """
        directory = Path(path)
        wanted = plain(configuration, "configuration")
        details = plain(context or {}, "context")
        made = _make_directory(directory)
        lock = None
        try:
            _refuse_foreign(directory)
            lock = _acquire(directory)
            if overwrite and (directory / RUN_FILE).exists():
                _delete_run(directory)
            run = create_or_continue(directory, wanted, details)
            records, whole = read_records(directory / MEASUREMENTS_FILE, record)
            file = _open_for_append(directory / MEASUREMENTS_FILE, whole)
        except BaseException:
            if lock is not None:
                if made and not (directory / RUN_FILE).exists():
                    (directory / LOCK_FILE).unlink(missing_ok=True)  # before the release: it is ours till then
                lock.release()
            _remove_empty(made)
            raise
        return cls(directory, run, records, file, lock)

    @staticmethod
    def check(path: str | os.PathLike[str], configuration: Mapping[str, Any]) -> dict[str, Any] | None:
        """Refuses what `open` would refuse, before expensive preparations; leaves the disk as it was.

        Args:
            path: the directory.
            configuration: as for `open`.

        Returns:
            The context of the run that would be continued; None if it would be a new one.

        Raises:
            UsageError: as `open`, but for a writer that is at work.
        """
        directory = Path(path)
        wanted = plain(configuration, "configuration")
        made = _make_directory(directory)
        try:
            _refuse_foreign(directory)
            if not os.access(directory, os.W_OK | os.X_OK):
                raise UsageError(f"cannot write to {show(directory)}: permission denied")
            if (directory / RUN_FILE).exists():
                return dict(continued(directory, wanted)["context"])
            return None
        finally:
            _remove_empty(made)

    def records(self) -> list[AnyRecord]:
        """Everything measured so far, also by earlier openings, in order."""
        return list(self._records)

    def append(self, records: Sequence[AnyRecord]) -> None:
        """Adds records, safely on the disk when this returns.

        Args:
            records: what was measured.

        Raises:
            UsageError: a value has no JSON form, or the disk is full (nothing is written then).
            ValueError: the directory was closed.
        """
        self._append(self._file, records)
        self._records.extend(records)

    def describe(self, context: Mapping[str, Any]) -> None:
        """Adds to the context what became known since the run began; what is there already stays.

        Raises:
            UsageError: it can't be written.
        """
        self._say({**plain(context, "context"), **self.context})

    def merge(self, context: Mapping[str, Any]) -> None:
        """Adds to the context as `describe` does, and within what is there too: see `merged`.

        Raises:
            UsageError: it can't be written.
        """
        self._say(merged(self.context, plain(context, "context")))

    def _say(self, context: dict[str, Any]) -> None:
        if context != self.context:
            self.context = context
            write_run_file(self.path, read_run_file(self.path) | {"context": context})

    def append_step(self, record: StepRecord) -> None:
        """Adds the record of a step to `steps.jsonl`, as `append` does."""
        if self._steps is None and not self._file.closed:
            file = self.path / STEPS_FILE
            self._steps = _open_for_append(file, read_records(file, StepRecord)[1])
        self._append(self._steps or self._file, [record])

    def _append(self, file: BinaryIO, records: Sequence[Record]) -> None:
        if self._file.closed:
            raise ValueError(f"{show(self.path)} is closed: open it again to append")
        lines = b"".join(encode(record.as_json()) + b"\n" for record in records)
        if not lines:
            return
        size = os.fstat(file.fileno()).st_size
        try:
            written = file.write(lines)  # unbuffered: one write(2), so only its end can be torn
            if written != len(lines):
                raise OSError("the disk took only a part of it")
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(file.fileno(), size)
            raise UsageError(f"cannot write {show(self.path)}: {reason(error)}") from error

    def delete(self) -> None:
        """Deletes the run, and closes it: what it holds is kept elsewhere."""
        _delete_run(self.path)
        (self.path / LOCK_FILE).unlink(missing_ok=True)  # before the release: it is ours till then
        self.close()
        _remove_empty([self.path])

    def close(self) -> None:
        """Gives the directory free for other writers; closing twice does nothing."""
        if not self._file.closed:
            self._file.close()
            if self._steps is not None:
                self._steps.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _make_directory(directory: Path) -> list[Path]:
    """Creates a directory and says which were missing, outermost last."""
    missing: list[Path] = []
    try:
        missing += [parent for parent in (directory, *directory.parents) if not parent.exists()]
        for patience in (True, True, True, False):
            try:
                directory.mkdir(parents=True, exist_ok=True)
                break
            except FileNotFoundError:  # another process that only looked has removed a parent that it had made
                if not patience:
                    raise
    except FileExistsError as error:
        raise UsageError(f"{show(directory)} is a file: give a directory") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        _remove_empty(missing)
        raise UsageError(f"cannot create {show(directory)}: {reason(error)}") from error
    return missing


def _remove_empty(directories: Sequence[Path]) -> None:
    for directory in directories:
        try:
            directory.rmdir()
        except (OSError, ValueError):
            return  # not there, or something is in it by now, and then it isn't ours to remove


def _refuse_foreign(directory: Path) -> None:
    try:
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise UsageError(f"cannot read {show(directory)}: {reason(error)}") from error
    if RUN_FILE in names:
        return
    # What a process that died before run.json was whole can leave.
    ours = {name for name in names if name in (LOCK_FILE, PARTS_FOLDER) or name.startswith(f".{RUN_FILE}.")}
    if names - ours:
        raise UsageError(f"{show(directory)} is not empty and not a run directory: give another directory")


def _acquire(directory: Path) -> Any:
    import filelock

    # thread_local=False: whoever opened the directory, any thread may close it.
    lock = filelock.FileLock(directory / LOCK_FILE, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise DirectoryInUseError(
            f"another process is writing to {show(directory)}: wait for it, or give another directory"
        ) from error
    except (OSError, NotImplementedError) as error:
        raise UsageError(f"cannot write to {show(directory)}: {reason(error)}") from error
    return lock


def _delete_run(directory: Path) -> None:
    """Deletes the files of a run, and of nothing else; the one that says what it was comes last."""
    read_run_file(directory)
    try:
        (directory / MEASUREMENTS_FILE).unlink(missing_ok=True)
        (directory / STEPS_FILE).unlink(missing_ok=True)
        (directory / RUN_FILE).unlink()
    except OSError as error:
        raise UsageError(f"cannot overwrite {show(directory)}: {reason(error)}") from error


def _open_for_append(file: Path, whole: int) -> BinaryIO:
    try:
        opened = file.open("ab", buffering=0)
        if os.fstat(opened.fileno()).st_size > whole:
            os.ftruncate(opened.fileno(), whole)
            os.fsync(opened.fileno())
    except OSError as error:
        raise UsageError(f"cannot write {show(file)}: {reason(error)}") from error
    return opened
