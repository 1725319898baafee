"""Experiment C: how much smoother a classifier is without its few largest coordinates (Pan and Li, §4 and Table 8).

A BERT learns to tell good film reviews from bad ones. At chosen steps, on several evaluation batches, the spectral norm
of the Gauss-Newton matrix is measured before and after the coordinates of large columns are removed, and after as many
are removed at random.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from typing_extensions import override

from stepscope.errors import UsageError
from stepscope.measuring import check_removal, chosen_names, gauss_newton, removals
from stepscope.objective import Objective
from stepscope.paper.experiments.along_trajectories import AlongTrajectories, Point
from stepscope.paper.experiments.command_lines import ROBUSTNESS
from stepscope.paper.experiments.experiment import Asked, Progress, Unit, described
from stepscope.paper.experiments.training import GPU_SCALES, at_home, check_settings, count_of
from stepscope.paper.records import SmoothnessRecord
from stepscope.paper.report.evidence import robustness_tables
from stepscope.paper.report.evidence_charts import smoothness_over_steps
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.sentiment import SCALES, SentimentConfig, sentiment
from stepscope.report import Figure, distinct, file_name

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
class RobustnessExperiment(AlongTrajectories[SmoothnessRecord]):
    """What is run: everything that determines the measurements.

    A record is one seed's, trajectory's, step's, evaluation batch's, group's and cut's.

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

    entry = ROBUSTNESS
    record = SmoothnessRecord

    task: SentimentConfig
    source: str = "auto"
    training_lr: Mapping[str, float] = field(default_factory=lambda: {"sgd": 0.3, "adam": 1e-3})
    steps: tuple[int, ...] = (1, 30, 150, 400)
    batches: int = 3
    groups: tuple[str, ...] = tuple(GROUPS)
    cuts: tuple[float, ...] = (4.0, 2.5, 2.0)
    draws: int = 3
    seeds: tuple[int, ...] = (0,)

    @override
    def check(self) -> None:
        if unknown := [group for group in self.groups if group not in GROUPS]:
            raise UsageError(f"no group {unknown[0]!r}: choose {', '.join(GROUPS)}")
        check_removal(self.cuts, self.draws)
        count, size = self.task.eval_size, self.task.micro_batch_size
        if size != 1:
            raise UsageError(f"evaluation texts are in parts of {size}: parts of 1 are needed (micro_batch_size)")
        if not 1 <= self.batches <= count:
            raise UsageError(f"{count} evaluation texts can't be dealt into {self.batches} batches")

    @override
    def data_sources(self) -> Mapping[str, str]:
        return {"sentiment": self.source}

    @override
    def make_task(self, name: str, source: str) -> Task:
        return at_home(sentiment(self.task, seed=self.seeds[0], source=source), self.scale)

    @override
    def context(self, tasks: Mapping[str, Task]) -> dict[str, Any]:
        task = tasks["sentiment"]
        sizes = {name: p.numel() for name, p in task.model.named_parameters() if p.requires_grad}
        return {
            **described(task, "BERT"),
            "groups": {g: sum(size for name, size in sizes.items() if GROUPS[g](name)) for g in self.groups},
            "evaluation": {"examples": len(task.eval_batches), "batches": self.batches},
        }

    @override
    def units(self) -> list[Unit]:
        return [unit for seed in self.seeds for unit in self.trainings("sentiment", seed)]

    @override
    def wanted(self, unit: Unit) -> list[SmoothnessRecord]:
        trajectory, seed = unit.optimizer, unit.seed or 0
        places = itertools.product(self.steps, range(self.batches), self.groups, self.cuts)
        return [
            SmoothnessRecord(trajectory=trajectory, seed=seed, step=step, batch=batch, group=group, cut=cut)
            for step, batch, group, cut in places
        ]

    @override
    def learning_rates(self, task: str) -> Mapping[str, float]:
        return self.training_lr

    @override
    def evaluated(self, unit: Unit, task: Task) -> list[Objective]:
        """The evaluation texts, which are in the order of their lengths, dealt in turn: each batch has all lengths."""
        return [Objective(task.model, None, task.eval_batches[n :: self.batches]) for n in range(self.batches)]

    @override
    def measure_at(
        self, point: Point, missing: Sequence[SmoothnessRecord], progress: Progress
    ) -> Iterator[list[SmoothnessRecord]]:
        for batch, objective in enumerate(point.objectives):
            if of_batch := [record for record in missing if record.batch == batch]:
                progress(batch / self.batches, f"batch {batch + 1}")
                yield self._measured(objective, of_batch)

    def _measured(self, objective: Objective, missing: Sequence[SmoothnessRecord]) -> list[SmoothnessRecord]:
        """The records of one evaluation batch at the present parameters."""
        started = time.perf_counter()
        cuts: dict[str, list[float]] = {}
        for record in missing:
            cuts.setdefault(record.group, []).append(record.cut)
        names = {group: chosen_names(objective.parameters, GROUPS[group]) for group in cuts}
        together = {name for group in names.values() for name in group}
        loss = objective.loss()
        matrix = gauss_newton(objective, together.__contains__)
        seed = missing[0].seed
        smoothed = [
            removal.record()
            for group in cuts
            for removal in removals(matrix.of(names[group]), cuts=cuts[group], draws=self.draws, seed=seed)
        ]
        seconds = (time.perf_counter() - started) / len(missing)
        return [
            replace(record, **removal, examples=matrix.examples, loss=loss, seconds=seconds)
            for record, removal in zip(missing, smoothed, strict=True)
        ]

    tables = staticmethod(robustness_tables)

    @classmethod
    @override
    def figures(cls, records: Sequence[SmoothnessRecord]) -> list[Figure]:
        return distinct(
            Figure(
                file_name(name, "robust smoothness"),
                f"robust smoothness, {name} trajectory",
                partial(smoothness_over_steps, records, name),
            )
            for name in dict.fromkeys(record.trajectory for record in records)
        )

    @classmethod
    @override
    def from_options(cls, options: argparse.Namespace) -> RobustnessExperiment:
        seeds, pretrained = tuple(options.seeds), options.pretrained
        return robustness_experiment(options.scale, source=options.source, seeds=seeds, pretrained=pretrained)

    @classmethod
    @override
    def of_reproduction(cls, asked: Asked) -> list[RobustnessExperiment]:
        return [robustness_experiment(asked.scale, source=asked.sources["sentiment"], seeds=asked.seeds)]

    @property
    @override
    def extent(self) -> str:
        places = f"{len(self.training_lr)} trajectories × {len(self.steps)} steps × {self.batches} batches"
        return f"{places} × {len(self.groups)} groups × {len(self.cuts)} cuts × {count_of(self.seeds)}"


def robustness_experiment(
    scale: str = "cpu", *, source: str = "auto", seeds: tuple[int, ...] = (0,), pretrained: bool = False
) -> RobustnessExperiment:
    """The experiment at one of its sizes.

    Args:
        scale: ``"smoke"`` (seconds; to see that it works), ``"cpu"`` (minutes on two cores), ``"desk"``, ``"gpu"`` or
            ``"paper"`` (the paper's own model and data, of the Hub).
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
    task = replace(task, pretrained="minilm", start="pretrained")
    if scale == "smoke":
        return replace(found, task=replace(task, batch_size=2, eval_size=4), batches=2)
    task = replace(task, batch_size=8, eval_size=32, max_tokens=64)
    return replace(found, task=task, steps=(1, 10, 40), batches=2)
