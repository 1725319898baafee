"""Rank correlation against closed forms, counts by hand, and a definition written out."""

import itertools
import math

import pytest
import torch

from stepscope import UsageError
from stepscope.paper.statistics import mean_interval, paired_difference, rank_correlation, ranks


def ranks_by_counting(values):
    """How many are smaller, and half of those that are equal: the definition, one value after the other."""
    return [sum(b < a for b in values) + (sum(b == a for b in values) + 1) / 2 for a in values]


def spearman_by_hand(x, y):
    a, b = ranks_by_counting(x), ranks_by_counting(y)
    n = len(a)
    ma, mb = sum(a) / n, sum(b) / n
    products = sum((i - ma) * (j - mb) for i, j in zip(a, b, strict=True))
    return products / math.sqrt(sum((i - ma) ** 2 for i in a) * sum((j - mb) ** 2 for j in b))


def test_ranks_share_the_average():
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 3.0, -2.0])).tolist() == [4.0, 2.0, 4.0, 4.0, 1.0]
    values = torch.randint(0, 8, (50,)).double()
    assert ranks(values).tolist() == ranks_by_counting(values.tolist())


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_the_formula_without_ties(order):
    """1 − 6Σd²/(n(n²−1))."""
    squares = sum((i - j) ** 2 for i, j in enumerate(order))
    assert rank_correlation(range(4), order).rho == pytest.approx(1 - 6 * squares / (4 * 15), abs=1e-14)


def test_ties_by_hand():
    """Ranks 1, 2.5, 2.5, 4 and 1.5, 1.5, 3, 4: products 4.5 - 0.75·0... written out."""
    # Centred: (−1.5, 0, 0, 1.5) and (−1, −1, 0.5, 1.5); products 1.5 + 2.25; squares 4.5 and 4.5.
    assert rank_correlation([1, 2, 2, 3], [5, 5, 6, 7]).rho == pytest.approx(3.75 / 4.5, abs=1e-14)


@pytest.mark.parametrize("kind", ["continuous", "ties", "heavy tails"])
def test_the_definition_written_out(kind):
    x = torch.randn(60, dtype=torch.float64)
    y = x + torch.randn(60, dtype=torch.float64)
    if kind == "ties":
        x, y = x.round(), y.round()
    if kind == "heavy tails":
        x, y = x.mul(20).exp(), y**5
    assert rank_correlation(x, y).rho == pytest.approx(spearman_by_hand(x.tolist(), y.tolist()), abs=1e-13)


def test_only_the_order_counts():
    x = torch.randn(80, dtype=torch.float64)
    y = x + 2 * torch.randn(80, dtype=torch.float64)
    found = rank_correlation(x, y)
    assert rank_correlation(x.exp(), y**3) == found
    turned = rank_correlation(x, -y)
    assert turned.rho == pytest.approx(-found.rho, abs=1e-14)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
    assert rank_correlation(y, x) == pytest.approx(found, abs=1e-14)


def test_the_interval_is_that_of_resamples_ranked_anew():
    x = torch.randint(0, 6, (30,)).double()
    y = (x + torch.randint(0, 6, (30,))).double()
    found = rank_correlation(x, y, confidence=0.8, resamples=200, seed=7)
    drawn = torch.randint(30, (200, 30), generator=torch.Generator().manual_seed(7))
    by_hand = sorted(spearman_by_hand(x[row].tolist(), y[row].tolist()) for row in drawn)
    # The quantiles 0.1 and 0.9 of 200 numbers lie between these neighbours.
    assert by_hand[19] - 1e-12 <= found.low <= by_hand[20] + 1e-12
    assert by_hand[179] - 1e-12 <= found.high <= by_hand[180] + 1e-12


def test_the_interval_covers_the_population():
    """Of a normal pair of correlation r, Spearman's is 6/π·asin(r/2)."""
    r = 0.6
    wanted = 6 / math.pi * math.asin(r / 2)
    covered, wide = 0, []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x, z = torch.randn(2, 150, generator=generator, dtype=torch.float64)
        found = rank_correlation(x, r * x + math.sqrt(1 - r * r) * z, confidence=0.9, resamples=300, seed=seed)
        covered += found.low <= wanted <= found.high
        wide.append(found.high - found.low)
    # Binomial(200, 0.9) lies in 166..194 with probability 0.999; and an interval that covers everything says nothing.
    assert 166 <= covered <= 194
    # Its asymptotic standard error here is about (1 − ρ²)·√(1 + ρ²/2)/√n (Bonett and Wright, 2000).
    expected = 2 * 1.645 * (1 - wanted**2) * math.sqrt((1 + wanted**2 / 2) / 150)
    assert sum(wide) / 200 == pytest.approx(expected, rel=0.1)


