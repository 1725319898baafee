"""The loss along a direction: ``t ↦ f(x + t·u)`` for ``t ≥ 0``, by a line search that finds its own scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from stepscope.measuring.line_search import Line, Status, search
from stepscope.objective import Direction, Objective, vectors


@dataclass(frozen=True)
class Landscape:
    """The loss along a unit direction.

    Attributes:
        steps: lengths ``t`` at which the loss was evaluated, ascending, the first 0.
        losses: ``f(x + t·u)``, the same length; ``math.inf`` where it isn't finite.
        status: ``"bracketed"``: a local minimum lies between two points with larger losses. ``"no descent"``: no
            point is below ``f(x)`` by more than rounding. ``"unbounded"``: the loss still falls at the last point.
        best_step: the ``t`` of the first minimum that the line search meets: the lowest loss up to twice that ``t``.
            There may be a lower one beyond. 0 without descent.
        best_decrease: ``f(x) − f(x + best_step·u)``, ``≥ 0``.
    """

    steps: tuple[float, ...]
    losses: tuple[float, ...]
    status: Status
    best_step: float
    best_decrease: float


def scan(
    objective: Objective,
    u: Direction,
    *,
    slope: float,
    sharpness: float,
    loss: float | None = None,
    rounding: float = 0.0,
    also: Sequence[float] = (),
) -> Landscape:
    """Evaluates the loss along a unit direction ``u`` until the first local minimum is bracketed and met.

    Natural scales of directions differ by 10⁴ and more, so the first step is the best one of the second-order model. On
    return the parameters are ``x`` again, bit for bit.

    Args:
        objective: the loss; it is evaluated about 5 times.
        u: the unit direction.
        slope: ``∇f(x)ᵀu``.
        sharpness: ``uᵀHu``.
        loss: ``f(x)``, where it is known.
        rounding: of losses, where it is known to be larger than their size says (`rounding_of_losses`).
        also: further steps to evaluate the loss at.
    """
    with objective.measuring():
        eps = max(torch.finfo(objective.parameters[name].dtype).eps for name in u)
        start = objective.loss() if loss is None else loss
        line = Line(
            lambda t: objective.loss_at(u, t), start, slope, sharpness, noise=max(8 * eps * abs(start), rounding)
        )
        for t in also:
            line(t)
        status, best = search(line, first_step(start, slope, sharpness, vectors.norm(objective.parameters) or 1.0))
    steps = tuple(sorted(line.values))
    losses = tuple(line.values[t] for t in steps)
    return Landscape(steps, losses, status, best, max(start - line.values[best], 0.0))


def first_step(loss: float, slope: float, sharpness: float, scale: float) -> float:
    """The model's best step, or a step at which its tangent falls by a hundredth of the loss; at most `scale`."""
    if slope >= 0 or not math.isfinite(slope):
        return 1e-3 * scale
    return min(-slope / sharpness if sharpness > 0 else 1e-2 * abs(loss) / -slope, scale) or 1e-3 * scale
