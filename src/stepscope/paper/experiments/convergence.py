"""Experiment B: every optimizer and its clipped variant from the same start (Pan and Li, §5 and appendix B.4).

Each looks for its own learning rate within the same budget (`Search`), on weights and an order of batches of their own.
Then it trains once a seed: a seed draws the same weights and the same batches for all. A rate that diverges on a seed
is given up for the next lower one, on all seeds: the best rate of one search may lie at the edge of what is stable. The
loss is that of the fixed evaluation batch, which is drawn from the training data, as in the paper.

Which trainings are asked for is a function of the records, so a training is a piece of its unit that any process can
make. One that makes several carries them on from rung to rung; by itself, each begins at its start.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, NamedTuple

from typing_extensions import override

from stepscope.clipping import parts_of
from stepscope.errors import UsageError
from stepscope.objective import Objective
from stepscope.paper.claims.losses import conclusion, finals_of, pairs_of
from stepscope.paper.experiments.as_released import as_released, check_released
from stepscope.paper.experiments.command_lines import CONVERGENCE, NO_MASKS, RELEASED, sources_of
from stepscope.paper.experiments.compared_optimizers import (
    check_optimizers,
    contenders,
    rule_of,
    training_rule,
    users_own,
)
from stepscope.paper.experiments.experiment import Asked, Experiment, Progress, Unit, described
from stepscope.paper.experiments.search import Search
from stepscope.paper.experiments.training import accumulate, at_home, check_settings, count_of, part_size
from stepscope.paper.records import LossRecord
from stepscope.paper.report.loss_tables import TERMS, loss_figures, loss_numbers, loss_table, verdict_table
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.catalog import TASKS
from stepscope.paper.tasks.pretraining import check_start
from stepscope.report import Table

SEARCH_SEED = 2**31 - 1
"""Weights and order that learning rates are looked for on: none of the seeds that are compared."""

DIVERGED = 10.0
"""A training is given up where the loss is so many times that at the start."""

RETREATS = 3
"""How often a rate that diverged on a seed may be lowered."""

_QUICK = Search(rates=3, extensions=1, rungs=((Fraction(1, 2), 1), (Fraction(1), 1)), climbs=1)


@dataclass(frozen=True)
class _Size:
    """Steps of a training, steps between evaluations, the search, and what is changed of the tasks."""

    steps: int
    every: int
    search: Search
    task: Mapping[str, int]


_SIZES = {
    "smoke": _Size(12, 3, _QUICK, {}),
    # More steps of smaller batches, and an evaluation batch that is large enough to tell losses apart.
    "cpu": _Size(150, 10, Search(), {"batch_size": 32, "eval_size": 128, "micro_batch_size": 64}),
    # Ten times the parameters: not the whole search.
    "desk": _Size(200, 10, _QUICK, {"batch_size": 32, "eval_size": 128, "micro_batch_size": 64}),
    # Half an hour of one GPU is not enough for the whole search.
    "gpu": _Size(200, 10, _QUICK, {"batch_size": 64, "eval_size": 128, "micro_batch_size": 64}),
    # As many updates as the paper's 20 epochs of ten batches.
    "paper": _Size(200, 10, Search(), {}),
}


class _Planned(NamedTuple):
    """A training that is asked for: up to which step, and of a final one whether the search's neighbors were worse."""

    phase: str
    lr: float
    seed: int
    end: int
    bracketed: bool | None = None

    def done(self, records: Iterable[LossRecord]) -> bool:
        return any(record.step == self.end for record in records if self.holds(record))

    def holds(self, record: LossRecord) -> bool:
        """Whether a record is of this training, or of the same before it was carried on."""
        same = (record.phase, record.lr, record.seed) == (self.phase, self.lr, self.seed)
        return same and record.step <= self.end


