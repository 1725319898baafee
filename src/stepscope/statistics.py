"""What samples say: rank correlation with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from stepscope.errors import UsageError

_AT_ONCE = 1 << 20
"""Coordinates of resamples that are held at a time."""


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation, and the interval that holds that of the whole with the confidence asked for.

    Attributes:
        rho: between −1 and 1; NaN where all values of a variable are equal.
        low: lower end of the interval; NaN where `rho` is.
        high: upper end.
    """

    rho: float
    low: float
    high: float


def ranks(values: Tensor) -> Tensor:
    """The rank of each value, counted from 1; equal ones share the average of theirs.

    Args:
        values: finite numbers, shape (n,).

    Returns:
        float64, shape (n,).

    Example:
        >>> ranks(torch.tensor([10.0, 30.0, 10.0, 20.0])).tolist()
        [1.5, 4.0, 1.5, 3.0]
    """
    place, counts = _places(values)
    return _average_ranks(counts.double())[place]


def rank_correlation(
    x: Sequence[float] | Tensor,
    y: Sequence[float] | Tensor,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> RankCorrelation:
    """Spearman's ``ρ``: Pearson's correlation of the ranks, equal values sharing the average of theirs.

    The interval is the bootstrap's (Efron, 1979): pairs are drawn anew with replacement, as many as there are, ranked
    anew, and of the ``ρ`` so found the middle part is taken. It says how far ``ρ`` may be from that of all pairs that
    these are a random sample of. Draws in which a variable is constant have no ``ρ`` and are left out.

    Args:
        x: finite numbers, shape (n,).
        y: as many.
        confidence: the part of the draws that the interval holds, between 0 and 1.
        resamples: how many draws.
        seed: of the draws; no other random state is used or moved.

    Raises:
        UsageError: fewer than 2 pairs, unequal numbers, values that aren't finite, or settings out of range.

    Example:
        >>> rank_correlation([1, 2, 3, 4, 5], [1, 4, 9, 16, 25])
        RankCorrelation(rho=1.0, low=1.0, high=1.0)
        >>> round(rank_correlation([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]).rho, 12)
        0.8
    """
    first, second = (torch.as_tensor(values).detach().double().cpu() for values in (x, y))
    _check(first, second, confidence, resamples)
    places = [_places(first), _places(second)]
    rho = float(_pearson(*(_average_ranks(counts.double())[place][None] for place, counts in places)))
    if math.isnan(rho):
        return RankCorrelation(math.nan, math.nan, math.nan)
    generator = torch.Generator().manual_seed(seed)
    n = len(first)
    found = []
    for start in range(0, resamples, step := max(1, _AT_ONCE // n)):
        drawn = torch.randint(n, (min(step, resamples - start), n), generator=generator)
        found.append(_pearson(*(_resampled_ranks(place[drawn], len(counts)) for place, counts in places)))
    tail = (1 - confidence) / 2
    low, high = torch.nanquantile(torch.cat(found), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return RankCorrelation(rho, low, high)


def _check(x: Tensor, y: Tensor, confidence: float, resamples: int) -> None:
    if x.dim() != 1 or x.shape != y.shape or len(x) < 2:
        raise UsageError(f"x and y have shapes {tuple(x.shape)} and {tuple(y.shape)}: give at least 2 pairs of numbers")
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise UsageError("x or y holds values that are infinite or NaN: they have no rank")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}: give a number between 0 and 1")
    if resamples < 1:
        raise UsageError(f"resamples is {resamples}: at least 1 is needed")


def _places(values: Tensor) -> tuple[Tensor, Tensor]:
    """Of each value, which of the distinct values it is, in their order; and how often each of those occurs."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return place, counts


def _average_ranks(counts: Tensor) -> Tensor:
    """The average rank of each distinct value from how often each occurs; the last dimension is theirs."""
    return counts.cumsum(-1) - (counts - 1) / 2


def _resampled_ranks(places: Tensor, distinct: int) -> Tensor:
    """Average ranks within each row of places, shape (draws, n): by counting, since the order is known already."""
    counts = torch.zeros(len(places), distinct, dtype=torch.float64)
    counts.scatter_add_(1, places, torch.ones((), dtype=torch.float64).expand(places.shape))
    return _average_ranks(counts).gather(1, places)


def _pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation along the last dimension; NaN where a row is constant."""
    x, y = x - x.mean(-1, keepdim=True), y - y.mean(-1, keepdim=True)
    # Ranks are multiples of ½: the sums are exact for fewer than 10⁵ of them, so that 1 is 1.
    return ((x * y).sum(-1) / ((x * x).sum(-1) * (y * y).sum(-1)).sqrt()).clamp(-1, 1)
