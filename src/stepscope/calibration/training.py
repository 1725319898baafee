"""One training with the probe that ships attached to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from stepscope.calibration.jobs import ALL_TASKS, Curve, Job
from stepscope.calibration.tasks import CalibrationTask, Loss
from stepscope.directions import Lion
from stepscope.runs import Record, StepRecord

HELD_OUT = 256
_ENDS = (0.97, 1.0)
"""The parts of the training after which the held-out loss is taken; its mean counts."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord(Record):
    """What came of one training.

    Attributes:
        task: see `Curve`, as all up to the seed.
        rate: the peak of the learning rate.
        parameters: of the model.
        steps: the length of the training.
        final: the held-out loss at its end; ``None`` where it isn't finite.
        probed: of each measured step: number, rate as a part of the peak, and `batch_loss`, `batch_change`,
            `batch_slope`, `batch_noise`.
    """

    identity = ("task", "optimizer", "schedule", "batch_size", "variant", "seed", "rate")

    task: str
    optimizer: str
    schedule: str
    batch_size: int
    variant: str
    seed: int
    rate: float
    parameters: int
    steps: int
    final: float | None
    probed: tuple[tuple[float | None, ...], ...]

    @property
    def curve(self) -> Curve:
        """What it shares with the trainings at other rates."""
        return Curve(self.task, self.optimizer, self.schedule, self.batch_size, self.variant, self.seed)

    def step_records(self) -> list[StepRecord]:
        """The measured steps as a probe recorded them."""
        return [
            StepRecord(
                trajectory=self.optimizer, seed=self.seed, step=int(step or 0), steps=self.steps,
                lr=((part or 0.0) * self.rate,), peak_lr=(self.rate,), batch_loss=loss, batch_change=change,
                batch_slope=slope, batch_noise=noise,
            )
            for step, part, loss, change, slope, noise in self.probed
        ]  # fmt: skip


class Attached(Protocol):
    """What measures the steps of a training: a probe."""

    def loss_fn(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a training batch."""
        ...

    @property
    def step_records(self) -> Sequence[dict[str, Any]]:
        """The steps measured so far, as `steps.jsonl` has them."""
        ...


Attach = Callable[[nn.Module, list[Optimizer], Loss, Any, int], AbstractContextManager[Attached]]
"""``attach(model, optimizers, loss_fn, an evaluation batch, steps)``."""


def train(job: Job, attach: Attach) -> TrainingRecord:
    """Trains, measures steps on the way, and says what the held-out loss came to.

    Args:
        job: the training.
        attach: attaches what measures.
    """
    curve, task = job.curve, ALL_TASKS[job.curve.task]
    torch.manual_seed(100 + curve.seed)
    model = task.make(0.1 if curve.variant == "dropout" else 0.0)
    loss_fn = _under_autocast(task.loss) if curve.variant == "bfloat16" else task.loss
    held_out = task.batch(True, torch.Generator().manual_seed(777), HELD_OUT)
    optimizers = _optimizers(model, job)
    peaks = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
    losses = []
    ends = {math.ceil(part * task.steps) for part in _ENDS}
    generator = torch.Generator().manual_seed(curve.seed)
    one = task.batch(True, torch.Generator().manual_seed(778), 1)  # edges on it are measured too, and not needed
    with attach(model, optimizers, loss_fn, one, task.steps) as attached:
        for step in range(1, task.steps + 1):
            batch = task.batch(False, generator, curve.batch_size)
            _set_rates(optimizers, peaks, part_of_peak(curve.schedule, step, task.steps))
            loss = attached.loss_fn(model, batch)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if task.clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), task.clip)
            for optimizer in optimizers:
                optimizer.step()
            if not math.isfinite(loss.item()):
                losses.append(math.inf)
                break
            if step in ends:
                losses.append(_held_out_loss(model, task, held_out))
        records = [StepRecord.from_json(record) for record in attached.step_records]
        probed = tuple(_condensed(record, peaks) for record in records if record.batch_slope is not None)
    final = sum(losses) / len(losses)
    return TrainingRecord(
        **vars(curve), rate=job.rate, parameters=sum(p.numel() for p in model.parameters()), steps=task.steps,
        final=_rounded(final), probed=probed,
    )  # fmt: skip


@contextmanager
def probe(model: nn.Module, optimizers: list[Optimizer], loss_fn: Loss, batch: Any, steps: int) -> Iterator[Attached]:
    """The probe that ships, with its defaults, and without a limit of the overhead.

    Measuring a step costs a model as small as these about as much as the step, and a larger one a third of it. Without
    the limit as many steps are measured as the schedule wants, which is what larger models get.
    """
    from stepscope.probe import Probe

    limits: dict[str, Any] = {"max_overhead": None, "every": steps + 1}
    with Probe(model, optimizers, loss_fn, [batch], steps=steps, quiet=True, **limits) as attached:
        yield attached


def part_of_peak(schedule: str, step: int, steps: int) -> float:
    """The learning rate at a step, counted from 1.

    Args:
        schedule: see `Curve`.
        step: the step.
        steps: the length of the training.

    Example:
        >>> [round(part_of_peak("wsd", step, 100), 2) for step in (1, 10, 80, 90, 100)]
        [0.1, 1.0, 1.0, 0.5, 0.0]
    """
    if schedule == "constant":
        return 1.0
    warm, done = 0.1, step / steps
    if done < warm:
        return done / warm
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (done - warm) / (1 - warm)))
    return min(1.0, (1 - done) / 0.2)


def _optimizers(model: nn.Module, job: Job) -> list[Optimizer]:
    """Muon takes the matrices within the network, as is usual, and AdamW the rest at a tenth of the rate."""
    parameters, rate = list(model.parameters()), job.rate
    if job.curve.optimizer == "sgd":
        return [torch.optim.SGD(parameters, lr=rate, momentum=0.9)]
    if job.curve.optimizer == "adamw":
        return [torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01)]
    if job.curve.optimizer == "lion":
        return [Lion(parameters, lr=rate, weight_decay=0.1)]
    ends = {id(p) for module in model.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag) for p in module.parameters()}  # noqa: E501  # fmt: skip
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    ends |= {id(p) for p in last.parameters()}
    inner = [p for p in parameters if p.dim() == 2 and id(p) not in ends]
    rest = [p for p in parameters if not any(p is one for one in inner)]
    muon: list[Optimizer] = [torch.optim.Muon(inner, lr=rate, weight_decay=0.0)] if inner else []
    return [*muon, torch.optim.AdamW(rest, lr=rate / 10, weight_decay=0.01)]


def _set_rates(optimizers: Sequence[Optimizer], peaks: Sequence[float], part: float) -> None:
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, peak in zip(groups, peaks, strict=True):
        group["lr"] = part * peak


def _under_autocast(loss_fn: Loss) -> Loss:
    def evaluated(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_fn(model, batch)

    return evaluated


@torch.no_grad()
def _held_out_loss(model: nn.Module, task: CalibrationTask, batch: Any) -> float:
    model.eval()
    loss = float(task.loss(model, batch))
    model.train()
    return loss


def _condensed(record: StepRecord, peaks: Sequence[float]) -> tuple[float | None, ...]:
    rates = zip(record.lr or (), peaks, strict=False)
    part = min((rate / peak for rate, peak in rates if rate is not None), default=None)
    terms = (part, record.batch_loss, record.batch_change, record.batch_slope, record.batch_noise)
    return (record.step, *map(_rounded, terms))


def _rounded(value: float | None) -> float | None:
    """Five digits are enough, and take half the room."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
