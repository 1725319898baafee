"""Is the learning rate right? Four rates on a small model of bytes: the step of each beside the best step."""

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
print("learning rate   loss   its step / the best step along it")
for lr in (1e-4, 1e-3, 1e-2, 1e-1):
    torch.manual_seed(0)
    layers = nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 256)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with stepscope.Probe(model, optimizer, loss_fn, held_out, every=50, max_overhead=None, quiet=True) as probe:
        for step in range(100):
            optimizer.zero_grad()
            loss_fn(model, batch(step)).backward()
            optimizer.step()
    own = [record for record in probe.records if record["direction"] == "own Adam"][-1]
    print(f"{lr:13g} {own['loss']:6.3f}   {own['overshoot_smoothed'] or float('nan'):.2g}")