@dataclass(frozen=True)
class ConvergenceExperiment(Experiment[LossRecord]):
    """What is run: everything that determines the losses.

    Attributes:
        scale: name of the size.
        settings: whose optimizers are compared, see `stepscope.paper.experiments.compared_optimizers.SETTINGS`.
        tasks: ``{name: configuration}``.
        sources: ``{name: where its data come from}``.
        optimizers: see `stepscope.paper.experiments.compared_optimizers.rule_of`.
        steps: of a training.
        every: steps from one evaluation to the next.
        search: how learning rates are looked for.
        seeds: one training of each optimizer a seed.
        masked: whether the models get an attention mask. The published code gives none.
        released: in what else all is as the published code has it, see `stepscope.paper.experiments.as_released`.
    """

    entry = CONVERGENCE
    terms = TERMS
    record = LossRecord
    counted = "losses"
    writes_figures = True

    settings: str
    tasks: Mapping[str, Any]
    sources: Mapping[str, str]
    optimizers: tuple[str, ...]
    steps: int
    every: int
    search: Search = field(default_factory=Search)
    seeds: tuple[int, ...] = (0, 1, 2)
    masked: bool = True
    released: tuple[str, ...] = ()

    @override
    def configuration(self) -> dict[str, Any]:
        settings = super().configuration()
        settings["search"]["rungs"] = [[str(part), kept] for part, kept in self.search.rungs]
        if not self.released:
            # As before there were names for it, so that runs of then are continued.
            del settings["released"]
        return settings

    @property
    @override
    def run_name(self) -> str:
        return "-".join((self.entry.name, *users_own(self.optimizers)))

    @override
    def check(self) -> None:
        check_optimizers(self.optimizers)

    @override
    def data_sources(self) -> Mapping[str, str]:
        return {task: self.sources[task] for task in self.tasks}

    @override
    def make_task(self, name: str, source: str) -> Task:
        task = TASKS[name].make(self.tasks[name], seed=SEARCH_SEED, source=source)
        names = self.released if self.masked else (*self.released, NO_MASKS)
        return at_home(as_released(task, name, self.tasks[name], names), self.scale)

    @override
    def context(self, tasks: Mapping[str, Task]) -> dict[str, Any]:
        return {"tasks": {name: described(task, TASKS[name].title, self.seeds) for name, task in tasks.items()}}

    @override
    def units(self) -> list[Unit]:
        pairs = ((task, optimizer) for task in self.tasks for optimizer in self.optimizers)
        return [Unit(f"{task}: {optimizer}", task, optimizer=optimizer) for task, optimizer in pairs]

    @override
    def pieces(self, unit: Unit, records: Iterable[LossRecord]) -> list[Unit]:
        whole = float(self.search.budget() + len(self.seeds)) * self.steps
        return [
            unit._replace(
                label=f"{unit.label}, {number:02}: {planned.phase}, lr {planned.lr!r}, to step {planned.end}",
                seed=planned.seed,
                piece=planned,
                share=planned.end / whole,
            )
            for number, planned in enumerate(self._planned(unit, _own(unit, records)))
        ]

    @override
    def in_order(self, records: Sequence[LossRecord]) -> list[LossRecord]:
        ordered: list[LossRecord] = []
        for unit in self.units():
            own = _own(unit, records)
            planned = self._planned(unit, own)
            places = [next((i for i, one in enumerate(planned) if one.holds(r)), len(planned)) for r in own]
            by_place = sorted(zip(places, own, strict=True), key=lambda pair: (pair[0], pair[1].step))
            ordered += [record for _, record in by_place]
        return ordered

    @override
    def missing(self, unit: Unit, records: Iterable[LossRecord]) -> list[int]:
        """The seeds whose last training isn't there; which rates come before, the search says."""
        own = _own(unit, records)
        if unit.piece is not None:
            return [] if unit.piece.done(own) else [unit.piece.seed]
        finals = self._finals(own)
        ends = finals[min(finals)] if finals else {}
        lowered = any(ends.values()) and len(finals) <= RETREATS
        return [seed for seed in self.seeds if lowered or seed not in ends]

    @override
    def measure(
        self, unit: Unit, task: Task | None, records: Sequence[LossRecord], progress: Progress
    ) -> Iterator[list[LossRecord]]:
        """Looks for the learning rate, then trains with it; of a piece, makes that training."""
        assert task is not None
        known, live = _own(unit, records), dict[_Planned, Training]()
        whole = unit.piece.end if unit.piece else float(self.search.budget() + len(self.seeds)) * self.steps
        done = 0

        def stepped() -> None:
            nonlocal done
            done += 1
            progress(min(1.0, done / whole), unit.label)

        while left := [one for one in self._asked(unit, known) if not one.done(known)]:
            # A rate that isn't asked for now hardly ever is again; it is trained from its start then.
            begun, live = live, {}
            for planned in left:
                training = begun.pop(planned._replace(end=0), None) or self._training(unit, task, planned, known)
                found = self.not_in(known, training.advance(planned.end, stepped))
                known += found
                yield found
                if planned.end < self.steps:
                    live[planned._replace(end=0)] = training

    def _asked(self, unit: Unit, records: Sequence[LossRecord]) -> list[_Planned]:
        return [unit.piece] if unit.piece else self._planned(unit, records)

    def _training(self, unit: Unit, task: Task, planned: _Planned, known: Sequence[LossRecord]) -> Training:
        training = Training(self, unit, task, planned.phase, planned.lr, planned.seed, bracketed=planned.bracketed)
        # One that diverged before stays so, also where it is repeated.
        training.diverged = any(record.diverged for record in known if planned.holds(record))
        return training

    def _planned(self, unit: Unit, own: Sequence[LossRecord]) -> list[_Planned]:
        """All trainings that the records ask for, done or not, in the order in which one process makes them."""
        known, found, planned = _losses(own), dict[float, dict[int, float]](), list[_Planned]()
        while asked := self.search.next_trainings(rule_of(unit.optimizer).first_lr, self.steps, found):
            planned += [_Planned("search", lr, SEARCH_SEED, end) for lr, end in asked]
            if any(end not in known.get(lr, {}) for lr, end in asked):
                return planned
            for lr, end in asked:
                found.setdefault(lr, {})[end] = known[lr][end]
        lr, bracketed = self.search.best(self.steps, found)
        finals = self._finals(own)
        for _ in range(RETREATS + 1):
            planned += [_Planned("final", lr, seed, self.steps, bracketed) for seed in self.seeds]
            ends = finals.get(lr, {})
            if not any(ends.values()) or not ends.keys() >= set(self.seeds):
                break
            lr = self.search.lower(lr)
        return planned

    def _finals(self, records: Iterable[LossRecord]) -> dict[float, dict[int, bool]]:
        """By learning rate and seed, whether the final training diverged; only of those that came to their end."""
        finals: dict[float, dict[int, bool]] = {}
        for r in records:
            if r.phase == "final" and (r.diverged or r.step == self.steps):
                finals.setdefault(r.lr, {})[r.seed] = r.diverged
        return finals

    @classmethod
    @override
    def tables(cls, records: Sequence[LossRecord]) -> list[Table]:
        return [table for table in (verdict_table(records), loss_table(records)) if table.rows]

    figures = staticmethod(loss_figures)
    numbers = staticmethod(loss_numbers)

    @classmethod
    @override
    def conclusion(cls, records: Sequence[LossRecord]) -> str:
        return conclusion(pairs_of(finals_of(records)))

    @classmethod
    @override
    def highlighted(cls, records: Sequence[LossRecord]) -> list[str]:
        return list(dict.fromkeys(final.optimizer for final in finals_of(records)))

    @classmethod
    @override
    def from_options(cls, options: argparse.Namespace) -> ConvergenceExperiment:
        return convergence_experiment(
            options.scale,
            settings=options.settings,
            tasks=tuple(options.tasks),
            sources=sources_of(options.source),
            seeds=tuple(options.seeds),
            start=options.start,
            released=options.released,
            optimizers=options.optimizers,
        )

    @classmethod
    @override
    def of_reproduction(cls, asked: Asked) -> list[ConvergenceExperiment]:
        given = {task: asked.sources[task] for task in ("translation", "code")}
        return [
            convergence_experiment(
                asked.scale,
                settings=asked.settings,
                tasks=tuple(given),
                sources=given,
                seeds=asked.seeds,
                released=asked.released,
            )
        ]

    @property
    @override
    def extent(self) -> str:
        budget = f"a search worth {float(self.search.budget()):.3g} trainings"
        return f"{len(self.tasks)} tasks × {len(self.optimizers)} optimizers × ({budget}, {count_of(self.seeds)})"


