"""The probe's numbers in your tracker: python examples/trackers.py wandb (or trackio, tensorboard, mlflow)."""

import sys
from importlib import import_module

import torch
from torch import nn

import stepscope

LOGS = {  # what `log=` takes, of each library; `print` here stands for any function of (values, step)
    "wandb": lambda wandb: wandb.init(project="stepscope", mode="offline"),
    "trackio": lambda trackio: trackio.init(project="stepscope").log,
    "torch.utils.tensorboard": lambda tensorboard: tensorboard.SummaryWriter("runs"),
    "mlflow": lambda mlflow: mlflow.log_metrics,
}
name = sys.argv[-1].replace("tensorboard", "torch.utils.tensorboard")
log = LOGS[name](import_module(name)) if name in LOGS else print


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
y = (x[:, 0] * x[:, 1] > 0).long()
model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
held_out, settings = [(x[384:], y[384:])], {"every": 20, "steps": 60, "max_overhead": None}
probe = stepscope.Probe(model, optimizer, loss_fn, held_out, log=log, **settings)
for _ in range(60):
    drawn = torch.randint(384, (64,))
    probe.loss_fn(model, (x[drawn], y[drawn])).backward()
    optimizer.step()
    optimizer.zero_grad()
if name == "trackio":
    for finding in probe.findings():
        import_module(name).alert(finding.summary, finding.evidence)
