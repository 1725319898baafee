"""How much to clip: one direction at many fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stepscope.clipping import check_fraction, clamp_, fraction_threshold
from stepscope.errors import UsageError
from stepscope.measuring.measurement import Measurement, measure
from stepscope.objective import Objective, check_objective

FRACTIONS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True)
class ClipSweep:
    """What clipping makes of a direction.

    Attributes:
        measurements: ``{fraction: measurement}`` of the direction with that fraction of its coordinates clipped; 0 is
            the direction as it is, 1 its sign.
        best: the fraction with the largest `Measurement.best_decrease`, the smallest of equals: the one that a single
            step gains most with, at this point of this training. ``None`` if none descends.
    """

    measurements: dict[float, Measurement]
    best: float | None

    def __str__(self) -> str:
        """A table of the sweep."""
        lines = ["fraction   sharpness  correlation  best decrease"]
        for fraction, m in self.measurements.items():
            mark = "  <- best" if fraction == self.best else ""
            lines.append(f"{fraction:8g} {m.sharpness:11.4g} {m.correlation:12.4f} {m.best_decrease:14.4g}{mark}")
        return "\n".join(lines)


def clip_sweep(
    objective: Objective, direction: Mapping[str, Tensor] | None = None, fractions: Sequence[float] = FRACTIONS
) -> ClipSweep:
    """Measures a direction with more and more of its coordinates clipped (Pan and Li, §4).

    Args:
        objective: what is measured.
        direction: what an optimizer would add to the parameters; ``None``: minus the objective's gradient. It may be
            any direction that clipping makes sense for, a momentum, say; not that of a sign rule, which has nothing to
            clip.
        fractions: the grid, each between 0 and 1. Memory: one copy of the direction for each.

    Raises:
        UsageError: a fraction that can't be used, none at all, or a direction that doesn't fit the model.

    Example:
        >>> import torch
        >>> w = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.ones(10))})
        >>> curvature = torch.tensor([100.0] + [1.0] * 9)  # the paper's motivating example: one bad coordinate
        >>> f = Objective(w, lambda m, h: 0.5 * (h * m["x"] ** 2).sum(), [curvature], lambda _: 1)
        >>> sweep = clip_sweep(f, fractions=[0, 0.1])
        >>> [round(m.sharpness, 1) for m in sweep.measurements.values()], sweep.best
        ([99.9, 10.9], 0.1)
    """
    check_objective(objective)
    if not fractions:
        raise UsageError("no fractions to sweep over")
    for fraction in fractions:
        check_fraction(fraction)
    if direction is None:
        _, gradient = objective.gradient()
        direction = {name: -part for name, part in gradient.items()}
    objective.check_direction("direction", direction)
    clipped = {}
    for fraction in sorted({float(fraction) for fraction in fractions}):
        parts = {name: part.detach().clone() for name, part in direction.items()}
        clamp_(parts.values(), fraction_threshold(list(parts.values()), fraction))
        clipped[repr(fraction)] = parts
    found = {float(label): m for label, m in measure(objective, clipped, landscape=True).items()}
    gains = {fraction: m.best_decrease or 0.0 for fraction, m in found.items()}
    best = max(gains, key=lambda fraction: gains[fraction])
    return ClipSweep(found, best if gains[best] > 0 else None)
