"""Is the sharpness that is measured the right one? At one point of each task, computed a second time by another path.

What the trajectories record comes from `Objective` and double backward in float32. Here the same directions at the same
parameters go through neither: a float64 copy of the model, moved to both sides, two plain backward passes, and the
difference of the gradients. What the mean loss of a batch averages over is counted by code of its own too.
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from stepscope.errors import UsageError
from stepscope.measuring import measure
from stepscope.objective import IGNORED_LABEL
from stepscope.paper.experiments.along_trajectories import AlongTrajectories, Point
from stepscope.paper.experiments.command_lines import AGREEMENT, sources_of
from stepscope.paper.experiments.compared_optimizers import measured_directions
from stepscope.paper.experiments.example_weights import MeanOfExamples
from stepscope.paper.experiments.experiment import Asked, Progress, Unit, described
from stepscope.paper.experiments.training import sources_by_task
from stepscope.paper.experiments.trajectory import TrajectoryExperiment
from stepscope.paper.records import AgreementRecord
from stepscope.paper.report.evidence import agreement_tables
from stepscope.paper.tasks import Batch, Task
from stepscope.paper.tasks.catalog import TASKS

DISPLACEMENT = 1e-10
"""Half-length of the difference, relative to ``‖x‖``: hardly any rectifier changes sides within it, each of which would
add a part of its own (at 1e-6 they are most of the difference on the ResNet), and in float64 it is far above rounding.
"""


@dataclass(frozen=True)
class AgreementExperiment(AlongTrajectories[AgreementRecord]):
    """What is run: everything that determines the numbers.

    A record is one direction's at one task's point: its sharpness as the trajectories have it, and as the difference of
    float64 gradients has it (``independent``).

    Attributes:
        scale: name of the size.
        points: ``{name: the experiment whose trajectory is followed}``: its first seed, its first measured step, and
            the trajectory of `trained_by`.
        trained_by: a name in `stepscope.paper.experiments.compared_optimizers.TRAINING`.
        directions: names in `stepscope.paper.experiments.compared_optimizers.measured_directions`.
    """

    entry = AGREEMENT
    record = AgreementRecord

    points: Mapping[str, TrajectoryExperiment]
    trained_by: str = "adam"
    directions: tuple[str, ...] = field(default_factory=lambda: tuple(measured_directions()))

    @override
    def data_sources(self) -> Mapping[str, str]:
        return {name: point.source for name, point in self.points.items()}

    @override
    def make_task(self, name: str, source: str) -> Task:
        return self.points[name].make_task(self.points[name].kind, source)

    @override
    def context(self, tasks: Mapping[str, Task]) -> dict[str, Any]:
        return {"tasks": {n: described(task, TASKS[self.points[n].kind].title) for n, task in tasks.items()}}

    @override
    def units(self) -> list[Unit]:
        return [
            unit for name, point in self.points.items() for unit in self.trainings(name, point.seeds[0], named=True)
        ]

    @override
    def wanted(self, unit: Unit) -> list[AgreementRecord]:
        task, seed, step = unit.task or "", unit.seed or 0, self._point(unit).steps[0]
        return [
            AgreementRecord(run=task, task=task, trajectory=unit.optimizer, seed=seed, step=step, direction=label)
            for label in self.directions
        ]

    @override
    def learning_rates(self, task: str) -> Mapping[str, float]:
        return {self.trained_by: self.points[task].training_lr[self.trained_by]}

    @override
    def followed(self) -> tuple[str, ...]:
        return self.directions

    @override
    def in_memory(self, unit: Unit) -> int | None:
        return self._point(unit).in_memory(unit)

    @override
    def measure_at(
        self, point: Point, missing: Sequence[AgreementRecord], progress: Progress
    ) -> Iterator[list[AgreementRecord]]:
        directions = {record.direction: point.directions[record.direction] for record in missing}
        measured = measure(point.objectives[0], directions, "autograd")
        for number, wanted in enumerate(missing):
            label = wanted.direction
            progress(number / len(missing), label)
            started = time.perf_counter()
            independent = difference_sharpness(point.task.model, point.task.eval_batches, directions[label])
            record = replace(wanted, independent=independent, seconds=time.perf_counter() - started)
            yield [replace(record, sharpness=measured[label].sharpness, displacement=DISPLACEMENT)]

    tables = staticmethod(agreement_tables)

    @classmethod
    @override
    def from_options(cls, options: argparse.Namespace) -> AgreementExperiment:
        sources = sources_by_task(sources_of(options.source))
        return cls.of_reproduction(Asked(options.scale, (0,), "ours", sources, tuple(TASKS)))[0]

    @classmethod
    @override
    def of_reproduction(cls, asked: Asked) -> list[AgreementExperiment]:
        trajectories = TrajectoryExperiment.of_reproduction(asked)
        return [
            cls(asked.scale, {along.run_name.removeprefix(f"{along.entry.name}-"): along for along in trajectories})
        ]

    @property
    @override
    def extent(self) -> str:
        return f"{len(self.points)} tasks × {len(self.directions)} directions, once more by float64 differences"

    def _point(self, unit: Unit) -> TrajectoryExperiment:
        return self.points[unit.task or ""]


def difference_sharpness(model: nn.Module, batches: Sequence[Batch], direction: Mapping[str, Tensor]) -> float:
    """``uᵀHu`` as ``(∇f(x + εu) − ∇f(x − εu))ᵀu / 2ε`` in float64, with ``ε = DISPLACEMENT·‖x‖``.

    Args:
        model: gives its loss as ``model(**batch).loss``; it is copied, and not changed.
        batches: the micro-batches of the evaluation batch.
        direction: ``d``, any length but zero; a parameter that it leaves out stays where it is.

    Raises:
        UsageError: the direction is zero.
    """
    u = {name: part.detach().double() for name, part in direction.items()}
    length = math.sqrt(sum(float((part**2).sum()) for part in u.values()))
    if length == 0:
        raise UsageError("the direction is zero")
    moved = copy.deepcopy(model).double().eval()
    moved.zero_grad(set_to_none=True)
    parameters = dict(moved.named_parameters())
    start = {name: p.detach().clone() for name, p in parameters.items()}
    reach = DISPLACEMENT * math.sqrt(sum(float((p**2).sum()) for p in start.values()))
    slopes = []
    for side in (1, -1):
        with torch.no_grad():
            for name, part in u.items():
                parameters[name].copy_(start[name] + side * reach / length * part.to(start[name].device))
        moved.zero_grad(set_to_none=True)
        terms = [_terms(moved, batch) for batch in batches]
        for batch, count in zip(batches, terms, strict=True):
            double = {key: v.double() if v.is_floating_point() else v for key, v in batch.items()}
            with _InFloat64():
                loss = moved(**double).loss
            (loss * (count / sum(terms))).backward()
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None and name in u}
        slopes.append(sum(float((gradient * u[name]).sum()) for name, gradient in gradients.items()) / length)
    return (slopes[0] - slopes[1]) / (2 * reach)


class _InFloat64(TorchFunctionMode):
    """Leaves float64 as it is where a model asks for float32.

    Hugging Face's do inside of norms, softmax and loss; its rounding, divided by the displacement, would be most of the
    difference.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        double = {torch.float32: torch.float64}
        args = tuple(double.get(each, each) if isinstance(each, torch.dtype) else each for each in args)
        return func(*args, **{k: double.get(v, v) if k == "dtype" else v for k, v in (kwargs or {}).items()})


def _terms(model: nn.Module, batch: Batch) -> int:
    """What the batch's mean loss averages over: its label tokens; its examples where each has one label."""
    if isinstance(model, MeanOfExamples):
        return len(batch["labels"])
    labels = batch["labels"]
    if "CausalLM" in type(model).__name__:
        labels = labels[:, 1:]  # each token is the target of the one before it
    return int((labels != IGNORED_LABEL).sum())
