"""A probe in a Lightning `Trainer`, which always steps by a closure."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stepscope import UsageError
from traces import outcome, same

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
]

lightning = pytest.importorskip("lightning.pytorch")

from stepscope.integrations.lightning import ProbeCallback  # noqa: E402


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))

    def training_step(self, batch, _):
        loss = loss_fn(self, batch)
        self.log("loss", loss)
        return loss

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


LOOPS = {
    "default": {},
    "accumulating": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}


def train(folder, callback=None, logger=False, **settings):
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
    trainer.fit(module, torch.utils.data.DataLoader(data(48, 1), 8, shuffle=True))
    return outcome(module, trainer.optimizers[0])


@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_bit_identical(loop, tmp_path):
    plain = train(tmp_path, **LOOPS[loop])
    batches = [data(8, 9).tensors]
    callback = ProbeCallback(loss_fn, batches, every=3, max_overhead=None, quiet=True)
    recorder = Recorder()
    assert same(plain, train(tmp_path, callback, recorder, **LOOPS[loop]))
    steps = [3, 6] if loop == "accumulating" else [3, 6, 9, 12]
    own = [r for r in callback.probe.records if r["direction"] == "own AdamW"]
    assert [r["step"] for r in own] == steps
    assert {r["gradient"] for r in own} == {"training"}
    logged = [(step, m["stepscope/own AdamW/sharpness"]) for step, m in recorder.seen if "loss" not in m]
    assert logged == [(r["step"], r["sharpness"]) for r in own]


def test_mistakes(tmp_path):
    with pytest.raises(UsageError, match="no setting 'evry'"):
        ProbeCallback(loss_fn, [], evry=2)
    callback = ProbeCallback(loss_fn, [data(8, 9).tensors], optimizer=1, quiet=True)
    with pytest.raises(UsageError, match="the module has 1"):
        train(tmp_path, callback)
