"""What gradients are multiples of, between ``backward`` and ``step``, where a `torch.amp.GradScaler` is at work.

It divides the gradients of an optimizer within the step of that one; of several optimizers, those that step later have
gradients that are still scaled. A fused optimizer gets scaled gradients, and undoes the scale itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from types import FrameType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from stepscope.objective import vectors


def skips(optimizers: Sequence[Optimizer]) -> bool:
    """Whether the scaler will skip a step of these optimizers, or has, because of infinite gradients."""
    flags = (getattr(optimizer, "found_inf", None) for optimizer in optimizers)
    if any(isinstance(flag, Tensor) and bool(flag.item()) for flag in flags):
        return True
    if _stepping_scaler(optimizers) is None:
        return False
    groups = (group for optimizer in optimizers for group in optimizer.param_groups)
    return not vectors.is_finite(
        {str(id(p)): p.grad for group in groups for p in group["params"] if p.grad is not None}
    )


def on_the_parameters(optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The gradients that are on the parameters, as the steps of the optimizers will get them."""
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    scaler = _stepping_scaler(optimizers)
    if scaler is None:
        return gradients
    return _times(gradients, parameters, {o: 1 / s for o in optimizers if (s := _pending_scale(scaler, o))})


def of_the_loss(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Dense gradients of the loss, of those that the steps get."""
    dense = {name: gradient.to_dense() if gradient.is_sparse else gradient for name, gradient in gradients.items()}
    return _times(dense, parameters, {o: 1 / scale for o, scale in _undone_within(optimizers).items()})


def of_the_step(
    optimizers: Sequence[Optimizer], parameters: Mapping[str, nn.Parameter], gradients: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients that the steps get, of those of the loss."""
    return _times(gradients, parameters, _undone_within(optimizers))


def _undone_within(optimizers: Sequence[Optimizer]) -> dict[Optimizer, float]:
    """The scales that fused optimizers undo, where the scaler steps them now."""
    scales = {optimizer: getattr(optimizer, "grad_scale", None) for optimizer in optimizers}
    return {optimizer: float(scale) for optimizer, scale in scales.items() if isinstance(scale, Tensor)}


def _pending_scale(scaler: torch.amp.GradScaler, optimizer: Optimizer) -> float | None:
    """What the scaler will divide the gradients of an optimizer by; ``None`` where it has done so, or won't."""
    stages = getattr(scaler, "_per_optimizer_states", {})
    stage = stages[id(optimizer)]["stage"].name if id(optimizer) in stages else "READY"
    return float(scaler.get_scale()) if stage == "READY" and not _undone_within([optimizer]) else None


def _stepping_scaler(optimizers: Sequence[Optimizer]) -> torch.amp.GradScaler | None:
    """The scaler that steps one of several optimizers after the other, where this is called in the step of one.

    A single one it has unscaled by then, or doesn't call; so it is with what holds several.
    """
    frame: FrameType | None = sys._getframe(1) if len(optimizers) > 1 else None
    while frame is not None:
        if frame.f_code is torch.amp.GradScaler.step.__code__:
            scaler, optimizer = frame.f_locals["self"], frame.f_locals["optimizer"]
            one_by_one = any(optimizer is part for part in optimizers)
            return scaler if scaler.is_enabled() and one_by_one else None
        frame = frame.f_back
    return None


def _times(
    gradients: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], factors: Mapping[Optimizer, float]
) -> dict[str, Tensor]:
    """Gradients, those of some optimizers multiplied."""
    by_parameter = {id(p): f for o, f in factors.items() for group in o.param_groups for p in group["params"]}
    return {
        name: gradient * by_parameter[id(parameters[name])] if id(parameters[name]) in by_parameter else gradient
        for name, gradient in gradients.items()
    }
