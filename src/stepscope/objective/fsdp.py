"""What torch keeps of modules that `fully_shard` (FSDP2) has spread over ranks, by its own names.

Little of it is public in torch, and another version may name it otherwise: `sharded_model` says what it is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from stepscope.errors import UsageError

_OF_PRECISION = (
    "mp_policy", "param_dtype", "reduce_dtype", "all_gather_outputs", "_unsharded_inner_tensors", "_unsharded_param",
)  # fmt: skip
"""What FSDP keeps of a parameter that depends on the dtype that it is gathered in."""


def fsdp_modules(model: nn.Module) -> list[Any]:
    """The modules of a model that `fully_shard` was called with."""
    if not torch.distributed.is_available():
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


def state_of(module: Any) -> Any:
    """What FSDP keeps of a module, and of those that it gathers with it."""
    return module._get_fsdp_state()


def groups_of(state: Any) -> list[Any]:
    """The parameters that are gathered together."""
    groups = getattr(state, "_fsdp_param_groups", None)
    return list(groups) if groups is not None else [group for group in [state._fsdp_param_group] if group is not None]


def refuse_waiting(group: Any) -> None:
    """Refuses gradients that are accumulated without being reduced yet: measuring would reduce them."""
    waits = any(parameter.unsharded_accumulated_grad is not None for parameter in group.fsdp_params)
    waits |= any(
        unsharded.grad is not None
        for parameter in group.fsdp_params
        if (unsharded := vars(parameter).get("_unsharded_param")) is not None
    )
    if waits or group._partial_reduce_output is not None:
        raise UsageError("gradients wait for their synchronization: measure after the last backward pass of a step")


@contextmanager
def in_full_precision(state: Any) -> Iterator[None]:
    """Inside, FSDP gathers parameters and reduces gradients in their own type, and casts neither inputs nor outputs."""
    with ExitStack() as stack:
        none = type(state._mp_policy)()
        stack.enter_context(exchanged(state, _mp_policy=none))
        for group in groups_of(state):
            stack.enter_context(exchanged(group, mp_policy=none, _reduce_dtype=None))
            for parameter in group.fsdp_params:
                stack.enter_context(_gathered_in_own_type(parameter))
        yield


@contextmanager
def _gathered_in_own_type(parameter: Any) -> Iterator[None]:
    if parameter.param_dtype is None and parameter.reduce_dtype is None:
        yield
        return
    kept = {name: vars(parameter)[name] for name in _OF_PRECISION if name in vars(parameter)}
    try:
        parameter.mp_policy = type(parameter.mp_policy)()
        parameter.param_dtype = parameter.reduce_dtype = None
        if kept["param_dtype"] is not None:
            parameter.all_gather_outputs, parameter._unsharded_inner_tensors = [], []
            vars(parameter).pop("_unsharded_param", None)
        yield
    finally:
        for name in _OF_PRECISION:
            vars(parameter).pop(name, None)
        vars(parameter).update(kept)


@contextmanager
def exchanged(owner: Any, **values: Any) -> Iterator[None]:
    """Inside, attributes have other values."""
    kept = {name: getattr(owner, name) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(owner, name, value)


@contextmanager
def without_forward_hooks(state: Any) -> Iterator[None]:
    """Inside, FSDP does nothing when its module is called."""
    if len(state._modules) > 1:
        raise UsageError("modules that FSDP gathers as one (fully_shard([a, b])) have no exact second derivative here")
    [module] = state._modules
    hooks = (
        (module._forward_pre_hooks, state._pre_forward_hook_handle),
        (module._forward_hooks, state._post_forward_hook_handle),
    )
    kept = [(registry, list(registry.items())) for registry, _ in hooks]
    try:
        for registry, handle in hooks:
            del registry[handle.id]
        yield
    finally:
        for registry, items in kept:
            registry.clear()
            registry.update(items)


def begin_anew(modules: list[Any], states: list[Any], groups: list[Any]) -> None:
    """After an exception in the middle of a pass, FSDP is where it is before one."""
    for module in modules:
        if state_of(module)._is_root and hasattr(module, "reset_iter_state"):
            module.reset_iter_state()
    for owner in (*states, *groups):
        owner._training_state = type(owner._training_state).IDLE
    for state in states:
        state._state_ctx.iter_forward_root = None
        state._state_ctx.post_backward_final_callback_queued = False


def refuse_untried(groups: list[Any]) -> None:
    """Refuses settings of FSDP that measuring wasn't tried with."""
    if len({(group.mesh_info.mesh, group.gradient_divide_factor) for group in groups}) > 1:
        raise UsageError("modules are sharded over other ranks than others, or divide gradients by other factors")
    for group in groups:
        if group._all_reduce_hook is not None or group.post_forward_mesh_info not in (None, group.mesh_info):
            raise UsageError("FSDP with an all-reduce hook, or resharded to another size, can't be measured")
        if any(parameter.offload_to_cpu for parameter in group.fsdp_params):
            raise UsageError("FSDP with parameters offloaded to the CPU can't be measured")


def is_gathered(model: nn.Module) -> bool:
    """Whether FSDP has gathered weights, and not freed them."""
    return any(group.is_unsharded for module in fsdp_modules(model) for group in groups_of(state_of(module)))


def resharded(model: nn.Module) -> None:
    """Frees weights that FSDP has gathered: a model has its own parameters again."""
    for module in fsdp_modules(model):
        module.reshard()
