"""All experiments of the paper as one list of runs, each with a directory of its own (``stepscope reproduce``)."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError
from stepscope.paper.experiments.agreement import AgreementExperiment, run_agreement
from stepscope.paper.experiments.convergence import ConvergenceExperiment, convergence_experiment, run_convergence
from stepscope.paper.experiments.robustness import RobustnessExperiment, robustness_experiment, run_robustness
from stepscope.paper.experiments.running import Progress
from stepscope.paper.experiments.theory import TheoryExperiment, run_theory, theory_experiment
from stepscope.paper.experiments.trajectory import TrajectoryExperiment, run_trajectory, trajectory_experiment
from stepscope.paper.experiments.workers import Tell, check_processes, run_jobs
from stepscope.paper.tasks.catalogue import TASKS
from stepscope.runs import read_run

PARTS = {
    "A": "directions along trajectories",
    "B": "convergence",
    "C": "robust smoothness",
    "D": "theory",
}
"""The experiments by the letters of the plan."""

Experiment = (
    TrajectoryExperiment | AgreementExperiment | ConvergenceExperiment | RobustnessExperiment | TheoryExperiment
)


@dataclass(frozen=True)
class Planned:
    """A run that is to be made.

    Attributes:
        part: a key of `PARTS`.
        name: its directory's name, such as ``"trajectory-code"``.
        experiment: what is run.
        what: how much that is, in words.
    """

    part: str
    name: str
    experiment: Experiment
    what: str


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
    only: Iterable[str] = tuple(PARTS),
    seeds: tuple[int, ...] = (0, 1, 2),
    settings: str = "ours",
    sources: Mapping[str, str] | None = None,
) -> list[Planned]:
    """The runs of a reproduction.

    Args:
        scale: the size of all of them.
        only: which experiments, by keys of `PARTS`.
        seeds: of each run.
        settings: of A and B: ``"text"``, ``"code"`` or ``"ours"``, see
            `stepscope.paper.experiments.compared.SETTINGS`. As the published code has it, models get no attention mask.
        sources: ``{task: where its data come from}``; ``"auto"`` for those not named.

    Raises:
        UsageError: an unknown letter, task, scale or setting, or seeds that can't be used.

    Example:
        >>> [planned.name for planned in reproduction("smoke", only="CD")]
        ['robustness', 'theory']
    """
    letters = [letter.upper() for each in only for letter in each.split(",") if letter]
    if unknown := [letter for letter in letters if letter not in PARTS]:
        raise UsageError(f"no experiment {unknown[0]!r}: choose of {', '.join(PARTS)}")
    if not letters:
        raise UsageError(f"no experiment is asked for: choose of {', '.join(PARTS)}")
    if others := set(sources or {}) - set(TASKS):
        raise UsageError(f"a source is given for {', '.join(sorted(others))}: choose of {', '.join(TASKS)}")
    given = dict.fromkeys(TASKS, "auto") | dict(sources or {})
    masked = settings != "code"
    planned = []
    if "A" in letters:
        points = {}
        for kind, pretrained in [*((kind, False) for kind in TASKS), ("images", True)]:
            along = trajectory_experiment(
                scale, kind, source=given[kind], seeds=seeds, pretrained=pretrained, masked=masked
            )
            places = f"{len(along.training_lr)} trajectories × {len(along.steps)} steps"
            what = f"{places} × {len(along.directions)} directions × {_count(seeds)}"
            name = f"{kind}{'-pretrained' * pretrained}"
            planned.append(Planned("A", f"trajectory-{name}", along, what))
            points[name] = along
        agreeing = AgreementExperiment(scale, points)
        what = f"{len(points)} tasks × {len(agreeing.directions)} directions, once more by float64 differences"
        planned.append(Planned("A", "agreement", agreeing, what))
    if "B" in letters:
        kinds = ("translation", "code")
        compared = convergence_experiment(
            scale, settings=settings, tasks=kinds, sources={kind: given[kind] for kind in kinds}, seeds=seeds
        )
        trained = f"{len(kinds)} tasks × {len(compared.optimizers)} optimizers"
        each = f"a search worth {float(compared.search.budget()):.3g} trainings, {_count(seeds)}"
        planned.append(Planned("B", "convergence", compared, f"{trained} × ({each})"))
    if "C" in letters:
        robust = robustness_experiment(scale, source=given["sentiment"], seeds=seeds)
        places = f"{len(robust.training_lr)} trajectories × {len(robust.steps)} steps × {robust.batches} batches"
        what = f"{places} × {len(robust.groups)} groups × {len(robust.cuts)} cuts × {_count(seeds)}"
        planned.append(Planned("C", "robustness", robust, what))
    if "D" in letters:
        theory = theory_experiment(scale, source=given["translation"], seeds=seeds)
        draws = f"{len(theory.families)} losses × {len(theory.fractions)} fractions × {theory.draws:,} draws"
        what = f"{draws}, correlations on {len(theory.correlated)} models, {_count(seeds)}"
        planned.append(Planned("D", "theory", theory, what))
    return planned


def run_reproduction(
    plan: Sequence[Planned],
    out: str | os.PathLike[str],
    progress: Progress = lambda part, what: None,  # noqa: ARG005
    *,
    processes: int = 1,
    weights: Mapping[str, float] | None = None,
) -> list[Failure]:
    """Makes the runs of a plan, or goes on with them. A run that fails doesn't stop the others.

    Args:
        plan: what to run.
        out: the directory that holds the run directories; created if missing.
        progress: told how far it is.
        processes: how many runs at a time; of convergence, how many trainings.
        weights: ``{name of a run: its expected part of the time}``, for the progress and the order; equal if None.

    Returns:
        The runs that could not be made; none if all could.

    Raises:
        UsageError: fewer processes than 1, one of them died, or the directory can't be made or holds runs of another
            scale or mask.
    """
    check_processes(processes)
    prepare_directory(plan, out)
    expected = {planned.name: (weights or {}).get(planned.name, 1.0) for planned in plan}
    whole = sum(expected.values()) or 1.0
    parts = dict.fromkeys(expected, 0.0)
    failures: list[Failure] = []

    def told(name: str, part: float, what: str) -> None:
        parts[name] = part
        progress(sum(expected[each] * parts[each] for each in parts) / whole, f"{name}: {what}")

    # Trainings of the convergence experiment are jobs by themselves. Of the others the longest first: what is begun
    # last must not be what is waited for.
    alone = [planned for planned in plan if not isinstance(planned.experiment, ConvergenceExperiment)]
    alone.sort(key=lambda planned: -expected[planned.name])
    jobs = [(planned, str(Path(out) / planned.name)) for planned in alone]

    def receive(number: int, message: Any) -> None:
        name = alone[number].name
        if isinstance(message, Failure):
            failures.append(message)
            told(name, 1.0, "failed")
        else:
            told(name, *message)

    run_jobs(_carry_out, jobs, processes, receive)
    for planned in plan:
        if isinstance(planned.experiment, ConvergenceExperiment):
            run = partial(run_convergence, processes=processes)
            failure = _made(planned, Path(out) / planned.name, partial(told, planned.name), run)
            failures += [failure] if failure else []
    return failures


def prepare_directory(plan: Sequence[Planned], out: str | os.PathLike[str]) -> None:
    """Makes the directory of a reproduction, and refuses one whose runs would be mixed up with these.

    Args:
        plan: what is to be run.
        out: the directory. Claims are judged by all runs in it.

    Raises:
        UsageError: it can't be made, or it holds runs of another scale or with another attention mask.
    """
    try:
        Path(out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot create {out} ({error.strerror or error}): give another directory (--out)") from error
    wanted = {planned.experiment.scale for planned in plan}
    masked = {mask for planned in plan if (mask := getattr(planned.experiment, "masked", None)) is not None}
    for file in sorted(Path(out).glob("*/run.json")):
        try:
            configuration = read_run(file.parent)[0]["configuration"]
        except UsageError:
            continue  # the reports say so
        scale, mask = configuration.get("scale"), configuration.get("masked")
        other = f"at the scale {scale}" if scale not in wanted else ""
        if masked and mask is not None and mask not in masked:
            other = "with another attention mask (--as)"
        if other:
            raise UsageError(f"{out} holds a run {other}: {file.parent.name}; give another directory (--out)")


def _carry_out(job: tuple[Planned, str], tell: Tell) -> None:
    planned, out = job
    runs: dict[type, Callable[..., int]] = {
        TrajectoryExperiment: run_trajectory,
        AgreementExperiment: run_agreement,
        RobustnessExperiment: run_robustness,
        TheoryExperiment: run_theory,
    }
    failure = _made(planned, out, lambda part, what: tell((part, what)), runs[type(planned.experiment)])
    tell(failure or (1.0, "done"))


def _made(planned: Planned, out: str | os.PathLike[str], progress: Progress, run: Callable[..., int]) -> Failure | None:
    try:
        run(planned.experiment, out, progress)
    except UsageError as error:
        return Failure(planned.name, " ".join(str(error).split()))
    except Exception as error:
        # A defect, or a machine that gave way: hours of other runs are not to be lost to it.
        traceback.print_exc()
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        return Failure(planned.name, f"{type(error).__name__}: {said}")
    return None


def _count(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seeds" if len(seeds) > 1 else "1 seed"