def test_many_pairs_go_through_in_parts():
    x = torch.randn(40_000)
    found = rank_correlation(x, -x, resamples=60)
    assert found == (-1.0, -1.0, -1.0)


def test_a_constant_has_no_correlation():
    assert all(math.isnan(value) for value in rank_correlation([1, 1, 1], [1, 2, 3]))


def test_constant_draws_are_left_out():
    """Of two pairs every other draw takes one of them twice."""
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
    ("x", "y", "settings", "message"),
    [
        ([1], [2], {}, "at least 2 pairs"),
        ([1, 2], [1, 2, 3], {}, "at least 2 pairs"),
        ([[1, 2]], [[1, 2]], {}, "at least 2 pairs"),
        ([1, math.nan], [1, 2], {}, "infinite or NaN"),
        ([1, 2], [1, math.inf], {}, "infinite or NaN"),
        ([1, 2], [1, 2], {"confidence": 1.0}, "confidence is 1.0"),
        ([1, 2], [1, 2], {"resamples": 0}, "resamples is 0"),
    ],
)
def test_mistakes(x, y, settings, message):
    with pytest.raises(UsageError, match=message):
        rank_correlation(x, y, **settings)


# Quantiles of Student's distribution, two-sided, as printed in tables.
STUDENT = {(0.95, 1): 12.7062, (0.95, 2): 4.30265, (0.95, 3): 3.18245, (0.95, 4): 2.77645, (0.95, 9): 2.26216,
           (0.99, 2): 9.92484, (0.99, 5): 4.03214, (0.9, 30): 1.69726}  # fmt: skip


@pytest.mark.parametrize(("confidence", "degrees"), STUDENT)
def test_students_interval_is_that_of_the_tables(confidence, degrees):
    n = degrees + 1
    values = [float((-1) ** k) for k in range(n)] if n % 2 == 0 else [0.0, *[float((-1) ** k) for k in range(n - 1)]]
    found = paired_difference(values, [0.0] * n, confidence=confidence)
    error = (sum(v * v for v in values) / degrees / n) ** 0.5
    assert found.mean == 0
    assert found.high == pytest.approx(STUDENT[confidence, degrees] * error, rel=1e-5)
    assert found.low == -found.high
    assert found.p == 1
    # At the end of the interval the test has just that much against it.
    moved = paired_difference([v + found.high for v in values], [0.0] * n, confidence=confidence)
    assert moved.p == pytest.approx(1 - confidence, rel=1e-9)
    assert moved.low == pytest.approx(0, abs=1e-9)


def test_a_difference_that_is_the_same_in_all_pairs_is_certain():
    assert paired_difference([2.0, 3.0], [1.0, 2.0]) == (1.0, 1.0, 1.0, 0.0)
    assert paired_difference([2.0, 3.0], [2.0, 3.0]) == (0.0, 0.0, 0.0, 1.0)


def test_one_pair_says_nothing():
    assert paired_difference([1.0], [2.0]) == (-1.0, -math.inf, math.inf, 1.0)


@pytest.mark.parametrize(
    ("first", "second", "confidence", "message"),
    [([], [], 0.9, "0 and 0 values"), ([1.0], [1.0, 2.0], 0.9, "1 and 2 values"), ([math.nan], [1.0], 0.9, "NaN"),
     ([1.0], [1.0], 1.0, "confidence is 1.0")],
)  # fmt: skip
def test_what_has_no_difference(first, second, confidence, message):
    with pytest.raises(UsageError, match=message):
        paired_difference(first, second, confidence=confidence)


def test_a_means_interval_is_that_of_differences_with_nothing():
    """Student, 2 degrees of freedom: 0.7 ± 4.30265 · 0.1/√3."""
    found = mean_interval([0.6, 0.7, 0.8])
    assert found == paired_difference([0.6, 0.7, 0.8], [0.0] * 3)[:3]
    assert found.mean == pytest.approx(0.7)
    assert found.high - found.mean == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-5)
    assert found.mean - found.low == pytest.approx(found.high - found.mean)


@pytest.mark.parametrize("value", [0.1, -2.7, 0.8444218515250481])
def test_equal_values_have_no_spread(value):
    """Also where their sum rounds."""
    assert mean_interval([value] * 3) == (value, value, value)
    assert mean_interval([value]) == (value, -math.inf, math.inf)


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [([], 0.9, "0 values"), ([math.inf], 0.9, "infinite"), ([1.0], 0.0, "confidence is 0.0")],
)
def test_what_has_no_mean(values, confidence, message):
    with pytest.raises(UsageError, match=message):
        mean_interval(values, confidence=confidence)
