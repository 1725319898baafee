"""Experiment D, first part: does the bound of appendix A hold, and does clipping help where it says (claim C12)?

Points are drawn of losses whose smooth and bad coordinates are known; at each, the step that the bound asks for is
made, and what it gains is compared with what was guaranteed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stepscope.errors import UsageError
from stepscope.paper.experiments.clipping_bound import (
    TwoLevels,
    block_bound,
    clip,
    clipped_guarantee,
    critical_ratio,
    plain_guarantee,
)
from stepscope.paper.records import BoundRecord, Margins

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Draw:
    """A loss at a point, and what is known of its smoothness there.

    Attributes:
        gradient: ``g``, float64, shape (n,).
        loss: ``f`` at ``x − ηd``, from ``d`` and ``η``.
        levels: the loss's coordinate-wise smoothness, the same everywhere.
        blocks: ``H`` where the inequality by blocks is to be tried, with the ``u`` to try it on; shapes (n, n), (n,).
    """

    gradient: Tensor
    loss: Callable[[Tensor, float], float]
    levels: TwoLevels
    blocks: tuple[Tensor, tuple[Tensor, ...]] | None = None


@dataclass(frozen=True)
class Outcome:
    """What one draw showed; a *margin* is (what was found − its bound) as a part of the bound.

    Attributes:
        clipped_margin: of the decrease by the clipped step.
        plain_margin: of the decrease by the step along the gradient.
        violations: of the two and of the blocks', which lie below zero by more than rounding, by name.
        guarantees_more: whether the bound with clipping is the larger one.
        predicted: whether ``L/ℓ`` is above the critical ratio.
        decreases_more: whether the clipped step lowered the loss more.
        block_margin: the least of the margins of ``uᵀHu`` below its bound by blocks; None without blocks.
    """

    clipped_margin: float
    plain_margin: float
    violations: tuple[str, ...]
    guarantees_more: bool
    predicted: bool
    decreases_more: bool
    block_margin: float | None = None


def examine(draw: Draw, fraction: float) -> Outcome:
    """Makes both steps of a draw, clipped at a fraction and not, and compares them with their bounds.

    Raises:
        UsageError: see `clip`.
    """
    gradient = draw.gradient
    clipped, threshold = clip(gradient, fraction)
    levels = draw.levels
    guarantees = clipped_guarantee(gradient, clipped, threshold, levels), plain_guarantee(gradient, levels)
    start = draw.loss(gradient, 0.0)
    margins, decreases, violations = [], [], []
    for name, direction, guarantee in zip(("clipped", "plain"), (clipped, gradient), guarantees, strict=True):
        decrease = start - draw.loss(direction, guarantee.step)
        # Sums of n terms, of which f, gᵀd and Q are made, are off by n roundings at most.
        rounding = 4 * len(gradient) * _EPS * (abs(start) + guarantee.decrease)
        violations += [name] * (decrease < guarantee.decrease - rounding)
        margins.append(decrease / guarantee.decrease - 1)
        decreases.append(decrease)
    block_margin = None
    if draw.blocks is not None:
        hessian, tried = draw.blocks
        block_margin, holds = _blocks(hessian, levels.bad, (*tried, clipped, gradient))
        violations += ["block"] * (not holds)
    ratio = levels.large / levels.small
    return Outcome(
        clipped_margin=margins[0],
        plain_margin=margins[1],
        violations=tuple(violations),
        guarantees_more=guarantees[0].decrease > guarantees[1].decrease,
        predicted=ratio > critical_ratio(gradient, clipped, threshold, levels.bad),
        decreases_more=decreases[0] > decreases[1],
        block_margin=block_margin,
    )


def _blocks(hessian: Tensor, bad: Tensor, tried: Sequence[Tensor]) -> tuple[float, bool]:
    """The least margin of the inequality by blocks over some vectors, and whether it holds for all but for rounding."""
    margins, holds = [], True
    for u in tried:
        sharpness, bound = block_bound(hessian, bad, u)
        rounding = 4 * len(u) * _EPS * float(u.abs() @ hessian.abs() @ u.abs())
        holds = holds and sharpness <= bound + rounding
        margins.append(1 - sharpness / bound)
    return min(margins), holds


def paper_quadratic(generator: torch.Generator) -> Draw:
    """``½ Σ hᵢxᵢ²`` of the paper's §1, one ``hᵢ`` 100 and the rest 1, at a normal point of 100 coordinates."""
    h = torch.ones(100, dtype=torch.float64)
    h[0] = 100.0
    return _diagonal(h, _normal(generator, 100), TwoLevels(h > 1, 100.0, 1.0))


