"""The table of compared optimizers has the paper's settings, each shown by its first update."""

import pytest
import torch
from torch import nn

from stepscope.directions.updates import PseudoUpdates
from stepscope.paper.experiments.compared_optimizers import measured_directions


@pytest.fixture(scope="module")
def updates():
    """The second update of each optimizer, of the same two gradients on one matrix of 20 coordinates."""
    w = nn.Parameter(torch.ones(4, 5))
    first = torch.arange(1.0, 21.0).reshape(4, 5)
    followers = PseudoUpdates({"w": w}, measured_directions())
    followers.step({"w": first})
    return {label: -d["w"] for label, d in followers.step({"w": first.flip(0) - 4.5}, capture=True).items()}


def expected(p=0.0):
    first = torch.arange(1.0, 21.0).reshape(4, 5)
    second = first.flip(0) - 4.5
    clip = [
        g.clamp(-t, t) for g in (first, second) for t in [g.abs().flatten().sort(descending=True).values[int(p * 20)]]
    ]
    return first, second, clip


def test_sgd_averages_and_clips_a_tenth_of_the_gradient(updates):
    first, second, clip = expected(0.1)
    torch.testing.assert_close(updates["sgd"], 0.1 * (0.9 * first + 0.1 * second))
    torch.testing.assert_close(updates["sgd clip 10%"], 0.1 * (0.9 * clip[0] + 0.1 * clip[1]))


def test_adam_clips_half(updates):
    first, second, clip = expected(0.5)

    def adam(a, b, c, d):
        m = (0.09 * a + 0.1 * b) / (1 - 0.9**2)
        v = (0.999 * 0.001 * c**2 + 0.001 * d**2) / (1 - 0.999**2)
        return 2e-4 * m / (v.sqrt() + 1e-8)

    torch.testing.assert_close(updates["adam"], adam(first, second, first, second), rtol=1e-4, atol=1e-9)
    found = updates["adam clip 50% (first moment)"]
    torch.testing.assert_close(found, adam(*clip, first, second), rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(updates["adam clip 50% (gradient)"], adam(*clip, *clip), rtol=1e-4, atol=1e-9)
    update = adam(first, second, first, second)
    limit = update.abs().flatten().sort(descending=True).values[10]
    # Clipped is the difference of the weights, as it is made: beside 1, with their rounding.
    torch.testing.assert_close(updates["adam clip 50% (update)"], update.clamp(-limit, limit), rtol=1e-4, atol=1e-7)


def test_lion_and_its_clip(updates):
    first, second, _ = expected()
    mixed = 0.9 * 0.01 * first + 0.1 * second
    torch.testing.assert_close(updates["lion"], 1e-4 * mixed.sign())
    limit = mixed.abs().flatten().sort(descending=True).values[10]
    torch.testing.assert_close(
        updates["lion clip 50% (update)"], 1e-4 * mixed.clamp(-limit, limit), rtol=1e-5, atol=1e-10
    )


def test_sign_and_normalized(updates):
    first, second, clip = expected(0.1)
    momentum = 0.09 * first + 0.1 * second
    torch.testing.assert_close(updates["signsgd"], 1e-4 * momentum.sign())
    torch.testing.assert_close(updates["normalized sgd"], 1e-4 * 20**0.5 * momentum / momentum.norm())
    momentum = 0.09 * clip[0] + 0.1 * clip[1]
    torch.testing.assert_close(updates["normalized sgd clip 10%"], 1e-4 * 20**0.5 * momentum / momentum.norm())
