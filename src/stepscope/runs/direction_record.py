"""The record of one direction, which a probe and the experiments along trajectories write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from stepscope.runs.records import Record
from stepscope.runs.storage import plain


@dataclass(frozen=True, kw_only=True)
class RecordedLandscape:
    """The loss along a unit direction: see `stepscope.measuring.landscape.Landscape`.

    Attributes:
        steps: lengths, ascending, the first one 0.
        losses: there; ``None`` where the loss isn't finite.
        status: whether a minimum was found.
    """

    steps: tuple[float, ...]
    losses: tuple[float | None, ...]
    status: str = "not stated"


@dataclass(frozen=True, kw_only=True)
class RecordedMagnitudes:
    """The histogram of a direction's coordinates: see `stepscope.measuring.magnitudes.Magnitudes`."""

    zeros: int
    lowest: int
    per_decade: int
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class RecordedShare:
    """What the largest coordinates carry: of the squared norm of a unit direction, and of its sharpness."""

    norm: float | None = None
    sharpness: float | None = None


@dataclass(frozen=True, kw_only=True)
class DirectionRecord(Record):
    """One direction at one step of a training.

    Numbers are those of `stepscope.Measurement`, under the same names; ``None`` where something wasn't measured or
    isn't finite.

    Attributes:
        trajectory: the optimizer that moved the weights.
        seed: of the training.
        step: the step before which it was measured, counted from 1.
        direction: whose update it is.
        layers: ``u_ℓᵀ(Hu)_ℓ`` of each layer ``ℓ``.
        top: by fraction of the coordinates (as text), what the largest of them carry.
        magnitudes: the histogram of ``|dᵢ|``.
        gradient: the gradients that the optimizers saw: ``"training"`` or ``"evaluation"``.
        followed_steps: how many steps the other optimizers had followed the training.
        lr: the learning rate of each parameter group.
        step_error: how far the step that was made is from the one measured, as a part of its length.
        overshoot_smoothed: the moving geometric mean of `overshoot`.
    """

    identity: ClassVar[tuple[str, ...]] = ("trajectory", "seed", "step", "direction")

    trajectory: str
    seed: int
    step: int
    direction: str
    loss: float | None = None
    gradient_norm: float | None = None
    norm: float | None = None
    slope: float | None = None
    loss_slope: float | None = None
    gradient_agrees: bool | None = None
    correlation: float | None = None
    sharpness: float | None = None
    sharpness_stderr: float | None = None
    numerical_error: float | None = None
    sharpness_finite: float | None = None
    sharpness_finite_error: float | None = None
    finite_step: float | None = None
    sharpness_robust: float | None = None
    predicted_step: float | None = None
    predicted_decrease: float | None = None
    edge_ratio: float | None = None
    best_step: float | None = None
    best_decrease: float | None = None
    landscape: RecordedLandscape | None = None
    lr_step: float | None = None
    lr_loss: float | None = None
    overshoot: float | None = None
    within_layer: float | None = None
    cross_layer: float | None = None
    method: str | None = None
    method_reason: str | None = None
    dtype: str | None = None
    seconds: float | None = None
    layers: dict[str, float | None] | None = None
    top: dict[str, RecordedShare] | None = None
    magnitudes: RecordedMagnitudes | None = None
    gradient: str | None = None
    followed_steps: int | None = None
    lr: tuple[float | None, ...] | None = None
    step_error: float | None = None
    overshoot_smoothed: float | None = None

    @classmethod
    def of(cls, measurement: Mapping[str, Any], **place: Any) -> DirectionRecord:
        """The record of a measurement.

        Args:
            measurement: `Measurement.record()`.
            **place: the other fields.
        """
        return cls.from_json(plain({**place, **measurement}, "record"))


def family(direction: str) -> str:
    """What a direction is a variant of: its name up to the word "clip".

    Example:
        >>> family("adam clip 50% (update)"), family("muon")
        ('adam', 'muon')
    """
    return re.split(r"\s+clip\b", direction, maxsplit=1)[0]


def is_own(record: DirectionRecord) -> bool:
    """Whether a record is of the update that the training optimizer itself was about to make, as a probe measures it.

    Example:
        >>> place = {"trajectory": "AdamW", "seed": 0, "step": 1}
        >>> [is_own(DirectionRecord(**place, direction=name)) for name in ("own AdamW", "own AdamW clip 50%", "sgd")]
        [True, False, False]
    """
    direction = record.direction
    return direction.startswith("own ") and family(direction) == direction
