"""What samples say: rank correlations, means and paired differences, each with its confidence interval."""

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


class MeanInterval(NamedTuple):
    """The mean of a sample, and the interval that holds the true one with the confidence asked for.

    Attributes:
        mean: of the values.
        low: lower end of the interval; −∞ for a single value.
        high: upper end; ∞ for a single value.
    """

    mean: float
    low: float
    high: float


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> MeanInterval:
    """The mean with Student's interval (Student, 1908). Values are taken as normal, which few of them can't show.

    Args:
        values: finite numbers; where several are all equal, the interval is that point.
        confidence: the part of the repetitions in which the interval holds the true mean, between 0 and 1.

    Raises:
        UsageError: no values, values that aren't finite, or a confidence out of range.

    Example:
        >>> found = mean_interval([1.0, 0.5, 1.5])
        >>> found.mean, round(found.low, 3), round(found.high, 3)
        (1.0, -0.242, 2.242)
    """
    if not values:
        raise UsageError("0 values: give at least one")
    if not all(map(math.isfinite, values)):
        raise UsageError("a value is infinite or NaN: it has no mean")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence is {confidence}: give a number between 0 and 1")
    mean = _mean(values)
    if len(values) == 1:
        return MeanInterval(mean, -math.inf, math.inf)
    reach = _student_quantile(confidence, len(values) - 1) * _standard_error(values)
    return MeanInterval(mean, mean - reach, mean + reach)


class PairedDifference(NamedTuple):
    """The mean of paired differences, and the interval that holds the true one with the confidence asked for.

    Attributes:
        mean: of the differences.
        low: lower end of the interval; −∞ for a single pair.
        high: upper end; ∞ for a single pair.
        p: the probability of a mean at least as far from 0 if the true one is 0; 1 for a single pair.
    """

    mean: float
    low: float
    high: float
    p: float


def paired_difference(first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95) -> PairedDifference:
    """The mean of ``first − second``, pair by pair, with Student's interval and two-sided test (Student, 1908).

    Pairs are such as the losses of two optimizers from the same weights on the same batches: what the seed does to
    both drops out. The interval is `mean_interval`'s, of the differences.

    Args:
        first: finite numbers.
        second: as many.
        confidence: the part of the repetitions in which the interval holds the true mean, between 0 and 1.

    Raises:
        UsageError: no pairs, unequal numbers, values that aren't finite, or a confidence out of range.

    Example:
        >>> found = paired_difference([1.0, 2.0, 3.0], [2.0, 2.5, 4.5])
        >>> found.mean, round(found.low, 3), round(found.high, 3), round(found.p, 4)
        (-1.0, -2.242, 0.242, 0.0742)
    """
    if not first or len(first) != len(second):
        raise UsageError(f"{len(first)} and {len(second)} values: give at least one pair")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    mean, low, high = mean_interval(differences, confidence=confidence)
    n = len(differences)
    if n == 1:
        return PairedDifference(mean, low, high, 1.0)
    error = _standard_error(differences)
    inside = _student_inside(abs(mean) / error, n - 1) if error else float(mean != 0)
    return PairedDifference(mean, low, high, 1 - inside)


def _mean(values: Sequence[float]) -> float:
    # A rounded mean would give equal values a spread.
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float:
    """Of the mean of at least two values."""
    mean, n = _mean(values), len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _student_inside(t: float, degrees: int) -> float:
    """The probability of ``|T| < t`` under Student's distribution: a finite sum for whole degrees of freedom.

    Abramowitz and Stegun (1964), 26.7.3 and 26.7.4, with ``θ = arctan(t/√ν)``.
    """
    angle = math.atan(t / math.sqrt(degrees))
    cosine = math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def _student_quantile(inside: float, degrees: int) -> float:
    """The ``t`` with ``P(|T| < t) = inside``, by bisection."""
    low, high = 0.0, 1.0
    while _student_inside(high, degrees) < inside:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_inside(middle, degrees) < inside else (low, middle)
    return high


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
