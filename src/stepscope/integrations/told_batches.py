"""Tells a probe which batch a Hugging Face `Trainer` computes its loss on, while it does.

What the model is called with isn't enough: label smoothing and ``compute_loss_func`` take the labels out before, and
``num_items_in_batch`` makes the loss a sum over the whole accumulated batch.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from stepscope.probe import Probe

if TYPE_CHECKING:
    from transformers import Trainer

ITEMS = "num_items_in_batch"


@contextmanager
def told_batches(trainer: Trainer, probe: Probe) -> Iterator[None]:
    """Inside, ``trainer.compute_loss`` is called within ``probe.batch(inputs)``, in training alone.

    Args:
        trainer: the trainer.
        probe: the probe; its loss takes inputs that have the number of items among them, where there is one.
    """
    compute_loss, before = trainer.compute_loss, vars(trainer).get("compute_loss")

    @functools.wraps(compute_loss)
    def telling(model: torch.nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not (model.training and torch.is_grad_enabled() and isinstance(inputs, Mapping)):
            return compute_loss(model, inputs, *args, **kwargs)
        items = {ITEMS: kwargs[ITEMS]} if kwargs.get(ITEMS) is not None else {}
        with probe.batch({**inputs, **items}):
            return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = telling
    try:
        yield
    finally:
        if before is None:
            del trainer.compute_loss
        else:
            trainer.compute_loss = before


def items_in(trainer: Trainer, batch: Mapping[str, Any]) -> Any:
    """What the trainer's loss of a batch is divided by: of a batch that was told, as then.

    Of others, ``None``, which means a mean; but a ``compute_loss_func`` may need the number of labels.
    """
    if ITEMS in batch or trainer.compute_loss_func is None or "labels" not in batch:
        return batch.get(ITEMS)
    labels = batch["labels"]
    return (labels[..., 1:] if getattr(trainer, "_loss_shifts_labels", False) else labels).ne(-100).sum()
