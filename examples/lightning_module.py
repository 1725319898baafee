"""One callback in a Lightning Trainer."""

import lightning
import torch
from torch import nn

from stepscope.integrations.lightning import ProbeCallback


class Classifier(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 2))

    def training_step(self, batch, _):
        return loss_fn(self, batch)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def loss_fn(module, batch):
    return nn.functional.cross_entropy(module.net(batch[0]), batch[1])


def loader(seed, size):
    x = torch.randn(256, 8, generator=torch.Generator().manual_seed(seed))
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), size)


torch.manual_seed(0)
probe = ProbeCallback(loss_fn, loader(1, 64), every=16, max_overhead=None, quiet=True)
trainer = lightning.Trainer(max_epochs=4, callbacks=[probe], logger=False, enable_checkpointing=False)
trainer.fit(Classifier(), loader(0, 32))
for record in probe.probe.records:
    print(f"step {record['step']}: {record['direction']}: sharpness {record['sharpness']:.3g}")
