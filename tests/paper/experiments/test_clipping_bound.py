"""The bound of appendix A against the inequalities that it comes from, written out one coordinate after the other."""

import math

import pytest
import torch

from stepscope import UsageError
from stepscope.paper.experiments.clipping_bound import (
    TwoLevels,
    block_bound,
    clip,
    clipped_guarantee,
    critical_ratio,
    plain_guarantee,
)


def normal(n):
    return torch.randn(n, dtype=torch.float64)


def some_point(n=40, bad=4, scale=10.0):
    """A gradient with large bad coordinates, its clipped form, and which are bad."""
    mask = torch.randperm(n) < bad
    gradient = normal(n) * torch.where(mask, scale, 1.0)
    return gradient, *clip(gradient, 0.25), mask


def test_clip_cuts_exactly_the_fraction():
    gradient = normal(40)
    before = gradient.clone()
    clipped, threshold = clip(gradient, 0.1)
    assert torch.equal(gradient, before)
    assert int((gradient.abs() > threshold).sum()) == 4
    assert clipped.tolist() == [math.copysign(min(abs(v), threshold), v) for v in gradient.tolist()]


@pytest.mark.parametrize(("gradient", "fraction"), [(torch.ones(9), 0.1), (torch.zeros(20), 0.5)])
def test_without_a_threshold_there_is_no_bound(gradient, fraction):
    with pytest.raises(UsageError, match="clips none"):
        clip(gradient, fraction)


def test_the_papers_example_by_hand():
    """½(100x₁² + x₂² + x₃²) at (1, 2, −1): g = (100, 2, −1), clipped at 2."""
    gradient, levels = torch.tensor([100.0, 2.0, -1.0]), TwoLevels(torch.tensor([True, False, False]), 100.0, 1.0)
    clipped, threshold = clip(gradient, 0.34)
    assert (clipped.tolist(), threshold) == ([2.0, 2.0, -1.0], 2.0)
    with_clip, without = clipped_guarantee(gradient, clipped, 2.0, levels), plain_guarantee(gradient, levels)
    assert (with_clip.slope, with_clip.curvature) == (205.0, 1 * 9 + 1 * 99 * 4)
    assert (without.slope, without.curvature) == (10_005.0, 1_000_005.0)
    assert (with_clip.step, with_clip.decrease) == pytest.approx((205 / 405, 205**2 / 810))
    # The bad coordinate is clipped and all others have the small curvature: what is guaranteed is what is gained.
    x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    h = torch.tensor([100.0, 1.0, 1.0], dtype=torch.float64)
    gained = 0.5 * (h * x**2).sum() - 0.5 * (h * (x - with_clip.step * clipped.double()) ** 2).sum()
    assert float(gained) == pytest.approx(with_clip.decrease, rel=1e-14)
    assert with_clip.decrease > without.decrease == pytest.approx(50.05, rel=1e-3)


def test_curvature_bounds_the_sum_that_it_stands_for():
    for _ in range(50):
        gradient, clipped, threshold, bad = some_point(scale=float(10 ** torch.empty(()).uniform_(-1, 2)))
        levels = TwoLevels(bad, 30.0, 2.0)
        smoothness = torch.where(bad, 30.0, 2.0).double()
        for guarantee, direction in (
            (clipped_guarantee(gradient, clipped, threshold, levels), clipped),
            (plain_guarantee(gradient, levels), gradient),
        ):
            total = math.fsum(s * d * d for s, d in zip(smoothness.tolist(), direction.tolist(), strict=True))
            assert guarantee.curvature >= total * (1 - 1e-13)
            assert guarantee.slope == pytest.approx(float(gradient @ direction), rel=1e-14)
            if direction is gradient or bool((gradient[bad].abs() >= threshold).all()):
                assert guarantee.curvature == pytest.approx(total, rel=1e-13)


def test_the_step_is_the_best_of_its_parabola():
    gradient, clipped, threshold, bad = some_point()
    guarantee = clipped_guarantee(gradient, clipped, threshold, TwoLevels(bad, 30.0, 2.0))

    def promised(step):
        return step * guarantee.slope - 0.5 * step**2 * guarantee.curvature

    assert promised(guarantee.step) == pytest.approx(guarantee.decrease, rel=1e-14)
    assert all(promised(guarantee.step * factor) < guarantee.decrease for factor in (0.9, 0.99, 1.01, 1.1))


@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 10.0, 100.0])
def test_clipping_guarantees_more_exactly_above_the_critical_ratio(scale):
    seen = set()
    for _ in range(40):
        gradient, clipped, threshold, bad = some_point(scale=scale)
        critical = critical_ratio(gradient, clipped, threshold, bad)
        assert critical >= 1
        around = [critical * factor for factor in (1 - 1e-6, 1 + 1e-6)] if critical < math.inf else []
        for ratio in (1.0, 1.5, 4.0, 20.0, 100.0, 1e3, 1e6, 1e12, *around):
            if ratio < 1:
                continue
            levels = TwoLevels(bad, ratio * 0.5, 0.5)
            with_clip = clipped_guarantee(gradient, clipped, threshold, levels).decrease
            assert (with_clip > plain_guarantee(gradient, levels).decrease) == (ratio > critical), (ratio, critical)
            seen.add(ratio > critical)
    assert seen == ({False} if scale < 1 else {False, True})


def test_small_bad_gradients_leave_nothing_to_gain():
    """No ratio is enough where the bad coordinates aren't above τ/ρ on average."""
    gradient = torch.tensor([0.5, 3.0, 2.0, 1.0], dtype=torch.float64)
    clipped, threshold = clip(gradient, 0.25)
    assert threshold == 2.0
    assert critical_ratio(gradient, clipped, threshold, torch.tensor([True, False, False, False])) == math.inf


@pytest.mark.parametrize(("large", "small"), [(1.0, 2.0), (math.inf, 1.0), (1.0, -1.0), (math.nan, 1.0)])
def test_levels_that_are_none(large, small):
    with pytest.raises(UsageError, match="0 ≤ ℓ ≤ L"):
        TwoLevels(torch.tensor([True, False]), large, small)


@pytest.mark.parametrize("rank", [1, 3, 12, 20])
def test_the_block_inequality(rank):
    """It holds for every positive semidefinite matrix, and its factor 2 is needed."""
    factors = torch.randn(12, rank, dtype=torch.float64)
    hessian, bad = factors @ factors.T, torch.arange(12) < 3
    for _ in range(100):
        u = normal(12)
        found, bound = block_bound(hessian, bad, u)
        first, second = u[:3], u[3:]
        by_hand = 2 * (first @ hessian[:3, :3] @ first + second @ hessian[3:, 3:] @ second)
        assert found == pytest.approx(float(u @ hessian @ u), rel=1e-12)
        assert bound == pytest.approx(float(by_hand), rel=1e-12)
        assert found <= bound * (1 + 1e-12)
    if rank < 12:
        null = torch.linalg.qr(factors, mode="complete").Q[:, -1]
        found, bound = block_bound(hessian, bad, torch.where(bad, null, -null))
        assert found == pytest.approx(bound, rel=1e-9)
        assert bound > 0.01


def test_the_block_inequality_needs_a_positive_semidefinite_matrix():
    hessian = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    found, bound = block_bound(hessian, torch.tensor([True, False]), torch.ones(2))
    assert (found, bound) == (2.0, 0.0)
