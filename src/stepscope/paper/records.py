"""What the experiments record, beside the directions that a probe records too (`stepscope.runs.DirectionRecord`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from stepscope.runs import Record


@dataclass(frozen=True, kw_only=True)
class LossRecord(Record):
    """The loss at one step of one training of the convergence experiment.

    Attributes:
        run: the training's name, of everything below but the step.
        task: its task.
        optimizer: what trains.
        original: the optimizer that this one is a variant of; ``None`` if it is none.
        phase: ``"search"`` of a learning rate, or ``"final"``.
        lr: the learning rate.
        bracketed: of a final training, whether both neighbors of its learning rate were worse at full length.
        seed: of the weights and of the order of the batches.
        step: updates so far.
        loss: of the evaluation batch; ``None`` where the training diverged.
        diverged: whether it did.
    """

    identity: ClassVar[tuple[str, ...]] = ("run", "step")

    run: str
    task: str
    optimizer: str
    original: str | None = None
    phase: str
    lr: float
    bracketed: bool | None = None
    seed: int
    step: int
    loss: float | None = None
    diverged: bool = False


@dataclass(frozen=True, kw_only=True)
class SmoothnessRecord(Record):
    """How much smoother the loss is without a group's largest coordinates: at one point, on one evaluation batch.

    Attributes:
        trajectory: the optimizer that moved the weights.
        seed: of the training and of the random removals.
        step: the step before which it was measured.
        batch: number of the evaluation batch.
        group: which coordinates.
        cut: those of at least so many times the mean column norm are removed.
        coordinates: how many the group has.
        removed: how many are removed.
        spectral_norm: of the Gauss-Newton matrix.
        spectral_norm_removed: without the removed coordinates.
        spectral_norm_random: without as many that are drawn at random, for each draw.
        fraction: ``removed / coordinates``.
        ratio: ``spectral_norm / spectral_norm_removed``; ``None`` where nothing is left.
        random_ratio: the largest of the ratios of random removals.
        examples: of the evaluation batch.
        loss: of the evaluation batch.
        seconds: spent on this record.
    """

    identity: ClassVar[tuple[str, ...]] = ("trajectory", "seed", "step", "batch", "group", "cut")
    renamed: ClassVar[Mapping[str, str]] = {
        "before": "spectral_norm",
        "after": "spectral_norm_removed",
        "random": "spectral_norm_random",
    }

    trajectory: str
    seed: int
    step: int
    batch: int
    group: str
    cut: float
    coordinates: int | None = None
    removed: int | None = None
    spectral_norm: float | None = None
    spectral_norm_removed: float | None = None
    spectral_norm_random: tuple[float | None, ...] = ()
    fraction: float | None = None
    ratio: float | None = None
    random_ratio: float | None = None
    examples: int | None = None
    loss: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class TheoryRecord(Record):
    """What the theory experiment records: of drawn losses, or of the coordinates of a model.

    Attributes:
        seed: of draws, weights, batches and samples.
        group: what the record is about, as the tables name it.
        seconds: spent on it.
    """

    identity: ClassVar[tuple[str, ...]] = ("trajectory", "seed", "step", "group")

    seed: int
    group: str
    seconds: float | None = None

    @classmethod
    def from_json(cls, line: Mapping[str, Any]) -> Self:
        """A `BoundRecord` or a `CorrelationRecord`."""
        if cls is not TheoryRecord:
            return super().from_json(line)
        kind = BoundRecord if "family" in line else CorrelationRecord
        return kind.from_json(line)  # type: ignore[return-value]

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells it from others; a drawn loss has no trajectory and no step."""
        return tuple(getattr(self, name, None) for name in self.identity)


@dataclass(frozen=True, kw_only=True)
class Margins:
    """Measured decrease minus the guaranteed one, relative, over draws."""

    violations: int
    least_margin: float
    median_margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class BoundRecord(TheoryRecord):
    """Appendix A's bound on drawn losses of one family, at one clipped fraction.

    Attributes:
        family: of the losses.
        fraction: of the coordinates that is clipped.
        draws: how many losses.
        clipped: the margins with clipping.
        plain: without.
        block: by blocks of coordinates; ``None`` where the family has none.
        guarantees_more: draws in which the bound with clipping is larger.
        predicted_more: draws in which the derived condition says so.
        decreases_more: draws in which the loss falls more with clipping.
        disagreements: draws in which bound and condition disagree.
    """

    family: str
    fraction: float
    draws: int
    clipped: Margins | None = None
    plain: Margins | None = None
    block: Margins | None = None
    guarantees_more: int
    predicted_more: int | None = None
    decreases_more: int
    disagreements: int


@dataclass(frozen=True, kw_only=True)
class Rank:
    """Spearman's rank correlation with its interval; ``None`` where there is none."""

    rho: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class CoordinatePoints:
    """``|gᵢ|``, ``|Hᵢᵢ|`` and ``‖eᵢᵀH‖`` of some coordinates, for a figure."""

    gradient: tuple[float, ...]
    diagonal: tuple[float, ...]
    row_norm: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class CorrelationRecord(TheoryRecord):
    """Curvature against gradient, coordinate by coordinate, in one part of a model at one step.

    Attributes:
        trajectory: the optimizer that moved the weights.
        step: the step before which it was measured.
        task: the model's task.
        scope: the beginning of the names of the part's parameters; empty for the whole model.
        loss: of the evaluation batch.
        of: how many coordinates the part has.
        coordinates: how many were looked at.
        left_out: how many of those the loss doesn't depend on.
        diagonal: the rank correlation of ``|gᵢ|`` with ``|Hᵢᵢ|``.
        row_norm: with ``‖eᵢᵀH‖``.
        points: the values of up to 200 coordinates.
    """

    trajectory: str | None = None
    step: int | None = None
    task: str | None = None
    scope: str = ""
    loss: float | None = None
    of: int | None = None
    coordinates: int | None = None
    left_out: int | None = None
    diagonal: Rank
    row_norm: Rank
    points: CoordinatePoints | None = None


@dataclass(frozen=True, kw_only=True)
class AgreementRecord(Record):
    """The sharpness of one direction at one task's point, by two paths.

    Attributes:
        run: the point's name.
        task: likewise.
        trajectory: the optimizer that moved the weights.
        seed: of the training.
        step: the step before which it was measured.
        direction: whose update it is.
        sharpness: as the trajectories have it.
        independent: by differences of float64 gradients.
        displacement: their half-length, relative to ``‖x‖``.
        seconds: spent on the latter.
    """

    identity: ClassVar[tuple[str, ...]] = ("run", "trajectory", "seed", "step", "direction")

    run: str
    task: str
    trajectory: str
    seed: int
    step: int
    direction: str
    sharpness: float | None = None
    independent: float | None = None
    displacement: float | None = None
    seconds: float | None = None
