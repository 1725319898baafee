"""Intervals hold every value between their ends, and no interval is wider than it has to be."""

import pytest
import torch

from stepscope.paper.experiments import intervals
from stepscope.paper.experiments.intervals import Interval, hull

FUNCTIONS = {
    "gelu": (intervals.gelu, 0),
    "gelu_slope": (intervals.gelu_slope, 1),
    "gelu_bend": (intervals.gelu_bend, 2),
    "sigmoid": (intervals.sigmoid, 0),
    "sigmoid_slope": (intervals.sigmoid_slope, 1),
}


def values(name, z):
    """The function by autograd: as many derivatives of torch's own as it is."""
    function = torch.nn.functional.gelu if name.startswith("gelu") else torch.sigmoid
    z = z.clone().requires_grad_()
    found = function(z)
    for _ in range(FUNCTIONS[name][1]):
        (found,) = torch.autograd.grad(found.sum(), z, create_graph=True)
    return found.detach()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("width", [0.0, 0.01, 1.0, 6.0])
def test_a_function_is_enclosed_tightly(name, width):
    low = torch.empty(300, dtype=torch.float64).uniform_(-5, 5)
    z = Interval(low, low + width * torch.rand(300, dtype=torch.float64))
    found = FUNCTIONS[name][0](z)
    between = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    sampled = values(name, z.low + between * (z.high - z.low))
    least, most = sampled.amin(0), sampled.amax(0)
    assert bool((found.low <= least + 1e-15).all() and (found.high >= most - 1e-15).all())
    # Between two samples that are at most 0.003 apart these functions curve by less than 1e-5.
    torch.testing.assert_close(found.low, least, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.high, most, rtol=0, atol=1e-5)


def test_products_and_sums_hold_all_of_theirs():
    a, b = (hull(*torch.randn(2, 200, dtype=torch.float64)) for _ in range(2))
    exact = torch.randn(200, dtype=torch.float64)
    parts = torch.rand(2, 500, 1, dtype=torch.float64)
    x, y = (part * (i.high - i.low) + i.low for part, i in zip(parts, (a, b), strict=True))
    for found, inside in ((a.times(b), x * y), (a.times(exact), x * exact), (a.plus(b), x + y)):
        assert bool((found.low <= inside + 1e-15).all() and (found.high >= inside - 1e-15).all())
    corners = torch.stack([s * t for s in a for t in b])
    assert torch.equal(a.times(b).low, corners.amin(0))
    assert torch.equal(a.times(b).high, corners.amax(0))
    total = a.sum(0)
    assert (float(total.low), float(total.high)) == pytest.approx((float(a.low.sum()), float(a.high.sum())))
    assert bool((a.magnitude() >= x.abs()).all())


def test_the_minimum_of_gelu_is_where_its_slope_is_zero():
    at = torch.tensor(intervals.GELU_MINIMUM, dtype=torch.float64)
    assert abs(float(values("gelu_slope", at))) < 1e-15
