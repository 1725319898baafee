"""A probe in a Lightning `Trainer`."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from stepscope.errors import UsageError, require
from stepscope.integrations.attachment import Attachment
from stepscope.integrations.examples import RandomExamples
from stepscope.objective import LossFunction
from stepscope.probe import Probe

require("lightning", "lightning")

from lightning.pytorch import Callback  # noqa: E402
from lightning.pytorch.strategies import DDPStrategy  # noqa: E402

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["ProbeCallback"]


class ProbeCallback(Callback):  # type: ignore[misc]
    """Measures while a `lightning.Trainer` trains.

    The probe is attached when the training begins, to the module and its optimizer; numbers go to the trainer's
    loggers. In a distributed training (`DDPStrategy`) all ranks measure together, each on its share of the evaluation
    batches; give all the same.

    Args:
        loss_fn: ``loss_fn(module, batch)`` gives the mean loss. ``training_step`` won't do: it logs.
        eval_batches: the fixed micro-batches that are measured on. ``None``: random examples of the validation data, or
            of the training data where there are none, looked up by their indices.
        optimizer: which of the module's optimizers, by its place.
        micro_batches: how many micro-batches of the loader's size to take where `eval_batches` is ``None``.
        seed: of the draw of those examples.
        settings: what `Probe` takes beside these: ``every``, ``directions``, ``clip_fractions``, ``run_dir``,
            ``overwrite``, ``log``, ``max_overhead``, ``weight_fn``, ``modules``, ``layer``, ``memory``, ``source``,
            ``quiet``.

    At the end of a training the page is written into the run directory, and at most five lines are printed; ``quiet``
    prints none.

    Raises:
        UsageError: a setting that `Probe` doesn't know; when the training begins, also what `Probe` refuses, and a
            sharded model.

    Example:
        ``Trainer(callbacks=[ProbeCallback(loss_fn, run_dir="runs/probe")])``
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        eval_batches: Iterable[Any] | None = None,
        *,
        optimizer: int = 0,
        micro_batches: int = 4,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self._attachment = Attachment(settings)
        self._batch = ExitStack()
        self._loss_fn = loss_fn
        self._eval_batches = eval_batches
        self._optimizer = optimizer
        self._examples = RandomExamples(micro_batches, seed)

    @property
    def probe(self) -> Probe | None:
        """The probe of the newest training; ``None`` before."""
        return self._attachment.probe

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the probe."""
        if trainer.world_size > 1 and type(trainer.strategy) is not DDPStrategy:
            raise UsageError(
                f"a training on several ranks by {type(trainer.strategy).__name__} can't be measured: use "
                "strategy='ddp', or shard by fully_shard in a loop of your own, with a Probe on all ranks"
            )
        if not 0 <= self._optimizer < len(trainer.optimizers):
            raise UsageError(f"optimizer is {self._optimizer}: the module has {len(trainer.optimizers)}, from 0 on")

        def log(values: dict[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(values, step)

        # It counts the steps of all optimizers together.
        defaults: dict[str, Any] = {"log": log, "step": trainer.global_step // len(trainer.optimizers)}
        if math.isfinite(steps := trainer.estimated_stepping_batches):
            defaults["steps"] = int(steps)
        batches = self._eval_batches
        if batches is None:
            batches, defaults["source"] = self._drawn(trainer)
        optimizer = trainer.optimizers[self._optimizer]
        self._attachment.begin(pl_module, optimizer, self._loss_fn, batches, **defaults)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The step that comes is made of this batch."""
        del pl_module, batch_idx
        self._batch.close()
        if self._attachment.is_on and self.probe is not None:
            with trainer.precision_plugin.train_step_context():  # as the training step computes its loss
                self._batch.enter_context(self.probe.batch(batch))

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        """The batch has been used."""
        self._batch.close()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the probe off, writes the page, and says what was found."""
        del trainer, pl_module
        self._attachment.end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the probe off, if the training didn't come to its end; its records stay."""
        del trainer, pl_module, stage
        self._attachment.remove()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Takes the probe off after a training that failed."""
        del trainer, pl_module
        self._batch.__exit__(type(exception), exception, exception.__traceback__)
        self._attachment.remove()

    def _drawn(self, trainer: Trainer) -> tuple[list[Any], str]:
        held_out = trainer.val_dataloaders
        name, loader = (
            ("training data", trainer.train_dataloader) if held_out is None else ("validation data", held_out)
        )
        while isinstance(loader, list | tuple | dict) and loader:
            loader = next(iter(loader.values())) if isinstance(loader, dict) else loader[0]
        if not isinstance(loader, DataLoader):
            raise UsageError(f"examples of a {type(loader).__name__} can't be looked up: give eval_batches")
        return self._examples.batches(loader.dataset, name, loader.collate_fn, size=loader.batch_size or 1)
