"""On parameters that lie in parts on several ranks, a direction is the step that is really made, or is refused."""

import functools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from ranks import on_ranks, refused
from stepscope import PseudoUpdates, next_update
from stepscope.directions.optimizers import Lion

pytestmark = pytest.mark.slow

RULES = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "Adam": functools.partial(torch.optim.Adam, lr=0.01),
    "AdamW": functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1, amsgrad=True),
    "AdamW fused": functools.partial(torch.optim.AdamW, lr=0.01, fused=True),
    "AdamW foreach": functools.partial(torch.optim.AdamW, lr=0.01, foreach=True),
    "Adamax": torch.optim.Adamax,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "RMSprop": functools.partial(torch.optim.RMSprop, momentum=0.9),
    "Adadelta": torch.optim.Adadelta,
    "Adagrad": torch.optim.Adagrad,
    "ASGD": torch.optim.ASGD,
    "Muon": lambda p: torch.optim.Muon([x for x in p if x.dim() == 2], lr=0.01),
}


def model(dtype, *, even=False):
    """Its parts are uneven, of one row one is empty; torch's Muon runs on even ones alone."""
    torch.manual_seed(1)
    inner, outer = (8, 4) if even else (7, 1)
    return fully_shard(nn.Sequential(nn.Linear(5, inner), nn.Tanh(), nn.Linear(inner, outer)).to(dtype))


def backward(m, step):
    generator = torch.Generator().manual_seed(10 * step + dist.get_rank())
    m.zero_grad()
    m(torch.randn(4, 5, generator=generator).to(next(m.parameters()).dtype)).square().mean().backward()


def parts(tensors):
    return {name: tensor.detach().to_local().clone() for name, tensor in tensors.items()}


def state_of(m, optimizer):
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*m.parameters(), *(p.grad for p in m.parameters()), *(s for s in states if isinstance(s, torch.Tensor))]
    return [(t.to_local() if hasattr(t, "to_local") else t).detach().clone() for t in tensors]


def compared(rule, dtype, **settings):
    """How far directions are from the steps that are made, relatively, and whether asking has changed anything."""
    m = model(dtype, **settings)
    named = dict(m.named_parameters())
    optimizer = rule(m.parameters())
    shadows = PseudoUpdates(named, {"factory": rule, "own": optimizer})
    worst, same = 0.0, True
    for step in range(2):
        backward(m, step)
        before, state = parts(named), state_of(m, optimizer)
        found = next_update(optimizer, named)
        gradients = {name: p.grad for name, p in named.items()}
        followed = shadows.step(gradients, capture=True)
        same &= all(map(torch.equal, state, state_of(m, optimizer)))
        optimizer.step()
        for direction in (found, *followed.values()):
            for name, change in parts(direction).items():
                made = named[name].detach().to_local() - before[name]
                if made.numel():
                    rounding = torch.finfo(dtype).eps * float(before[name].norm())
                    worst = max(worst, max(float((change - made).norm()) - rounding, 0.0) / float(made.norm() + 1e-30))
    return [worst, same]


# ------------------------------------------------------------------------------------------------------------ cases


def rules():
    return {
        name: [compared(rule, dtype, even=name == "Muon") for dtype in (torch.float64, torch.float32)]
        for name, rule in RULES.items()
    }


def small_steps():
    """A step that the weights in float32 nearly lose."""
    m = model(torch.float32)
    named = dict(m.named_parameters())
    backward(m, 0)
    found = next_update(torch.optim.SGD(m.parameters(), lr=1e-7), named)
    exact = all(torch.allclose(d.to_local(), -1e-7 * named[n].grad.to_local(), rtol=1e-6) for n, d in found.items())
    return [exact, all(d.placements == named[n].placements for n, d in found.items())]


def joint():
    """Muon for matrices with AdamW for the rest, as one step."""
    m = model(torch.float64, even=True)
    named = dict(m.named_parameters())
    parts_of_step = [
        torch.optim.Muon([p for p in m.parameters() if p.dim() == 2], lr=0.01),
        torch.optim.AdamW([p for p in m.parameters() if p.dim() < 2], lr=0.01),
    ]
    backward(m, 0)
    before, found = parts(named), next_update(parts_of_step, named)
    for optimizer in parts_of_step:
        optimizer.step()
    after = parts(named)
    return all(torch.allclose(before[n] + d, after[n], rtol=1e-12) for n, d in parts(found).items())


def refusals():
    m = model(torch.float32)
    named = dict(m.named_parameters())
    backward(m, 0)

    class Own(torch.optim.SGD):
        pass

    def both(rule):
        shadow = {"it": lambda p: rule(p, lr=0.1)}
        asked = (lambda: next_update(rule(m.parameters(), lr=0.1), named), lambda: PseudoUpdates(named, shadow))
        return list(map(refused, asked))

    return {rule.__name__: both(rule) for rule in (Lion, torch.optim.Adafactor, torch.optim.Rprop, Own)}


def on_one_rank_alone():
    """The second rank has no gradients, or not all of them."""
    m = model(torch.float32)
    named, optimizer = dict(m.named_parameters()), torch.optim.SGD(m.parameters(), lr=0.1)
    backward(m, 0)
    said = []
    for missing in (list(named), ["0.bias"]):
        given = {n: None if dist.get_rank() and n in missing else p.grad for n, p in named.items()}
        said.append(refused(lambda given=given: next_update(optimizer, named, given)))
    return said


CASES = (rules, small_steps, joint, refusals, on_one_rank_alone)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(CASES, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("rule", RULES)
def test_a_direction_is_the_step_that_is_made_and_asking_changes_nothing(results, rule):
    for rank in results["rules"]:
        for difference, unchanged in rank[rule]:
            assert difference < 1e-5
            assert unchanged


def test_a_small_step_is_not_a_difference_of_weights(results):
    assert results["small_steps"] == [[True, True]] * 2


def test_several_optimizers_make_one_step(results):
    assert results["joint"] == [True] * 2


@pytest.mark.parametrize("rule", ["Lion", "Adafactor", "Rprop", "Own"])
def test_a_rule_that_was_not_tried_is_refused(results, rule):
    for rank in results["refusals"]:
        assert all(said.startswith("UsageError: ") and f"whether {rule} makes" in said for said in rank[rule])


def test_gradients_that_one_rank_lacks_are_refused_on_all(results):
    for rank in results["on_one_rank_alone"]:
        assert all("ranks have gradients of different parameters" in said for said in rank)
