"""Experiment A: many optimizers' directions measured along one training run (Pan and Li, §3 and appendix B.3).

One optimizer trains. At chosen steps, before its update, each optimizer of `DIRECTIONS` says which update it
would make of the same gradients, and that direction is measured on a fixed evaluation batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from stepscope.directions import PseudoUpdates
from stepscope.errors import UsageError
from stepscope.measuring import measure
from stepscope.objective import Objective
from stepscope.paper.experiments.compared import DEMONSTRATED, DIRECTIONS, TRAINING
from stepscope.paper.experiments.running import (
    Progress,
    at_home,
    backward,
    check_settings,
    model_of,
    part_size,
    run_trajectories,
    unmasked,
)
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.catalogue import TASKS
from stepscope.runs import Record, RunDirectory

# As many updates as the paper's have seen in the middle of epochs 2, 5, 10 and 20, with ten batches an epoch.
_PAPERS = (15, 45, 95, 195)
_STEPS = {"smoke": (2, 6), "cpu": _PAPERS, "gpu": _PAPERS, "paper": _PAPERS}
_DEMO_STEPS = {"smoke": (2, 6), "cpu": (10, 60)}

_RATES: dict[str, dict[str, float]] = {
    "translation": {"sgd": 1.0, "adam": 2e-4},
    "code": {"sgd": 1.0, "adam": 2e-4},
    "sentiment": {"sgd": 0.3, "adam": 1e-3},
    "images": {"sgd": 0.1, "adam": 2e-4},
}
"""Learning rates of the training optimizers, by task, for random weights. Adam's is the paper's but for the small BERT,
which would stay at chance."""

_PAPERS_RATES = {
    "translation": {"sgd": 1e-3, "adam": 2e-4},
    "code": {"sgd": 3e-5, "adam": 2e-4},
    "sentiment": {"sgd": 0.03, "adam": 5e-5},
    "images": {"sgd": 0.1, "adam": 2e-4},
}
"""The same for pretrained weights: SGD's on the first two tasks are those of the paper's Table 3."""


@dataclass(frozen=True)
class TrajectoryExperiment:
    """What is run: everything that determines the measurements.

    Attributes:
        scale: name of the size.
        kind: the task, a name in `stepscope.paper.tasks.catalogue.TASKS`.
        task: its settings.
        source: where its data come from.
        training_lr: ``{training optimizer: learning rate}``, one trajectory each.
        steps: training steps that are measured, counted from 1: the parameters before the step's update, and the
            directions that the optimizers would give it.
        seeds: one run of each trajectory a seed; it draws the model's weights and the order of the batches.
        directions: names in `DIRECTIONS`.
        masked: whether the models get an attention mask. The published code gives none.
    """

    scale: str
    kind: str
    task: Any
    source: str = "auto"
    training_lr: Mapping[str, float] = field(default_factory=lambda: {"sgd": 1.0, "adam": 2e-4})
    steps: tuple[int, ...] = (10, 60)
    seeds: tuple[int, ...] = (0,)
    directions: tuple[str, ...] = tuple(DIRECTIONS)
    masked: bool = True

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""
        return {"experiment": "trajectory", **asdict(self)}


def trajectory_experiment(
    scale: str = "cpu",
    kind: str = "translation",
    *,
    source: str = "auto",
    seeds: tuple[int, ...] = (0,),
    pretrained: bool = False,
    masked: bool = True,
) -> TrajectoryExperiment:
    """The experiment on one task, at one of its sizes.

    Args:
        scale: ``"smoke"`` (seconds; to see that it works), ``"cpu"`` (minutes on two cores), ``"gpu"`` or ``"paper"``
            (the paper's own models and data, of the Hub).
        kind: a name in `stepscope.paper.tasks.catalogue.TASKS`.
        source: where its data come from.
        seeds: see `TrajectoryExperiment`.
        pretrained: whether the images' model is pretrained, as the paper's was.
        masked: see `TrajectoryExperiment`.

    Raises:
        UsageError: an unknown scale or task, seeds that can't be used, or a task that has no pretrained weights.

    Example:
        >>> trajectory_experiment("cpu", "code").steps
        (15, 45, 95, 195)
    """
    check_settings(scale, _STEPS, seeds)
    if kind not in TASKS:
        raise UsageError(f"no task {kind!r}: choose {', '.join(TASKS)}")
    task = TASKS[kind].scales[scale]
    if pretrained and kind != "images":
        raise UsageError(f"pretrained weights are for images, not for {kind}")
    if kind == "images":
        task = replace(task, initialisation="pretrained" if pretrained else "random")
    rates = _PAPERS_RATES if scale == "paper" else _RATES
    return TrajectoryExperiment(scale, kind, task, source, rates[kind], steps=_STEPS[scale], seeds=seeds, masked=masked)


def demonstration(scale: str = "cpu", *, source: str = "auto", seeds: tuple[int, ...] = (0,)) -> TrajectoryExperiment:
    """The demo: the experiment on the translation task, with fewer steps and directions.

    Args:
        scale: see `trajectory_experiment`.
        source: where the sentence pairs come from, see `stepscope.paper.tasks.sources.sentences.load_pairs`.
        seeds: see `TrajectoryExperiment`.

    Raises:
        UsageError: unknown scale, or seeds that can't be used.

    Example:
        >>> demonstration("smoke").steps
        (2, 6)
    """
    check_settings(scale, _DEMO_STEPS, seeds)
    whole = trajectory_experiment(scale, source=source, seeds=seeds)
    return replace(whole, steps=_DEMO_STEPS[scale], directions=DEMONSTRATED)


def run_trajectory(
    experiment: TrajectoryExperiment,
    out: str | os.PathLike[str],
    progress: Progress = lambda part, what: None,  # noqa: ARG005
) -> int:
    """Runs the experiment into a run directory, or continues one.

    Training is repeated from the seed up to the first measurement that is missing: measuring leaves no trace, so
    the trajectory is the same.

    Args:
        experiment: what to run.
        out: the run directory; created if missing.
        progress: told how far it is.

    Returns:
        How many measurements were made; 0 if the run was complete already.

    Raises:
        UsageError: the directory can't be used (see `RunDirectory`), there are no data or they have changed since, or
            the training loss isn't finite any more.
    """
    return run_trajectories(
        experiment,
        out,
        progress,
        make=partial(make_task, experiment),
        describe=partial(_context, experiment),
        missing=partial(_missing, experiment),
        run_one=partial(_run_one, experiment),
    )


def make_task(experiment: TrajectoryExperiment, seed: int, source: str) -> Task:
    """The task that is trained.

    Args:
        experiment: which one.
        seed: of its weights and of the order of its batches.
        source: where its data come from.

    Raises:
        UsageError: there are no data.
    """
    task = TASKS[experiment.kind].make(experiment.task, seed=seed, source=source)
    return at_home(task if experiment.masked else unmasked(task), experiment.scale)


def _run_one(
    experiment: TrajectoryExperiment, run: RunDirectory, task: Task, seed: int, name: str, progress: Progress
) -> None:
    """Trains with one optimizer, and measures what is missing along its trajectory."""
    missing = _missing(experiment, run.records(), seed, name)
    model, lr = task.model, experiment.training_lr[name]
    optimizer = TRAINING[name](list(model.parameters()), lr)
    objective = Objective(model, None, task.eval_batches)
    followers = PseudoUpdates(objective.parameters, {label: DIRECTIONS[label] for label in experiment.directions})
    last = max(missing)
    batches, part = task.training_batches(), part_size(experiment.task, experiment.scale)
    for step in range(1, last + 1):
        backward(model, next(batches), f"{name} trajectory, step {step} (lr {lr:g})", part)
        gradients = {key: p.grad for key, p in objective.parameters.items() if p.grad is not None}
        directions = followers.step(gradients, capture=step in missing)
        if step in missing:
            wanted = {label: directions[label] for label in missing[step]}
            told = partial(_tell, progress, (step - 1) / last, f"{name} trajectory, step {step}")
            found = measure(objective, wanted, landscape=True, breakdown=True, progress=told)
            where = {"trajectory": name, "seed": seed, "step": step}
            run.append([{**where, "direction": label, **m.record()} for label, m in found.items()])
        optimizer.step()
        progress(step / last, f"{name} trajectory, step {step} of {last}")


def _tell(progress: Progress, part: float, where: str, label: str) -> None:
    progress(part, f"{where}: {label}")


def _missing(experiment: TrajectoryExperiment, records: Sequence[Record], seed: int, name: str) -> dict[int, list[str]]:
    """The directions that have not been measured yet, by step."""
    done = {
        (r.get("step"), r.get("direction")) for r in records if (r.get("trajectory"), r.get("seed")) == (name, seed)
    }
    missing = {step: [d for d in experiment.directions if (step, d) not in done] for step in experiment.steps}
    return {step: labels for step, labels in missing.items() if labels}


def _context(experiment: TrajectoryExperiment, task: Task) -> dict[str, Any]:
    """What a reader of the records has to know beside the configuration."""
    return {
        "source": asdict(task.source),
        "model": model_of(task, TASKS[experiment.kind].title),
        "evaluation": {"examples": sum(len(batch["labels"]) for batch in task.eval_batches)},
        "task": task.name,
    }
