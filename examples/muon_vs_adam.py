"""Why does Muon beat Adam? Their normalized directional sharpness at equal losses (arXiv 2606.04662)."""

import os
from pathlib import Path

import torch
from torch import nn

import stepscope
from stepscope.directions.optimizers import muon_with_adamw

TEXT = torch.tensor(list(Path(os.__file__).read_bytes()))


def batch(seed):
    start = torch.randint(len(TEXT) - 16, (64, 1), generator=torch.Generator().manual_seed(seed))
    return TEXT[start + torch.arange(17)]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[:, :-1]), batch[:, -1])


print("optimizer   loss   norm of update   uᵀHu = within layers + between layers")
for name, factory in {"adam": lambda p: [torch.optim.Adam(p, lr=2e-3)], "muon": muon_with_adamw(2e-2, 2e-3)}.items():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 256))
    optimizers, losses, step = factory(list(model.parameters())), [3.5, 3.0, 2.75, 2.5], 0
    objective = stepscope.Objective(model, loss_fn, [batch(seed) for seed in range(10_000, 10_004)])
    while losses:
        model.zero_grad()
        loss_fn(model, batch(step := step + 1)).backward()
        if objective.loss() <= losses[0]:
            update = stepscope.next_update(optimizers, objective.parameters)
            m = stepscope.measure(objective, {name: update}, within_layers=True)[name]
            parts = f"{m.sharpness:10.4f} = {m.within_layer:.4f} + {m.cross_layer:.4f}"
            print(f"{name:9} {losses.pop(0):6.2f} {m.norm:16.3f} {parts}")
        for optimizer in optimizers:
            optimizer.step()
