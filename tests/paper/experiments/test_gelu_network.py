"""The network's interval Hessian against autograd's, at the ends of a segment and everywhere between."""

import pytest
import torch
from torch import nn

from stepscope.paper.experiments.gelu_network import GeluNetwork


def network(inputs=4, hidden=5, examples=12):
    data = torch.randn(examples, inputs, dtype=torch.float64) * 2
    return GeluNetwork(data, (torch.rand(examples) > 0.5).double(), hidden)


def hessian(net, x):
    return torch.autograd.functional.hessian(net.loss, x)


@pytest.fixture
def segment():
    """A network, a point, and a segment on which its curvature changes a lot."""
    net = network()
    x = torch.randn(net.parameters, dtype=torch.float64) * 0.6
    return net, x, torch.randn(net.parameters, dtype=torch.float64), 0.4


def points(x, d, step, count=60):
    return [x - step * t * d for t in torch.linspace(0, 1, count, dtype=torch.float64)]


def test_the_loss_is_that_of_torchs_modules():
    net = network()
    x = torch.randn(net.parameters, dtype=torch.float64)
    first, second = nn.Linear(4, 5).double(), nn.Linear(5, 1).double()
    rows = x[:25].view(5, 5)
    with torch.no_grad():
        first.weight.copy_(rows[:, :4])
        first.bias.copy_(rows[:, 4])
        second.weight.copy_(x[None, 25:30])
        second.bias.copy_(x[30:])
    output = nn.Sequential(first, nn.GELU(), second)(net.inputs)[:, 0]
    wanted = nn.BCEWithLogitsLoss()(output, net.labels)
    torch.testing.assert_close(net.loss(x), wanted.detach(), rtol=1e-13, atol=0)
    wanted.backward()
    by_module = torch.cat([torch.cat([first.weight.grad, first.bias.grad[:, None]], 1).flatten(),
                           second.weight.grad.flatten(), second.bias.grad])  # fmt: skip
    torch.testing.assert_close(net.gradient(x), by_module, rtol=0, atol=1e-15)


@pytest.mark.parametrize("shape", [(4, 5, 12), (1, 1, 1), (3, 2, 7)])
def test_at_a_point_the_interval_is_the_hessian(shape):
    net = network(*shape)
    x = torch.randn(net.parameters, dtype=torch.float64)
    found = net.hessian(x, torch.randn_like(x), 0.0, 1)
    for end in found:
        torch.testing.assert_close(end[0], hessian(net, x), rtol=0, atol=1e-14)
    torch.testing.assert_close(net.smoothness(x, x, 0.0, 1), hessian(net, x).abs().sum(1), rtol=2e-9, atol=0)


@pytest.mark.parametrize("pieces", [1, 2, 5])
def test_every_hessian_of_the_segment_lies_within(segment, pieces):
    net, x, d, step = segment
    found = net.hessian(x, d, step, pieces)
    width = float((found.high - found.low).max())
    changes = []
    for place, point in zip(torch.linspace(0, 1, 60).tolist(), points(x, d, step), strict=True):
        piece = min(int(place * pieces), pieces - 1)
        exact = hessian(net, point)
        assert bool((found.low[piece] <= exact + 1e-14).all())
        assert bool((found.high[piece] >= exact - 1e-14).all())
        changes.append(exact)
    change = float((torch.stack(changes).amax(0) - torch.stack(changes).amin(0)).max())
    assert change > 0.05  # a segment on which nothing changes would prove nothing
    assert width < 40 * change


def test_the_smoothness_holds_along_the_segment(segment):
    """diag(L) − H is positive semidefinite everywhere, and the inequality that defines L holds between all points."""
    net, x, d, step = segment
    smoothness = net.smoothness(x, d, step)
    gradient = net.gradient(x)
    for point in points(x, d, step):
        assert float(torch.linalg.eigvalsh(torch.diag(smoothness) - hessian(net, point))[0]) >= -1e-12
        move = point - x
        assert float(net.loss(point)) <= float(net.loss(x) + gradient @ move + 0.5 * smoothness @ move**2) + 1e-14


def test_a_peak_between_the_ends_is_not_missed():
    """σ′ and gelu″ are largest at 0, which a segment from −3 to 3 crosses: its ends show a quarter of it."""
    net = GeluNetwork(torch.ones(1, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64), 1)
    x = torch.tensor([-3.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    d = torch.tensor([-6.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    rows = torch.stack([hessian(net, point).abs().sum(1) for point in points(x, d, 1.0, 401)])
    ends = torch.maximum(rows[0], rows[-1])
    assert bool((rows.amax(0)[:2] > 4 * ends[:2]).all())
    for pieces in (1, 2, 3, 64):
        assert bool((net.smoothness(x, d, 1.0, pieces) >= rows.amax(0)).all())
    # With pieces the bound comes down to the largest row.
    torch.testing.assert_close(net.smoothness(x, d, 1.0, 2000), rows.amax(0), rtol=0.02, atol=0)


def test_a_longer_segment_has_no_smaller_bound(segment):
    net, x, d, step = segment
    short, long = (net.smoothness(x, d, length, 1) for length in (step / 2, step))
    assert bool((long >= short).all())
    assert bool((short > net.smoothness(x, d, 0.0, 1)).all())
