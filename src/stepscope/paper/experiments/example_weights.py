"""A loss in which all examples weigh the same, however many tokens they have.

The published code puts one example through the model at a time and averages with equal weights. The same is had with
whole batches, at their speed, if each example's own mean is averaged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stepscope.objective import IGNORED_LABEL, averaged_over, predicts_next_token
from stepscope.paper.tasks import Batch


class MeanOfExamples:
    """Put before a model's class: its loss is the mean over examples of the mean over each one's labels."""

    def forward(self, *args: Any, labels: Tensor, **kwargs: Any) -> Any:
        """The model's own output with this loss in it."""
        output = super().forward(*args, labels=labels, **kwargs)  # type: ignore[misc]
        logits = output.logits
        if predicts_next_token(self):  # type: ignore[arg-type]
            logits, labels = logits[:, :-1], labels[:, 1:]
        losses = nn.functional.cross_entropy(
            logits.transpose(1, 2), labels, ignore_index=IGNORED_LABEL, reduction="none"
        )
        output.loss = (losses.sum(1) / (labels != IGNORED_LABEL).sum(1)).mean()
        return output


def average_examples(model: nn.Module) -> nn.Module:
    """Gives a Hugging Face model that loss, and gives it back. Nothing else of it changes, its class's name neither."""
    kind = type(model)
    model.__class__ = type(kind.__name__, (MeanOfExamples, kind), {"__module__": kind.__module__})
    return model


def terms_of(model: nn.Module, batch: Batch) -> int:
    """How many terms the model's mean loss of a batch averages over: examples, or label tokens."""
    if isinstance(model, MeanOfExamples):
        return len(batch["labels"])
    return averaged_over(batch, shifted=predicts_next_token(model))
