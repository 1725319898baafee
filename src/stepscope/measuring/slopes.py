"""Losses and slopes ``uᵀ∇f`` beside a point: the curvature that a finite step meets, and whose the gradient is."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from stepscope.objective import Direction, Objective, vectors


@dataclass(frozen=True)
class SlopeCheck:
    """Whether a gradient is that of its loss, on a segment ``x ± hu``.

    Straight-through estimators, stop-gradients and gradient reversals replace the gradient of the loss by another.

    Attributes:
        by_losses: ``(f(x + hu) − f(x − hu)) / 2h``, the mean slope of the loss.
        by_gradients: ``(s(−h) + 4s(0) + s(h)) / 6`` with ``s(t) = uᵀ∇f(x + tu)``, the same by Simpson's rule.
        tolerance: how far they may differ: the change of ``s`` over the segment, and rounding.
    """

    by_losses: float
    by_gradients: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether they differ by no more than the tolerance."""
        return abs(self.by_losses - self.by_gradients) <= self.tolerance


@dataclass(frozen=True)
class Segment:
    """The loss on a segment ``x ± hu``.

    Attributes:
        curvature: a mean of ``uᵀHu`` over the segment.
        numerical_error: its error bar, from rounding.
        slope_check: whether the gradient is that of the loss there.
    """

    curvature: float
    numerical_error: float
    slope_check: SlopeCheck


def rounding_of_losses(objective: Objective, along: Direction, loss: float, slope: float) -> float:
    """How far rounding may move ``f(x − tu) − 2f(x) + f(x + tu)``, for two forward passes.

    A loss is a small difference of larger numbers where a model is nearly right, so its own size says little. Nearer to
    ``x`` than its curvature can be seen, all that is left of ``f(x + tu) − f(x) − t·uᵀ∇f`` is rounding.

    Args:
        objective: the loss.
        along: a unit direction.
        loss: ``f(x)``.
        slope: ``uᵀ∇f(x)``.
    """
    t = relative_step(objective, 8 * largest_eps(objective))
    seen = [abs(objective.loss_at(along, s) - loss - s * slope) for s in (t, -t)]
    return max(4 * largest_eps(objective) * abs(loss), *(8 * value for value in seen if math.isfinite(value)), 0.0)


def segment_of_losses(
    objective: Objective, u: Direction, h: float, loss: float, slope: float, rounding: float = 0.0
) -> Segment | None:
    """The segment by the losses at its ends, for two forward passes; ``None`` where one isn't finite.

    ``(f(x+hu) − 2f(x) + f(x−hu)) / h²`` is the mean of ``uᵀHu``, weighted by ``1 − |t|/h``. The mean slopes of the two
    halves differ by ``h`` times that, and the gradient of the loss lies between them, up to rounding and third
    derivatives. Where it doesn't, an eighth of the segment is tried, in which these are smaller. Where it doesn't there
    either, the gradients at the ends decide whether it is that of another function.

    Args:
        objective: the loss.
        u: a unit direction.
        h: half-length of the segment.
        loss: ``f(x)``.
        slope: ``uᵀ∇f(x)``.
        rounding: see `rounding_of_losses`.
    """
    segment = _ends(objective, u, h, loss, slope, rounding)
    if segment is None or segment.slope_check.agrees:
        return segment
    within = _ends(objective, u, h / 8, loss, slope, rounding)
    if within is not None and within.slope_check.agrees:
        return replace(segment, slope_check=within.slope_check)
    return replace(segment, slope_check=segment_of_gradients(objective, u, h, slope, rounding).slope_check)


def _ends(objective: Objective, u: Direction, h: float, loss: float, slope: float, rounding: float) -> Segment | None:
    ahead, behind = objective.loss_at(u, h), objective.loss_at(u, -h)
    if not math.isfinite(ahead + behind):
        return None
    rounding = max(rounding, 4 * largest_eps(objective) * max(abs(ahead), abs(behind)))
    bend = ahead - 2 * loss + behind
    tolerance = (abs(bend) + 2 * rounding) / h + 1e-3 * abs(slope)
    return Segment(bend / h**2, rounding / h**2, SlopeCheck((ahead - behind) / (2 * h), slope, tolerance))


