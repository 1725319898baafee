"""Experiments along trajectories: a model trains, and something is measured at chosen steps."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.directions import PseudoUpdates
from stepscope.objective import Direction, Objective
from stepscope.paper.experiments.compared_optimizers import TRAINING, factory_of
from stepscope.paper.experiments.experiment import Experiment, Progress, Unit
from stepscope.paper.experiments.training import backward
from stepscope.paper.tasks import Batch, Task
from stepscope.runs.records import AnyRecord


@dataclass(frozen=True)
class Point:
    """A step of a training, before its update.

    Attributes:
        unit: which training.
        task: what is trained.
        step: counted from 1.
        objectives: those of `AlongTrajectories.evaluated`, at the present parameters.
        directions: ``{optimizer: the direction that it would go}``, of `AlongTrajectories.followed`.
    """

    unit: Unit
    task: Task
    step: int
    objectives: Sequence[Objective]
    directions: Mapping[str, Direction]


@dataclass(frozen=True)
class AlongTrajectories(Experiment[AnyRecord]):
    """An experiment whose units are trainings, measured at chosen steps.

    Each record has a ``step``, and is measured at the parameters before that step's update. Training is repeated from
    the seed up to the last that is missing.
    """

    @abstractmethod
    def wanted(self, unit: Unit) -> Sequence[Any]:
        """The records of a unit without what is measured."""

    def missing(self, unit: Unit, records: Iterable[AnyRecord]) -> Sequence[Any]:
        """Those that aren't there yet."""
        return self.not_in(records, self.wanted(unit))

    @abstractmethod
    def learning_rates(self, task: str) -> Mapping[str, float]:
        """``{training optimizer: learning rate}`` of a task, one trajectory each."""

    @abstractmethod
    def measure_at(self, point: Point, missing: Sequence[Any], progress: Progress) -> Iterator[Sequence[AnyRecord]]:
        """Measures what is missing at a step.

        Args:
            point: where the training is.
            missing: the records without what is measured.
            progress: told which part of this step's measurements is done.

        Yields:
            The same records, measured.
        """

    def trainings(self, task: str, seed: int, *, named: bool = False) -> list[Unit]:
        """A unit for each trajectory of a task.

        Args:
            task: its name.
            seed: of its weights and batches.
            named: whether the units' labels name the task.
        """
        prefix = f"{task}, " * named
        return [Unit(f"{prefix}{name} trajectory", task, seed, name) for name in self.learning_rates(task)]

    def evaluated(self, unit: Unit, task: Task) -> list[Objective]:  # noqa: ARG002
        """What is measured: the loss on the whole evaluation batch."""
        return [Objective(task.model, None, task.eval_batches)]

    def followed(self) -> tuple[str, ...]:
        """Names, see `rule_of`: the optimizers that follow the training, to know their directions."""
        return ()

    def in_memory(self, unit: Unit) -> int | None:  # noqa: ARG002
        """How many examples of a training batch are in memory at a time; None is the whole batch."""
        return None

    def measure(
        self, unit: Unit, task: Task | None, records: Sequence[AnyRecord], progress: Progress
    ) -> Iterator[Sequence[AnyRecord]]:
        """Trains up to the last step that is missing, and measures on the way."""
        assert task is not None
        missing: dict[int, list[Any]] = {}
        for record in self.missing(unit, records):
            missing.setdefault(record.step, []).append(record)
        last, objectives = max(missing), self.evaluated(unit, task)
        for step, directions in self._steps(unit, task, objectives[0], missing):
            where = f"{unit.label}, step {step}"
            if step in missing:

                def tell(part: float, text: str, step: int = step, where: str = where) -> None:
                    progress((step - 1 + part) / last, f"{where}: {text}")

                yield from self.measure_at(Point(unit, task, step, objectives, directions), missing[step], tell)
            progress(step / last, f"{where} of {last}")

    def _steps(
        self, unit: Unit, task: Task, objective: Objective, missing: Mapping[int, Sequence[Any]]
    ) -> Iterator[tuple[int, Mapping[str, Direction]]]:
        """Trains, and stops before the update of each step, with the followers' directions where one is measured."""
        model, last = task.model, max(missing)
        lr = self.learning_rates(unit.task or "")[unit.optimizer]
        optimizer = TRAINING[unit.optimizer](list(model.parameters()), lr)
        followed = {name: factory_of(name) for name in self.followed()}
        followers = PseudoUpdates(objective.parameters, followed) if followed else None
        batches: Iterator[Batch] = task.training_batches()
        for step in range(1, last + 1):
            backward(model, next(batches), f"{unit.label}, step {step} (lr {lr:g})", self.in_memory(unit))
            gradients = {name: p.grad for name, p in objective.parameters.items() if p.grad is not None}
            yield step, followers.step(gradients, capture=step in missing) if followers else {}
            if step < last:
                optimizer.step()
