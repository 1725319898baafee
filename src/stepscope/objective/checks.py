"""Checks of what a user gives to an objective: model, parameters, batches, directions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.objective import dtensors, vectors
from stepscope.objective.measurable import measured_dtype
from stepscope.objective.process_group import number_of
from stepscope.objective.reading import reading
from stepscope.objective.sharding import sharded, sharded_module
from stepscope.objective.shared_memory import shared_memory
from stepscope.objective.vectors import Direction

MOST_BATCHES = 512
"""How many micro-batches are read from an iterable without a length: it may have no end."""


def check_model(model: Any) -> None:
    """Refuses a model that isn't a module, is sharded, or has parameters without a shape yet."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    if owner := sharded_module(model) or sharded(p for p in model.parameters() if not dtensors.is_spread(p)):
        raise UsageError(f"the model is sharded over processes by {owner}, which can't be measured: use fully_shard")
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise UsageError(f"{name} has no shape yet (a lazy module): call the model on a batch first")


def check_parameters(parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuses parameters that can't be moved one by one: none, of another type, or in shared memory."""
    if not parameters:
        raise UsageError("the model has no trainable parameters: set requires_grad on those to be measured")
    for name, parameter in parameters.items():
        if not parameter.is_floating_point():
            raise UsageError(f"parameter {name} is {parameter.dtype}: only real floating-point parameters are measured")
    if names := shared_memory({name: dtensors.part(parameter) for name, parameter in parameters.items()}):
        first, second = names
        if first == second:
            raise UsageError(f"parameter {first} holds elements that share memory (expanded?): clone it")
        raise UsageError(f"parameters {first} and {second} share memory: tie them as one Parameter object")


def form_of(parameters: Mapping[str, nn.Parameter], options: Any) -> float:
    """A number that is the same where names, shapes and dtypes of parameters are, and some options.

    Names count with and without the ``module.`` of a `DistributedDataParallel`, and ``_orig_mod.`` of compiled modules.
    """
    names = (name.removeprefix("_orig_mod.").removeprefix("module.").replace("_orig_mod.", "") for name in parameters)
    shapes = [
        (name, tuple(p.shape), p.dtype, getattr(p, "placements", None))
        for name, p in zip(names, parameters.values(), strict=True)
    ]
    return number_of((shapes, options))


def check_dtype(dtype: Any) -> None:
    """Refuses what no model can be measured in."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype is {dtype!r}: give a floating-point type, such as torch.float64, or None")


def check_sharded(sharded_model: bool, dtype: Any, weight_fn: Any, memory: Any) -> None:
    """Refuses options that a sharded model can't be measured with."""
    if not sharded_model:
        return
    if dtype is not None or memory is not None:
        raise UsageError(
            "a sharded model is measured in its own dtype, on batches as they are: give no dtype, no memory"
        )
    if weight_fn is None:
        raise UsageError(
            "the weights of micro-batches of a sharded model aren't tried: give weight_fn, the number of terms that "
            "the loss of a micro-batch averages over"
        )


def check_precision(parameters: Mapping[str, nn.Parameter], as_trained: bool) -> None:
    """Refuses to differentiate in half precision, to which a sharded model's parameters can't be raised."""
    if not as_trained and any(measured_dtype(p.dtype, None) != p.dtype for p in parameters.values()):
        raise UsageError(
            "parameters in half precision that are sharded can't be raised to float32: only edge measures them, and "
            "not with slope='gradient'"
        )


def check_before(model: Any, batches: Any, weight_fn: Any, memory: Any) -> list[Any]:
    """Refuses what an `Objective` would refuse without evaluating anything. Gives the micro-batches, read once."""
    check_model(model)
    check_sharded(any(map(dtensors.is_spread, model.parameters())), None, weight_fn, memory)
    check_parameters({name: p for name, p in model.named_parameters() if p.requires_grad})
    return read_batches(batches)


def read_batches(batches: Any) -> list[Any]:
    """The micro-batches, read once.

    Raises:
        UsageError: it is no iterable of micro-batches, it has no end, or its items are the tensors of one batch.
    """
    if isinstance(batches, Mapping | Tensor | str) or not isinstance(batches, Iterable):
        raise UsageError(f"batches is a {type(batches).__name__}: give a list of micro-batches, [batch] for one")
    if isinstance(batches, tuple) and hasattr(batches, "_fields"):
        raise UsageError(f"batches is a {type(batches).__name__}, which is one batch: give a list, [batch] for one")
    with reading(batches):
        read = _read(batches)
    kinds = {(tensor.dtype, tensor.dim()) if isinstance(tensor, Tensor) else None for tensor in read}
    if len(kinds) > 1 and None not in kinds:
        raise UsageError(
            f"batches holds {len(read)} tensors of different kinds, which are the parts of one batch: give a list of "
            "micro-batches, [batch] for one"
        )
    return read


def _read(batches: Iterable[Any]) -> list[Any]:
    try:
        len(batches)  # type: ignore[arg-type]
    except TypeError:
        read = list(itertools.islice(batches, MOST_BATCHES + 1))
        if len(read) > MOST_BATCHES:
            raise UsageError(
                f"batches has no length, and no end after {MOST_BATCHES} micro-batches: give some of them, "
                "list(itertools.islice(batches, 8))"
            ) from None
        return read
    return list(batches)


def check_direction(label: str, direction: Any, parameters: Mapping[str, nn.Parameter]) -> None:
    """Refuses what isn't a direction of a parameter space; see `Objective.check_direction`."""
    if not isinstance(direction, Mapping):
        raise UsageError(f"direction {label!r} is a {type(direction).__name__}, not a mapping of names to tensors")
    for name, tensor in direction.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.is_floating_point()
        if not dense:
            raise UsageError(f"direction {label!r}: {name} is not a dense real floating-point tensor")
        if name not in parameters:
            known = ", ".join(list(parameters)[:3])
            raise UsageError(f"direction {label!r} names {name!r}, not a trainable parameter (they are {known}, …)")
        if not dtensors.is_like(tensor, parameters[name]):
            raise UsageError(
                f"direction {label!r}: {name} isn't sharded as its parameter is: distribute_tensor(tensor, "
                "parameter.device_mesh, parameter.placements)"
            )
        if tensor.shape != parameters[name].shape:
            raise UsageError(
                f"direction {label!r}: {name} has shape {tuple(tensor.shape)}, "
                f"the parameter {tuple(parameters[name].shape)}"
            )


def check_length(label: str, direction: Mapping[str, Tensor]) -> None:
    """Refuses a direction that isn't finite, or is zero; see `Objective.check_direction`."""
    length = vectors.norm(direction)
    if not math.isfinite(length):
        raise UsageError(f"direction {label!r} has values that are infinite or NaN")
    if length == 0:
        raise UsageError(f"direction {label!r} is zero, so nothing can be measured along it (a learning rate of 0?)")


def reached(gradient: Direction) -> Direction:
    """A gradient of the pooled loss, of at least one parameter.

    Raises:
        UsageError: of none; its curvature would be zero, whatever the model.
    """
    if not gradient:
        raise UsageError("the loss uses none of the model's trainable parameters: is loss_fn given another model?")
    return gradient
