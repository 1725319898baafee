"""What runs any experiment, or continues it: its units as jobs, each with a directory of its own.

A job is what one command makes (`stepscope reproduce --job`), and a part of its run's directory
(`stepscope.runs.parts`), which a process claims. So whatever can run commands runs them: processes that this one
starts, other terminals, a scheduler. What a job is missing depends on the records alone, and nothing that is recorded
is measured again. A training is repeated from its seed up to what is missing: measuring leaves no trace, so it is the
same training.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError, said
from stepscope.paper.experiments.experiment import Experiment, Progress, Unit
from stepscope.paper.experiments.workers import Tell, check_processes, run_jobs
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.pretraining import pretraining_told
from stepscope.runs import DirectoryInUseError, Head, Record, check_whole, gather, open_part, read_whole


@dataclass(frozen=True)
class Job:
    """A unit of a run, or a piece of one.

    Attributes:
        experiment: the run's.
        path: of the run's directory.
        unit: what is measured, or a piece of it (`Experiment.pieces`).
        number: of the unit among those of the experiment; records are gathered in this order.
    """

    experiment: Experiment[Any]
    path: Path
    unit: Unit
    number: int

    @property
    def part(self) -> str:
        """The name of its part of the run's directory."""
        words = re.findall(r"[\w.%-]+", self.unit.label.replace("%", "pct"))
        seed = [] if self.unit.seed is None else [f"seed-{self.unit.seed}"]
        return "-".join([f"{self.number:03}", *words, *seed])

    @property
    def name(self) -> str:
        """As a command names it, such as ``"trajectory-code-random/001-adam-trajectory-seed-0"``."""
        return f"{self.path.name}/{self.part}"


@dataclass(frozen=True)
class Failure:
    """A job that could not be done, or a run whose records could not be gathered.

    Attributes:
        name: of the run's directory.
        reason: one line.
        lasting: whether it would fail again, as where a training diverges.
    """

    name: str
    reason: str
    lasting: bool = False


Message = tuple[float, str] | Failure
"""Receives the progress of a job: the part that is done and what is going on, or that it failed."""

Execute = Callable[[Sequence[Job], Callable[[int, Message], None]], None]
"""Does jobs, and calls ``receive(number of the job, message)`` as they go."""


def jobs_of(experiment: Experiment[Any], path: str | os.PathLike[str]) -> list[Job]:
    """All jobs of a run.

    Those of a seed have the same weights, which the first of them pretrains: they are apart from one another, so that
    the others needn't wait for it.

    Args:
        experiment: the run's.
        path: of the run's directory.
    """
    turns: Counter[tuple[str | None, int | None]] = Counter()
    jobs: list[tuple[int, Job]] = []
    for number, unit in enumerate(experiment.units()):
        jobs.append((turns[unit.task, unit.seed], Job(experiment, Path(path), unit, number)))
        turns[unit.task, unit.seed] += unit.seed is not None
    return [job for _, job in sorted(jobs, key=lambda each: each[0])]


def unfinished(jobs: Sequence[Job], *, apart: bool = False) -> list[Job]:
    """Those jobs of one run that have anything left to do.

    Args:
        jobs: of one run.
        apart: whether the pieces that a unit has by now are jobs of their own. Others come when these are done.

    Raises:
        UsageError: the run's directory, or a part of it, can't be continued by this experiment.
    """
    if not jobs:
        return []
    records = _found(jobs[0].path, jobs[0].experiment)[1]
    left = [job for job in jobs if job.experiment.missing(job.unit, records)]
    pieces = [piece for job in left for piece in _pieces(job, records)] if apart else left
    return [job for job in pieces if job.experiment.missing(job.unit, records)]


def pieces_of(job: Job) -> list[Job]:
    """The pieces of a unit as jobs, those that are left by now and those that are done.

    Args:
        job: a whole unit.

    Raises:
        UsageError: as `unfinished`.
    """
    return _pieces(job, _found(job.path, job.experiment)[1])


def _pieces(job: Job, records: Sequence[Record]) -> list[Job]:
    return [replace(job, unit=unit) for unit in job.experiment.pieces(job.unit, records)]


def _found(path: Path, experiment: Experiment[Any]) -> tuple[Head, list[Record]]:
    """What is there of a run; an empty head where nothing is."""
    if not check_whole(path, experiment.configuration()):
        return {}, []
    head, records = read_whole(path, experiment.record)
    return head, list(records)


