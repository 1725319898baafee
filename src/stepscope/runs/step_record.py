"""The record of the optimizer's own step at one step of a training, from losses alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from stepscope.runs.records import Record


@dataclass(frozen=True, kw_only=True)
class RecordedEdge:
    """The loss at multiples of one step, on one set of examples: see `stepscope.measuring.edge.Edge`."""

    loss: float
    multiples: tuple[float, ...]
    losses: tuple[float | None, ...]
    norm: float | None = None
    status: str = "not stated"
    critical_multiple: float | None = None
    critical_bracket: tuple[float | None, ...] | None = None
    lowest_multiple: float | None = None
    realized_change: float | None = None
    realized_stderr: float | None = None
    predicted_change: float | None = None
    trust_ratio: float | None = None
    directional_smoothness: float | None = None
    slope_stderr: float | None = None
    signal_to_noise: float | None = None
    decay_slope: float | None = None
    decay_change: float | None = None
    noise: float | None = None
    forwards: int | None = None


@dataclass(frozen=True, kw_only=True)
class StepRecord(Record):
    """The step that the optimizer made at one step of a training.

    Attributes:
        trajectory: the optimizer that moved the weights.
        seed: of the training.
        step: the step, counted from 1.
        steps: the length of the training, where it is known.
        lr: the learning rate of each parameter group.
        peak_lr: the largest learning rate of each group so far.
        norm: ``‖d‖``, the length of the step.
        batch_loss: ``f_b(x)``: the loss on the batch whose gradient made the step, as training evaluates it; ``None``
            where that batch isn't known.
        batch_change: ``f_b(x + d) − f_b(x)``.
        batch_slope: ``g_bᵀd``, the change that the gradient of that batch foretells; 0 where the loss isn't finite.
        batch_noise: the error of ``batch_change`` in the precision of the loss.
        batch_size: how many examples that batch has, as far as its first tensor tells: the rows of it.
        slope_by: where ``g_b`` comes from: ``"step"`` (what ``backward`` left) or ``"recomputed"``.
        edges: by the name of the examples, the loss at multiples of the step.
        seconds: time spent.
    """

    identity: ClassVar[tuple[str, ...]] = ("trajectory", "seed", "step")

    trajectory: str
    seed: int
    step: int
    steps: int | None = None
    lr: tuple[float | None, ...] | None = None
    peak_lr: tuple[float | None, ...] | None = None
    norm: float | None = None
    batch_loss: float | None = None
    batch_change: float | None = None
    batch_slope: float | None = None
    batch_noise: float | None = None
    batch_size: int | None = None
    slope_by: str | None = None
    edges: dict[str, RecordedEdge] | None = None
    seconds: float | None = None
