"""Optimizers that share a model's parameters out between them are one step: measured as one, trained as without."""

import logging
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from classes import data, loss_fn
from stepscope import Probe, UsageError, next_update
from stepscope.directions import muon_with_adamw
from traces import equal, outcome, same


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))


def whole(model, **settings):
    return [torch.optim.AdamW(model.parameters(), lr=1e-2, **settings)]


def halves(model, **settings):
    parameters = list(model.parameters())
    return [torch.optim.AdamW(part, lr=1e-2, **settings) for part in (parameters[::2], parameters[1::2])]


def muon_and_adamw(model):
    return muon_with_adamw()(list(model.parameters()))


class Container:
    def __init__(self, optimizers):
        self.optimizers = optimizers


class TorchContainer(torch.optim.Optimizer):
    """Its own groups know nothing of schedules; those that it holds may be stepped on their own as well."""

    def __init__(self, optimizers):
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {"lr": 0.5})
        self.optimizers = optimizers

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


def train(
    optimizers_of,
    given=None,
    *,
    steps=9,
    scale=None,
    contained=False,
    turned=lambda step: False,
    spoil=lambda step: None,
):
    """Trains, with a probe on what `given` makes of the optimizers; gives the whole state at the end."""
    model = net().train()
    optimizers = optimizers_of(model)
    container = TorchContainer(optimizers)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, growth_interval=10**9, enabled=scale is not None)
    torch.manual_seed(5)
    probe = None
    if given is not None:
        settings = {"every": 3, "max_overhead": None, "quiet": True}
        probe = Probe(model, given(optimizers), loss_fn, data(2, seed=9), **settings)
    for step, batch in enumerate(data(steps), 1):
        model.zero_grad()
        with probe.batch(batch) if probe else nullcontext():
            scaler.scale(loss_fn(model, batch)).backward()
        if (index := spoil(step)) is not None:
            optimizers[index].param_groups[0]["params"][0].grad[0] = float("inf")
        for optimizer in [container] if contained else optimizers[::-1] if turned(step) else optimizers:
            scaler.step(optimizer)
        scaler.update()
    return [tensor for optimizer in optimizers for tensor in outcome(model, optimizer)], probe


def numbers(probe):
    return [{**r, "lr": r["lr"][:1], "seconds": None} for r in probe.records]


LOOPS = {
    "plain": {},
    "in the other order": {"turned": lambda step: True},
    "in changing orders": {"turned": lambda step: step % 2},
    "scaler": {"scale": 1024.0},
    "scaler of what holds them": {"scale": 1024.0, "contained": True},
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("loop", LOOPS)
def test_two_halves_are_measured_as_the_whole(loop, fused):
    plain, _ = train(lambda model: halves(model, fused=fused), **LOOPS[loop])
    probed, probe = train(lambda model: halves(model, fused=fused), list, **LOOPS[loop])
    assert same(plain, probed)
    _, single = train(lambda model: whole(model, fused=fused), list, **LOOPS[loop])
    assert {r["direction"] for r in probe.records} == {"own AdamW", "own AdamW clip 50%", "sgd", "adam"}
    assert {r["step"] for r in probe.records} == {3, 6, 9}
    assert numbers(probe) == numbers(single)
    own, of_single = ([r for r in p.step_records if r["batch_loss"] is not None] for p in (probe, single))
    assert len(own) == len(of_single) >= 3
    for name in ("step", "norm", "batch_loss", "batch_change", "batch_slope"):
        assert [r[name] for r in own] == pytest.approx([r[name] for r in of_single], rel=1e-5)
    assert all(r["step_error"] < 1e-5 for r in probe.records if r["direction"] == "own AdamW")


@pytest.mark.parametrize("given", [Container, TorchContainer])
def test_what_holds_them_is_looked_into(given):
    _, probe = train(muon_and_adamw, given)
    _, listed = train(muon_and_adamw, list)
    own = [r for r in probe.records if r["direction"] == "own Muon + AdamW"]
    assert [r["step"] for r in own] == [3, 6, 9]
    assert all(r["step_error"] < 1e-5 and r["lr"] == [2e-2, 1e-3] and r["trajectory"] == "Muon + AdamW" for r in own)
    assert numbers(probe) == numbers(listed)


@pytest.mark.parametrize("spoiled", [0, 1])
@pytest.mark.parametrize("fused", [False, True])
def test_where_the_scaler_skips_one_of_them_nothing_is_measured(fused, spoiled, caplog):
    loop = {"scale": 1024.0, "spoil": lambda step: spoiled if step in (1, 3) else None}
    plain, _ = train(lambda model: halves(model, fused=fused), **loop)
    with caplog.at_level(logging.WARNING, "stepscope"):
        probed, probe = train(lambda model: halves(model, fused=fused), list, **loop)
    assert same(plain, probed)
    assert caplog.text == ""
    assert [r["step"] for r in probe.records if r["direction"] == "own AdamW"] == [4, 6, 9]
    assert all(r["step_error"] < 1e-5 for r in probe.records if r["direction"] == "own AdamW")


@pytest.mark.parametrize("kept", [False, True])
def test_optimizers_that_step_in_turns_make_no_step_together(kept, caplog):
    """As the two of a GAN, each after a backward pass of its own, whether or not the gradients keep their memory."""

    def turns(probed):
        model = net().train()
        optimizers = halves(model)
        settings = {"every": 1, "max_overhead": None, "quiet": True, "directions": {}}
        probe = Probe(model, optimizers, loss_fn, data(2, seed=9), **settings) if probed else None
        for index, batch in enumerate(data(12)):
            model.zero_grad(set_to_none=not kept)
            with probe.batch(batch) if probe else nullcontext():
                loss_fn(model, batch).backward()
            optimizers[index % 2].step()
        return [tensor for optimizer in optimizers for tensor in outcome(model, optimizer)], probe

    with caplog.at_level(logging.WARNING, "stepscope"):
        (plain, _), (probed, probe) = turns(False), turns(True)
    assert same(plain, probed)
    assert probe.records == []
    assert not [r for r in probe.step_records if r["batch_slope"] is not None]
    assert ["the optimizers of AdamW step in turns" in message for message in caplog.messages] == [True]


def test_the_direction_of_several_is_that_of_each():
    model = net()
    loss_fn(model, data(1)[0]).backward()
    parameters, optimizers = dict(model.named_parameters()), muon_and_adamw(model)
    parts = [next_update(optimizer, parameters) for optimizer in optimizers]
    assert equal(next_update(optimizers, parameters), parts[0] | parts[1])


def test_mistakes():
    model = net()
    with pytest.raises(UsageError, match=r"SGD and AdamW hold the same parameter, of shape \(8, 4\)"):
        Probe(model, [torch.optim.SGD(model.parameters(), lr=1.0), *whole(model)], loss_fn, data(1))
    with pytest.raises(UsageError, match="no optimizer among those given"):
        Probe(model, [], loss_fn, data(1))
    with pytest.raises(UsageError, match=r"optimizer is a str, not a torch\.optim\.Optimizer"):
        Probe(model, [*whole(model), "adam"], loss_fn, data(1))