def perform(job: Job, progress: Progress) -> None:
    """Does a job, or what is left of it: nothing where it is done.

    Args:
        job: what to do.
        progress: called with the part that is done, and a line.

    Raises:
        DirectoryInUseError: another process is at it.
        UsageError: the directory can't be used, there are no data or they have changed since the run began, or it
            can't be measured, as where a training diverges.
    """
    experiment, unit, reached = job.experiment, job.unit, 0.0

    def tell(part: float, text: str) -> None:
        nonlocal reached
        reached = part
        progress(part, text)

    head, records = _found(job.path, experiment)
    if experiment.missing(unit, records):
        with pretraining_told(lambda step, of: progress(reached, f"{unit.label}: pretraining, step {step} of {of}")):
            task, context = _prepared(job, head.get("context") or {})
            configuration = experiment.configuration()
            with open_part(job.path, job.part, experiment.record, configuration, context) as directory:
                records = _found(job.path, experiment)[1]  # by now another process may have done it
                if experiment.missing(unit, records):
                    for measured in experiment.measure(unit, task, records, tell):
                        directory.append(measured)
    progress(1.0, unit.label)


_tasks: dict[tuple[str, str], Task | UsageError] = {}
"""By name and source, of the run that this process works on: its data are read and encoded once."""
_owner: list[str] = []
"""Which run that is."""


def _prepared(job: Job, begun: Mapping[str, Any]) -> tuple[Task | None, dict[str, Any]]:
    """The task, with the data that the run began with, and the context.

    Raises:
        UsageError: there are no data, or others than the run began with.
    """
    experiment, unit = job.experiment, job.unit
    if unit.seed is not None and hasattr(experiment, "seeds"):
        alone: dict[str, Any] = {"seeds": tuple(seed for seed in experiment.seeds if seed == unit.seed)}
        experiment = replace(experiment, **alone)  # no other is to be pretrained for it
    if unit.task is None:
        return None, experiment.context({})
    asked = experiment.data_sources().get(unit.task)  # none of one whose data are made on the spot
    recorded = _data(begun, unit.task) if asked else {}
    # A run goes on with the source that it began with, whichever would be the first to be found now.
    source = recorded.get("name", "auto") if asked in (None, "auto") else asked
    task = _made(job, experiment, unit.task, source)
    if recorded and recorded.get("sha256") != task.source.sha256:
        changed = f"the data of {job.path} have changed since it began ({task.source.title})"
        raise UsageError(f"{changed}: give another directory (--out)")
    context = experiment.context({unit.task: task} if asked else {})
    return task if unit.seed is None else task.seeded(unit.seed), context


def _made(job: Job, experiment: Experiment[Any], name: str, source: str) -> Task:
    owner = f"{job.path} {job.experiment!r}"
    if _owner != [owner]:
        _tasks.clear()
        _owner[:] = [owner]
    if (name, source) not in _tasks:
        try:
            task = experiment.make_task(name, source)
        except UsageError as error:
            _tasks[name, source] = error  # the next job would look in vain too, for as long
        else:
            # What was found here is what the jobs that come go on with.
            _tasks[name, source] = _tasks[name, task.source.name if source == "auto" else source] = task
    found = _tasks[name, source]
    if isinstance(found, UsageError):
        raise found
    return found


