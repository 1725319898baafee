"""What if a step lowers the loss nowhere? Three causes, and the numbers that tell them apart."""

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


def loss_fn(model, batch):  # a third part reverses the gradient, and leaves the loss as it is
    logits, sign = model(batch[0]), batch[2] if len(batch) > 2 else 1
    return nn.functional.cross_entropy(logits.detach() + sign * (logits - logits.detach()), batch[1])


torch.manual_seed(0)
model = nn.Sequential(nn.Embedding(256, 16), nn.Flatten(), nn.Linear(256, 64), nn.LayerNorm(64), nn.Linear(64, 256))
adam, (x, y) = torch.optim.Adam(model.parameters(), lr=1e-3), batch(-1)
for seed in range(150):
    adam.zero_grad()
    loss_fn(model, batch(seed)).backward()
    adam.step()
for cause, decay, *data in ("none", 0, x, y), ("labels", 0, x, y + 1), ("decay", 300, x, y), ("reversal", 0, x, y, -1):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    optimizer.zero_grad()
    loss_fn(model, data).backward()
    for name, examples in {"own batch": data, "other examples": [*batch(-2, 256), *data[2:]]}.items():
        objective = stepscope.Objective(model, loss_fn, [examples])
        e = stepscope.edge(objective, stepscope.next_update(optimizer, objective.parameters), slope="gradient")
        print(f"{cause}, {name}: slope {e.predicted_change:+.2g}, change {e.realized_change:+.2g}, {e.status}")
