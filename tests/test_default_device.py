"""What a user has made the default device (`torch.set_default_device`) is none of the measurement's business.

Meta tensors stand for those of another device: whatever meets them fails.
"""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from classes import data, loss_fn
from stepscope import Objective, Probe, clip_optimizer, clip_sweep, edge, measure, next_update
from stepscope.clipping import fraction_threshold
from stepscope.measuring import gauss_newton, layer_multipliers, removals
from traces import outcome, same


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.3), nn.Linear(8, 3))


def trained(device, *, probed=True):
    model, batches = net(), data(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    with device:
        probe = Probe(model, optimizer, loss_fn, batches[:2], every=2, steps=6, max_overhead=None, quiet=True)
        if not probed:
            probe.close()
        for batch in batches:
            optimizer.zero_grad()
            with nullcontext() if not probed else probe.batch(batch), torch.device("cpu"):
                loss_fn(model, batch).backward()
            optimizer.step()
    records = [{**r, "seconds": 0.0, "edges": 0.0} for r in (*probe.records, *probe.step_records)]
    return outcome(model, optimizer), records


def test_a_probe_has_the_same_records_and_changes_nothing():
    plain, _ = trained(nullcontext(), probed=False)
    (here, expected), (there, found) = trained(nullcontext()), trained(torch.device("meta"))
    assert same(plain, here)
    assert same(plain, there)
    assert found == expected
    assert len(found) > 12


def rows(objective):
    matrix = gauss_newton(objective, logits_fn=lambda model, batch: model(batch[0]))
    return removals(matrix, cuts=[1.0], draws=2, seed=0)


def clipped(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = clip_optimizer(optimizer, 0.3)
    optimizer.step()
    return float(handle.last_threshold), [p.tolist() for p in model.parameters()]


MEASURED = {
    "measure": lambda model, f, d: measure(f, {"d": d}, breakdown=True, within_layers=True)["d"].sharpness,
    "edge": lambda model, f, d: edge(f, d).critical_multiple,
    "clip_sweep": lambda model, f, d: [m.sharpness for m in clip_sweep(f, d, [0.1, 0.5]).measurements.values()],
    "layer_multipliers": lambda model, f, d: layer_multipliers(f, d).multipliers,
    "removals": lambda model, f, d: rows(f),
    "threshold in half precision": lambda model, f, d: fraction_threshold(
        [p.grad.half() for p in f.parameters.values()], 0.2
    ),
    "clipping": lambda model, f, d: clipped(model),
}


@pytest.mark.parametrize("what", MEASURED)
def test_what_is_measured_is_the_same(what):
    found = []
    for device in (nullcontext(), torch.device("meta")):
        model = net().eval()
        objective = Objective(model, loss_fn, data(2))
        loss_fn(model, data(1)[0]).backward()
        direction = next_update(torch.optim.SGD(model.parameters(), lr=0.1), dict(model.named_parameters()))
        with device:
            found.append(MEASURED[what](model, objective, direction))
    assert found[0] == found[1]
