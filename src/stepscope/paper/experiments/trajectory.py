"""Experiment A: many optimizers' directions measured along one training run (Pan and Li, §3 and appendix B.3).

One optimizer trains. At chosen steps, before its update, each optimizer of `measured_directions` says which update it
would make of the same gradients, and that direction is measured on a fixed evaluation batch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from typing_extensions import override

from stepscope.errors import UsageError
from stepscope.measuring import measure
from stepscope.paper.experiments.along_trajectories import AlongTrajectories, Point
from stepscope.paper.experiments.as_released import as_released, check_released, concerning
from stepscope.paper.experiments.command_lines import NO_MASKS, TRAJECTORY
from stepscope.paper.experiments.compared_optimizers import (
    check_optimizers,
    demonstrated,
    measured_directions,
    papers_directions,
    users_own,
)
from stepscope.paper.experiments.experiment import Asked, Progress, Unit, described
from stepscope.paper.experiments.training import at_home, check_settings, count_of, part_size
from stepscope.paper.report.directions import direction_figures, direction_numbers, direction_tables
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.catalog import TASKS
from stepscope.paper.tasks.pretraining import STARTS, check_start
from stepscope.report import directions_of, print_directions, render_report, summary_sentence
from stepscope.runs import DirectionRecord

# As many updates as the paper's have seen in the middle of epochs 2, 5, 10 and 20, with ten batches an epoch.
_PAPERS = (15, 45, 95, 195)
_STEPS = {
    "smoke": (2, 6),
    "cpu": _PAPERS,
    "desk": tuple(2 * step for step in _PAPERS),
    "gpu": _PAPERS,
    "paper": _PAPERS,
}
_DEMO_STEPS = {"smoke": (2, 6), "cpu": (10, 40)}
_DEMO_PART = 2
"""The demo evaluates one in so many of the experiment's examples."""

_RATES: dict[str, dict[str, dict[str, float]]] = {
    "pretrained": {
        "translation": {"sgd": 1e-3, "adam": 2e-4},
        "code": {"sgd": 3e-5, "adam": 2e-4},
        "sentiment": {"sgd": 0.03, "adam": 5e-5},
        "images": {"sgd": 0.1, "adam": 2e-4},
    },
    "random": {
        "translation": {"sgd": 1.0, "adam": 2e-4},
        "code": {"sgd": 1.0, "adam": 2e-4},
        "sentiment": {"sgd": 0.3, "adam": 1e-3},
        "images": {"sgd": 0.1, "adam": 2e-4},
    },
}
"""Learning rates of the training optimizers, by start and task.

From pretrained weights they are the paper's on the first two tasks: Adam's as its script has it, and SGD's of its Table
3, which is an assumption, since what the trajectories had isn't recoverable. From random weights SGD learns something
with these, and Adam's is the paper's but for the small BERT, which would stay at chance.
"""


