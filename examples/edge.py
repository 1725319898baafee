"""How far is my step from the edge? Three rates on a small model of bytes: how much longer the step might be."""

import os
from pathlib import Path

import torch
from torch import nn

import stepscope

TEXT = torch.tensor(list(Path(os.__file__).read_bytes()))  # a file of Python's standard library


def batch(seed, size=64, context=16):
    start = torch.randint(len(TEXT) - context, (size, 1), generator=torch.Generator().manual_seed(seed))
    window = TEXT[start + torch.arange(context + 1)]
    return window[:, :-1], window[:, -1]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


print("learning rate   loss   the step changes it by   the multiple of the step that raises it")
for lr in (1e-3, 1e-2, 1e-1):
    torch.manual_seed(0)
    layers = nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 256)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(100):
        optimizer.zero_grad()
        loss_fn(model, batch(step)).backward()
        if step == 99:  # the step about to be taken, on the batch that made it
            objective = stepscope.Objective(model, loss_fn, [batch(step)])
            edge = stepscope.edge(objective, stepscope.next_update(optimizer, objective.parameters))
            multiple = edge.critical_multiple or float("nan")
            print(f"{lr:13g} {edge.loss:6.3f} {edge.realized_change:+24.4f}   {multiple:.3g} ({edge.status})")
        optimizer.step()
