"""``uᵀHu`` by differences of gradients: for models without a second derivative, with an error bar."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from stepscope.measuring.curvature_terms import Curvature, Observer
from stepscope.measuring.slopes import relative_step, slope_check, slopes_at
from stepscope.objective import Direction, Objective, UnitDirection, vectors


def difference(objective: Objective, units: Mapping[str, UnitDirection], observe: Observer | None = None) -> Curvature:
    """``uᵀHu`` by central differences of the slope ``s(t) = uᵀ∇f(x+tu)``, at two step lengths.

    ``D(h) = (s(h) − s(−h)) / 2h`` has an error of order ``h²`` on smooth losses, which ``(4D(h/2) − D(h)) / 3`` cancels
    (Richardson). The error bar is ``|D(h) − D(h/2)|`` plus the noise of the slopes. That noise is estimated twice: by
    the rounding of their dtype, and by ``δ(h) − 4δ(h/2)`` with ``δ(t) = s(t) − 2s(0) + s(−t)``, where only noise and
    ``O(h⁴)`` are left. A kink within the segment widens the error bar.

    Cost: a forward and a backward, then four of each a direction.

    Args:
        objective: the loss.
        units: ``{label: direction}``.
        observe: see `Observer`.
    """
    result = Curvature("difference")
    with objective.measuring():
        result.loss, result.gradient = objective.gradient()
        h = difference_step(objective)
        for label in units:
            u = units[label].u
            product: Direction | None = None if observe is None else {}
            # (4D(h/2) − D(h)) / 3, written out.
            (f, a), (e, b) = (slopes_at(objective, u, t, product, -1 / (6 * t)) for t in (h, -h))
            (_, c), (_, d) = (slopes_at(objective, u, t, product, 2 / (3 * t)) for t in (h / 2, -h / 2))
            wide = [(ahead - behind) / (2 * h) for ahead, behind in zip(a, b, strict=True)]
            narrow = [(ahead - behind) / h for ahead, behind in zip(c, d, strict=True)]
            result.sharpness[label] = [(4 * n - w) / 3 for n, w in zip(narrow, wide, strict=True)]
            s0 = vectors.dot(u, result.gradient)
            truncation = abs(objective.mean(wide) - objective.mean(narrow))
            bend_wide = objective.mean(a) - 2 * s0 + objective.mean(b)
            bend_narrow = objective.mean(c) - 2 * s0 + objective.mean(d)
            noise = 4 * _rounding(objective, result.gradient, u) + 2 * abs(bend_wide - 4 * bend_narrow)
            result.numerical_error[label] = truncation + noise / h
            slopes = objective.mean(b), s0, objective.mean(a)
            result.slope_checks[label] = slope_check(objective, h, objective.mean(e), slopes, objective.mean(f))
            if observe is not None and product is not None:
                observe(label, 1 / units[label].length, units[label].vector, objective.pooled(product))
    return result


def difference_step(objective: Objective) -> float:
    """The step length of `difference`: ``10⁻⁴ ‖x‖`` in float32, ``10⁻⁵ ‖x‖`` in float64.

    It balances the noise of the slopes (``∝ 1/h``) with the truncation that extrapolation leaves (``∝ h⁴``).
    """
    eps = max(torch.finfo(parameter.dtype).eps for parameter in objective.parameters.values())
    return relative_step(objective, 1e-4 if eps > 1e-10 else 1e-5)


def _rounding(objective: Objective, gradient: Direction, u: Direction) -> float:
    """Rounding error to expect of ``uᵀ∇f``: each coordinate's own, added as independent ones."""
    eps = max(torch.finfo(objective.parameters[name].dtype).eps for name in u)
    return eps * vectors.norm({name: gradient[name] * u[name] for name in u if name in gradient})
