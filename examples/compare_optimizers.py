"""Which optimizer's step would be better here? Others see the gradients of a training, and their steps are measured."""

import os
from pathlib import Path

import torch
from torch import nn

import stepscope
from stepscope.directions import Lion, SignSGD

TEXT = torch.tensor(list(Path(os.__file__).read_bytes()))  # a file of Python's standard library


def batch(seed, size=64, context=16):
    start = torch.randint(len(TEXT) - context, (size, 1), generator=torch.Generator().manual_seed(seed))
    window = TEXT[start + torch.arange(context + 1)]
    return window[:, :-1], window[:, -1]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


torch.manual_seed(0)
layers = nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 256)
model = nn.Sequential(*layers)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
others = {"sgd": lambda p: torch.optim.SGD(p, momentum=0.9, dampening=0.9), "lion": Lion, "sign": SignSGD}
held_out = [batch(seed) for seed in range(10_000, 10_004)]
probe = stepscope.Probe(model, optimizer, loss_fn, held_out, every=50, directions=others, max_overhead=None, quiet=True)
for step in range(100):
    optimizer.zero_grad()
    loss_fn(model, batch(step)).backward()
    optimizer.step()
for r in probe.records:
    gains = f"falls by up to {r['best_decrease']:.4f}, correlation {r['correlation']:+.3f}"
    print(f"step {r['step']}: {r['direction']:8} sharpness {r['sharpness']:.3g}, the loss {gains}")
