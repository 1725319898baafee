"""Multipliers of layers against dense Hessians and grids, and what is not believed without a lower loss."""

import itertools

import pytest
import torch
from torch import nn

from cases import case, dense, flat
from stepscope import Objective
from stepscope.measuring.breakdown import layer_of
from stepscope.measuring.layer_multipliers import box_minimum, layer_multipliers
from traces import fingerprint


@pytest.mark.parametrize(("name", "method"), [("layer norm", "autograd"), ("llama", "autograd"), ("mlp", "difference")])
def test_interactions_and_slopes_are_those_of_the_dense_reference(name, method):
    c = case(name)
    objective = c.objective()
    d = {n: -0.1 * torch.randn_like(p).float() for n, p in objective.parameters.items()}
    before = fingerprint(c.model)
    found = layer_multipliers(objective, d, method=method)
    assert fingerprint(c.model) == before
    _, gradient, hessian = dense(name)
    parts = {layer: flat(c, {n: t for n, t in d.items() if layer_of(n) == layer}) for layer in found.slopes}
    scale = float(flat(c, d).square().sum() * torch.linalg.matrix_norm(hessian, 2))
    for one, other in itertools.product(parts, parts):
        expected = float(parts[one] @ hessian @ parts[other])
        assert found.interactions[one][other] == pytest.approx(expected, abs=1e-6 * scale), (one, other)
    for layer, part in parts.items():
        assert found.slopes[layer] == pytest.approx(float(part @ flat(c, gradient)), abs=1e-6 * scale)


def test_the_minimum_in_the_box_is_that_of_a_grid():
    torch.manual_seed(0)
    root = torch.randn(3, 3, dtype=torch.float64)
    matrix, linear = root @ root.T, torch.randn(3, dtype=torch.float64)
    grid = torch.cartesian_prod(*[torch.linspace(0.5, 2, 61, dtype=torch.float64)] * 3)
    values = ((grid @ matrix) * grid).sum(1) / 2 + grid @ linear
    found = box_minimum(matrix, linear)
    assert found @ matrix @ found / 2 + found @ linear <= values.min()
    assert torch.allclose(found, grid[values.argmin()], atol=0.025)


def test_what_the_loss_does_not_confirm_is_not_said():
    model = nn.ParameterDict({"a": nn.Parameter(torch.zeros(1)), "b": nn.Parameter(torch.zeros(1))})
    objective = Objective(model, lambda m, _: (-m["a"] + 10 * m["a"].relu() ** 4 + m["b"] ** 2).sum(), [0], lambda _: 1)
    found = layer_multipliers(objective, {"a": torch.ones(1), "b": torch.full((1,), -0.1)})
    assert found.predicted_gain > 0 > found.gain
    assert found.multipliers is None


def test_layers_are_the_users_choice_and_what_does_not_move_is_none():
    objective = case("mlp").objective()
    d = {n: -0.1 * g for n, g in objective.gradient()[1].items()}
    d["inside.weight"] = torch.zeros_like(d["inside.weight"])
    assert set(layer_multipliers(objective, d, {"mid": "middle", "": "rest"}).slopes) == {"middle", "rest"}
    assert "inside" not in layer_multipliers(objective, d).slopes
