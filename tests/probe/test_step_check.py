"""A step is told from another by more than the rounding of its weights."""

import pytest
import torch
from torch import nn

from stepscope.probe.step_check import ExpectedStep


def made(dtype, error, writes, scale):
    """A step of `writes` roundings, whose direction was expected wrong by a part `error`."""
    generator = torch.Generator().manual_seed(0)
    w = nn.Parameter(torch.randn(10_000, generator=generator).to(dtype))
    d = scale * torch.randn(10_000, generator=generator).double()
    expected = ExpectedStep({"w": w}, {"w": d * (1 + error)})
    with torch.no_grad():
        for _ in range(writes):
            w.copy_(w.double() + d / writes)
    return expected.compared_with({"w": w})


@pytest.mark.parametrize("scale", [1.0, 1e-2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_that_is_wrong_in_the_fifth_digit_is_another(dtype, scale):
    assert not made(dtype, 0.0, 3, scale).is_another
    rounding = made(dtype, 0.0, 1, scale).rounding
    assert made(dtype, 2e-5 + 3 * rounding, 1, scale).is_another
    assert rounding < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_half_precision_is_no_other_step(dtype):
    for scale in (1e-1, 1e-3, 1e-6):
        for writes in (1, 2, 3):
            assert not made(dtype, 0.0, writes, scale).is_another, (scale, writes)
    assert made(dtype, 0.5, 1, 1.0).is_another


def test_ones_that_all_round_the_same_way():
    """Weights of a layer normalization: equal, so their rounding doesn't average out."""
    w = nn.Parameter(torch.ones(1000))
    d = torch.full((1000,), -1e-4)
    expected = ExpectedStep({"w": w}, {"w": d})
    with torch.no_grad():
        w.mul_(1 - 3e-5).add_(d + 3e-5)
    assert not expected.compared_with({"w": w}).is_another


def test_only_the_coarse_parameters_round_coarsely():
    x = {"fine": nn.Parameter(torch.ones(1000)), "coarse": nn.Parameter(torch.ones(1).bfloat16())}
    expected = ExpectedStep(x, {"fine": torch.full((1000,), 1e-2), "coarse": torch.zeros(1)})
    found = expected.compared_with(x)  # the step was not made
    assert found.error == pytest.approx(1.0)
    assert found.dtype == torch.bfloat16
    assert found.is_another
