"""Experiment D: what the paper says of clipping and of curvature's coordinates, tried on many losses.

First, appendix A's bound and where clipping improves it (`stepscope.paper.experiments.bounds`); second, whether Hessian
and gradient coordinates are correlated (`stepscope.paper.experiments.correlation`), along short trainings.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from typing_extensions import override

from stepscope.errors import UsageError
from stepscope.objective import Objective
from stepscope.paper.experiments.along_trajectories import AlongTrajectories, Point
from stepscope.paper.experiments.bounds import FAMILIES, bound_group, bound_record
from stepscope.paper.experiments.command_lines import THEORY
from stepscope.paper.experiments.compared_optimizers import TRAINING
from stepscope.paper.experiments.correlation import coordinate_values, correlation_record, scope_coordinates, scope_size
from stepscope.paper.experiments.experiment import Asked, Progress, Unit, described
from stepscope.paper.experiments.training import at_home, check_settings, count_of
from stepscope.paper.records import CorrelationRecord, Rank, TheoryRecord
from stepscope.paper.report.evidence import theory_tables
from stepscope.paper.report.evidence_charts import bound_margins, correlations, curvature_against_gradient
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.small import SMALL, small_task
from stepscope.paper.tasks.translation import SCALES, TranslationConfig, translation
from stepscope.report import Figure, distinct, file_name

TRANSLATION = "translation"


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
class TheoryExperiment(AlongTrajectories[TheoryRecord]):
    """What is run: everything that determines the measurements.

    A record is one seed's and group's: of a family of losses and a fraction clipped, or of a task's scope along a
    trajectory at a step.

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

    entry = THEORY
    record = TheoryRecord

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

    @override
    def check(self) -> None:
        known = (TRANSLATION, *SMALL)
        if unknown := [name for name in self.correlated if name not in known]:
            raise UsageError(f"no task {unknown[0]!r}: choose {', '.join(known)}")
        if unknown := [family for family in self.families if family not in FAMILIES]:
            raise UsageError(f"no family {unknown[0]!r}: choose {', '.join(FAMILIES)}")
        for settings in self.correlated.values():
            if unknown := [name for name in settings.training_lr if name not in TRAINING]:
                raise UsageError(f"no training optimizer {unknown[0]!r}: choose {' or '.join(TRAINING)}")
            if min(settings.steps, default=1) < 1:
                raise UsageError(f"steps are {settings.steps}: they are counted from 1")

    @override
    def data_sources(self) -> Mapping[str, str]:
        return {TRANSLATION: self.source} if TRANSLATION in self.correlated else {}

    @override
    def make_task(self, name: str, source: str) -> Task:
        if name != TRANSLATION:
            return small_task(name, seed=self.seeds[0])
        return at_home(translation(self.task, seed=self.seeds[0], source=source), self.scale)

    @override
    def context(self, tasks: Mapping[str, Task]) -> dict[str, Any]:
        small = {name: asdict(small_task(name).source) for name in self.correlated if name in SMALL}
        return {**(described(tasks[TRANSLATION], "T5") if tasks else {}), "small": small}

    @override
    def units(self) -> list[Unit]:
        """The bound of each seed, which needs no task, and the trainings."""
        bounds = [Unit("the bound", seed=seed) for seed in self.seeds]
        return bounds + [
            unit for seed in self.seeds for task in self.correlated for unit in self.trainings(task, seed, named=True)
        ]

    @override
    def wanted(self, unit: Unit) -> Sequence[TheoryRecord]:
        if unit.task is None:
            return [TheoryRecord(seed=unit.seed or 0, group=group) for group in self._bounds()]
        settings = self.correlated[unit.task]
        return [
            CorrelationRecord(
                trajectory=unit.optimizer,
                seed=unit.seed or 0,
                step=step,
                task=unit.task,
                group=f"{unit.task}, {scope or 'all'}",
                scope=scope,
                diagonal=Rank(),
                row_norm=Rank(),
            )
            for step in settings.steps
            for scope in settings.scopes
        ]

    def _bounds(self) -> dict[str, tuple[str, float]]:
        """By group, the family and the fraction of each record of the bound."""
        pairs = [(family, fraction) for family in self.families for fraction in self.fractions]
        return {bound_group(*pair): pair for pair in pairs}

    @override
    def measure(
        self, unit: Unit, task: Task | None, records: Sequence[TheoryRecord], progress: Progress
    ) -> Iterator[Sequence[TheoryRecord]]:
        if unit.task is not None:
            yield from super().measure(unit, task, records, progress)
            return
        missing = self.missing(unit, records)
        for number_done, record in enumerate(missing):
            progress(number_done / len(missing), f"{unit.label}, {record.group}")
            yield [bound_record(*self._bounds()[record.group], self.draws, record.seed)]

    @override
    def learning_rates(self, task: str) -> Mapping[str, float]:
        return self.correlated[task].training_lr

    @override
    def evaluated(self, unit: Unit, task: Task) -> list[Objective]:
        objectives = super().evaluated(unit, task)
        for scope in self.correlated[unit.task or ""].scopes:
            scope_size(objectives[0].parameters, scope)  # refuses one that there isn't, before training
        return objectives

    @override
    def measure_at(
        self, point: Point, missing: Sequence[CorrelationRecord], progress: Progress
    ) -> Iterator[list[CorrelationRecord]]:
        """A coordinate of several scopes is measured once."""
        started, objective, seed = time.perf_counter(), point.objectives[0], missing[0].seed
        count = self.correlated[point.unit.task or ""].coordinates
        chosen = [scope_coordinates(objective.parameters, record.scope, count, seed) for record in missing]
        places = {each: i for i, each in enumerate(dict.fromkeys(each for scope in chosen for each in scope))}
        values = coordinate_values(objective, list(places))
        loss = objective.loss()
        seconds = (time.perf_counter() - started) / len(missing)
        records = []
        for record, coordinates in zip(missing, chosen, strict=True):
            own = values.at(torch.tensor([places[each] for each in coordinates]))
            place = replace(record, loss=loss, of=scope_size(objective.parameters, record.scope), seconds=seconds)
            records.append(correlation_record(place, own, resamples=self.resamples))
        yield records

    tables = staticmethod(theory_tables)

    @classmethod
    @override
    def figures(cls, records: Sequence[TheoryRecord]) -> list[Figure]:
        return distinct([
            Figure("bound", "margins of the bound", partial(bound_margins, records)),
            Figure("correlations", "correlations", partial(correlations, records)),
            *_coordinate_figures(records),
        ])  # fmt: skip

    @classmethod
    @override
    def from_options(cls, options: argparse.Namespace) -> TheoryExperiment:
        return theory_experiment(options.scale, source=options.source, seeds=tuple(options.seeds))

    @classmethod
    @override
    def of_reproduction(cls, asked: Asked) -> list[TheoryExperiment]:
        return [theory_experiment(asked.scale, source=asked.sources[TRANSLATION], seeds=asked.seeds)]

    @property
    @override
    def extent(self) -> str:
        draws = f"{len(self.families)} losses × {len(self.fractions)} fractions × {self.draws:,} draws"
        return f"{draws}, correlations on {len(self.correlated)} models, {count_of(self.seeds)}"