def segment_of_gradients(objective: Objective, u: Direction, h: float, slope: float, rounding: float = 0.0) -> Segment:
    """The segment by the gradients at its ends, exact up to the rounding of slopes.

    ``(uᵀ∇f(x+hu) − uᵀ∇f(x−hu)) / 2h`` is the mean of ``uᵀHu``.

    Args:
        objective: the loss.
        u: a unit direction.
        h: half-length of the segment.
        slope: ``uᵀ∇f(x)``.
        rounding: of losses, see `rounding_of_losses`.

    Raises:
        UsageError: the loss isn't finite at an end.
    """
    with objective.measuring():
        (ahead, after), (behind, before) = (slopes_at(objective, u, t) for t in (h, -h))
        slopes = objective.mean(before), slope, objective.mean(after)
        check = slope_check(objective, h, objective.mean(behind), slopes, objective.mean(ahead), rounding)
        of_slopes = 8 * largest_eps(objective) * max(map(abs, slopes))
        return Segment((slopes[2] - slopes[0]) / (2 * h), of_slopes / (2 * h), check)


def curvature_ahead(objective: Objective, u: Direction, h: float, slope: float) -> float:
    """``uᵀ∇²f(x + hu)u`` (arXiv 2306.00204, eq. 4) by a central difference around that point, for one gradient.

    ``(uᵀ∇f(x+2hu) − uᵀ∇f(x)) / 2h``: the mean of the curvature between ``x`` and ``x + 2hu``.

    Args:
        objective: the loss.
        u: a unit direction.
        h: how far ahead.
        slope: ``uᵀ∇f(x)``.

    Raises:
        UsageError: the loss isn't finite at ``x + 2hu``.
    """
    with objective.measuring():
        _, slopes = slopes_at(objective, u, 2 * h)
        return (objective.mean(slopes) - slope) / (2 * h)


def slope_check(
    objective: Objective,
    h: float,
    behind: float,
    slopes: tuple[float, float, float],
    ahead: float,
    rounding: float = 0.0,
) -> SlopeCheck:
    """Compares losses with slopes on a segment ``x ± hu``.

    Args:
        objective: the loss.
        h: half-length of the segment.
        behind: ``f(x − hu)``.
        slopes: ``uᵀ∇f`` at ``x − hu``, ``x``, ``x + hu``.
        ahead: ``f(x + hu)``.
        rounding: of losses, where it is known to be larger than their size says (`rounding_of_losses`).
    """
    before, here, after = slopes
    by_gradients = (before + 4 * here + after) / 6
    rounding = max(rounding, 8 * largest_eps(objective) * max(abs(behind), abs(ahead))) / h
    change = abs(here - before) + abs(after - here)
    return SlopeCheck((ahead - behind) / (2 * h), by_gradients, change + rounding + 1e-3 * abs(by_gradients))


def slopes_at(
    objective: Objective, u: Direction, t: float, total: Direction | None = None, factor: float = 0.0
) -> tuple[list[float], list[float]]:
    """``f(x + tu)`` and ``uᵀ∇f(x + tu)`` of each micro-batch of all ranks.

    Adds ``factor · ∇f(x + tu)`` to `total`, as far as it is of this rank's micro-batches.
    """
    values, slopes = [], []
    with objective.displaced(u, t), objective.ranks.agreed("slopes"):
        for weight, loss in objective.losses():
            values.append(objective.finite(loss))  # its gradient may be finite where it isn't
            gradient = objective.derivative(loss)
            slopes.append(vectors.dot(u, gradient))
            if total is not None:
                vectors.add(total, gradient, weight * factor)
    return objective.ranks.concatenated(values), objective.ranks.concatenated(slopes)


def relative_step(objective: Objective, relative: float) -> float:
    """A step length in proportion to the weights: ``relative · ‖x‖``, or `relative` where all weights are zero."""
    return relative * (vectors.norm(objective.parameters) or 1.0)


def largest_eps(objective: Objective) -> float:
    """The relative rounding of the coarsest type among the parameters."""
    return max(torch.finfo(parameter.dtype).eps for parameter in objective.parameters.values())
