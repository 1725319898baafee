"""A probe in a Lightning `Trainer`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stepscope.errors import UsageError, require
from stepscope.integrations.settings import checked
from stepscope.objective import LossFunction
from stepscope.probe import Probe

require("lightning", "lightning")

from lightning.pytorch import Callback  # noqa: E402
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy  # noqa: E402

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

__all__ = ["ProbeCallback"]


class ProbeCallback(Callback):  # type: ignore[misc]
    """Measures while a `lightning.Trainer` trains.

    The probe is attached when the training begins, to the module and its optimizer; numbers go to the trainer's
    loggers. In a distributed training the first process measures.

    Args:
        loss_fn: ``loss_fn(module, batch)`` gives the mean loss. ``training_step`` won't do: it logs.
        eval_batches: the fixed micro-batches that are measured on.
        optimizer: which of the module's optimizers, by its place.
        settings: what `Probe` takes beside these: ``every``, ``directions``, ``clip_fractions``, ``run_dir``,
            ``overwrite``, ``log``, ``max_overhead``, ``weight_fn``, ``modules``, ``layer``, ``quiet``.

    Attributes:
        probe: the `Probe`, from the beginning of the training on; ``None`` before, and in processes other than the
            first.

    Raises:
        UsageError: a setting that `Probe` doesn't know; when the training begins, also what `Probe` refuses, and a
            sharded model.

    Example:
        ``Trainer(callbacks=[ProbeCallback(loss_fn, batches, run_dir="runs/probe")])``
    """

    def __init__(
        self, loss_fn: LossFunction, eval_batches: Iterable[Any], *, optimizer: int = 0, **settings: Any
    ) -> None:
        self.probe: Probe | None = None
        self._loss_fn = loss_fn
        self._eval_batches = eval_batches
        self._optimizer = optimizer
        self._settings = checked(settings)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attaches the probe."""
        if not trainer.is_global_zero:
            return
        if isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy | ModelParallelStrategy):
            raise UsageError("a model sharded by FSDP or DeepSpeed can't be measured: take the probe off")
        if not 0 <= self._optimizer < len(trainer.optimizers):
            raise UsageError(f"optimizer is {self._optimizer}: the module has {len(trainer.optimizers)}, from 0 on")

        def log(values: dict[str, float], step: int) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(values, step)

        # It counts the steps of all optimizers together.
        steps = trainer.global_step // len(trainer.optimizers)
        settings = {"log": log, "step": steps} | self._settings
        optimizer = trainer.optimizers[self._optimizer]
        self.probe = Probe(pl_module, optimizer, self._loss_fn, self._eval_batches, **settings)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Takes the probe off, also after a training that failed; its records stay."""
        del trainer, pl_module, stage
        if self.probe is not None:
            self.probe.close()
