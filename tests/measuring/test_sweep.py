"""How much to clip, against each fraction measured by itself."""

import pytest
import torch

import stepscope
from cases import case
from stepscope import UsageError, clip_grad_fraction_, clip_sweep
from stepscope.measuring.sweep import FRACTIONS


def test_each_fraction_is_that_of_the_clipped_gradient():
    objective = case("layer norm").objective()
    before = {name: p.detach().clone() for name, p in objective.parameters.items()}
    sweep = clip_sweep(objective)
    assert tuple(sweep.measurements) == FRACTIONS
    for fraction, m in sweep.measurements.items():
        _, gradient = objective.gradient()
        holders = [torch.nn.Parameter(torch.zeros_like(g)) for g in gradient.values()]
        for holder, g in zip(holders, gradient.values(), strict=True):
            holder.grad = g
        clip_grad_fraction_(holders, fraction)
        direction = {name: -holder.grad for name, holder in zip(gradient, holders, strict=True)}
        alone = stepscope.measure(objective, {"d": direction}, landscape=True)["d"]
        assert m.sharpness == pytest.approx(alone.sharpness, rel=1e-10)
        assert m.best_decrease == pytest.approx(alone.best_decrease, rel=1e-10)
    assert len({m.norm for m in sweep.measurements.values()}) == len(FRACTIONS)
    gains = {fraction: m.best_decrease for fraction, m in sweep.measurements.items()}
    assert gains[sweep.best] == max(gains.values())
    assert all(torch.equal(p, before[name]) for name, p in objective.parameters.items())


def test_one_bad_coordinate_is_clipped_away():
    """½Σhᵢxᵢ² with one h of 100: every gain in closed form, (gᵀu)² / 2uᵀHu."""
    w = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.ones(20, dtype=torch.float64))})
    h = torch.tensor([100.0] + [1.0] * 19, dtype=torch.float64)
    objective = stepscope.Objective(w, lambda m, b: 0.5 * (b * m["x"] ** 2).sum(), [h], lambda _: 1)
    sweep = clip_sweep(objective, fractions=(0.0, 0.05, 1.0))
    for fraction, c in ((0.0, h), (0.05, torch.ones(20).double()), (1.0, torch.ones(20).double())):
        gain = float((h * c).sum() ** 2 / (2 * (h * c**2).sum()))
        assert sweep.measurements[fraction].best_decrease == pytest.approx(gain, rel=1e-6)
    assert sweep.best == 0.05  # the smallest of equals
    assert str(sweep).splitlines()[2].endswith("best")


def test_a_given_direction_and_one_that_does_not_descend():
    objective = case("mlp").objective()
    _, gradient = objective.gradient()
    uphill = clip_sweep(objective, gradient, fractions=(0, 0.5))
    assert uphill.best is None
    assert all(m.correlation > 0 for m in uphill.measurements.values())
    third = clip_sweep(objective, fractions=(1 / 3, 0.1, 0.1))
    assert list(third.measurements) == [0.1, 1 / 3]


def test_mistakes():
    objective = case("mlp").objective()
    with pytest.raises(UsageError, match="between 0 and 1"):
        clip_sweep(objective, fractions=[0.5, 2])
    with pytest.raises(UsageError, match="no fractions"):
        clip_sweep(objective, fractions=[])
    with pytest.raises(UsageError, match="not a trainable parameter"):
        clip_sweep(objective, {"nothing": torch.ones(2)})
