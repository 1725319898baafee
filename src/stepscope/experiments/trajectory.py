"""Experiment A: many optimizers' directions measured along one training run (Pan and Li, §3 and appendix B.3).

One optimizer trains. At chosen steps, before its update, each optimizer of `DIRECTIONS` says which update it
would make of the same gradients, and that direction is measured on a fixed evaluation batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from stepscope.directions import PseudoUpdates
from stepscope.experiments.compared import DIRECTIONS, TRAINING
from stepscope.experiments.running import Progress, backward, check_settings, run_trajectories
from stepscope.measurement import measure
from stepscope.objective import Objective
from stepscope.records import Record, RunDirectory
from stepscope.tasks import Task
from stepscope.tasks.translation import SCALES, TranslationConfig, translation

STEPS = {"smoke": (2, 6), "cpu": (10, 60)}
"""The training steps that are measured, by scale."""


@dataclass(frozen=True)
class TrajectoryExperiment:
    """What is run: everything that determines the measurements.

    Attributes:
        scale: name of the size.
        task: settings of the translation task.
        source: where its sentence pairs come from.
        training_lr: ``{training optimizer: learning rate}``, one trajectory each.
        steps: training steps that are measured, counted from 1: the parameters before the step's update, and the
            directions that the optimizers would give it.
        seeds: one run of each trajectory a seed; it draws the model's weights and the order of the batches.
        directions: names in `DIRECTIONS`.
    """

    scale: str
    task: TranslationConfig
    source: str = "auto"
    training_lr: Mapping[str, float] = field(default_factory=lambda: {"sgd": 1.0, "adam": 2e-4})
    steps: tuple[int, ...] = (10, 60)
    seeds: tuple[int, ...] = (0,)
    directions: tuple[str, ...] = tuple(DIRECTIONS)

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""
        return {"experiment": "trajectory", **asdict(self)}


def trajectory_experiment(
    scale: str = "cpu", *, source: str = "auto", seeds: tuple[int, ...] = (0,)
) -> TrajectoryExperiment:
    """The experiment at one of its sizes.

    Args:
        scale: ``"smoke"`` (seconds; to see that it works) or ``"cpu"`` (minutes on two cores).
        source: where the sentence pairs come from, see `stepscope.tasks.sources.load_pairs`.
        seeds: see `TrajectoryExperiment`.

    Raises:
        UsageError: unknown scale, or seeds that can't be used.

    Example:
        >>> trajectory_experiment("smoke").steps
        (2, 6)
    """
    check_settings(scale, STEPS, seeds)
    return TrajectoryExperiment(scale, SCALES[scale], source=source, steps=STEPS[scale], seeds=seeds)


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
        make=lambda seed, source: translation(experiment.task, seed=seed, source=source),
        describe=_context,
        missing=partial(_missing, experiment),
        run_one=partial(_run_one, experiment),
    )


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
    batches = task.training_batches()
    for step in range(1, last + 1):
        backward(model, next(batches), f"{name} trajectory, step {step} (lr {lr:g})")
        gradients = {key: p.grad for key, p in objective.parameters.items() if p.grad is not None}
        directions = followers.step(gradients, capture=step in missing)
        if step in missing:
            wanted = {label: directions[label] for label in missing[step]}
            told = partial(_tell, progress, (step - 1) / last, f"{name} trajectory, step {step}")
            found = measure(objective, wanted, landscape=True, progress=told)
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


def _context(task: Task) -> dict[str, Any]:
    """What a reader of the records has to know beside the configuration."""
    count = sum(p.numel() for p in task.model.parameters() if p.requires_grad)
    return {
        "source": asdict(task.source),
        "model": {"title": f"T5 of {count:,} parameters", "initialisation": task.initialisation, "parameters": count},
        "evaluation": {"examples": sum(len(batch["labels"]) for batch in task.eval_batches)},
    }
