"""What mean losses usually average over: valid labels, ones in a mask, examples."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.objective.batches import rows, tensors
from stepscope.objective.joined_batches import length

IGNORED_LABEL = -100

WeightFunction = Callable[[Any], float]


@dataclass(frozen=True)
class Weight:
    """A weight of micro-batches.

    Attributes:
        by: its name.
        of: the weight of a micro-batch; NaN where the batch doesn't have it.
    """

    by: str
    of: WeightFunction


def usual_weights(model: nn.Module, batches: Sequence[Any]) -> list[Weight]:
    """The weights by which losses usually average, as far as these batches have them; the likeliest first."""
    labeled = [b["labels"] for b in batches if isinstance(b, Mapping) and isinstance(b.get("labels"), Tensor)]
    tokens = any(labels.dim() >= 2 and not labels.is_floating_point() for labels in labeled)
    weights = []
    if tokens:
        shifted = predicts_next_token(model)
        weights = [_labels(shifted=shifted), _labels(shifted=not shifted)]
        ignored = getattr(getattr(model, "config", None), "semantic_loss_ignore_index", None)
        if isinstance(ignored, int):
            weights.append(Weight(f"labels other than {ignored}", lambda b: int((b["labels"] != ignored).sum())))
    else:
        weights = [_labels(shifted=False)]
    masks = {key for b in batches if isinstance(b, Mapping) for key, value in b.items() if _is_mask(key, value)}
    weights += [_ones(key) for key in sorted(masks)]
    if not isinstance(batches[0], Mapping):
        places = [
            index for index, tensor in enumerate(tensors(batches[0])) if tensor.dim() > 1 and _is_zeros_and_ones(tensor)
        ]
        weights += [_ones_at(index) for index in places]
    if labeled:
        weights.append(Weight("examples", lambda b: float(length(b, 0) or math.nan)))
    return weights


def _labels(*, shifted: bool) -> Weight:
    name = "valid labels after the first of a row" if shifted else "valid labels, or examples"
    return Weight(name, lambda batch: averaged_over(batch, shifted=shifted))


def _ones(key: str) -> Weight:
    return Weight(f"ones in {key}", lambda batch: float(batch[key].sum()) if key in batch else math.nan)


def _ones_at(index: int) -> Weight:
    def ones(batch: Any) -> float:
        masks = list(tensors(batch))
        return float(masks[index].sum()) if index < len(masks) else math.nan

    return Weight(f"ones in tensor {index}", ones)


def _is_zeros_and_ones(tensor: Tensor) -> bool:
    return not tensor.is_complex() and bool(((tensor == 0) | (tensor == 1)).all())


def _is_mask(key: Any, value: Any) -> bool:
    return isinstance(key, str) and "mask" in key and isinstance(value, Tensor) and not value.is_complex()


def averaged_over(batch: Any, *, shifted: bool) -> int:
    """How many terms the mean loss of a batch averages over.

    Where the batch has ``labels``, it is the number of labels that aren't −100. A model that predicts the next token
    shifts its labels, so the first label of a row is no target and doesn't count. Without ``labels`` it is the length
    of the first dimension of the first tensor, of those beside packed sequences where there are any.

    Args:
        batch: a micro-batch.
        shifted: whether the model shifts its labels inside.

    Raises:
        UsageError: the batch has neither, or hides −100 in a tensor that isn't called ``labels``.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, Tensor) and labels.dim() > 0:
        if labels.is_floating_point():
            return labels.numel()
        if shifted and labels.dim() >= 2:
            labels = labels[..., 1:]
        return int((labels != IGNORED_LABEL).sum())
    if any(t.dtype == torch.int64 and bool((t == IGNORED_LABEL).any()) for t in tensors(batch)):
        raise UsageError(f"a batch holds {IGNORED_LABEL} outside of 'labels': pass weight_fn, a function of the batch")
    if (examples := rows(batch, of_objects=False)) is not None:
        return examples
    raise UsageError(
        f"cannot tell how many examples a {type(batch).__name__} holds: pass weight_fn, a function of the batch"
    )


# Classes that don't shift their labels, although their name says so.
_UNSHIFTED = re.compile(
    r"^(Bart|MBart|Marian|Pegasus|BigBirdPegasus|Blenderbot|BlenderbotSmall|PLBart|Mvp|TrOCR|ProphetNet|Speech2Text2)"
    r"ForCausalLM$|^XLNetLMHeadModel$|^(XLM|Flaubert)WithLMHeadModel$"
)


def predicts_next_token(model: nn.Module) -> bool:
    """Whether the model's class says that it shifts its labels inside, as most of Hugging Face's causal models do.

    It is a guess: a trial on two micro-batches decides where one is possible.
    """
    inner = getattr(model, "_orig_mod", model)
    inner = getattr(getattr(inner, "base_model", None), "model", inner) if hasattr(inner, "peft_config") else inner
    name = type(inner).__name__
    config = getattr(inner, "config", None)
    if _UNSHIFTED.search(name) or getattr(config, "is_encoder_decoder", False):
        return False
    kind = getattr(inner, "loss_type", None)
    if kind == "ForConditionalGeneration":
        return hasattr(config, "text_config")  # a language model that also sees images
    kind = kind if isinstance(kind, str) else name
    return "ForCausalLM" in kind or kind.endswith("LMHeadModel")
