"""Is the learning rate right? Four rates on a small model of bytes: what each training's own steps say about it."""

import os
from pathlib import Path

import torch
from torch import nn

import stepscope

TEXT = torch.tensor(list(Path(os.__file__).read_bytes()))  # a file of Python's standard library
STEPS = 200


def batch(seed, size=64, context=16):
    start = torch.randint(len(TEXT) - context, (size, 1), generator=torch.Generator().manual_seed(seed))
    window = TEXT[start + torch.arange(context + 1)]
    return window[:, :-1], window[:, -1]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


for lr in (1e-5, 1e-4, 1e-2, 1.0):
    torch.manual_seed(0)
    layers = nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 256)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    # So small a model pays nearly a step for each measurement: within 5% too few are made for a verdict.
    settings = {"steps": STEPS, "max_overhead": None, "quiet": True}
    with stepscope.Probe(model, optimizer, loss_fn, [batch(-1)], **settings) as probe:
        for step in range(STEPS):
            optimizer.zero_grad()
            probe.loss_fn(model, batch(step)).backward()  # in place of loss_fn
            optimizer.step()
    print(f"lr={lr:g}, loss {loss_fn(model, batch(-1)):.2f}: {probe.findings()[0].kind}\n{probe.findings()}\n")
