"""What a batch is: tensors in any nesting of mappings, sequences and objects; what its mean loss averages over."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError

IGNORED_LABEL = -100


def tensors(batch: Any) -> Iterator[Tensor]:
    """The tensors of a batch in order: mappings (also ``BatchEncoding``), sequences and dataclasses are walked."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from tensors(getattr(batch, field.name))


def moved(batch: Any, device: torch.device, dtype_of: Callable[[torch.dtype], torch.dtype]) -> Any:
    """The batch with its tensors on `device`, floating-point ones in ``dtype_of(their dtype)``.

    The containers keep their type; tensors are copies.
    """
    if isinstance(batch, Tensor):
        # Copied also where it fits: a loss may write to its batch.
        return batch.to(device, dtype_of(batch.dtype) if batch.is_floating_point() else batch.dtype, copy=True)
    if isinstance(batch, Mapping) and hasattr(batch, "__setitem__"):
        items: Any = copy.copy(batch)
        for key, value in batch.items():
            items[key] = moved(value, device, dtype_of)
        return items
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        fields = (field.name for field in dataclasses.fields(batch) if field.init)
        return dataclasses.replace(batch, **{name: moved(getattr(batch, name), device, dtype_of) for name in fields})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(moved(value, device, dtype_of) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(moved(value, device, dtype_of) for value in batch)
    return batch


def averaged_over(batch: Any, *, shifted: bool) -> int:
    """How many terms the mean loss of a batch averages over.

    Where the batch has ``labels``: the labels that aren't −100, without the first of each row where the model shifts
    them (it predicts the next token, so the first label is never a target). Otherwise the length of the first
    dimension of its first tensor.

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
    for tensor in tensors(batch):
        if tensor.dim() > 0:
            return tensor.shape[0]
    raise UsageError(
        f"cannot tell how many examples a {type(batch).__name__} holds: pass weight_fn, a function of the batch"
    )


# Classes whose name says that they shift their labels, and which don't.
_UNSHIFTED = re.compile(
    r"^(Bart|MBart|Marian|Pegasus|BigBirdPegasus|Blenderbot|BlenderbotSmall|PLBart|Mvp|TrOCR|ProphetNet|Speech2Text2)"
    r"ForCausalLM$|^XLNetLMHeadModel$|^(XLM|Flaubert)WithLMHeadModel$"
)


def predicts_next_token(model: nn.Module) -> bool:
    """Whether the model's class says that it shifts its labels inside, as most of Hugging Face's causal models do.

    `Objective` tries it where it can, and asks this only where it can't.
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
