"""A probe beside Accelerate: prepared model, optimizer and loaders; training as without it."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from stepscope import Probe
from stepscope.directions import muon_with_adamw
from traces import outcome, same


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.utils.data.TensorDataset(
        torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    )


def train(probed, *, precision="no", accumulate=1, prepared_evaluation=False, log=None):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=accumulate)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loader = torch.utils.data.DataLoader(data(44, 1), batch_size=8, shuffle=True)
    held_out = torch.utils.data.DataLoader(data(20, 2), batch_size=8, shuffle=True)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)
    if prepared_evaluation:
        held_out = accelerator.prepare(held_out)
    probe = None
    if probed:
        probe = Probe(model, optimizer, loss_fn, held_out, every=2, max_overhead=None, log=log, quiet=True)
    for _ in range(2):
        for batch in loader:
            with accelerator.accumulate(model):
                accelerator.backward(loss_fn(model, batch))
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    return outcome(accelerator.unwrap_model(model), optimizer.optimizer), probe


LOOPS = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "accumulating": {"accumulate": 2},
    "prepared evaluation": {"prepared_evaluation": True},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_bit_identical(loop):
    plain, _ = train(False, **LOOPS[loop])
    logged = []
    probed, probe = train(True, **LOOPS[loop], log=lambda values, step: logged.append(step))
    assert same(plain, probed)
    own = [r for r in probe.records if r["direction"] == "own AdamW"]
    assert [r["step"] for r in own] == ([2, 4, 6] if loop == "accumulating" else [2, 4, 6, 8, 10, 12])
    assert logged == [r["step"] for r in own]
    assert all(r["step_error"] < 1e-4 for r in own)


def test_its_trackers_are_logged_to(tmp_path):
    seen = []

    class Tracker:
        def log(self, values, step=None):
            seen.append((step, values))

    _, probe = train(True, log=Tracker())
    assert seen[0][0] == 2
    assert seen[0][1]["stepscope/own AdamW/sharpness"] == probe.records[0]["sharpness"]


class Container(torch.optim.Optimizer):
    def __init__(self, optimizers):
        super().__init__([p for o in optimizers for g in o.param_groups for p in g["params"]], {})
        self.optimizers = optimizers

    def step(self, closure=None):
        for optimizer in self.optimizers:
            optimizer.step()


@pytest.mark.parametrize("contained", [False, True])
def test_several_prepared_optimizers_are_one_step(contained):
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = accelerator.prepare(nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3)))
    optimizers = muon_with_adamw()(list(model.parameters()))
    prepared = [accelerator.prepare(o) for o in ([Container(optimizers)] if contained else optimizers)]
    probe = Probe(model, prepared, loss_fn, [data(8, 2).tensors], every=2, max_overhead=None, quiet=True)
    for batch in torch.utils.data.DataLoader(data(64, 1), batch_size=8):
        with accelerator.accumulate(model):
            accelerator.backward(loss_fn(model, batch))
            for optimizer in prepared:
                optimizer.step()
                optimizer.zero_grad()
    own = [r for r in probe.records if r["direction"] == "own Muon + AdamW"]
    assert [r["step"] for r in own] == [2, 4]
    assert all(r["step_error"] < 1e-4 for r in own)