@dataclass(frozen=True)
class TrajectoryExperiment(AlongTrajectories[DirectionRecord]):
    """What is run: everything that determines the measurements.

    Attributes:
        scale: name of the size.
        kind: the task, a name in `stepscope.paper.tasks.catalog.TASKS`.
        task: its settings.
        source: where its data come from.
        training_lr: ``{training optimizer: learning rate}``, one trajectory each.
        steps: training steps that are measured, counted from 1: the parameters before the step's update, and the
            directions that the optimizers would give it.
        seeds: one run of each trajectory a seed; it draws the model's weights and the order of the batches.
        directions: whose, see `stepscope.paper.experiments.compared_optimizers.rule_of`.
        masked: whether the models get an attention mask. The published code gives none.
    """

    entry = TRAJECTORY
    record = DirectionRecord
    counted = "measurements"
    one_thread = False

    kind: str
    task: Any
    source: str = "auto"
    training_lr: Mapping[str, float] = field(default_factory=lambda: {"sgd": 1.0, "adam": 2e-4})
    steps: tuple[int, ...] = (10, 60)
    seeds: tuple[int, ...] = (0,)
    directions: tuple[str, ...] = field(default_factory=lambda: tuple(measured_directions()))
    masked: bool = True

    @property
    @override
    def run_name(self) -> str:
        return "-".join((self.entry.name, self.kind, self.task.start, *users_own(self.directions)))

    @override
    def check(self) -> None:
        check_optimizers(self.directions)

    @override
    def data_sources(self) -> Mapping[str, str]:
        return {self.kind: self.source}

    @property
    def differences(self) -> tuple[str, ...]:
        """In what it is as the published code has it."""
        return () if self.masked else (NO_MASKS,)

    @override
    def make_task(self, name: str, source: str) -> Task:
        task = TASKS[self.kind].make(self.task, seed=self.seeds[0], source=source)
        return at_home(as_released(task, self.kind, self.task, self.differences), self.scale)

    @override
    def context(self, tasks: Mapping[str, Task]) -> dict[str, Any]:
        task = tasks[self.kind]
        return {**described(task, TASKS[self.kind].title, self.seeds), "task": task.name}

    @override
    def units(self) -> list[Unit]:
        return [unit for seed in self.seeds for unit in self.trainings(self.kind, seed)]

    @override
    def wanted(self, unit: Unit) -> list[DirectionRecord]:
        return [
            DirectionRecord(trajectory=unit.optimizer, seed=unit.seed or 0, step=step, direction=label)
            for step in self.steps
            for label in self.directions
        ]

    @override
    def learning_rates(self, task: str) -> Mapping[str, float]:
        return self.training_lr

    @override
    def followed(self) -> tuple[str, ...]:
        return self.directions

    @override
    def in_memory(self, unit: Unit) -> int | None:
        return part_size(self.task, self.scale, self.differences)

    @override
    def measure_at(
        self, point: Point, missing: Sequence[DirectionRecord], progress: Progress
    ) -> Iterator[list[DirectionRecord]]:
        directions = {record.direction: point.directions[record.direction] for record in missing}
        measured = measure(
            point.objectives[0], directions, landscape=True, breakdown=True, progress=lambda name: progress(0.0, name)
        )
        yield [
            DirectionRecord.of(
                measured[record.direction].record(),
                trajectory=record.trajectory,
                seed=record.seed,
                step=record.step,
                direction=record.direction,
            )
            for record in missing
        ]

    tables = staticmethod(direction_tables)
    figures = staticmethod(direction_figures)
    numbers = staticmethod(direction_numbers)
    conclusion = staticmethod(summary_sentence)
    highlighted = staticmethod(directions_of)

    @classmethod
    @override
    def page(cls, head: Mapping[str, Any], records: Sequence[DirectionRecord]) -> str:
        return render_report(head, records)

    @classmethod
    @override
    def show(cls, head: Mapping[str, Any], records: Sequence[DirectionRecord]) -> None:
        source, model = (head["context"].get(key) or {} for key in ("source", "model"))
        print(f"Data: {source.get('title')} ({source.get('license')}), {source.get('examples')} examples")
        print(f"Model: {model.get('title')}, {model.get('initialisation')} start")
        print_directions(records)
        print(summary_sentence(records))

    @classmethod
    @override
    def from_options(cls, options: argparse.Namespace) -> TrajectoryExperiment:
        seeds = tuple(options.seeds)
        return trajectory_experiment(
            options.scale,
            options.task,
            source=options.source,
            seeds=seeds,
            start=options.start,
            released=options.released,
            optimizers=options.optimizers,
        )

    @classmethod
    @override
    def of_reproduction(cls, asked: Asked) -> list[TrajectoryExperiment]:
        runs = [
            trajectory_experiment(
                asked.scale,
                kind,
                source=asked.sources[kind],
                seeds=asked.seeds,
                start=start,
                released=asked.released,
            )
            for start in STARTS
            for kind in asked.tasks
            # From random weights batch norm's statistics come too late for the first points: it would decide nothing.
            if (kind, start) != ("images", "random")
        ]
        return [replace(run, directions=papers_directions()) for run in runs]

    @property
    @override
    def extent(self) -> str:
        places = f"{len(self.training_lr)} trajectories × {len(self.steps)} steps"
        return f"{places} × {len(self.directions)} directions × {count_of(self.seeds)}"


