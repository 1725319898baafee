"""A sharded model: how far is the step from the edge? Alone, or `torchrun --nproc-per-node=2 examples/fsdp2.py`."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import stepscope

if "RANK" in os.environ:
    dist.init_process_group("gloo")
else:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1))
teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).requires_grad_(False)
fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
generator = torch.Generator().manual_seed(dist.get_rank())  # each rank has data of its own
batches = [torch.randn(32, 8, generator=generator) for _ in range(31)]


def loss_fn(model, x):
    return nn.functional.mse_loss(model(x), teacher(x))


objective = stepscope.Objective(model, loss_fn, [batches[-1]], len)
for step, x in enumerate(batches[:-1]):
    optimizer.zero_grad()
    loss_fn(model, x).backward()
    if step % 10 == 9:  # all ranks ask, and all get the same answer
        edge = stepscope.edge(objective, stepscope.next_update(optimizer, objective.parameters))
        if dist.get_rank() == 0:
            print(f"step {step}: loss {edge.loss:.4f}, changed by {edge.realized_change:+.4f} ({edge.status})")
    optimizer.step()
dist.destroy_process_group()