def _data(context: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What a context says of the data of a task."""
    task = context["tasks"].get(name, {}) if "tasks" in context else context
    return task.get("source") or {}


def in_processes(processes: int) -> Execute:
    """Does jobs here, or in so many processes of this machine, each with one thread.

    Args:
        processes: how many; 1 does them in this one.

    Raises:
        UsageError: fewer than 1.
    """
    check_processes(processes)

    def execute(jobs: Sequence[Job], receive: Callable[[int, Message], None]) -> None:
        def lost(number: int, reason: str) -> None:
            receive(number, Failure(jobs[number].path.name, reason))

        try:
            run_jobs(_carry_out, jobs, processes, receive, lost)
        finally:
            _tasks.clear()

    return execute


def _carry_out(job: Job, tell: Tell) -> None:
    try:
        perform(job, lambda part, text: tell((part, text)))
    except UsageError as error:
        tell(replace(_failure(job.path, error), lasting=not isinstance(error, DirectoryInUseError)))
    except OSError as error:
        tell(Failure(job.path.name, error.strerror or said(error)))
    except Exception as error:
        # A defect, or a machine that gave way: hours of other jobs are not to be lost to it.
        traceback.print_exc()
        tell(Failure(job.path.name, f"{type(error).__name__}: {said(error)}"))


def run_all(
    runs: Mapping[Path, Experiment[Any]],
    execute: Execute,
    progress: Progress = lambda part, what: None,  # noqa: ARG005
    weights: Mapping[str, float] | None = None,
    *,
    apart: bool = False,
) -> tuple[int, list[Failure]]:
    """Does what is left of some runs, and gathers each of which nothing is left but what would fail again.

    A job that fails doesn't stop the others.

    Args:
        runs: ``{run directory: its experiment}``.
        execute: what does the jobs.
        progress: called with the part that is done, and a line.
        weights: ``{name of a run's directory: its expected part of the time}``; 1 where it isn't known.
        apart: whether pieces of units are jobs of their own, for `execute` to do in turn.

    Returns:
        How many records the runs gained, and what failed.
    """
    course, before = _Course(runs, progress, weights or {}, apart), _recorded(runs)
    try:
        while jobs := course.next():
            execute(jobs, lambda number, message, jobs=jobs: course.receive(jobs[number], message))  # type: ignore[misc]
    finally:
        for path, experiment in runs.items():
            try:
                left = unfinished(jobs_of(experiment, path))
                if all((path.name, job.number) in course.given_up for job in left):  # else the order were that of ends
                    gather(path, experiment.record, experiment.configuration(), experiment.in_order)
            except UsageError as error:
                course.failures.append(_failure(path, error))
    undone = _undone(runs, {failure.name for failure in course.failures})
    return _recorded(runs) - before, [*dict.fromkeys(course.failures), *undone]


def _recorded(runs: Mapping[Path, Experiment[Any]]) -> int:
    """How many records there are."""
    count = 0
    for path, experiment in runs.items():
        with contextlib.suppress(UsageError):  # which is told where the run is continued
            count += len(_found(path, experiment)[1])
    return count


class _Course:
    """How far some runs are: what can be done next, what was reached of each unit, and what failed."""

    def __init__(
        self, runs: Mapping[Path, Experiment[Any]], progress: Progress, weights: Mapping[str, float], apart: bool
    ) -> None:
        self.failures: list[Failure] = []
        self.given_up: set[tuple[str, int]] = set()
        """The units that would fail again."""
        self._runs, self._progress, self._apart = runs, progress, apart
        self._expected = {path.name: weights.get(path.name, 1.0) for path in runs}
        self._counts = {path.name: len(experiment.units()) for path, experiment in runs.items()}
        self._tried: set[str] = set()
        self._reached: dict[tuple[str, int], dict[str, float]] = {}
        """Of the units that anything is left of: by unit and job, which part of the unit is done."""

    def next(self) -> list[Job]:
        """The jobs that can be done by now, and weren't tried."""
        left: list[Job] = []
        for path, experiment in self._runs.items():
            try:
                experiment.check()
                left += unfinished(jobs_of(experiment, path), apart=self._apart)
            except UsageError as error:
                self.failures.append(_failure(path, error))
        places = {(job.path.name, job.number) for job in left}
        self._reached = {place: self._reached.get(place, {}) for place in places}
        waiting = [job for job in left if job.name not in self._tried]
        if waiting and not self._tried:
            self._progress(self._part(), "preparing data and weights")
        self._tried |= {job.name for job in waiting}
        # The longest first: what is begun last must not be what is waited for.
        return sorted(waiting, key=lambda job: -self._expected[job.path.name] / self._counts[job.path.name])

    def receive(self, job: Job, message: Message) -> None:
        """Takes the progress of a job, and tells that of the whole."""
        failed = isinstance(message, Failure)
        if isinstance(message, Failure):
            self.failures.append(message)
            self.given_up |= {(job.path.name, job.number)} if message.lasting else set()
            message = 1.0, "failed"
        self._reached[job.path.name, job.number][job.part] = message[0] * job.unit.share
        if len(self._runs) > 1:
            self._progress(self._part(), f"{job.path.name}: {message[1]}")
        elif not failed:  # what stops all its jobs is to be one line
            self._progress(self._part(), message[1])

    def _part(self) -> float:
        done = dict[str, float](self._counts)
        for (name, _), reached in self._reached.items():
            done[name] -= 1 - min(1.0, sum(reached.values()))
        parts = (self._expected[name] * done[name] / count for name, count in self._counts.items())
        return sum(parts) / sum(self._expected.values())


def _undone(runs: Mapping[Path, Experiment[Any]], failed: Collection[str]) -> list[Failure]:
    """The runs that nothing is said to have failed of, and which aren't complete all the same."""
    asked = {path: experiment for path, experiment in runs.items() if path.name not in failed}
    left = {path: len(unfinished(jobs_of(experiment, path))) for path, experiment in asked.items()}
    why = "jobs are not done: another process may be at them"
    return [Failure(path.name, f"{count} {why}") for path, count in left.items() if count]


def _failure(path: Path, error: UsageError) -> Failure:
    return Failure(path.name, " ".join(str(error).split()))


def run(
    experiment: Experiment[Any],
    out: str | os.PathLike[str],
    progress: Progress = lambda part, what: None,  # noqa: ARG005
    processes: int = 1,
) -> int:
    """Runs an experiment into a run directory, or continues one.

    Args:
        experiment: what to run.
        out: the run directory; created if missing.
        progress: called with the part that is done, and a line.
        processes: how many units at a time, each in a process of its own.

    Returns:
        How many records the run gained; 0 if it was complete already.

    Raises:
        UsageError: the settings don't fit, the directory can't be used (see `RunDirectory`), there are no data or they
            have changed since the run began, a process died, or some units failed; the others have been measured then.
    """
    execute = in_processes(processes)
    experiment.check()
    gained, failures = run_all({Path(out): experiment}, execute, progress)
    if failures:
        raise UsageError("; ".join(dict.fromkeys(failure.reason for failure in failures)))
    return gained
