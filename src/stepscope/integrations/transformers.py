"""A probe in a Hugging Face `Trainer`: two lines beside the import."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from itertools import islice
from typing import Any

from torch import Tensor, nn

from stepscope.errors import UsageError, require
from stepscope.integrations.settings import checked
from stepscope.objective import LossFunction, random_state
from stepscope.probe import Probe

require("transformers", "transformers")
require("accelerate", "transformers")

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402

__all__ = ["ProbeCallback"]


class ProbeCallback(TrainerCallback):  # type: ignore[misc]
    """Measures while a `transformers.Trainer` trains.

    The probe is attached when the training begins, to the trainer's model and optimizer; numbers go to the trackers
    that the trainer reports to (``report_to``). In a distributed training the first process measures.

    Args:
        trainer: the trainer.
        eval_batches: the fixed micro-batches that are measured on, as the data collator makes them. ``None``: the
            first examples of the evaluation data, or of the training data where there are none, by their indices. (A
            data set that draws from a generator of its own is moved by that: give `eval_batches` then.)
        loss_fn: ``loss_fn(model, batch)`` gives the mean loss. ``None``: ``trainer.compute_loss``, with the trainer's
            label smoothing or ``compute_loss_func``.
        micro_batches: how many micro-batches of ``per_device_train_batch_size`` to take where `eval_batches` is
            ``None``.
        settings: what `Probe` takes beside these: ``every``, ``directions``, ``clip_fractions``, ``run_dir``,
            ``overwrite``, ``log``, ``max_overhead``, ``weight_fn``, ``modules``, ``layer``, ``quiet``.

    Attributes:
        probe: the `Probe`, from the beginning of the training on; ``None`` before, and in processes other than the
            first.

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
        **settings: Any,
    ) -> None:
        if not isinstance(micro_batches, int) or micro_batches < 1:
            raise UsageError(f"micro_batches is {micro_batches!r}: give a number ≥ 1")
        if loss_fn is None and type(trainer).compute_loss is not Trainer.compute_loss:
            raise UsageError(
                f"{type(trainer).__name__} has a compute_loss of its own, which may gather metrics: give loss_fn "
                "(loss_fn=trainer.compute_loss if it does nothing else)"
            )
        self.probe: Probe | None = None
        self._begun = False
        self._trainer = trainer
        self._eval_batches = eval_batches
        self._loss_fn: LossFunction = loss_fn or self._trainers_loss
        self._micro_batches = micro_batches
        self._settings = checked(settings)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attaches the probe."""
        del control
        self.on_train_end()  # of a training that was interrupted
        if not state.is_world_process_zero:
            return
        trainer = self._trainer
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise UsageError("a model sharded by FSDP or DeepSpeed can't be measured: take the probe off")
        with random_state():
            batches = self._first_batches(kwargs["train_dataloader"], args.per_device_train_batch_size)
        log = self._log if args.report_to else None
        settings = {"log": log, "step": state.global_step} | self._settings
        if self._begun:
            # Another start: a trial of a search, or after the trainer ran out of memory. It replaces no records.
            settings["overwrite"] = False
        self._begun = True
        self.probe = Probe(trainer.model, trainer.optimizer, self._loss_fn, batches, **settings)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Removes the probe; its records stay."""
        if self.probe is not None:
            self.probe.close()

    def _trainers_loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self._trainer.compute_loss(model, batch)  # type: ignore[no-any-return]

    def _log(self, values: dict[str, float], step: int) -> None:
        """To the trackers alone: subclasses of the trainer do more in their `log`."""
        trainer = self._trainer
        state = copy.copy(trainer.state)
        state.global_step = step
        trainer.callback_handler.on_log(trainer.args, state, trainer.control, dict(values))

    def _first_batches(self, train_dataloader: Any, size: int) -> Iterable[Any]:
        """Micro-batches by index and the training's own collator: iterating the trainer's loaders moves their state."""
        if self._eval_batches is not None:
            return self._eval_batches
        held_out = self._trainer.eval_dataset
        if isinstance(held_out, dict):
            held_out = next(iter(held_out.values()), None)
        data = train_dataloader.dataset if held_out is None else held_out
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise UsageError(f"the first examples of a {type(data).__name__} can't be looked up: give eval_batches")
        # The trainer has taken the columns that the model doesn't know out of its training data, not yet out of these.
        columns = getattr(train_dataloader.dataset, "column_names", None)
        examples = [_only(data[index], columns) for index in range(min(len(data), self._micro_batches * size))]
        groups = iter(examples)
        return [train_dataloader.collate_fn(group) for group in iter(lambda: list(islice(groups, size)), [])]


def _only(example: Any, columns: list[str] | None) -> Any:
    if columns is None or not isinstance(example, dict):
        return example
    return {name: value for name, value in example.items() if name in columns}
