"""A sharded model with a probe on all ranks. Alone, or `torchrun --nproc-per-node=2 examples/fsdp2.py`."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import stepscope

alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
dist.init_process_group("gloo", **alone)
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 1))
teacher = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1)).requires_grad_(False)
fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
generator = torch.Generator().manual_seed(dist.get_rank())  # each rank has data of its own
*batches, held_out = [torch.randn(32, 8, generator=generator) for _ in range(31)]


def loss_fn(model, x):
    return nn.functional.mse_loss(model(x), teacher(x))


settings = {"every": 10, "max_overhead": None, "steps": len(batches), "quiet": True}
with stepscope.Probe(model, optimizer, loss_fn, [held_out], weight_fn=len, **settings) as probe:
    for x in batches:
        optimizer.zero_grad()
        probe.loss_fn(model, x).backward()
        optimizer.step()
if dist.get_rank() == 0:  # all ranks have the same records
    for record in probe.records:
        print(f"step {record['step']}: {record['direction']}: loss {record['loss']:.4f}, slope {record['slope']:.3g}")
    print(probe.findings())
dist.destroy_process_group()
