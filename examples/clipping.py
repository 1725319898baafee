"""What would clipping do? SGD with and without a tenth of the gradient clipped, at three rates; then one gradient."""

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


held_out = [batch(seed) for seed in range(10_000, 10_004)]
for fraction in (0, 0.1):
    for lr in (0.1, 1, 3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.GELU())
        model.append(nn.Linear(64, 256))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
        stepscope.clip_optimizer(optimizer, fraction)
        for step in range(150):
            optimizer.zero_grad()
            loss_fn(model, batch(step)).backward()
            optimizer.step()
        objective = stepscope.Objective(model, loss_fn, held_out)
        print(f"{fraction:.0%} clipped, lr {lr:g}: held-out loss {objective.loss():.3f}")
print(stepscope.clip_sweep(objective, fractions=(0, 0.01, 0.03, 0.1, 0.3, 0.5)))
