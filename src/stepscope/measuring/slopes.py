"""Slopes ``uᵀ∇f`` beside a point: curvature over a finite segment, and whether a gradient is that of its loss."""

from __future__ import annotations

from dataclasses import dataclass

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


def segment(objective: Objective, u: Direction, h: float, slope: float) -> tuple[float, SlopeCheck]:
    """The mean of ``uᵀHu`` over the segment ``x ± hu``, and whether the gradient is that of the loss there.

    The mean is ``(uᵀ∇f(x+hu) − uᵀ∇f(x−hu)) / 2h``.

    Args:
        objective: the loss.
        u: a unit direction.
        h: half-length of the segment.
        slope: ``uᵀ∇f(x)``.

    Raises:
        UsageError: the loss isn't finite at an end.
    """
    with objective.measuring():
        (ahead, after), (behind, before) = (slopes_at(objective, u, t) for t in (h, -h))
        slopes = objective.mean(before), slope, objective.mean(after)
        check = slope_check(objective, h, objective.mean(behind), slopes, objective.mean(ahead))
        return (slopes[2] - slopes[0]) / (2 * h), check


def slope_check(
    objective: Objective, h: float, behind: float, slopes: tuple[float, float, float], ahead: float
) -> SlopeCheck:
    """Compares losses with slopes on a segment ``x ± hu``.

    Args:
        objective: the loss.
        h: half-length of the segment.
        behind: ``f(x − hu)``.
        slopes: ``uᵀ∇f`` at ``x − hu``, ``x``, ``x + hu``.
        ahead: ``f(x + hu)``.
    """
    before, here, after = slopes
    by_gradients = (before + 4 * here + after) / 6
    eps = max(torch.finfo(parameter.dtype).eps for parameter in objective.parameters.values())
    rounding = 8 * eps * max(abs(behind), abs(ahead)) / h
    change = abs(here - before) + abs(after - here)
    return SlopeCheck((ahead - behind) / (2 * h), by_gradients, change + rounding + 1e-3 * abs(by_gradients))


def slopes_at(
    objective: Objective, u: Direction, t: float, total: Direction | None = None, factor: float = 0.0
) -> tuple[list[float], list[float]]:
    """``f(x + tu)`` and ``uᵀ∇f(x + tu)`` of each micro-batch; adds ``factor · ∇f(x + tu)`` to `total`."""
    values, slopes = [], []
    with objective.displaced(u, t):
        for weight, loss in objective.losses():
            values.append(objective.finite(loss))  # its gradient may be finite where it isn't
            gradient = objective.derivative(loss)
            slopes.append(vectors.dot(u, gradient))
            if total is not None:
                vectors.add(total, gradient, weight * factor)
    return values, slopes


def relative_step(objective: Objective, relative: float) -> float:
    """A step length in proportion to the weights: ``relative · ‖x‖``, or `relative` where all weights are zero."""
    return relative * (vectors.norm(objective.parameters) or 1.0)
