"""All experiments of the paper as one list of runs (``stepscope reproduce``)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError
from stepscope.paper.experiments.as_released import check_released
from stepscope.paper.experiments.command_lines import EXPERIMENTS, MEASURED_TASKS, RELEASED, letters
from stepscope.paper.experiments.experiment import Asked, Experiment, Progress
from stepscope.paper.experiments.jobs import (
    Execute,
    Failure,
    Job,
    in_processes,
    jobs_of,
    pieces_of,
    run_all,
    unfinished,
)
from stepscope.paper.experiments.run_files import run_directories
from stepscope.paper.experiments.training import sources_by_task
from stepscope.paper.tasks.catalog import TASKS
from stepscope.runs import is_run, parts_of, read_head


def reproduction(
    scale: str = "cpu",
    *,
    only: Iterable[str] | None = None,
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4),
    settings: str = "ours",
    sources: Mapping[str, str] | None = None,
    tasks: Sequence[str] = MEASURED_TASKS,
    released: Sequence[str] = (),
) -> list[Experiment[Any]]:
    """The runs of a reproduction.

    Args:
        scale: the size of all of them.
        only: which parts, by their letters; None for all but those that have to be asked for.
        seeds: of each run.
        settings: of A and B: ``"text"``, ``"code"`` or ``"ours"``, see
            `stepscope.paper.experiments.compared_optimizers.SETTINGS`. As the published code has it, models get no
            attention mask.
        sources: ``{task: where its data come from}``; ``"auto"`` for those not named.
        tasks: those along whose trainings A measures directions.
        released: names in `stepscope.paper.experiments.command_lines.RELEASED`; with the settings ``"code"`` all.

    Raises:
        UsageError: an unknown letter, task, scale or setting, or seeds that can't be used.

    Example:
        >>> [experiment.run_name for experiment in reproduction("smoke", only="CD")]
        ['robustness', 'theory']
    """
    known = letters()
    wanted = (
        letters(whole=False)
        if only is None
        else [letter.upper() for word in only for letter in word.split(",") if letter]
    )
    if unknown := [letter for letter in wanted if letter not in known]:
        raise UsageError(f"no experiment {unknown[0]!r}: choose of {', '.join(known)}")
    if not wanted:
        raise UsageError(f"no experiment is asked for: choose of {', '.join(known)}")
    if unknown := [task for task in tasks if task not in TASKS]:
        raise UsageError(f"no task {unknown[0]!r}: choose {', '.join(TASKS)}")
    names = check_released(RELEASED if settings == "code" else released)
    asked = Asked(scale, seeds, settings, sources_by_task(sources or {}), tuple(dict.fromkeys(tasks)), names)
    return [
        experiment
        for entry in EXPERIMENTS.values()
        if entry.letter in wanted
        for experiment in entry.load().of_reproduction(asked)
    ]


def directories(plan: Sequence[Experiment[Any]], out: str | os.PathLike[str]) -> dict[Path, Experiment[Any]]:
    """Which directory each run of a plan has.

    Args:
        plan: what to run.
        out: the directory that holds them.
    """
    return {Path(out) / experiment.run_name: experiment for experiment in plan}


def run_reproduction(
    plan: Sequence[Experiment[Any]],
    out: str | os.PathLike[str],
    progress: Progress = lambda done, text: None,  # noqa: ARG005
    *,
    execute: Execute | None = None,
    weights: Mapping[str, float] | None = None,
    apart: bool = False,
) -> list[Failure]:
    """Makes the runs of a plan, or goes on with them, and gathers what is complete. A job that fails stops no other.

    Args:
        plan: what to run.
        out: the directory that holds the run directories; created if missing.
        progress: called with the part that is done, and a line.
        execute: what does the jobs; None does them here.
        weights: ``{name of a run: its expected part of the time}``, for the progress and the order; 1 where it isn't
            known.
        apart: whether pieces of units are jobs of their own, as `jobs_left` has them.

    Returns:
        What could not be made; none if all could.

    Raises:
        UsageError: the directory can't be made or holds runs of another scale or mask.
    """
    prepare_directory(plan, out)
    return run_all(directories(plan, out), execute or in_processes(1), progress, weights, apart=apart)[1]


def job_named(plan: Sequence[Experiment[Any]], out: str | os.PathLike[str], name: str) -> Job:
    """The job of a plan that has a name.

    Args:
        plan: what to run.
        out: the directory that holds the run directories.
        name: see `Job.name`.

    Raises:
        UsageError: there is none.
    """
    for path, experiment in directories(plan, out).items():
        for job in jobs_of(experiment, path):
            for each in [job, *(pieces_of(job) if name.startswith(f"{job.name}-") else [])]:
                if each.name == name:
                    return each
    raise UsageError(f"no job {name!r} in this plan: --list prints those that are left")


def jobs_left(plan: Sequence[Experiment[Any]], out: str | os.PathLike[str]) -> list[Job]:
    """The jobs of a plan that can be done by now, pieces of units apart; it leaves the disk as it was.

    Args:
        plan: what to run.
        out: the directory that holds the run directories.

    Raises:
        UsageError: it holds runs that would be mixed up with these.
    """
    check_directory(plan, out)
    runs = directories(plan, out)
    return [job for path, one in runs.items() for job in unfinished(jobs_of(one, path), apart=True)]


def prepare_directory(plan: Sequence[Experiment[Any]], out: str | os.PathLike[str]) -> None:
    """Makes the directory of a reproduction, if it isn't one whose runs would be mixed up with these.

    Args:
        plan: what is to be run.
        out: the directory. Claims are judged by all runs in it.

    Raises:
        UsageError: it can't be made, or it holds runs of another scale, or as the published code has it in other
            respects.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {out} ({error.strerror or error}): give another directory (--out)") from error
    check_directory(plan, out)


def check_directory(plan: Sequence[Experiment[Any]], out: str | os.PathLike[str]) -> None:
    """Refuses a directory whose runs would be mixed up with those of a plan.

    Args:
        plan: what is to be run.
        out: the directory. Claims are judged by all runs in it.

    Raises:
        UsageError: it holds runs of another scale, or as the published code has it in other respects.
    """
    wanted = {experiment.scale for experiment in plan}
    masked = {mask for experiment in plan if (mask := getattr(experiment, "masked", None)) is not None}
    released = {_what(own): own.get("released") for own in (experiment.configuration() for experiment in plan)}
    for directory in run_directories(out):
        try:
            configuration = read_head(directory if is_run(directory) else parts_of(directory)[0])["configuration"]
        except UsageError:
            continue  # the reports say so
        scale, mask = configuration.get("scale"), configuration.get("masked")
        other = f"at the scale {scale}" if scale not in wanted else ""
        if masked and mask is not None and mask not in masked:
            other = "with another attention mask (--as, --with)"
        if list(configuration.get("released") or ()) != list(released.get(_what(configuration), ()) or ()):
            other = "as the published code has it in other respects (--as, --with)"
        if other:
            raise UsageError(f"{out} holds a run {other}: {directory.name}; give another directory (--out)")


def _what(configuration: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run is of, whatever its settings."""
    return tuple(configuration.get(name) for name in ("experiment", "kind", "factor"))
