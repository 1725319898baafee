"""Experiment C: how much smoother a classifier is without its few largest coordinates (Pan and Li, §4 and Table 8).

A BERT learns to tell good film reviews from bad ones. At chosen steps, on several evaluation batches, the spectral norm
of the Gauss-Newton matrix is measured before and after the coordinates of large columns are removed, and after as many
are removed at random.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from stepscope.errors import UsageError
from stepscope.measuring import check_removal, chosen_names, gauss_newton, removals
from stepscope.objective import Objective
from stepscope.paper.experiments.compared import TRAINING
from stepscope.paper.experiments.running import (
    GPU_SCALES,
    Progress,
    at_home,
    backward,
    check_settings,
    model_of,
    run_trajectories,
)
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.sentiment import SCALES, SentimentConfig, sentiment
from stepscope.runs import Record, RunDirectory

# As BERT has them, and DistilBERT.
_ATTENTION = (
    *("query.weight", "key.weight", "value.weight", "dense.weight"),
    *("q_lin.weight", "k_lin.weight", "v_lin.weight", "out_lin.weight"),
)
_FEED_FORWARD = ("dense.weight", "lin1.weight", "lin2.weight")

GROUPS: dict[str, Callable[[str], bool]] = {
    # The projections to queries, keys and values, and the one behind them: the published code's choice.
    "attention": lambda name: ".attention." in name and name.endswith(_ATTENTION),
    "feed-forward": lambda name: ".layer." in name and ".attention." not in name and name.endswith(_FEED_FORWARD),
    "all": lambda name: True,  # noqa: ARG005
}
"""Which parameters of a BERT belong to a group of coordinates, by their names."""
_OF_LAYERS = ("attention", "feed-forward")
_PRETRAINED_LR = {"sgd": 0.03, "adam": 5e-5}


@dataclass(frozen=True)
class RobustnessExperiment:
    """What is run: everything that determines the measurements.

    Attributes:
        scale: name of the size.
        task: settings of the sentiment task. Its evaluation batch is dealt into `batches` of equal size.
        source: where its reviews come from.
        training_lr: ``{training optimizer: learning rate}``, one trajectory each.
        steps: training steps that are measured, counted from 1: the parameters before the step's update.
        batches: how many evaluation batches.
        groups: names in `GROUPS`; each has its own mean column norm.
        cuts: ``k``; removed are coordinates of at least ``k`` times the mean column norm. The paper's text says 4, its
            published code 2.
        draws: how often as many coordinates are removed at random.
        seeds: one run of each trajectory a seed; it draws the model's weights (a pretrained one's head), the order of
            the batches, and the coordinates that are removed at random.
    """

    scale: str
    task: SentimentConfig
    source: str = "auto"
    training_lr: Mapping[str, float] = field(default_factory=lambda: {"sgd": 0.3, "adam": 1e-3})
    steps: tuple[int, ...] = (1, 30, 150, 400)
    batches: int = 3
    groups: tuple[str, ...] = tuple(GROUPS)
    cuts: tuple[float, ...] = (4.0, 2.5, 2.0)
    draws: int = 3
    seeds: tuple[int, ...] = (0,)

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""
        return {"experiment": "robustness", **asdict(self)}


def robustness_experiment(
    scale: str = "cpu", *, source: str = "auto", seeds: tuple[int, ...] = (0,), pretrained: bool = False
) -> RobustnessExperiment:
    """The experiment at one of its sizes.

    Args:
        scale: ``"smoke"`` (seconds; to see that it works), ``"cpu"`` (minutes on two cores), ``"gpu"`` or ``"paper"``
            (the paper's own model and data, of the Hub).
        source: where the reviews come from, see `stepscope.paper.tasks.sources.reviews.load_reviews`.
        seeds: see `RobustnessExperiment`.
        pretrained: whether to begin with the pretrained encoder (22.7 million parameters) in the place of a small one
            with random weights. Fewer steps, batches and draws, and not the group of all parameters, whose rows would
            take gigabytes.

    Raises:
        UsageError: unknown scale, or seeds that can't be used.

    Example:
        >>> robustness_experiment("smoke").steps
        (1, 4)
    """
    check_settings(scale, SCALES, seeds)
    # Micro-batches of one example: each row of the matrix is then a backward pass through that example alone.
    task = replace(SCALES[scale], eval_size=96, micro_batch_size=1)
    if scale == "smoke":
        task = replace(task, eval_size=12)
        found = RobustnessExperiment(scale, task, source, steps=(1, 4), seeds=seeds)
    else:
        found = RobustnessExperiment(scale, task, source, seeds=seeds)
        if scale in GPU_SCALES:
            # Rows of all parameters would take gigabytes; pretrained weights want smaller steps.
            found = replace(
                found, groups=_OF_LAYERS, training_lr=_PRETRAINED_LR if task.checkpoint else found.training_lr
            )
    if not pretrained:
        return found
    if scale in GPU_SCALES:
        raise UsageError(
            f"--pretrained is for the scales smoke and cpu: at the scale {scale} the task says how it starts"
        )
    found = replace(found, groups=_OF_LAYERS, training_lr=_PRETRAINED_LR, draws=1)
    if scale == "smoke":
        return replace(found, task=replace(found.task, pretrained="minilm", batch_size=2, eval_size=4), batches=2)
    task = replace(task, pretrained="minilm", batch_size=8, eval_size=32, max_tokens=64)
    return replace(found, task=task, steps=(1, 10, 40), batches=2)


def run_robustness(
    experiment: RobustnessExperiment,
    out: str | os.PathLike[str],
    progress: Progress = lambda part, what: None,  # noqa: ARG005
) -> int:
    """Runs the experiment into a run directory, or continues one.

    A record is one seed's, trajectory's, step's, evaluation batch's, group's and cut's. Training is repeated from the
    seed up to the last measurement that is missing: measuring leaves no trace, so the trajectory is the same.

    Args:
        experiment: what to run.
        out: the run directory; created if missing.
        progress: told how far it is.

    Returns:
        How many measurements were made; 0 if the run was complete already.

    Raises:
        UsageError: the directory can't be used (see `RunDirectory`), there are no data or they have changed since, the
            settings don't fit the task, or the training loss isn't finite any more.
    """
    _check(experiment)
    return run_trajectories(
        experiment,
        out,
        progress,
        make=lambda seed, source: at_home(sentiment(experiment.task, seed=seed, source=source), experiment.scale),
        describe=partial(_context, experiment),
        missing=partial(_missing, experiment),
        run_one=partial(_run_one, experiment),
    )


def _run_one(
    experiment: RobustnessExperiment, run: RunDirectory, task: Task, seed: int, name: str, progress: Progress
) -> None:
    """Trains with one optimizer, and measures what is missing along its trajectory."""
    missing = _missing(experiment, run.records(), seed, name)
    lr, last = experiment.training_lr[name], max(step for step, _ in missing)
    optimizer = TRAINING[name](list(task.model.parameters()), lr)
    # Dealt out in turn: the evaluation texts are in the order of their lengths, and each batch is to have all lengths.
    objectives = [
        Objective(task.model, None, task.eval_batches[n :: experiment.batches]) for n in range(experiment.batches)
    ]
    batches = task.training_batches()
    for step in range(1, last + 1):
        for number, objective in enumerate(objectives):
            if (step, number) in missing:
                progress((step - 1) / last, f"{name} trajectory, step {step}: batch {number + 1}")
                where = {"trajectory": name, "seed": seed, "step": step, "batch": number}
                run.append([where | r for r in _measured(experiment, objective, missing[step, number], seed)])
        if step < last:
            backward(task.model, next(batches), f"{name} trajectory, step {step} (lr {lr:g})")
            optimizer.step()
        progress(step / last, f"{name} trajectory, step {step} of {last}")


def _measured(
    experiment: RobustnessExperiment, objective: Objective, missing: Sequence[tuple[str, float]], seed: int
) -> list[Record]:
    """The records of one evaluation batch at the present parameters: of each group and cut that is missing."""
    begun = time.perf_counter()
    wanted = dict.fromkeys(group for group, _ in missing)
    names = {group: chosen_names(objective.parameters, GROUPS[group]) for group in wanted}
    together = {name for group in names.values() for name in group}
    loss = objective.loss()
    matrix = gauss_newton(objective, together.__contains__)
    records: list[Record] = []
    for group in wanted:
        cuts = [cut for each, cut in missing if each == group]
        found = removals(matrix.of(names[group]), cuts=cuts, draws=experiment.draws, seed=seed)
        records += [{"group": group, **each.record(), "examples": matrix.examples, "loss": loss} for each in found]
    seconds = (time.perf_counter() - begun) / len(records)
    return [{**record, "seconds": seconds} for record in records]


def _missing(
    experiment: RobustnessExperiment, records: Sequence[Record], seed: int, name: str
) -> dict[tuple[int, int], list[tuple[str, float]]]:
    """The groups and cuts that have not been measured yet, by step and evaluation batch."""
    done = {
        (r.get("step"), r.get("batch"), r.get("group"), r.get("cut"))
        for r in records
        if (r.get("trajectory"), r.get("seed")) == (name, seed)
    }
    wanted = [(group, cut) for group in experiment.groups for cut in experiment.cuts]
    missing = {
        (step, batch): [each for each in wanted if (step, batch, *each) not in done]
        for step in experiment.steps
        for batch in range(experiment.batches)
    }
    return {place: each for place, each in missing.items() if each}


def _check(experiment: RobustnessExperiment) -> None:
    if unknown := [group for group in experiment.groups if group not in GROUPS]:
        raise UsageError(f"no group {unknown[0]!r}: choose {', '.join(GROUPS)}")
    check_removal(experiment.cuts, experiment.draws)
    count, size = experiment.task.eval_size, experiment.task.micro_batch_size
    if size != 1:
        raise UsageError(f"evaluation texts are in parts of {size}: parts of 1 are needed (micro_batch_size)")
    if not 1 <= experiment.batches <= count:
        raise UsageError(f"{count} evaluation texts can't be dealt into {experiment.batches} batches")


def _context(experiment: RobustnessExperiment, task: Task) -> dict[str, Any]:
    """What a reader of the records has to know beside the configuration."""
    names = [name for name, p in task.model.named_parameters() if p.requires_grad]
    sizes = {name: p.numel() for name, p in task.model.named_parameters()}
    groups = {g: sum(sizes[name] for name in names if GROUPS[g](name)) for g in experiment.groups}
    return {
        "source": asdict(task.source),
        "model": model_of(task, "BERT"),
        "groups": groups,
        "evaluation": {"examples": len(task.eval_batches), "batches": experiment.batches},
    }