@dataclass(frozen=True)
class TrajectoryAsReleased(TrajectoryExperiment):
    """One with more of what the published code does than the lack of masks.

    Attributes:
        released: in what.
    """

    released: tuple[str, ...] = ()

    @property
    @override
    def differences(self) -> tuple[str, ...]:
        return (*super().differences, *self.released)

    @property
    @override
    def run_name(self) -> str:
        return "-".join((super().run_name, *self.released))


def trajectory_experiment(
    scale: str = "cpu",
    kind: str = "translation",
    *,
    source: str = "auto",
    seeds: tuple[int, ...] = (0,),
    start: str = "pretrained",
    released: Sequence[str] = (),
    optimizers: Sequence[str] = (),
) -> TrajectoryExperiment:
    """The experiment on one task, at one of its sizes.

    Args:
        scale: ``"smoke"`` (seconds; to see that it works), ``"cpu"`` (minutes on two cores), ``"desk"`` (an
            afternoon on them: models ten times as large, twice the steps), ``"gpu"`` or ``"paper"`` (the paper's own
            models and data, of the Hub).
        kind: a name in `stepscope.paper.tasks.catalog.TASKS`.
        source: where its data come from.
        seeds: see `TrajectoryExperiment`.
        start: ``"pretrained"``, as the paper's models are, or ``"random"``, the contrast.
        released: names in `stepscope.paper.experiments.command_lines.RELEASED`; those that don't concern the task
            change nothing.
        optimizers: others whose directions are measured too, see `stepscope.paper.experiments.users_optimizers`.

    Raises:
        UsageError: an unknown scale, task or start, or seeds that can't be used.

    Example:
        >>> trajectory_experiment("cpu", "code").steps
        (15, 45, 95, 195)
    """
    check_settings(scale, _STEPS, seeds)
    if kind not in TASKS:
        raise UsageError(f"no task {kind!r}: choose {', '.join(TASKS)}")
    check_start(start)
    task = replace(TASKS[kind].scales[scale], start=start)
    rates = _RATES[start][kind]
    masked = NO_MASKS not in check_released(released)
    names = (*measured_directions(), *optimizers)
    run = TrajectoryExperiment(scale, kind, task, source, rates, _STEPS[scale], seeds, names, masked)
    rest = tuple(name for name in concerning(released, kind) if name != NO_MASKS)
    return TrajectoryAsReleased(**vars(run), released=rest) if rest else run


def demonstration(
    scale: str = "cpu", *, source: str = "auto", seeds: tuple[int, ...] = (0,), optimizers: Sequence[str] = ()
) -> TrajectoryExperiment:
    """The demo: the experiment on the translation task from random weights, with fewer steps, directions and examples.

    Args:
        scale: see `trajectory_experiment`.
        source: where the sentence pairs come from, see `stepscope.paper.tasks.sources.sentences.load_pairs`.
        seeds: see `TrajectoryExperiment`.
        optimizers: see `trajectory_experiment`.

    Raises:
        UsageError: unknown scale, or seeds that can't be used.

    Example:
        >>> demonstration("smoke").steps
        (2, 6)
    """
    check_settings(scale, _DEMO_STEPS, seeds)
    whole = trajectory_experiment(scale, source=source, seeds=seeds, start="random")
    task = replace(whole.task, eval_size=whole.task.eval_size // _DEMO_PART)
    return replace(whole, steps=_DEMO_STEPS[scale], directions=(*demonstrated(), *optimizers), task=task)
