"""How much to clip: one direction at many fractions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from stepscope.clipping import check_fraction, clamp_, fraction_threshold
from stepscope.errors import UsageError
from stepscope.measuring.measurement import Measurement, measure
from stepscope.objective import Objective, check_objective
from stepscope.shown import format_number, html_table, text_table

FRACTIONS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)


@dataclass(frozen=True, repr=False)
class ClipSweep:
    """One direction, clipped at several fractions; shown, it is a table.

    Attributes:
        measurements: ``{fraction: measurement}`` of the direction with that fraction of its coordinates clipped; 0 is
            the direction itself, 1 its sign.
        best: the fraction with the largest `Measurement.best_decrease`, the smallest of equals: here a single step
            gains most with it. ``None`` if none descends.
    """

    measurements: dict[float, Measurement]
    best: float | None

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        rows = [
            (
                f"{fraction:g}",
                *map(format_number, (m.sharpness, m.correlation, m.best_decrease)),
                "best" if fraction == self.best else "",
            )
            for fraction, m in self.measurements.items()
        ]
        return ("fraction", "sharpness", "correlation", "best decrease", ""), rows

    def __repr__(self) -> str:
        return text_table(*self._table())

    def _repr_html_(self) -> str:
        return html_table(*self._table())


def clip_sweep(
    objective: Objective, direction: Mapping[str, Tensor] | None = None, fractions: Sequence[float] = FRACTIONS
) -> ClipSweep:
    """Measures a direction with more and more of its coordinates clipped.

    Args:
        objective: the loss.
        direction: any direction that clipping makes sense for, such as a momentum; not that of a sign rule, whose
            coordinates are equal. ``None``: minus the objective's gradient.
        fractions: the grid, between 0 and 1. Memory: one copy of the direction for each.

    Returns:
        The `ClipSweep`, which is shown as a table.

    Raises:
        UsageError: a fraction that can't be used, none at all, or a direction that doesn't fit the model.

    References:
        Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204, §4.

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
        direction = {name: -tensor for name, tensor in gradient.items()}
    objective.check_direction("direction", direction)
    clipped = {}
    for fraction in sorted({float(fraction) for fraction in fractions}):
        copies = {name: tensor.detach().clone() for name, tensor in direction.items()}
        clamp_(copies.values(), fraction_threshold(list(copies.values()), fraction))
        clipped[repr(fraction)] = copies
    measurements = {float(label): m for label, m in measure(objective, clipped, landscape=True).items()}
    gains = {fraction: m.best_decrease or 0.0 for fraction, m in measurements.items()}
    best = max(gains, key=lambda fraction: gains[fraction])
    return ClipSweep(measurements, best if gains[best] > 0 else None)