def diagonal_quadratic(generator: torch.Generator) -> Draw:
    """``½ Σ hᵢxᵢ²`` of 200 coordinates, 1, 5 or 10% of them bad, with ``hᵢ ≤ L``, 10 to 1000, and else ``hᵢ ≤ 1``.

    The bad coordinates lie between a thousandth of and ten times as far from the minimum as the good ones: where they
    are near it their gradients are small, and clipping has nothing to help.
    """
    n = 200
    bad = _bad(generator, n, (2, 10, 20)[int(torch.randint(3, (), generator=generator))])
    large = 10 ** _uniform(generator, 1, 3)
    h = torch.rand(n, generator=generator, dtype=torch.float64) * _either(bad, large, 1.0)
    x = _normal(generator, n) * _either(bad, 10 ** _uniform(generator, -3, 1), 1.0)
    return _diagonal(h, x, TwoLevels(bad, large, 1.0))


def block_quadratic(generator: torch.Generator) -> Draw:
    """``½ xᵀHx`` of 40 coordinates, 4 of them bad, ``H`` dense and positive semidefinite.

    Its blocks have norms ``L``, 10 to 1000, and 1; since it has few factors, there are vectors for which the inequality
    by blocks is an equality, and one of them is tried.
    """
    n = 40
    bad = _bad(generator, n, 4)
    factors = torch.randn(n, 12, generator=generator, dtype=torch.float64)
    large = 10 ** _uniform(generator, 1, 3)
    norms = [float(torch.linalg.matrix_norm(factors[block], 2)) for block in (bad, ~bad)]
    factors = factors * _either(bad, large**0.5 / norms[0], 1 / norms[1])[:, None]
    hessian = factors @ factors.T
    x = _normal(generator, n)
    null = torch.linalg.qr(factors, mode="complete").Q[:, -1]
    tried = (_normal(generator, n), torch.where(bad, null, -null))
    return Draw(
        hessian @ x,
        lambda d, step: 0.5 * float((x - step * d) @ hessian @ (x - step * d)),
        TwoLevels(bad, 2 * large, 2.0),
        (hessian, tried),
    )


FAMILIES: dict[str, Callable[[torch.Generator], Draw]] = {
    "quadratic of section 1": paper_quadratic,
    "diagonal quadratic": diagonal_quadratic,
    "block quadratic": block_quadratic,
}
"""The losses that are drawn, by the name of their group: quadratics, whose coordinate-wise smoothness is exact."""


def bound_group(family: str, fraction: float) -> str:
    """What a record of a family and a fraction is about.

    Example:
        >>> bound_group("diagonal quadratic", 0.1)
        'diagonal quadratic, clip 10%'
    """
    return f"{family}, clip {100 * fraction:g}%"


def bound_record(family: str, fraction: float, draws: int, seed: int) -> BoundRecord:
    """Draws of one family, clipped at one fraction, as a record; the same draws at every fraction.

    Args:
        family: a name in `FAMILIES`.
        fraction: ``p``, between 0 and 1.
        draws: how many.
        seed: of the draws.

    Raises:
        UsageError: unknown family, no draws, or a fraction that clips nothing.
    """
    if family not in FAMILIES:
        raise UsageError(f"no family {family!r}: choose {', '.join(FAMILIES)}")
    if draws < 1:
        raise UsageError(f"draws is {draws}: at least 1 is needed")
    begun = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    outcomes = [examine(FAMILIES[family](generator), fraction) for _ in range(draws)]
    return BoundRecord(
        seed=seed,
        group=bound_group(family, fraction),
        family=family,
        fraction=fraction,
        draws=draws,
        **summary(outcomes),
        seconds=time.perf_counter() - begun,
    )


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What draws showed together: the violations and margins of each bound, and how often clipping was better.

    Returns:
        Fields of a `BoundRecord`: ``clipped``, ``plain`` and ``block`` (None without blocks), `Margins`;
        ``guarantees_more``, ``predicted_more`` and ``decreases_more``, numbers of draws; ``disagreements``, the draws
        in which the first two differ.
    """
    bounds: dict[str, Margins | None] = {}
    for name in ("clipped", "plain", "block"):
        margins = [m for outcome in outcomes if (m := getattr(outcome, f"{name}_margin")) is not None]
        violations = sum(name in outcome.violations for outcome in outcomes)
        bounds[name] = (
            Margins(violations=violations, least_margin=min(margins), median_margin=statistics.median(margins))
            if margins
            else None
        )
    return {
        **bounds,
        "guarantees_more": sum(outcome.guarantees_more for outcome in outcomes),
        "predicted_more": sum(outcome.predicted for outcome in outcomes),
        "decreases_more": sum(outcome.decreases_more for outcome in outcomes),
        "disagreements": sum(outcome.guarantees_more != outcome.predicted for outcome in outcomes),
    }


def _diagonal(h: Tensor, x: Tensor, levels: TwoLevels) -> Draw:
    return Draw(h * x, lambda d, step: 0.5 * float(h @ (x - step * d) ** 2), levels)


def _bad(generator: torch.Generator, n: int, count: int) -> Tensor:
    return torch.randperm(n, generator=generator) < count


def _either(bad: Tensor, of_bad: float, of_good: float) -> Tensor:
    """One number for bad coordinates, another for good ones (`torch.where` of two numbers is in single precision)."""
    return torch.full(bad.shape, of_good, dtype=torch.float64).masked_fill_(bad, of_bad)


def _normal(generator: torch.Generator, n: int) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))
