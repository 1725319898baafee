"""What samples say: means, paired differences and rank correlations, each with its confidence interval (scipy's)."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stepscope.errors import UsageError, require

CONFIDENCE = 0.95
"""Of all intervals."""

_AT_ONCE = 1 << 20
"""Numbers of resamples that are held at a time."""


class MeanInterval(NamedTuple):
    """The mean of a sample, with Student's interval and two-sided test.

    Attributes:
        mean: of the values.
        low: lower end of the interval; −∞ for a single value.
        high: upper end; ∞ for a single value.
        p: the probability of a mean at least as far from 0 if the true one is 0; 1 for a single value.
    """

    mean: float
    low: float
    high: float
    p: float


class RankCorrelation(NamedTuple):
    """Spearman's rank correlation, with the bootstrap's interval.

    Attributes:
        rho: between −1 and 1; NaN where all values of a variable are equal.
        low: lower end of the interval; NaN where `rho` is.
        high: upper end.
    """

    rho: float
    low: float
    high: float


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """The mean with Student's interval and test, which take the values as normal; equal ones are a point.

    Of paired differences, such as of two optimizers' losses from the same weights on the same batches, it is the paired
    test: the seed's share in both drops out.

    Raises:
        UsageError: no values, or values that aren't finite.

    Example:
        >>> [round(number, 4) for number in mean_interval([-1.0, -0.5, -1.5])]
        [-1.0, -2.2421, 0.2421, 0.0742]
    """
    if not values or not all(map(math.isfinite, values)):
        raise UsageError(f"{list(values)}: a mean needs at least one value, all of them finite")
    # The mean is exact before it is rounded: equal values have no spread.
    mean, n = float(statistics.mean(values)), len(values)
    if n == 1:
        return MeanInterval(mean, -math.inf, math.inf, 1.0)
    error = statistics.stdev(values) / math.sqrt(n)
    if error == 0:
        return MeanInterval(mean, mean, mean, float(mean == 0))
    student = require("scipy.special", "paper")  # what scipy.stats.t asks, after a millisecond
    reach = float(student.stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
    return MeanInterval(mean, mean - reach, mean + reach, 2 * float(student.stdtr(n - 1, -abs(mean) / error)))


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value, counted from 1; equal ones share the average of theirs.

    Example:
        >>> ranks([10.0, 30.0, 10.0, 20.0])
        [1.5, 4.0, 1.5, 3.0]
    """
    return [float(rank) for rank in require("scipy.stats", "paper").rankdata(values)]


def spearman(x: Sequence[float] | Tensor, y: Sequence[float] | Tensor) -> float:
    """Spearman's ``ρ``: Pearson's correlation of the ranks; NaN where a variable is constant.

    Args:
        x: finite numbers, shape (n,).
        y: as many.

    Raises:
        UsageError: fewer than 2 pairs, unequal numbers, or values that aren't finite.

    Example:
        >>> round(spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]), 12)
        0.8
    """
    return float(_spearman(*_numbers(x, y)))


def rank_correlation(
    x: Sequence[float] | Tensor, y: Sequence[float] | Tensor, *, resamples: int = 1000, seed: int = 0
) -> RankCorrelation:
    """Spearman's ``ρ`` with the percentile bootstrap's interval (Efron, 1979).

    Pairs are drawn with replacement, as many as there are, and each draw is ranked by itself. The interval says how far
    ``ρ`` may be from that of all pairs that these are a random sample of. Draws in which a variable is constant have
    no ``ρ`` and are left out. Records that were stored before scipy drew the resamples hold the ends of other draws:
    they differ within the Monte Carlo error.

    Args:
        x: finite numbers, shape (n,).
        y: as many.
        resamples: how many draws.
        seed: of the draws; no other random state is used or moved.

    Raises:
        UsageError: as `spearman`.

    Example:
        >>> [round(number, 3) for number in rank_correlation([1, 2, 3, 4, 5], [1, 4, 9, 16, 25])]
        [1.0, 1.0, 1.0]
    """
    pairs = _numbers(x, y)
    rho = float(_spearman(*pairs))
    if math.isnan(rho):
        return RankCorrelation(rho, rho, rho)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a draw without ρ makes scipy's own interval NaN, which isn't used
        draws = require("scipy.stats", "paper").bootstrap(
            pairs,
            _spearman,
            paired=True,
            n_resamples=resamples,
            batch=max(1, _AT_ONCE // len(pairs[0])),
            method="percentile",
            rng=seed,
        )
    tails = torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    low, high = torch.nanquantile(torch.as_tensor(draws.bootstrap_distribution), tails).tolist()
    return RankCorrelation(rho, low, high)


def _numbers(x: Sequence[float] | Tensor, y: Sequence[float] | Tensor) -> tuple[Any, Any]:
    """Both as arrays."""
    first, second = (torch.as_tensor(values).detach().double().cpu() for values in (x, y))
    if first.dim() != 1 or first.shape != second.shape or len(first) < 2:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise UsageError(f"x and y have shapes {shapes}: give at least 2 pairs of numbers")
    if not bool(first.isfinite().all() and second.isfinite().all()):
        raise UsageError("x or y holds values that are infinite or NaN: they have no rank")
    return first.numpy(), second.numpy()


def _spearman(x: Any, y: Any, axis: int = -1) -> Any:
    """Spearman's ``ρ`` along an axis: `scipy.stats.spearmanr` has no batches."""
    stats = require("scipy.stats", "paper")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return stats.pearsonr(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis=axis).statistic
