"""Trainings one after another: any number of processes share them out, and what was done stays done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from stepscope.calibration.jobs import Curve, Job, curves
from stepscope.calibration.training import Attach, TrainingRecord, probe, train
from stepscope.errors import UsageError, require
from stepscope.runs import show, write_atomically

RECORDS_FILE = "trainings.jsonl"
"""All trainings of a study, one a line."""

_FOLDER = "trainings"


def run_study(
    out: Path,
    curve_count: int | None,
    progress: Callable[[float, str], None],
    attach: Attach = probe,
    *,
    tasks: str = "study",
) -> tuple[list[TrainingRecord], int]:
    """Runs the trainings of the first curves of the plan that aren't there yet, and gathers all that are.

    Each training has a file, written when it is done, and a lock that claims it: the same command in several processes
    shares the trainings out, and one that is stopped loses the training that it was at.

    Args:
        out: the directory.
        curve_count: how many curves of the plan; ``None`` for all.
        progress: called with the part that is done, and a line.
        attach: what measures the steps of a training.
        tasks: a name in `SETS`.

    Returns:
        The trainings of these curves that are done, in the plan's order, and how many this process did.

    Raises:
        UsageError: fewer curves than 1, or the directory can't be written.
    """
    if curve_count is not None and curve_count < 1:
        raise UsageError(f"--curves {curve_count}: it is how many, at least 1")
    plan = curves(tasks)[:curve_count]
    jobs = [job for curve in plan for job in curve.jobs()]
    done = 0
    for place, job in enumerate(jobs):
        progress(place / len(jobs), job.name)
        done += _claimed(out / _FOLDER, job, attach)
    records = list(_gathered(out, plan))
    write_atomically(out / RECORDS_FILE, "".join(map(_line, records)).encode())
    return records, done


def read_study(file: Path) -> list[TrainingRecord]:
    """The trainings that a file of `run_study` holds.

    Args:
        file: `trainings.jsonl`.

    Raises:
        UsageError: there is no such file, or it is damaged.
    """
    try:
        lines = file.read_text().splitlines()
        return [TrainingRecord.from_json(json.loads(line)) for line in lines]
    except OSError as error:
        raise UsageError(f"cannot read {show(file)}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{show(file)} is damaged ({error}): run the study again") from error


def _claimed(folder: Path, job: Job, attach: Attach) -> bool:
    """Does a training if nobody has done it or is at it; whether it did."""
    filelock = require("filelock", "cli")
    file = folder / f"{job.name}.json"
    if file.exists():
        return False
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / f"{job.name}.lock", blocking=False):
            if file.exists():
                return False
            write_atomically(file, _line(train(job, attach)).encode())
            return True
    except filelock.Timeout:
        return False


def _gathered(out: Path, plan: Sequence[Curve]) -> Iterator[TrainingRecord]:
    for curve in plan:
        for job in curve.jobs():
            file = out / _FOLDER / f"{job.name}.json"
            if file.exists():
                yield from read_study(file)


def complete_curves(records: Iterable[TrainingRecord]) -> dict[Curve, list[TrainingRecord]]:
    """The trainings of each curve that has all of its rates, ascending by rate.

    Args:
        records: the trainings of a study.
    """
    by_curve: dict[Curve, list[TrainingRecord]] = {}
    for record in records:
        by_curve.setdefault(record.curve, []).append(record)
    whole = {curve: sorted(found, key=lambda r: r.rate) for curve, found in by_curve.items()}
    return {curve: found for curve, found in whole.items() if len(found) == len(curve.jobs())}


def _line(record: TrainingRecord) -> str:
    return json.dumps(record.as_json(), separators=(",", ":")) + "\n"
