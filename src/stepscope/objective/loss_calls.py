"""How the loss of one micro-batch is computed, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError, said
from stepscope.objective.batches import tensors

LossFunction = Callable[[nn.Module, Any], Tensor]


def loss_of(model: nn.Module, loss_fn: LossFunction | None, batch: Any) -> Tensor:
    """The loss of a micro-batch: that of `loss_fn`, or the ``loss`` in the model's output.

    Raises:
        UsageError: the model's output has no loss.
    """
    if loss_fn is not None:
        return loss_fn(model, batch)
    return loss_in(model_output(model, batch))


def loss_in(output: Any) -> Tensor:
    """The ``loss`` in a model's output.

    Raises:
        UsageError: it has none.
    """
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if loss is None:
        raise UsageError("model(**batch) gave no loss: put labels into the batches, or pass loss_fn")
    return loss  # type: ignore[no-any-return]


def model_output(model: nn.Module, batch: Any) -> Any:
    """The output of ``model(**batch)``.

    Raises:
        UsageError: the batch isn't a mapping.
    """
    if not isinstance(batch, Mapping):
        raise UsageError(f"without loss_fn a batch must be a mapping for model(**batch), not a {type(batch).__name__}")
    # With the number of labels of a whole accumulated step, the loss of a micro-batch would be no mean.
    return model(**{name: value for name, value in batch.items() if name != "num_items_in_batch"})


def without_communication(model: nn.Module) -> nn.Module:
    """The module inside a `DistributedDataParallel`, whose call would wait for the other processes."""
    inside: Any = model
    while not isinstance(inside, nn.parallel.DistributedDataParallel):
        inside = getattr(inside, "_orig_mod", None)  # of a compiled one
        if inside is None:
            return model
    return inside.module  # type: ignore[no-any-return]


def scalar(loss: Any, index: int) -> Tensor:
    """The loss of a micro-batch, without dimensions.

    Raises:
        UsageError: it isn't a scalar tensor, or has no graph.
    """
    if not isinstance(loss, Tensor):
        raise UsageError(f"the loss must be a scalar tensor with its graph, not a {type(loss).__name__}")
    if loss.numel() != 1:
        raise UsageError(f"the loss must be a scalar, not of shape {tuple(loss.shape)}: average it in loss_fn")
    if not loss.is_floating_point():
        raise UsageError(f"the loss is of {loss.dtype}: it must be a real floating-point number")
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise UsageError(
            f"the loss of micro-batch {index} depends on no trainable parameter: is it detached, or under no_grad?"
        )
    return loss.reshape(())


def failure(error: Exception, name: str, batch: Any, batches: Sequence[Any], parameters: Mapping[str, Tensor]) -> str:
    """Says why the loss of a micro-batch can't be computed, and what to do.

    Args:
        error: the error of the user's code.
        name: which micro-batch it is.
        batch: the micro-batch.
        batches: all micro-batches.
        parameters: the model's.
    """
    text = f"the loss of {name} can't be computed ({type(error).__name__}: {said(error)})"
    dtypes = [parameter.dtype for parameter in parameters.values()]
    for tensor in tensors(batch):
        if tensor.is_floating_point() and tensor.dtype not in dtypes:
            return f"{text}: it holds {tensor.dtype}, the model {dtypes[0]}; give the batches in the model's dtype"
    if all(isinstance(b, Tensor) for b in batches):
        return f"{text}: each micro-batch is a tensor; if they are the parts of one batch, give [batch]"
    return (
        f"{text}: the model is measured in evaluation mode; if it gives a loss in training mode only, give a "
        "loss_fn that computes it in evaluation mode"
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed. On a CPU torch raises a plain `RuntimeError`."""
    text = str(error)
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in text or "out of memory" in text
    )
