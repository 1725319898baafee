"""Experiment D: what the paper says of clipping and of curvature's coordinates, tried on many losses.

First, appendix A's bound and where clipping improves it (`stepscope.paper.experiments.bounds`); second, whether Hessian
and gradient coordinates are correlated (`stepscope.paper.experiments.correlation`), along short trainings.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import torch

from stepscope.errors import UsageError
from stepscope.objective import Objective
from stepscope.paper.experiments.bounds import FAMILIES, bound_record
from stepscope.paper.experiments.compared import TRAINING
from stepscope.paper.experiments.correlation import coordinate_values, correlation_record, scope_coordinates, scope_size
from stepscope.paper.experiments.running import (
    Progress,
    at_home,
    backward,
    check_data,
    check_settings,
    model_of,
    part_of,
    source_of,
)
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.small import SMALL, small_task
from stepscope.paper.tasks.translation import SCALES, TranslationConfig, translation
from stepscope.runs import RunDirectory, read_run

TRANSLATION = "translation"

_Key = tuple[str | None, int, int | None, str]
"""What tells a record from others: trajectory, seed, step, group."""


class _Training(NamedTuple):
    """One run of a task by an optimizer."""

    seed: int
    task: str
    trajectory: str


@dataclass(frozen=True)
class CorrelatedTask:
    """Where the coordinates of one task are looked at.

    Attributes:
        training_lr: ``{training optimizer: learning rate}``, one trajectory each.
        steps: training steps, counted from 1: the parameters before the step's update.
        scopes: parts of the model, by the beginning of their parameters' names; empty for the whole model.
        coordinates: how many of each part are sampled; ``None`` for all.
    """

    training_lr: Mapping[str, float]
    steps: tuple[int, ...]
    scopes: tuple[str, ...]
    coordinates: int | None = None


_CLASSIFIER = CorrelatedTask({"sgd": 0.5, "adam": 1e-2}, (1, 30, 300), ("", "inside", "middle", "out"))
_LANGUAGE_MODEL = CorrelatedTask(
    {"sgd": 0.5, "adam": 1e-2}, (10, 100), ("", "tokens", "block.self_attn", "block.linear")
)
_TRANSLATION = CorrelatedTask(
    {"sgd": 1.0, "adam": 2e-4},
    (5, 20, 50),
    ("", "shared", "encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.2.DenseReluDense"),
    40,
)


@dataclass(frozen=True)
class TheoryExperiment:
    """What is run: everything that determines the measurements.

    Attributes:
        scale: name of the size.
        task: settings of the translation task.
        source: where its sentence pairs come from.
        draws: how many losses of each family are drawn for the bound.
        families: names in `FAMILIES`.
        fractions: which parts of the coordinates are clipped.
        correlated: the tasks whose coordinates are looked at: ``"translation"``, and names in `SMALL`.
        resamples: of the confidence intervals.
        seeds: of the draws, the models' weights, the order of their batches, the samples of coordinates and the
            resamples.
    """

    scale: str
    task: TranslationConfig
    source: str = "auto"
    draws: int = 1000
    families: tuple[str, ...] = tuple(FAMILIES)
    fractions: tuple[float, ...] = (0.1, 0.5, 1.0)
    correlated: Mapping[str, CorrelatedTask] = field(
        default_factory=lambda: {
            "classifier": _CLASSIFIER,
            "language model": _LANGUAGE_MODEL,
            TRANSLATION: _TRANSLATION,
        }
    )
    resamples: int = 1000
    seeds: tuple[int, ...] = (0,)

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""
        return {"experiment": "theory", **asdict(self)}


def theory_experiment(scale: str = "cpu", *, source: str = "auto", seeds: tuple[int, ...] = (0,)) -> TheoryExperiment:
    """The experiment at one of its sizes.

    Args:
        scale: ``"smoke"`` (seconds; to see that it works), ``"cpu"`` (minutes on one core), ``"gpu"`` or ``"paper"``
            (the T5 of that size; the small models are the same).
        source: where the sentence pairs come from, see `stepscope.paper.tasks.sources.sentences.load_pairs`.
        seeds: see `TheoryExperiment`.

    Raises:
        UsageError: unknown scale, or seeds that can't be used.

    Example:
        >>> theory_experiment("smoke").draws
        40
    """
    check_settings(scale, SCALES, seeds)
    if scale == "smoke":
        correlated = {
            "classifier": replace(_CLASSIFIER, steps=(1, 10), coordinates=40),
            TRANSLATION: replace(_TRANSLATION, steps=(2, 6), coordinates=8),
        }
        task = replace(SCALES[scale], eval_size=8)
        return TheoryExperiment(scale, task, source, 40, correlated=correlated, resamples=200, seeds=seeds)
    # A row of the Hessian costs two backwards through the evaluation batch, and there are 160 at each step.
    task = replace(SCALES[scale], batch_size=32, eval_size=16, micro_batch_size=8)
    found = TheoryExperiment(scale, task, source, seeds=seeds)
    if not task.checkpoint:
        return found
    rates = replace(_TRANSLATION, training_lr={"sgd": 1e-3, "adam": 2e-4})
    return replace(found, correlated={**found.correlated, TRANSLATION: rates})


class _Tasks:
    """Makes the tasks, each for one training; one that was only looked at before is not made again."""

    def __init__(self, experiment: TheoryExperiment, source: str) -> None:
        self._experiment = experiment
        self._source = source
        self._untouched: dict[tuple[str, int], Task] = {}

    def seen(self, name: str, seed: int) -> Task:
        """A task to look at."""
        self._untouched[name, seed] = task = self.fresh(name, seed)
        return task

    def fresh(self, name: str, seed: int) -> Task:
        """A task to train."""
        task = self._untouched.pop((name, seed), None)
        if task is not None or name != TRANSLATION:
            return task or small_task(name, seed=seed)
        return at_home(translation(self._experiment.task, seed=seed, source=self._source), self._experiment.scale)


def run_theory(
    experiment: TheoryExperiment,
    out: str | os.PathLike[str],
    progress: Progress = lambda part, what: None,  # noqa: ARG005
) -> int:
    """Runs the experiment into a run directory, or continues one.

    A record is one seed's and group's: of a family of losses and a fraction clipped, or of a task's part along a
    trajectory at a step. Training is repeated from the seed up to the last measurement that is missing.

    Args:
        experiment: what to run.
        out: the run directory; created if missing.
        progress: told how far it is.

    Returns:
        How many records were made; 0 if the run was complete already.

    Raises:
        UsageError: the directory can't be used (see `RunDirectory`), there are no data or they have changed since, the
            settings don't fit, or a training loss isn't finite any more.
    """
    _check(experiment)
    configuration = experiment.configuration()
    begun = RunDirectory.check(out, configuration)
    wanted = _wanted(experiment)
    if begun is not None and not wanted - {_key(record) for record in read_run(out)[1]}:
        return 0
    progress(0.0, "preparing the data")
    tasks = _Tasks(experiment, source_of(begun, experiment.source))
    context = _context(experiment, tasks)
    check_data(begun, context, out)
    trainings = [
        _Training(seed, task, name)
        for seed in experiment.seeds
        for task, settings in experiment.correlated.items()
        for name in settings.training_lr
    ]
    with RunDirectory.open(out, configuration, context=context) as run:
        before = len(run.records())
        missing = wanted - {_key(record) for record in run.records()}
        parts = len(experiment.seeds) + len(trainings)
        for number, seed in enumerate(experiment.seeds):
            _bounds(experiment, run, missing, seed, part_of(progress, number, parts))
        for number, training in enumerate(trainings, start=len(experiment.seeds)):
            told = part_of(progress, number, parts)
            _correlations(experiment, run, missing, training, tasks, told)
        return len(run.records()) - before


def _bounds(experiment: TheoryExperiment, run: RunDirectory, missing: set[_Key], seed: int, progress: Progress) -> None:
    """Tries the bound on the families and fractions that are missing."""
    pairs = [(family, fraction) for family in experiment.families for fraction in experiment.fractions]
    for number, (family, fraction) in enumerate(pairs):
        group = _bound_group(family, fraction)
        progress(number / len(pairs), f"the bound, {group}")
        if (None, seed, None, group) in missing:
            found = bound_record(family, fraction, experiment.draws, seed)
            run.append([{"seed": seed, "group": group, "family": family, **found}])
    progress(1.0, "the bound")


def _correlations(
    experiment: TheoryExperiment,
    run: RunDirectory,
    missing: set[_Key],
    training: _Training,
    tasks: _Tasks,
    progress: Progress,
) -> None:
    """Trains one task with one optimizer, and looks at the coordinates at the steps that are missing."""
    seed, task_name, trajectory = training
    settings = experiment.correlated[task_name]
    scopes = {
        step: [s for s in settings.scopes if (trajectory, seed, step, _scope_group(task_name, s)) in missing]
        for step in settings.steps
    }
    last = max((step for step, some in scopes.items() if some), default=0)
    if not last:
        return
    task = tasks.fresh(task_name, seed)
    lr = settings.training_lr[trajectory]
    optimizer = TRAINING[trajectory](list(task.model.parameters()), lr)
    objective = Objective(task.model, None, task.eval_batches)
    for scope in settings.scopes:
        scope_size(objective.parameters, scope)  # refuses one that there isn't, before training
    batches = task.training_batches()
    for step in range(1, last + 1):
        where = f"{task_name}, {trajectory} trajectory, step {step}"
        progress((step - 1) / last, where)
        if scopes.get(step):
            found = _measured(objective, scopes[step], settings.coordinates, experiment.resamples, seed)
            ours = {"trajectory": trajectory, "seed": seed, "step": step, "task": task_name}
            run.append([{**ours, "group": _scope_group(task_name, each["scope"]), **each} for each in found])
        if step < last:
            backward(task.model, next(batches), f"{where} (lr {lr:g})")
            optimizer.step()
    progress(1.0, f"{task_name}, {trajectory} trajectory")


def _measured(
    objective: Objective, scopes: list[str], count: int | None, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """The records of parts of a model at the present parameters; a coordinate of several parts is measured once."""
    begun = time.perf_counter()
    chosen = {scope: scope_coordinates(objective.parameters, scope, count, seed) for scope in scopes}
    place = {each: i for i, each in enumerate(dict.fromkeys(each for some in chosen.values() for each in some))}
    values = coordinate_values(objective, list(place))
    loss = objective.loss()
    seconds = (time.perf_counter() - begun) / len(scopes)
    found = []
    for scope, some in chosen.items():
        mine = values.at(torch.tensor([place[each] for each in some]))
        record = correlation_record(mine, resamples=resamples, seed=seed)
        of = scope_size(objective.parameters, scope)
        found.append({"scope": scope, "loss": loss, "of": of, **record, "seconds": seconds})
    return found


def _bound_group(family: str, fraction: float) -> str:
    return f"{family}, clip {100 * fraction:g}%"


def _scope_group(task: str, scope: str) -> str:
    return f"{task}, {scope or 'all'}"


def _key(record: Mapping[str, Any]) -> Any:
    return record.get("trajectory"), record.get("seed"), record.get("step"), record.get("group")


def _wanted(experiment: TheoryExperiment) -> set[_Key]:
    bounds: set[_Key] = {
        (None, seed, None, _bound_group(family, fraction))
        for seed in experiment.seeds
        for family in experiment.families
        for fraction in experiment.fractions
    }
    return bounds | {
        (trajectory, seed, step, _scope_group(task, scope))
        for seed in experiment.seeds
        for task, settings in experiment.correlated.items()
        for trajectory in settings.training_lr
        for step in settings.steps
        for scope in settings.scopes
    }


def _check(experiment: TheoryExperiment) -> None:
    known = (TRANSLATION, *SMALL)
    if unknown := [name for name in experiment.correlated if name not in known]:
        raise UsageError(f"no task {unknown[0]!r}: choose {', '.join(known)}")
    if unknown := [family for family in experiment.families if family not in FAMILIES]:
        raise UsageError(f"no family {unknown[0]!r}: choose {', '.join(FAMILIES)}")
    for settings in experiment.correlated.values():
        if unknown := [name for name in settings.training_lr if name not in TRAINING]:
            raise UsageError(f"no training optimizer {unknown[0]!r}: choose {' or '.join(TRAINING)}")
        if min(settings.steps, default=1) < 1:
            raise UsageError(f"steps are {settings.steps}: they are counted from 1")


def _context(experiment: TheoryExperiment, tasks: _Tasks) -> dict[str, Any]:
    """What a reader of the records has to know beside the configuration."""
    small = {name: asdict(small_task(name).source) for name in experiment.correlated if name in SMALL}
    if TRANSLATION not in experiment.correlated:
        return {"small": small}
    task = tasks.seen(TRANSLATION, experiment.seeds[0])
    return {
        "source": asdict(task.source),
        "model": model_of(task, "T5"),
        "evaluation": {"examples": sum(len(batch["labels"]) for batch in task.eval_batches)},
        "small": small,
    }
