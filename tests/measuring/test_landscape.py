"""The landscape finds the minimum of one-dimensional functions whose answer is known, on any scale."""

import math
import random

import pytest
import torch
from torch import nn

from stepscope import Objective
from stepscope.measuring.landscape import scan


def along(function, *, dtype=torch.float64):
    """An objective whose loss along the unit direction ``w`` is ``function(t)``."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(1, dtype=dtype))})
    return Objective(model, lambda m, b: function(m["w"].sum()), [0], lambda b: 1), {"w": torch.ones(1)}


def derivatives(objective):
    with objective.measuring():
        _, loss = next(objective.losses())
        (g,) = torch.autograd.grad(loss, objective.parameters["w"], create_graph=True)
        h = torch.autograd.grad(g, objective.parameters["w"])[0] if g.requires_grad else 0.0
    return float(g.detach()), float(h)


FUNCTIONS = {
    "parabola": (lambda t: 3 + 0.5 * (t - 2) ** 2, 2.0),
    "quartic": (lambda t: (t - 1) ** 4 + 5, 1.0),
    "flat start": (lambda t: 2 - torch.exp(-((t - 3) ** 2)), 3.0),
    "steep side": (lambda t: torch.exp(5 * t) - 20 * t, math.log(4) / 5),
    "kink": (lambda t: 1 + (t - 0.7).abs(), 0.7),
    "wrong curvature": (lambda t: 10 - t + 1e-4 * t**2 + 1e-3 * torch.cos(100 * t), 5000.0),
    "negative curvature": (lambda t: t**4 - t**2 - 0.1 * t, 0.7312),
    "dip before a deeper one": (
        lambda t: 7 - 0.05 * (t + t**2) * torch.exp(-(t**2) / 4) - torch.exp(-(((t - 60) / 15) ** 2)),
        1.8136,
    ),
    "wall": (lambda t: torch.where(t > 1.5, torch.nan, 4 - t), None),
}


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_finds_the_minimum_on_any_scale(name, scale):
    function, minimum = FUNCTIONS[name]
    objective, u = along(lambda t: function(t / scale))
    slope, sharpness = derivatives(objective)
    found = scan(objective, u, slope=slope, sharpness=sharpness)
    assert found.status == "bracketed"
    assert found.steps[0] == 0
    assert list(found.steps) == sorted(found.steps)
    assert len(found.steps) <= 40
    lowest = min(found.losses)
    assert found.best_decrease == pytest.approx(found.losses[0] - lowest)
    assert found.losses[found.steps.index(found.best_step)] == lowest
    # A minimum is bracketed: larger losses on both sides.
    place = found.steps.index(found.best_step)
    assert found.losses[place - 1] > lowest < found.losses[place + 1]
    if minimum is not None:
        exact = float(
            function(torch.tensor(0.0, dtype=torch.float64)) - function(torch.tensor(minimum, dtype=torch.float64))
        )
        assert found.best_decrease == pytest.approx(exact, rel=0.02)


def test_the_best_step_is_the_lowest_point_around_it():
    """Random functions with several wells: no point up to twice the best step is lower than it."""
    generator = random.Random(0)
    for _ in range(100):
        wells = [(generator.uniform(0.3, 4), generator.uniform(0.05, 0.6), generator.uniform(0.2, 2)) for _ in range(3)]

        def function(t, wells=wells):
            return 10 + 0.05 * t**2 - 0.1 * t - sum(h * torch.exp(-(((t - at) / width) ** 2)) for at, width, h in wells)

        objective, u = along(function)
        slope, sharpness = derivatives(objective)
        found = scan(objective, u, slope=slope, sharpness=sharpness)
        if found.status == "bracketed":
            near = [loss for step, loss in zip(found.steps, found.losses, strict=True) if step <= 2 * found.best_step]
            assert found.losses[0] - found.best_decrease == pytest.approx(min(near), abs=1e-12)


def test_uphill_is_no_descent():
    objective, u = along(lambda t: 3 + t + t**2)
    found = scan(objective, u, slope=1.0, sharpness=2.0)
    assert (found.status, found.best_step, found.best_decrease) == ("no descent", 0.0, 0.0)
    assert len(found.steps) == 4  # the first, and half and twice as far for a figure


def test_a_minimum_too_near_to_be_seen_above_rounding_is_no_descent():
    objective, u = along(lambda t: 1e6 + 1e3 * (t - 1e-8) ** 2, dtype=torch.float32)
    found = scan(objective, u, slope=-2e-5, sharpness=2e3)
    assert (found.status, found.best_decrease) == ("no descent", 0.0)


def test_an_endless_descent_is_unbounded():
    objective, u = along(lambda t: 5 - t)
    found = scan(objective, u, slope=-1.0, sharpness=0.0)
    assert found.status == "unbounded"
    assert found.best_decrease > 1e3


def test_infinite_losses_are_walls():
    objective, u = along(lambda t: torch.where(t > 1.0, torch.inf, 4 - t))
    found = scan(objective, u, slope=-1.0, sharpness=1e-3)
    assert math.inf in found.losses
    assert found.best_step <= 1.0
    assert found.best_decrease > 0.5


def test_a_decrease_of_less_than_the_measured_rounding_is_none():
    objective, u = along(lambda t: 5 - 1e-4 * torch.tanh(1e3 * t) + t**2)
    assert scan(objective, u, slope=-0.1, sharpness=0.0, rounding=2e-4).status == "no descent"
    assert scan(objective, u, slope=-0.1, sharpness=0.0, rounding=2e-5).status == "bracketed"


def test_a_decrease_of_less_than_rounding_is_none():
    """A jitter of a few units in the last place, downwards everywhere: not a minimum."""
    objective, u = along(lambda t: 1e3 - 1e-4 * torch.tanh(1e6 * t), dtype=torch.float32)
    found = scan(objective, u, slope=-1e-2, sharpness=0.0)
    assert (found.status, found.best_decrease) == ("no descent", 0.0)


def test_a_deeper_minimum_that_the_model_foretells_is_met():
    """The model's own step, 8, lies in a well. A hump that the derivatives know nothing of hides another."""

    def function(t):
        return 10 - t + t**2 / 16 + 0.05 * t**4 * torch.exp(-((t / 2) ** 2))

    objective, u = along(lambda t: function(100 * t))
    slope, sharpness = derivatives(objective)
    found = scan(objective, u, slope=slope, sharpness=sharpness)
    assert found.best_step == pytest.approx(0.08, rel=1e-3)
    assert found.best_decrease == pytest.approx(4.0, rel=1e-3)


def test_a_figure_gets_points_around_the_minimum():
    objective, u = along(lambda t: 3 + 0.5 * (t - 2) ** 2)
    assert scan(objective, u, slope=-2.0, sharpness=1.0).steps == (0.0, 1.0, 2.0, 4.0)


def test_what_is_known_is_not_evaluated_again(monkeypatch):
    steps = []
    objective, u = along(lambda t: 3 + 0.5 * (t - 2) ** 2)
    monkeypatch.setattr(objective, "loss", lambda: pytest.fail("f(x) is known"))
    monkeypatch.setattr(objective, "loss_at", lambda _, t: steps.append(t) or 3 + 0.5 * (t - 2) ** 2)
    landscape = scan(objective, u, slope=-2.0, sharpness=1.0, loss=5.0, also=(0.1,))
    assert sorted(steps) == pytest.approx([0.1, 1.0, 2.0, 4.0], rel=1e-6)
    assert landscape.losses[0] == 5.0
