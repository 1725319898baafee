"""A probe in a Hugging Face `Trainer`: two lines beside the import."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from stepscope.errors import UsageError, require
from stepscope.integrations.attachment import Attachment
from stepscope.integrations.examples import RandomExamples
from stepscope.integrations.told_batches import ITEMS, items_in, told_batches
from stepscope.objective import LossFunction
from stepscope.probe import Probe

require("transformers", "transformers")
require("accelerate", "transformers")

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402
from transformers.training_args import ParallelMode  # noqa: E402

__all__ = ["ProbeCallback"]

_logger = logging.getLogger("stepscope")

_FAR = 0.25
"""The part of the trainer's evaluation loss by which the mean of some sixteen random examples is seldom off."""


class ProbeCallback(TrainerCallback):  # type: ignore[misc]
    """Measures while a `transformers.Trainer` trains.

    The probe is attached when the training begins, to the trainer's model and optimizer; numbers go to the trackers
    that the trainer reports to (``report_to``). In a distributed training (`DistributedDataParallel`) all ranks
    measure together, each on its share of the evaluation batches; give all the same.

    Args:
        trainer: the trainer.
        eval_batches: the fixed micro-batches that are measured on, as the data collator makes them. ``None``: random
            examples of the evaluation data, or of the training data where there are none, looked up by their indices.
            (A data set that draws from a generator of its own is moved by that: give `eval_batches` then.) Where the
            loss on them is far from the trainer's own ``eval_loss``, that is said once.
        loss_fn: ``loss_fn(model, batch)`` gives the mean loss. ``None``: ``trainer.compute_loss``, with the trainer's
            label smoothing or ``compute_loss_func``.
        micro_batches: how many micro-batches of ``per_device_train_batch_size`` to take where `eval_batches` is
            ``None``.
        seed: of the draw of those examples.
        settings: what `Probe` takes beside these: ``every``, ``directions``, ``clip_fractions``, ``run_dir``,
            ``overwrite``, ``log``, ``max_overhead``, ``weight_fn``, ``modules``, ``layer``, ``memory``, ``source``,
            ``quiet``.

    At the end of a training the page is written into the run directory, and at most five lines are printed; ``quiet``
    prints none.

    Raises:
        UsageError: a setting that `Probe` doesn't know, or a trainer with a ``compute_loss`` of its own, which may do
            more than compute a loss, where `loss_fn` is ``None``; when the training begins, also what `Probe` refuses,
            a sharded model, and data that can't be indexed where `eval_batches` is ``None``.

    Example:
        ``trainer.add_callback(ProbeCallback(trainer, run_dir="runs/probe"))``
    """

    def __init__(
        self,
        trainer: Trainer,
        eval_batches: Iterable[Any] | None = None,
        *,
        loss_fn: LossFunction | None = None,
        micro_batches: int = 4,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if loss_fn is None and type(trainer).compute_loss is not Trainer.compute_loss:
            raise UsageError(
                f"{type(trainer).__name__} has a compute_loss of its own, which may gather metrics: give loss_fn "
                "(loss_fn=trainer.compute_loss if it does nothing else)"
            )
        self._attachment = Attachment(settings)
        self._trainer = trainer
        self._compute_loss = trainer.compute_loss
        self._eval_batches = eval_batches
        self._loss_fn: LossFunction = loss_fn or self._trainers_loss
        self._examples = RandomExamples(micro_batches, seed)
        self._compared = False

    @property
    def probe(self) -> Probe | None:
        """The probe of the newest training; ``None`` before."""
        return self._attachment.probe

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attaches the probe."""
        del control
        trainer = self._trainer
        joined = args.world_size == 1 or args.parallel_mode == ParallelMode.DISTRIBUTED
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled or not joined:
            raise UsageError(
                "a Trainer whose model is sharded by FSDP or DeepSpeed, or that trains on TPUs, can't be measured: use "
                "DistributedDataParallel, or shard by fully_shard in a loop of your own, with a Probe on all ranks"
            )
        defaults: dict[str, Any] = {"log": self._log if args.report_to else None, "step": state.global_step}
        defaults["steps"] = state.max_steps
        batches = self._eval_batches
        if batches is None:
            batches, defaults["source"] = self._drawn(kwargs["train_dataloader"], args.per_device_train_batch_size)
        probe = self._attachment.begin(trainer.model, trainer.optimizer, self._loss_fn, batches, **defaults)
        self._compute_loss = trainer.compute_loss
        self._attachment.during.enter_context(told_batches(trainer, probe))

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Says once where the trainer's loss on its evaluation data is another than the probe's."""
        del args, control, kwargs
        name = f"eval_{self._held_out()[0]}_loss" if isinstance(self._trainer.eval_dataset, dict) else "eval_loss"
        trainers = (metrics or {}).get(name)
        if trainers is None or self._compared or not self._attachment.is_on or self.probe is None:
            return
        try:
            own = self.probe.loss()
        except Exception as error:
            _logger.warning("the loss can't be compared with %s (%s)", name, error)
            self._compared = True
            return
        if abs(own - trainers) > _FAR * abs(trainers):
            self._compared = True
            if not state.is_world_process_zero:
                return
            _logger.warning(
                "at step %d the loss on %s is %.3g, and the trainer's %s %.3g: what is measured is of other examples, "
                "or another loss, than the trainer evaluates; more micro_batches=, or give eval_batches and loss_fn",
                state.global_step, self.probe.source, own, name, trainers,
            )  # fmt: skip

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Takes the probe off, writes the page, and says what was found."""
        self._attachment.end()

    def _trainers_loss(self, model: nn.Module, batch: Any) -> Tensor:
        inputs = {name: value for name, value in batch.items() if name != ITEMS}
        return self._compute_loss(model, inputs, num_items_in_batch=items_in(self._trainer, batch))  # type: ignore[no-any-return]

    def _log(self, values: dict[str, float], step: int) -> None:
        """To the trackers alone: subclasses of the trainer do more in their `log`."""
        trainer = self._trainer
        state = copy.copy(trainer.state)
        state.global_step = step
        trainer.callback_handler.on_log(trainer.args, state, trainer.control, dict(values))

    def _held_out(self) -> tuple[str, Any]:
        """The evaluation data, the first where there are several, and their name."""
        held_out = self._trainer.eval_dataset
        return next(iter(held_out.items()), ("", None)) if isinstance(held_out, dict) else ("eval_dataset", held_out)

    def _drawn(self, loader: Any, size: int) -> tuple[Iterable[Any], str]:
        name, data = self._held_out()
        if data is None:
            name, data = "train_dataset", loader.dataset
        # The trainer has taken the columns that the model doesn't know out of its training data, not yet out of these.
        columns = getattr(loader.dataset, "column_names", None)
        return self._examples.batches(data, name, loader.collate_fn, size=size, columns=columns)
