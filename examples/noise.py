"""Is it noise? What steps do to the batch that made them, and to other examples, with small and with large batches."""

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


held_out = [batch(seed) for seed in range(10_000, 10_008)]
for size in (4, 256):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.Linear(64, 256))
    optimizer, seen = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(200):
        data = batch(step, size)
        optimizer.zero_grad()
        loss_fn(model, data).backward()
        if step % 20 == 19:
            objectives = [stepscope.Objective(model, loss_fn, batches) for batches in ([data], held_out)]
            update = stepscope.next_update(optimizer, objectives[0].parameters)
            seen.append([stepscope.edge(objective, update).realized_change for objective in objectives])
        optimizer.step()
    own, other = (sum(change < 0 for change in changes) for changes in zip(*seen, strict=True))
    print(f"batches of {size}: of {len(seen)} steps {own} lower their own batch's loss, and {other} that of others")
