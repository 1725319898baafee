"""Losses that reach modules, tensors, numbers and generators in every way that users write.

Each maker takes a `Task` and gives a `Loss`; all add a term of their own to the task's plain loss, so that they fit any
model. What a loss reaches is among its roots also where nothing but a global name leads there.
"""

import dataclasses
import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from drawn import registry
from drawn.models import Task

LossFunction = Callable[[nn.Module, Any], Tensor]

discriminator: Any = None


@dataclasses.dataclass
class Loss:
    """A loss function with what it reaches.

    Attributes:
        function: ``function(model, batch)``; ``None`` for the model's own loss.
        roots: what it reaches, by name.
        between: what the loop does before each step of the model: the discriminator's own step, say.
    """

    function: LossFunction | None
    roots: dict[str, Any] = dataclasses.field(default_factory=dict)
    between: Callable[[nn.Module, Any], None] | None = None


def _teacher() -> nn.Module:
    """Moves when it is called: batch statistics, and random numbers for its dropout."""
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 3)).train()


def _critic() -> nn.Module:
    return nn.Sequential(spectral_norm(nn.Linear(3, 8)), nn.LeakyReLU(), nn.Linear(8, 1)).train()


def _distance(found: Any, teacher: nn.Module) -> Tensor:
    return F.mse_loss(found.z.float(), teacher(found.view.float()).detach())


def function(task: Task) -> Loss:
    return Loss(lambda model, batch: task.run(model, batch).loss)


def own(task: Task) -> Loss:
    return Loss(None)


def closure(task: Task) -> Loss:
    teacher = _teacher()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        return found.loss + 0.1 * _distance(found, teacher)

    return Loss(loss)


class Judge:
    """Holds a critic, and a scale that its owner sets."""

    def __init__(self, task: Task) -> None:
        self.task, self.parts, self.calls = task, {"critic": _critic()}, 0

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        found = self.task.run(model, batch)
        self.calls += 1
        return found.loss + 0.1 * F.softplus(-self.parts["critic"](found.z.float())).mean()


def bound_method(task: Task) -> Loss:
    return Loss(Judge(task).loss)


def _with_teacher(teacher: nn.Module, task: Task, model: nn.Module, batch: Any) -> Tensor:
    found = task.run(model, batch)
    return found.loss + 0.1 * _distance(found, teacher)


def partial(task: Task) -> Loss:
    return Loss(functools.partial(_with_teacher, _teacher(), task))


