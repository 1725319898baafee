"""Pretraining on the spot: a model learns from data that its task doesn't see, and is kept under a digest.

A published checkpoint has one size, and can't be had everywhere. What it does to a model is had at any size: the kind
of model learns by its own kind's objective, from a half of the data that the task leaves alone. Each seed draws a
pretraining of its own, weights and order, so that seeds differ in all that is random. (The paper's seeds share one
checkpoint: its intervals, if it had any, would be about the order of batches alone.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.downloads import UnavailableError, cached_file
from stepscope.paper.tasks.pretrained import Weights
from stepscope.paper.tasks.task import Batch

STARTS = ("pretrained", "random")
"""Where a task's weights may begin."""

_WARM_UP = 10
"""The learning rate rises during one of so many parts of the steps."""


_told: ContextVar[Callable[[int, int], None]] = ContextVar("_told", default=lambda step, steps: None)  # noqa: ARG005


@contextmanager
def pretraining_told(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Tells how far a model is that is pretrained inside, wherever that happens.

    Args:
        tell: called before each step as ``tell(step, steps)``.
    """
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How far a model is pretrained on the spot.

    Attributes:
        steps: training steps.
        batch_size: examples of a batch.
        lr: the highest learning rate: it rises during the first tenth of the steps, and falls linearly to 0.
        examples: most examples to learn from.
    """

    steps: int
    batch_size: int
    lr: float
    examples: int = 40_000


BRIEF = Pretraining(steps=16, batch_size=16, lr=3e-3)
"""For tests."""


@dataclass(frozen=True)
class Lesson:
    """What a model is pretrained on.

    Attributes:
        title: one line, such as ``"masked words of 9,000 other reviews"``.
        model: gives the model of a seed, in training mode; ``model(**batch).loss`` is what is learned.
        kept: the part of that model whose weights are kept.
        batches: starts the endless sequence of training batches of a seed.
        held_out: a batch that isn't trained on; its loss says how much was learned.
        optimizer: of the parameters, at a learning rate that is set before each step.
        digest: of all that model and batches depend on, but for the seed and the settings.
    """

    title: str
    model: Callable[[int], nn.Module]
    kept: Callable[[nn.Module], nn.Module]
    batches: Callable[[int], Iterator[Batch]]
    held_out: Batch
    optimizer: Callable[[Any], torch.optim.Optimizer]
    digest: str


@dataclass(frozen=True)
class Learned:
    """A pretrained model.

    Attributes:
        weights: of the part that is kept, and its buffers, on the CPU.
        steps: training steps.
        before: the loss on the held-out batch at the start, nats.
        after: the same at the end.
    """

    weights: Weights
    steps: int
    before: float
    after: float

    @property
    def record(self) -> dict[str, float]:
        """How far it was pretrained, as `Task.pretraining` has it."""
        return {"steps": self.steps, "loss_before": self.before, "loss_after": self.after}


def check_start(start: str) -> None:
    """Refuses a start that isn't one of `STARTS`.

    Raises:
        UsageError: it isn't.
    """
    if start not in STARTS:
        raise UsageError(f"start is {start!r}: choose {' or '.join(STARTS)}")


def check_beginning(start: str, settings: Pretraining, *, possible: bool) -> None:
    """Refuses a start that isn't possible, and settings of a pretraining that can't be used.

    Args:
        start: one of `STARTS`.
        settings: of the pretraining.
        possible: whether there is a checkpoint, or data to pretrain on.

    Raises:
        UsageError: they don't fit.
    """
    check_start(start)
    for name, number in {"steps": 1, "batch_size": 2, "examples": 2}.items():
        if getattr(settings, name) < number:
            raise UsageError(f"pretraining has {name} {getattr(settings, name)}: at least {number} is needed")
    if not settings.lr > 0:
        raise UsageError(f"pretraining has lr {settings.lr:g}: it must be above 0")
    if start == "pretrained" and not possible:
        raise UsageError("nothing to pretrain on: give a checkpoint, or set data apart (set_apart=True)")


def digest_of(*facts: Any) -> str:
    """A SHA-256 of values that JSON can hold, hexadecimal; of others their `str` counts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def pretrained_here(lesson: Lesson, settings: Pretraining, seed: int) -> Learned:
    """Pretrains a model here and now, or takes the one pretrained so before out of the cache.

    On the GPU if there is one. The result depends on the arguments and the versions of torch and transformers, and in
    its last digits on the processor and the number of threads. No global random state is used or moved.

    Args:
        lesson: what is learned.
        settings: how far.
        seed: of the weights at the beginning, and of the order of batches. What is drawn of it is none of what the
            task draws of the same seed.

    Raises:
        UsageError: it diverged.
        MissingExtraError: transformers or safetensors is not installed.
    """
    safetensors = require("safetensors", "paper")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    versions = [torch.__version__, require("transformers", "paper").__version__, device.type]
    name = f"pretrained/{digest_of(2, versions, lesson.digest, asdict(settings), seed)[:32]}.safetensors"
    made: list[Learned] = []

    def fetch(scratch: Path) -> Path:
        made.append(_pretrained(lesson, settings, seed, device))
        losses = {"before": repr(made[0].before), "after": repr(made[0].after)}
        file = scratch / "weights.safetensors"
        require("safetensors.torch", "paper").save_file(made[0].weights, file, metadata=losses)
        return file

    try:
        path = cached_file(name, fetch)
        return made[0] if made else _read(safetensors, path, settings)
    except (UnavailableError, OSError):  # the cache only saves time here
        return made[0] if made else _pretrained(lesson, settings, seed, device)


def _read(safetensors: Any, path: Path, settings: Pretraining) -> Learned:
    with safetensors.safe_open(str(path), framework="pt") as file:
        losses: Mapping[str, str] = file.metadata()
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    return Learned(weights, settings.steps, float(losses["before"]), float(losses["after"]))


def _pretrained(lesson: Lesson, settings: Pretraining, seed: int, device: torch.device) -> Learned:
    drawn = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed)))
    model = lesson.model(drawn).to(device)
    before = _loss(model, lesson.held_out, device)
    _train(model, lesson.batches(drawn), settings, lesson.optimizer(model.parameters()), device)
    after = _loss(model, lesson.held_out, device)
    # Cloned, since the format takes no tensor twice, and tied weights are.
    state = lesson.kept(model).state_dict()
    weights = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    return Learned(weights, settings.steps, before, after)


def _loss(model: nn.Module, batch: Batch, device: torch.device) -> float:
    model.eval()
    with torch.no_grad():
        loss = float(model(**{name: value.to(device) for name, value in batch.items()}).loss)
    model.train()
    return loss


def _train(
    model: nn.Module,
    batches: Iterator[Batch],
    settings: Pretraining,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    with torch.enable_grad():
        for step in range(settings.steps):
            _told.get()(step, settings.steps)
            rising, falling = _WARM_UP * (step + 1) / settings.steps, 1 - step / settings.steps
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * min(1.0, rising) * falling
            optimizer.zero_grad()
            loss = model(**{name: value.to(device) for name, value in next(batches).items()}).loss
            if not torch.isfinite(loss):
                raise UsageError(f"pretraining diverged at step {step + 1}: lower its lr, which is {settings.lr:g}")
            loss.backward()
            optimizer.step()
