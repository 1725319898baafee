"""A probe beside Accelerate: it takes the prepared model and optimizer as they are."""

import torch
from accelerate import Accelerator
from torch import nn

import stepscope


def data(seed):
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long())


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 2))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = torch.utils.data.DataLoader(data(0), batch_size=32, shuffle=True)
held_out = torch.utils.data.DataLoader(data(1), batch_size=64)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

# log=accelerator.log would send the numbers to its trackers, too.
probe = stepscope.Probe(model, optimizer, loss_fn, held_out, every=16, max_overhead=None, steps=32, quiet=True)
for _ in range(8):
    for batch in loader:
        with probe.batch(batch), accelerator.accumulate(model):
            accelerator.backward(loss_fn(model, batch))
            optimizer.step()
            optimizer.zero_grad()
for record in probe.records:
    print(f"step {record['step']}: {record['direction']}: sharpness {record['sharpness']:.3g}")
print(probe.findings())
