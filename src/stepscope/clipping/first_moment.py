"""Clipping of the first moment alone, in Adam and optimizers like it: the second moment sees the whole gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepscope.clipping.clip_at_fraction import clamp_
from stepscope.errors import UsageError
from stepscope.objective import dtensors

_SECOND_MOMENT: dict[type[Optimizer], str] = {
    torch.optim.Adam: "exp_avg_sq",
    torch.optim.AdamW: "exp_avg_sq",
    torch.optim.NAdam: "exp_avg_sq",
    torch.optim.RAdam: "exp_avg_sq",
    torch.optim.Adamax: "exp_inf",
}
"""Optimizers whose numerator is a moment of the gradient, with the state that scales it."""


def check_first_moment(optimizer: Optimizer) -> None:
    """Raises a `UsageError` for an optimizer without a first moment that is known here."""
    # A subclass is refused too: it may keep other states.
    if type(optimizer) not in _SECOND_MOMENT:
        raise UsageError(f"{type(optimizer).__name__} has no first moment that is known here: use target='grad'")


class SplitGradient:
    """Makes the next step use the clipped gradient ``c`` in its numerator and the gradient ``g`` in its second moment.

    The step gets ``c`` as the gradient, so that ``m ← β₁m + (1−β₁)c``. It computes ``v ← β₂v + (1−β₂)c²``. Adding
    ``(1−β₂)/β₂ · (g² − c²)`` to ``v`` before makes that ``β₂v + (1−β₂)g²``. All terms are positive, so nothing cancels,
    however large an outlier is (shifting ``m`` instead would lose it). Adamax takes ``max(β₂u, |g| + ε)``: its ``u`` is
    raised to ``(|g| + ε)/β₂``. ``g`` and ``c`` include a coupled weight decay ``λx``.
    """

    def __init__(self, optimizer: Optimizer, parameter: Tensor, group: dict[str, Any], threshold: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.layout != torch.strided:
            raise UsageError("the first moment of a sparse gradient can't be clipped: use target='grad'")
        state = optimizer.state[parameter]
        name = _SECOND_MOMENT[type(optimizer)]
        if not state:
            _initialize(optimizer, state, parameter, group, name)
        clipped = gradient.clone()
        clamp_([clipped], threshold)
        self._parameter, self._gradient, self._clipped = parameter, gradient, clipped
        # The rule is elementwise: each rank changes its part.
        self._moment, beta2 = dtensors.part(state[name]), float(group["betas"][1])
        g, c = dtensors.part(gradient), dtensors.part(clipped)
        scale = getattr(optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):  # a fused optimizer unscales the gradient itself
            g, c = g / scale.to(g.device), c / scale.to(c.device)
        if group.get("maximize"):
            g, c = -g, -c
        if group["weight_decay"] and not _decouples(optimizer, group):
            decay = group["weight_decay"] * dtensors.part(parameter)
            g, c = g + decay, c + decay
        if name == "exp_inf":
            raised = torch.maximum(self._moment, (g.abs() + group["eps"]) / beta2)
            change = torch.where(g == c, 0.0, raised - self._moment)
        else:
            change = torch.where(g == c, 0.0, (g - c) * (g + c) * ((1 - beta2) / beta2))
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):  # then the step is skipped
            change = torch.where(found_inf.to(change.device) > 0, 0.0, change)
        self._change = change.to(self._moment.dtype)
        self._moment.add_(self._change)
        clipped.__dict__["_unclipped"] = gradient
        parameter.grad = clipped

    def restore_gradient(self) -> None:
        """Gives the parameter its own gradient again, unless it has got another in the meantime."""
        if self._parameter.grad is self._clipped:
            original = self._gradient
            while (below := original.__dict__.get("_unclipped")) is not None:  # another clip's
                original = below
            self._parameter.grad = original

    def undo(self) -> None:
        """Restores gradient and second moment, up to rounding."""
        self._moment.sub_(self._change)
        self.restore_gradient()


def _decouples(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))


def _initialize(
    optimizer: Optimizer, state: dict[str, Any], parameter: Tensor, group: dict[str, Any], second_moment: str
) -> None:
    """Creates the state that the optimizer would create in its first step, after the second moment is changed."""
    fused = bool(group.get("fused"))
    device = parameter.device if group.get("capturable") or fused else torch.device("cpu")
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 and not fused else torch.float32
    state["step"] = torch.zeros((), dtype=dtype, device=device)
    if isinstance(optimizer, torch.optim.NAdam):
        state["mu_product"] = torch.ones((), dtype=dtype, device=device)
    for name in ("exp_avg", second_moment, *(["max_exp_avg_sq"] if group.get("amsgrad") else [])):
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
