"""A training of Lightning's: beside the tests, since the import of Lightning takes longer than they do."""

import lightning.pytorch as lightning
import torch
import torch.nn.functional as F
from torch import nn

from stepscope.integrations.lightning import ProbeCallback
from traces import outcome


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def training_step(self, batch, _):
        loss = loss_fn(self, batch)
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, _):
        self.log("held-out loss", loss_fn(self, batch))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def loss_fn(module, batch):
    return F.cross_entropy(module.net(batch[0]), batch[1])


def data(count, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.utils.data.TensorDataset(
        torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    )


class Recorder(lightning.loggers.logger.Logger):
    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.seen = []

    def log_metrics(self, metrics, step=None):
        self.seen.append((step, metrics))

    def log_hyperparams(self, *_, **__):
        pass


def probe(**settings):
    """Of the loss, on a batch of its own unless others are given."""
    batches = settings.pop("eval_batches", [data(8, 9).tensors])
    return ProbeCallback(loss_fn, batches, **{"quiet": True} | settings)


def train(folder, callback=None, logger=False, held_out=None, **settings):
    torch.manual_seed(0)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        default_root_dir=folder,
        logger=logger,
        callbacks=[callback] if callback else [],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    loaders = [torch.utils.data.DataLoader(d, 8, shuffle=d is not held_out) for d in (data(48, 1), held_out) if d]
    trainer.fit(module, *loaders)
    return outcome(module, trainer.optimizers[0])