def theory_experiment(scale: str = "cpu", *, source: str = "auto", seeds: tuple[int, ...] = (0,)) -> TheoryExperiment:
    """The experiment at one of its sizes.

    Args:
        scale: ``"smoke"`` (seconds; to see that it works), ``"cpu"`` (minutes on one core), ``"desk"``, ``"gpu"`` or
            ``"paper"`` (the T5 of that size; the small models are the same).
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
    experiment = TheoryExperiment(scale, task, source, seeds=seeds)
    if not task.checkpoint:
        return experiment
    rates = replace(_TRANSLATION, training_lr={"sgd": 1e-3, "adam": 2e-4})
    return replace(experiment, correlated={**experiment.correlated, TRANSLATION: rates})


def _coordinate_figures(records: Sequence[TheoryRecord]) -> list[Figure]:
    """Curvature against gradient at the last step of each trajectory; a page shows those of whole models."""
    last: dict[tuple[str, str], int] = {}
    whole = set()
    for record in records:
        if isinstance(record, CorrelationRecord) and record.points is not None and record.step is not None:
            place = record.group, record.trajectory or ""
            last[place] = max(record.step, last.get(place, record.step))
            if not record.scope:
                whole.add(record.group)
    figures = []
    for (group, trajectory), step in last.items():
        title = f"curvature against gradient, {group}, {trajectory} trajectory, step {step:g}"
        draw = partial(curvature_against_gradient, records, group, trajectory, step)
        figures.append(Figure(file_name(title), title, draw, group in whole))
    return figures