class Criterion(nn.Module):
    """A loss that is a module, normalized by a running mean of itself; in evaluation mode it doesn't move."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self.register_buffer("mean", torch.ones(()))

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        loss = self.task.run(model, batch).loss
        if self.training:
            self.mean.mul_(0.9).add_(loss.detach(), alpha=0.1)
        return loss / (1 + self.mean)


class RestlessCriterion(Criterion):
    """Moves at each call, in any mode."""

    def forward(self, model: nn.Module, batch: Any) -> Tensor:
        loss = self.task.run(model, batch).loss
        self.mean.mul_(0.9).add_(loss.detach(), alpha=0.1)
        return loss / (1 + self.mean)


def criterion(task: Task) -> Loss:
    return Loss(Criterion(task))


def restless_criterion(task: Task) -> Loss:
    module = RestlessCriterion(task)
    return Loss(lambda model, batch: module(model, batch))


def _adversary(task: Task) -> tuple[nn.Module, Callable[[nn.Module, Any], None], Any]:
    """A discriminator, what its own training does between the steps of the model, and its optimizer."""
    critic = _critic()
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-2)

    def between(model: nn.Module, batch: Any) -> None:
        with torch.no_grad():
            z = task.run(model, batch).z.float()
        optimizer.zero_grad()
        (F.softplus(-critic(torch.randn_like(z))) + F.softplus(critic(z))).mean().backward()
        optimizer.step()

    return critic, between, optimizer


def adversarial(task: Task) -> Loss:
    critic, between, optimizer = _adversary(task)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        return found.loss + 0.1 * F.softplus(-critic(found.z.float())).mean()

    return Loss(loss, {"discriminator": critic, "its optimizer": optimizer}, between)


def adversarial_by_global(task: Task) -> Loss:
    global discriminator
    discriminator, between, optimizer = _adversary(task)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        return found.loss + 0.1 * F.softplus(-discriminator(found.z.float())).mean()

    return Loss(loss, {"discriminator": discriminator, "its optimizer": optimizer}, between)


def adversarial_by_namespace(task: Task) -> Loss:
    registry.discriminator, between, optimizer = _adversary(task)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        return found.loss + 0.1 * F.softplus(-registry.discriminator(found.z.float())).mean()

    return Loss(loss, {"discriminator": registry.discriminator, "its optimizer": optimizer}, between)


def distillation(task: Task) -> Loss:
    teacher, temperature = _teacher(), 2.0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        with torch.no_grad():
            target = F.softmax(teacher(found.view.float()) / temperature, -1)
        return found.loss + F.kl_div(F.log_softmax(found.z.float() / temperature, -1), target, reduction="batchmean")

    return Loss(loss, {"teacher": teacher})


def _queue_loss(z: Tensor, queue: Tensor) -> Tensor:
    z = F.normalize(z.float(), dim=1)
    return 0.1 * torch.logsumexp(z @ F.normalize(queue, dim=1).T, 1).mean()


def queue_in_closure(task: Task) -> Loss:
    queue, pointer = torch.randn(12, 3), [0]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        term = _queue_loss(found.z, queue.clone())
        with torch.no_grad():
            queue[pointer[0]] = found.z.float().mean(0)
        pointer[0] = (pointer[0] + 1) % len(queue)
        return found.loss + term

    return Loss(loss)


class Queue:
    """Keeps its queue and pointer as attributes, and replaces both."""

    def __init__(self, task: Task) -> None:
        self.task, self.queue, self.pointer = task, torch.randn(12, 3), 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        found = self.task.run(model, batch)
        term = _queue_loss(found.z, self.queue)
        rows = self.queue.clone()
        rows[self.pointer] = found.z.detach().float().mean(0)
        self.queue, self.pointer = rows, (self.pointer + 1) % len(rows)
        return found.loss + term


def queue_in_object(task: Task) -> Loss:
    return Loss(Queue(task))


def queue_in_array(task: Task) -> Loss:
    queue, pointer = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32), {"row": 0}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        term = _queue_loss(found.z, torch.from_numpy(queue.copy()))
        queue[pointer["row"]] = found.z.detach().float().mean(0).numpy()
        pointer["row"] = (pointer["row"] + 1) % len(queue)
        return found.loss + term

    return Loss(loss)


def annealing(task: Task) -> Loss:
    calls = 0

    def loss(model: nn.Module, batch: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return task.run(model, batch).loss * (1 + 1 / calls)

    return Loss(loss)


class Annealed:
    """An object that is called, with a number that each call raises."""

    def __init__(self, task: Task) -> None:
        self.task, self.calls, self.history = task, 0, []

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        self.calls += 1
        self.history.append(self.calls)
        return self.task.run(model, batch).loss * (1 + 1 / self.calls)


def annealing_object(task: Task) -> Loss:
    return Loss(Annealed(task))


def iterator(task: Task) -> Loss:
    numbers = itertools.count(1)
    return Loss(lambda model, batch: task.run(model, batch).loss * (1 + 1 / next(numbers)))


def torch_generator(task: Task) -> Loss:
    generator = torch.Generator().manual_seed(3)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return task.run(model, batch).loss * (1 + 0.1 * torch.rand((), generator=generator))

    return Loss(loss)


def python_generator(task: Task) -> Loss:
    generator = random.Random(3)
    return Loss(lambda model, batch: task.run(model, batch).loss * (1 + 0.1 * generator.random()))


def numpy_generator(task: Task) -> Loss:
    holder = {"generator": np.random.default_rng(3)}
    return Loss(lambda model, batch: task.run(model, batch).loss * (1 + 0.1 * float(holder["generator"].random())))


def global_generators(task: Task) -> Loss:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        factor = random.random() + float(np.random.rand()) + float(torch.rand(()))
        return task.run(model, batch).loss * (1 + 0.1 * factor)

    return Loss(loss)


def imported_inside(task: Task) -> Loss:
    registry.TEACHERS["student's"] = _teacher()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        from drawn.registry import TEACHERS

        found = task.run(model, batch)
        return found.loss + 0.1 * _distance(found, TEACHERS["student's"])

    return Loss(loss, {"teacher": registry.TEACHERS})


def nested_container(task: Task) -> Loss:
    teachers = {"all": [(_teacher(), 0.1), (_teacher(), 0.2)]}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        return found.loss + sum(weight * _distance(found, teacher) for teacher, weight in teachers["all"])

    return Loss(loss)


@dataclasses.dataclass
class Settings:
    """A run's settings, which hold a module too."""

    weight: float
    teacher: nn.Module


def in_dataclass(task: Task) -> Loss:
    settings = Settings(0.1, _teacher())

    def loss(model: nn.Module, batch: Any) -> Tensor:
        found = task.run(model, batch)
        return found.loss + settings.weight * _distance(found, settings.teacher)

    return Loss(loss)


def default_argument(task: Task) -> Loss:
    def loss(model: nn.Module, batch: Any, teacher: nn.Module = _teacher()) -> Tensor:  # noqa: B008
        found = task.run(model, batch)
        return found.loss + 0.1 * _distance(found, teacher)

    return Loss(loss)


def through_functions(task: Task) -> Loss:
    """The teacher is in the closure of a function that is in the closure of the loss."""
    teacher = _teacher()

    def distance(found: Any) -> Tensor:
        return _distance(found, teacher)

    return Loss(lambda model, batch: (found := task.run(model, batch)).loss + 0.1 * distance(found))


LOSSES: dict[str, Callable[[Task], Loss]] = {
    "function": function,
    "the model's own": own,
    "closure over a teacher": closure,
    "bound method, spectral critic": bound_method,
    "partial": partial,
    "criterion module": criterion,
    "criterion that moves in any mode": restless_criterion,
    "GAN": adversarial,
    "GAN, discriminator global": adversarial_by_global,
    "GAN, discriminator of another module": adversarial_by_namespace,
    "distillation": distillation,
    "queue in the closure": queue_in_closure,
    "queue in an object": queue_in_object,
    "queue in an array": queue_in_array,
    "annealed by a counter": annealing,
    "annealed by an object": annealing_object,
    "annealed by an iterator": iterator,
    "torch generator": torch_generator,
    "python generator": python_generator,
    "numpy generator": numpy_generator,
    "global generators": global_generators,
    "teacher imported inside": imported_inside,
    "teachers in a nested container": nested_container,
    "teacher in a dataclass": in_dataclass,
    "teacher as a default argument": default_argument,
    "teacher behind two functions": through_functions,
}
