"""A probe beside torch.amp: autocast, a gradient scaler, and steps that it skips."""

import torch
from torch import nn

import stepscope

device = "cuda" if torch.cuda.is_available() else "cpu"


def batch(seed):
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)).to(device)
    return x, (x[:, 0] * x[:, 1] > 0).long()


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 2)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
scaler = torch.amp.GradScaler(device, init_scale=2.0**40)  # too large: the first steps are skipped
held_out = [batch(seed) for seed in range(100, 104)]
with stepscope.Probe(model, optimizer, loss_fn, held_out, every=30, max_overhead=None, steps=60, quiet=True) as probe:
    for step in range(60):
        data = batch(step)
        with probe.batch(data):
            optimizer.zero_grad()
            with torch.autocast(device, torch.float16 if device == "cuda" else torch.bfloat16):
                loss = loss_fn(model, data)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
for record in probe.records:
    print(f"step {record['step']}: {record['direction']}: sharpness {record['sharpness']:.3g}")
print(probe.findings())