def convergence_experiment(
    scale: str = "cpu",
    *,
    settings: str = "ours",
    tasks: Sequence[str] = ("translation", "code"),
    sources: Mapping[str, str] | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    start: str = "pretrained",
    released: Sequence[str] = (),
    optimizers: Sequence[str] = (),
) -> ConvergenceExperiment:
    """The experiment at one of its sizes.

    Args:
        scale: ``"smoke"`` (to see that it works), ``"cpu"`` (within an hour on two cores), ``"desk"``, ``"gpu"``
            or ``"paper"``.
        settings: ``"text"``, ``"code"`` or ``"ours"``.
        tasks: names in `stepscope.paper.tasks.catalog.TASKS`.
        sources: ``{task: where its data come from}``; ``"auto"`` for those not named.
        seeds: see `ConvergenceExperiment`.
        start: ``"pretrained"`` or ``"random"`` weights.
        released: names in `stepscope.paper.experiments.command_lines.RELEASED`; with the settings ``"code"`` all.
        optimizers: others that are trained too, see `stepscope.paper.experiments.users_optimizers`.

    Raises:
        UsageError: an unknown name, or seeds that can't be used.

    Example:
        >>> experiment = convergence_experiment("smoke")
        >>> list(experiment.tasks), "sgd clip 10%" in experiment.optimizers
        (['translation', 'code'], True)
    """
    check_settings(scale, _SIZES, seeds)
    check_start(start)
    if SEARCH_SEED in seeds:
        raise UsageError(f"seed {SEARCH_SEED} is the one that learning rates are looked for with: choose another")
    if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= set(TASKS):
        raise UsageError(f"tasks are {', '.join(tasks) or 'none'}: choose of {', '.join(TASKS)}, each once")
    if unused := set(sources or {}) - set(tasks):
        raise UsageError(f"a source is given for {', '.join(sorted(unused))}, which isn't among the tasks")
    size, names = _SIZES[scale], check_released(RELEASED if settings == "code" else released)
    return ConvergenceExperiment(
        scale=scale,
        settings=settings,
        tasks={name: replace(TASKS[name].scales[scale], **size.task, start=start) for name in tasks},
        sources={name: (sources or {}).get(name, "auto") for name in tasks},
        optimizers=(*contenders(settings), *optimizers),
        steps=size.steps,
        every=size.every,
        search=size.search,
        seeds=seeds,
        masked=NO_MASKS not in names,
        released=tuple(name for name in names if name != NO_MASKS),
    )


