"""The part of a step that weight decay makes, against steps of the same optimizer without it."""

import inspect

import pytest
import torch
from torch import nn

from stepscope import next_update
from stepscope.directions import Lion, NormalizedSGD, SignSGD, decay_part
from stepscope.directions.decay import BY_SETTING, COUPLED, DECOUPLED

KNOWN = [(rule, {}) for rule in DECOUPLED] + [(rule, {"decoupled_weight_decay": True}) for rule in BY_SETTING]


def trained(rule, steps=2, **settings):
    """An optimizer after some steps, its parameters with the gradients of the next: one of them has none."""
    torch.manual_seed(0)
    parameters = {name: nn.Parameter(torch.randn(3, 2, dtype=torch.float64)) for name in ("a", "b", "still")}
    optimizer = rule(list(parameters.values()), lr=0.01, **settings)
    for step in range(steps + 1):
        for name in ("a", "b"):
            parameters[name].grad = torch.randn(3, 2, dtype=torch.float64)
        if step < steps:
            optimizer.step()
    return optimizer, parameters


@pytest.mark.parametrize(("rule", "settings"), KNOWN, ids=lambda value: getattr(value, "__name__", ""))
def test_without_it_the_same_state_makes_the_rest_of_the_step(rule, settings):
    optimizer, parameters = trained(rule, weight_decay=0.3, **settings)
    step, part = next_update(optimizer, parameters), decay_part(optimizer, parameters)
    optimizer.param_groups[0]["weight_decay"] = 0.0
    rest = next_update(optimizer, parameters)
    assert decay_part(optimizer, parameters) == {}
    assert part.keys() == {"a", "b"}
    for name in part:
        torch.testing.assert_close(part[name], -0.003 * parameters[name].detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(step[name] - part[name], rest[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [*COUPLED, *BY_SETTING])
def test_coupled_decay_has_no_part_of_its_own(rule):
    assert decay_part(*trained(rule, weight_decay=0.3)) is None
    assert decay_part(*trained(rule, weight_decay=0.0)) == {}


def test_nothing_is_guessed_of_a_rule_that_is_not_known():
    class Mine(torch.optim.AdamW):
        """It might decay otherwise."""

    assert decay_part(*trained(Mine, weight_decay=0.3)) is None
    known, parameters = trained(Lion, weight_decay=0.3)
    other = Mine([parameters.pop("a")])
    known.param_groups[0]["params"] = [parameters["b"]]
    assert decay_part([known, other], parameters).keys() == {"b"}  # the other holds none of these
    parameters["a"] = other.param_groups[0]["params"][0]
    assert decay_part([known, other], parameters) is None


def test_each_rule_of_torch_is_in_one_table_or_known_to_be_in_none():
    rules = {rule for _, rule in inspect.getmembers(torch.optim, inspect.isclass) if rule.__module__ != "torch.optim"}
    rules = {rule for rule in rules if issubclass(rule, torch.optim.Optimizer)} - {torch.optim.Optimizer}
    named = [*DECOUPLED, *BY_SETTING, *COUPLED]
    assert len(named) == len(set(named))
    # These have no decay, or another one (ASGD).
    left_out = {torch.optim.ASGD, torch.optim.LBFGS, torch.optim.Rprop, torch.optim.SparseAdam}
    assert rules - set(named) == left_out


def test_groups_and_halves_and_no_gradients():
    half = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    plain = nn.Parameter(torch.ones(2))
    groups = [{"params": [half]}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = SignSGD(groups, lr=0.5, weight_decay=0.1)
    parameters = {"half": half, "plain": plain}
    assert decay_part(optimizer, parameters) == {}  # nothing moves without a gradient
    part = decay_part(optimizer, parameters, {"half": torch.ones(2), "plain": torch.ones(2)})
    assert part.keys() == {"half"}
    assert part["half"].dtype == torch.float32
    assert part["half"].tolist() == pytest.approx([-0.05] * 2)
    assert decay_part(NormalizedSGD([half], weight_decay=0.1), {"half": half}) == {}
