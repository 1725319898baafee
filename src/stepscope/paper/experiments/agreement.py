"""Is the sharpness that is measured the right one? At one point of each task, computed a second time by another path.

What the trajectories record comes from `Objective` and double backward in float32. Here the same directions at the same
parameters go through neither: a float64 copy of the model, moved to both sides, two plain backward passes, and the
difference of the gradients. What the mean loss of a batch averages over is counted anew too.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stepscope.directions import PseudoUpdates
from stepscope.errors import UsageError
from stepscope.measuring import measure
from stepscope.objective import IGNORED_LABEL, Objective
from stepscope.paper.experiments.compared import DIRECTIONS, TRAINING
from stepscope.paper.experiments.running import Progress, backward, check_data, model_of, part_of, part_size, source_of
from stepscope.paper.experiments.trajectory import TrajectoryExperiment, make_task
from stepscope.paper.tasks import Batch, Task
from stepscope.paper.tasks.catalogue import TASKS
from stepscope.runs import Record, RunDirectory, read_run

DISPLACEMENT = 1e-10
"""Half-length of the difference, relative to ``‖x‖``: hardly any rectifier changes sides within it, each of which would
add a part of its own (at 1e-6 they are most of the difference on the ResNet), and in float64 it is far above rounding.
"""


@dataclass(frozen=True)
class AgreementExperiment:
    """What is run: everything that determines the numbers.

    Attributes:
        scale: name of the size.
        points: ``{name: the experiment whose trajectory is followed}``: its first seed, its first measured step, and
            the trajectory of `trained_by`.
        trained_by: a name in `stepscope.paper.experiments.compared.TRAINING`.
        directions: names in `stepscope.paper.experiments.compared.DIRECTIONS`.
    """

    scale: str
    points: Mapping[str, TrajectoryExperiment]
    trained_by: str = "adam"
    directions: tuple[str, ...] = tuple(DIRECTIONS)

    @property
    def seeds(self) -> tuple[int, ...]:
        """The one of each point; all have the same."""
        return next(iter(self.points.values())).seeds[:1]

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""
        return {"experiment": "agreement", **asdict(self)}


def run_agreement(
    experiment: AgreementExperiment,
    out: str | os.PathLike[str],
    progress: Progress = lambda part, what: None,  # noqa: ARG005
) -> int:
    """Runs the experiment into a run directory, or continues one.

    A record is one direction's at one task's point: its sharpness as the trajectories have it, and as the difference of
    float64 gradients has it (``independent``).

    Args:
        experiment: what to run.
        out: the run directory; created if missing.
        progress: told how far it is.

    Returns:
        How many records were made; 0 if the run was complete already.

    Raises:
        UsageError: the directory can't be used (see `RunDirectory`), there are no data or they have changed since, or
            a training loss isn't finite any more.
    """
    configuration = experiment.configuration()
    begun = RunDirectory.check(out, configuration)
    known = read_run(out)[1] if begun is not None else []
    if begun is not None and not any(_missing(experiment, known, name) for name in experiment.points):
        return 0
    progress(0.0, "preparing the data")
    contexts = (begun or {}).get("tasks", {})
    tasks = {
        name: make_task(point, point.seeds[0], source_of(contexts.get(name), point.source))
        for name, point in experiment.points.items()
    }
    context = {"tasks": {name: _context(task, experiment.points[name].kind) for name, task in tasks.items()}}
    for name in tasks:
        check_data(contexts.get(name), context["tasks"][name], out)
    with RunDirectory.open(out, configuration, context=context) as run:
        before = len(run.records())
        for number, name in enumerate(experiment.points):
            if labels := _missing(experiment, run.records(), name):
                told = part_of(progress, number, len(tasks))
                for record in _compared(experiment, name, tasks[name], labels, told):
                    run.append([record])
        return len(run.records()) - before


def _missing(experiment: AgreementExperiment, records: Sequence[Record], name: str) -> list[str]:
    done = {r.get("direction") for r in records if r.get("task") == name}
    return [label for label in experiment.directions if label not in done]


def _compared(
    experiment: AgreementExperiment, name: str, task: Task, labels: Sequence[str], progress: Progress
) -> Iterator[Record]:
    """Trains up to the point, and gives both sharpnesses of each direction there."""
    point, trained_by = experiment.points[name], experiment.trained_by
    step, seed = point.steps[0], point.seeds[0]
    optimizer = TRAINING[trained_by](list(task.model.parameters()), point.training_lr[trained_by])
    objective = Objective(task.model, None, task.eval_batches)
    followers = PseudoUpdates(objective.parameters, {label: DIRECTIONS[label] for label in labels})
    batches, part = task.training_batches(), part_size(point.task, experiment.scale)
    directions: dict[str, dict[str, Tensor]] = {}
    for number in range(1, step + 1):
        backward(task.model, next(batches), f"{name}, {trained_by} trajectory, step {number}", part)
        gradients = {key: p.grad for key, p in objective.parameters.items() if p.grad is not None}
        directions = followers.step(gradients, capture=number == step)
        if number < step:
            optimizer.step()
        progress(0.3 * number / step, f"{name}, step {number} of {step}")
    found = measure(objective, directions, "autograd")
    for number, label in enumerate(labels):
        progress(0.4 + 0.6 * number / len(labels), f"{name}: {label}")
        begun = time.perf_counter()
        independent = difference_sharpness(task.model, task.eval_batches, directions[label])
        yield {
            "run": name,
            "task": name,
            "trajectory": trained_by,
            "seed": seed,
            "step": step,
            "direction": label,
            "sharpness": found[label].sharpness,
            "independent": independent,
            "displacement": DISPLACEMENT,
            "seconds": time.perf_counter() - begun,
        }
    progress(1.0, name)


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
    labels = batch["labels"]
    if "CausalLM" in type(model).__name__:
        labels = labels[:, 1:]  # each token is the target of the one before it
    return int((labels != IGNORED_LABEL).sum())


def _context(task: Task, kind: str) -> dict[str, Any]:
    return {"source": asdict(task.source), "model": model_of(task, TASKS[kind].title)}