def _own(unit: Unit, records: Iterable[LossRecord]) -> list[LossRecord]:
    return [record for record in records if (record.task, record.optimizer) == (unit.task, unit.optimizer)]


def _losses(records: Iterable[LossRecord]) -> dict[float, dict[int, float]]:
    """The losses that the search goes by; of one that diverged, infinite."""
    losses: dict[float, dict[int, float]] = {}
    for record in records:
        if record.phase == "search":
            losses.setdefault(record.lr, {})[record.step] = math.inf if record.loss is None else record.loss
    return losses


class Training:
    """One training, which can be carried on."""

    def __init__(
        self,
        experiment: ConvergenceExperiment,
        unit: Unit,
        task: Task,
        phase: str,
        lr: float,
        seed: int,
        *,
        bracketed: bool | None = None,
    ) -> None:
        self.phase, self.lr = phase, lr
        self._part = part_size(experiment.tasks[unit.task or ""], experiment.scale, experiment.released)
        self._unit, self._seed, self._bracketed, self._every = unit, seed, bracketed, experiment.every
        task = task.seeded(seed)
        self._model, self._batches = task.model, task.training_batches()
        self._objective = Objective(task.model, None, task.eval_batches)
        rule = training_rule(unit.optimizer, experiment.released)
        self._optimizers = parts_of(rule.build(list(self._objective.parameters.values()), lr))
        self._step = 0
        self._start: float | None = None
        self.diverged = False

    def advance(self, end: int, stepped: Callable[[], None]) -> list[LossRecord]:
        """Trains up to a step, and gives the losses on the way; of one that diverged, the end alone."""
        records = []
        if self._start is None:
            self._start = self._objective.loss()
            records.append(self._record(0, self._start))
        while self._step < end and not self.diverged:
            loss = accumulate(self._model, next(self._batches), self._part)
            for optimizer in self._optimizers:
                optimizer.step()
            self._step += 1
            stepped()
            if self._step % self._every == 0 or self._step == end:
                value = self._objective.loss() if math.isfinite(loss) else math.inf
                self.diverged = not value <= DIVERGED * self._start
                if not self.diverged:
                    records.append(self._record(self._step, value))
        return [*records, self._record(end, None)] if self.diverged else records

    def _record(self, step: int, loss: float | None) -> LossRecord:
        unit = self._unit
        return LossRecord(
            run=f"{unit.task}, {unit.optimizer}, lr {self.lr!r}, {self.phase}, seed {self._seed}",
            task=unit.task or "",
            optimizer=unit.optimizer,
            original=rule_of(unit.optimizer).original,
            phase=self.phase,
            lr=self.lr,
            bracketed=self._bracketed,
            seed=self._seed,
            step=step,
            loss=loss,
            diverged=loss is None,
        )
