"""All experiments of the paper as one list of runs (``stepscope reproduce``)."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError
from stepscope.paper.experiments.as_released import check_released
from stepscope.paper.experiments.command_lines import EXPERIMENTS, MEASURED_TASKS, RELEASED, letters
from stepscope.paper.experiments.experiment import Asked, Experiment, Progress, run
from stepscope.paper.experiments.training import sources_by_task
from stepscope.paper.experiments.workers import Tell, check_processes, run_jobs
from stepscope.paper.tasks.catalog import TASKS
from stepscope.runs import read_head


@dataclass(frozen=True)
class Failure:
    """A run that could not be made.

    Attributes:
        name: its directory's name.
        reason: one line.
    """

    name: str
    reason: str


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


def run_reproduction(
    plan: Sequence[Experiment[Any]],
    out: str | os.PathLike[str],
    progress: Progress = lambda done, text: None,  # noqa: ARG005
    *,
    processes: int = 1,
    weights: Mapping[str, float] | None = None,
) -> list[Failure]:
    """Makes the runs of a plan, or goes on with them. A run that fails doesn't stop the others.

    Args:
        plan: what to run.
        out: the directory that holds the run directories; created if missing.
        progress: told how far it is.
        processes: how many runs at a time; of an experiment that is `parallel`, how many units.
        weights: ``{name of a run: its expected part of the time}``, for the progress and the order; 1 where it isn't
            known.

    Returns:
        The runs that could not be made; none if all could.

    Raises:
        UsageError: fewer processes than 1, one of them died, or the directory can't be made or holds runs of another
            scale or mask.
    """
    check_processes(processes)
    prepare_directory(plan, out)
    expected = {experiment.run_name: (weights or {}).get(experiment.run_name, 1.0) for experiment in plan}
    whole = sum(expected.values()) or 1.0
    parts = dict.fromkeys(expected, 0.0)
    failures: list[Failure] = []

    def tell(name: str, done: float, text: str) -> None:
        parts[name] = done
        progress(sum(expected[name] * parts[name] for name in parts) / whole, f"{name}: {text}")

    # Units of a parallel experiment are jobs by themselves. Of the others the longest first: what is begun last must
    # not be what is waited for.
    alone = sorted(
        (experiment for experiment in plan if not experiment.entry.parallel),
        key=lambda experiment: -expected[experiment.run_name],
    )

    def receive(number: int, message: Any) -> None:
        name = alone[number].run_name
        if isinstance(message, Failure):
            failures.append(message)
            tell(name, 1.0, "failed")
        else:
            tell(name, *message)

    jobs = [(experiment, str(Path(out) / experiment.run_name)) for experiment in alone]
    run_jobs(_carry_out, jobs, processes, receive)
    for experiment in plan:
        if experiment.entry.parallel:
            directory = Path(out) / experiment.run_name
            failure = _made(experiment, directory, partial(tell, experiment.run_name), processes)
            failures += [failure] if failure else []
    return failures


def prepare_directory(plan: Sequence[Experiment[Any]], out: str | os.PathLike[str]) -> None:
    """Makes the directory of a reproduction, and refuses one whose runs would be mixed up with these.

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
    wanted = {experiment.scale for experiment in plan}
    masked = {mask for experiment in plan if (mask := getattr(experiment, "masked", None)) is not None}
    released = {_what(own): own.get("released") for own in (experiment.configuration() for experiment in plan)}
    for file in sorted(Path(out).glob("*/run.json")):
        try:
            configuration = read_head(file.parent)["configuration"]
        except UsageError:
            continue  # the reports say so
        scale, mask = configuration.get("scale"), configuration.get("masked")
        other = f"at the scale {scale}" if scale not in wanted else ""
        if masked and mask is not None and mask not in masked:
            other = "with another attention mask (--as, --with)"
        if list(configuration.get("released") or ()) != list(released.get(_what(configuration), ()) or ()):
            other = "as the published code has it in other respects (--as, --with)"
        if other:
            raise UsageError(f"{out} holds a run {other}: {file.parent.name}; give another directory (--out)")


def _what(configuration: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a run is of, whatever its settings."""
    return tuple(configuration.get(name) for name in ("experiment", "kind", "factor"))


def _carry_out(job: tuple[Experiment[Any], str], tell: Tell) -> None:
    experiment, out = job
    failure = _made(experiment, out, lambda done, text: tell((done, text)), 1)
    tell(failure or (1.0, "done"))


def _made(
    experiment: Experiment[Any], out: str | os.PathLike[str], progress: Progress, processes: int
) -> Failure | None:
    try:
        run(experiment, out, progress, processes)
    except UsageError as error:
        return Failure(experiment.run_name, " ".join(str(error).split()))
    except Exception as error:
        # A defect, or a machine that gave way: hours of other runs are not to be lost to it.
        traceback.print_exc()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Failure(experiment.run_name, f"{type(error).__name__}: {reason}")
    return None
