"""Student's intervals against printed tables, rank correlations against closed forms, counts by hand and planted ρ."""

import itertools
import math
import statistics

import pytest
import torch

from stepscope import UsageError
from stepscope.paper.statistics import mean_interval, rank_correlation, ranks, spearman

# Quantiles of Student's distribution, two-sided 95%, as printed in tables.
STUDENT = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645, 9: 2.26216, 30: 2.04227}


@pytest.mark.parametrize("degrees", STUDENT)
def test_students_interval_is_that_of_the_tables(degrees):
    values = [math.sin(k) for k in range(degrees + 1)]
    interval = mean_interval(values)
    reach = STUDENT[degrees] * statistics.stdev(values) / math.sqrt(degrees + 1)
    assert interval.mean == pytest.approx(statistics.fmean(values))
    assert interval.high - interval.mean == pytest.approx(reach, rel=1e-5)
    assert interval.mean - interval.low == pytest.approx(reach, rel=1e-5)
    # At the end of the interval the test has just that much against it, on either side.
    for end in (interval.high, interval.low):
        assert mean_interval([value - end for value in values]).p == pytest.approx(0.05, rel=1e-9)
    assert mean_interval([value - interval.mean for value in values]).p == pytest.approx(1)


def test_equal_values_are_a_point_and_one_says_nothing():
    """Also where their sum rounds."""
    for value in (0.1, -2.7, 0.8444218515250481):
        assert mean_interval([value] * 3) == (value, value, value, 0.0)
        assert mean_interval([value]) == (value, -math.inf, math.inf, 1.0)
    assert mean_interval([0, 0]) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize("values", [[], [math.inf, 1.0], [1.0, math.nan]])
def test_what_has_no_mean(values):
    with pytest.raises(UsageError, match="at least one value, all of them finite"):
        mean_interval(values)


def ranks_by_counting(values):
    """How many are smaller, and half of those that are equal: the definition, one value after the other."""
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


def spearman_by_hand(x, y):
    return statistics.correlation(ranks_by_counting(x), ranks_by_counting(y))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_the_formula_without_ties(order):
    """1 − 6Σd²/(n(n²−1))."""
    squares = sum((i - j) ** 2 for i, j in enumerate(order))
    assert spearman(range(4), order) == pytest.approx(1 - 6 * squares / (4 * 15), abs=1e-14)


def test_ties_by_hand():
    """Centered: (−1.5, 0, 0, 1.5) and (−1, −1, 0.5, 1.5); products 1.5 + 2.25; squares 4.5 and 4.5."""
    assert spearman([1, 2, 2, 3], [5, 5, 6, 7]) == pytest.approx(3.75 / 4.5, abs=1e-14)


@pytest.mark.parametrize("kind", ["continuous", "ties", "heavy tails"])
def test_the_definition_written_out(kind):
    x = torch.randn(60, dtype=torch.float64)
    y = x + torch.randn(60, dtype=torch.float64)
    if kind == "ties":
        x, y = x.round(), y.round()
    if kind == "heavy tails":
        x, y = x.mul(20).exp(), y**5
    assert ranks(x.tolist()) == ranks_by_counting(x.tolist())
    by_hand = spearman_by_hand(x.tolist(), y.tolist())
    assert rank_correlation(x, y).rho == spearman(x, y) == pytest.approx(by_hand, abs=1e-13)


def test_only_the_order_counts():
    x = torch.randn(80, dtype=torch.float64)
    y = x + 2 * torch.randn(80, dtype=torch.float64)
    correlation = rank_correlation(x, y)
    assert rank_correlation(x.exp(), y**3) == correlation
    turned = rank_correlation(x, -y)
    assert turned == pytest.approx((-correlation.rho, -correlation.high, -correlation.low), abs=1e-9)
    assert rank_correlation(y, x) == pytest.approx(correlation, abs=1e-14)


def test_the_interval_covers_the_population():
    """Of a normal pair of correlation r, Spearman's is 6/π·asin(r/2)."""
    r = 0.6
    wanted = 6 / math.pi * math.asin(r / 2)
    covered, widths = 0, []
    for seed in range(200):
        x, z = torch.randn(2, 150, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        _, low, high = rank_correlation(x, r * x + math.sqrt(1 - r * r) * z, resamples=300, seed=seed)
        covered += low <= wanted <= high
        widths.append(high - low)
    # Binomial(200, 0.95) lies in 179..198 with probability 0.998; an interval that covers everything says nothing:
    # its asymptotic standard error here is about (1 − ρ²)·√(1 + ρ²/2)/√n (Bonett and Wright, 2000).
    assert 179 <= covered <= 198
    expected = 2 * 1.96 * (1 - wanted**2) * math.sqrt((1 + wanted**2 / 2) / 150)
    assert statistics.fmean(widths) == pytest.approx(expected, rel=0.1)


def test_the_interval_agrees_with_resamples_that_are_ranked_one_by_one():
    """Other draws of the same bootstrap, the definition written out: the ends agree within the Monte Carlo error."""
    generator = torch.Generator().manual_seed(7)
    x = torch.randint(0, 6, (30,), generator=generator).double()
    y = x + torch.randint(0, 6, (30,), generator=generator)
    draws = torch.randint(30, (2000, 30), generator=generator)
    by_hand = sorted(spearman_by_hand(x[row].tolist(), y[row].tolist()) for row in draws)
    _, low, high = rank_correlation(x, y, resamples=2000)
    # Of 2,000 draws the 50th: its place varies by √(2000·0.025·0.975)·√2 ≈ 10 between two bootstraps; here by 4 times.
    assert by_hand[50 - 40] <= low <= by_hand[50 + 40]
    assert by_hand[1950 - 40] <= high <= by_hand[1950 + 40]


def test_many_pairs_go_through_in_parts():
    x = torch.randn(40_000)
    assert rank_correlation(x, -x, resamples=30) == pytest.approx((-1.0, -1.0, -1.0))


def test_constants_have_no_correlation_and_constant_draws_are_left_out():
    """Of two pairs every other draw takes one of them twice."""
    assert all(math.isnan(value) for value in rank_correlation([1, 1, 1], [1, 2, 3]))
    assert rank_correlation([1, 2], [3, 4]) == (1.0, 1.0, 1.0)


def test_a_seed_fixes_the_interval_and_nothing_else_is_drawn():
    x, y = torch.randn(2, 40)
    before = torch.get_rng_state()
    first, second, other = (rank_correlation(x, y, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    assert first.rho == other.rho
    assert first.low != other.low


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1], [2], "at least 2 pairs"),
        ([1, 2], [1, 2, 3], "at least 2 pairs"),
        ([[1, 2]], [[1, 2]], "at least 2 pairs"),
        ([1, math.nan], [1, 2], "infinite or NaN"),
        ([1, 2], [1, math.inf], "infinite or NaN"),
    ],
)
def test_mistakes(x, y, message):
    for correlation in (spearman, rank_correlation):
        with pytest.raises(UsageError, match=message):
            correlation(x, y)
