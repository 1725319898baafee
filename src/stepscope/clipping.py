"""Coordinate-wise clipping at a fraction: ``clip(v, τ)ᵢ = sign(vᵢ)·min(|vᵢ|, τ)`` (Pan and Li, §4).

``τ`` is chosen so that exactly a fraction ``p`` of all coordinates of the model is clipped: with ``N`` coordinates,
``k = ⌊pN⌋`` of them lie above the ``(k+1)``-th largest magnitude, which is ``τ``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepscope import selection
from stepscope.errors import UsageError

Target = Literal["grad", "first_moment", "update"]


def fraction_threshold(tensors: Sequence[Tensor], fraction: float) -> float:
    """The magnitude above which exactly ``⌊pN⌋`` of the ``N`` coordinates lie, where no magnitudes are equal.

    Args:
        tensors: floating-point tensors of any shapes, together the vector.
        fraction: ``p``, between 0 and 1.

    Returns:
        ``τ``. In the cases that the rule leaves open:

        - ``p = 1``: the smallest non-zero magnitude, so that clipping gives ``τ·sign(v)``.
        - Only zeros are left below: likewise, so that clipping never wipes the vector out.
        - ``⌊pN⌋ = 0``, no coordinates, or all of them zero: ``inf``, which clips nothing.
        - A NaN anywhere: NaN.
        - Infinities are the largest magnitudes: clipped if they are no more than ``⌊pN⌋``, else ``τ`` is infinite.
        - Equal magnitudes: those equal to ``τ`` are not changed, so ties can only lower the count.

    Raises:
        UsageError: the fraction isn't in [0, 1], or a tensor isn't of real floating-point type.

    Example:
        >>> fraction_threshold([torch.tensor([3.0, -1.0]), torch.tensor([-4.0, 2.0])], 0.5)
        2.0
    """
    if not 0 <= fraction <= 1:
        raise UsageError(f"fraction is {fraction}: it is the part of all coordinates to clip, between 0 and 1")
    for tensor in tensors:
        if tensor.dtype not in selection.DTYPES or tensor.layout != torch.strided:
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise UsageError(f"cannot clip a tensor of {kind}: only dense ones of real floating-point type")
    tensors = [tensor.detach() for tensor in tensors if tensor.numel() > 0]
    total = sum(tensor.numel() for tensor in tensors)
    clipped = count_of(fraction, total)
    if clipped == 0:
        return math.inf
    return selection.kth_largest(tensors, min(clipped + 1, total)) or selection.smallest_nonzero(tensors)


def clip_grad_fraction_(parameters: Tensor | Iterable[Tensor], fraction: float) -> Tensor:
    """Clips the largest ``fraction`` of all gradient coordinates in place, as `clip_grad_norm_` does by norm.

    Args:
        parameters: a tensor or tensors, of which those with a ``.grad`` are taken together as one vector.
        fraction: the part of all coordinates to clip, between 0 and 1.

    Returns:
        The threshold, a scalar tensor: `fraction_threshold` says what it is in every case. With a NaN anywhere it
        is NaN and the gradients are left as they are.

    Raises:
        UsageError: see `fraction_threshold`.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(4))
        >>> w.grad = torch.tensor([1.0, -8.0, 3.0, 2.0])
        >>> float(clip_grad_fraction_([w], 0.25)), w.grad.tolist()
        (3.0, [1.0, -3.0, 3.0, 2.0])
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    threshold = fraction_threshold(gradients, fraction)
    clamp_(gradients, threshold)
    return torch.tensor(threshold, dtype=torch.float64)


@torch.no_grad()
def clamp_(tensors: Iterable[Tensor], threshold: float) -> None:
    """Clamps magnitudes to `threshold` in place; NaN or infinite thresholds change nothing."""
    if math.isfinite(threshold):
        for tensor in tensors:
            tensor.clamp_(-threshold, threshold)


def clipped(factory: Callable[[Any], Any], fraction: float, target: Target = "grad") -> Callable[[Any], Any]:
    """An optimizer factory whose optimizers clip, as one of the paper's variants.

    Args:
        factory: ``parameters -> Optimizer``.
        fraction: the part of all coordinates to clip.
        target: ``"grad"``: the gradient, before anything else sees it. ``"first_moment"``: only what enters the first
            moment of Adam or AdamW, while the second sees the gradient as it is (the paper's clipped Adam).
            ``"update"``: the change of the parameters.

    Returns:
        A factory of ordinary optimizers with step hooks.

    Raises:
        UsageError: the target is unknown; at the first step, an optimizer without first moment.

    Example:
        >>> factory = clipped(lambda parameters: torch.optim.SGD(parameters, lr=1.0), 0.5)
        >>> w = torch.nn.Parameter(torch.zeros(2)); optimizer = factory([w])
        >>> w.grad = torch.tensor([5.0, 1.0]); optimizer.step(); w.tolist()
        [-1.0, -1.0]
    """
    if target not in ("grad", "first_moment", "update"):
        raise UsageError(f"unknown clipping target {target!r}: choose grad, first_moment or update")

    def build(parameters: Any) -> Optimizer:
        optimizer: Optimizer = factory(parameters)
        if target == "update":
            clip = UpdateClip(fraction)
            optimizer.register_step_pre_hook(clip.before)
            optimizer.register_step_post_hook(clip.after)
        else:
            clip_before = clip_gradients if target == "grad" else clip_first_moments
            optimizer.register_step_pre_hook(lambda opt, *_: clip_before(opt, fraction))
        return optimizer

    return build


def clip_gradients(optimizer: Optimizer, fraction: float) -> None:
    """Clips the gradients of an optimizer's parameters in place."""
    clip_grad_fraction_([parameter for parameter, _ in _with_gradient(optimizer)], fraction)


@torch.no_grad()
def clip_first_moments(optimizer: Optimizer, fraction: float) -> None:
    """Shifts Adam's first moments so that the coming step adds the clipped gradient to them.

    The step will compute ``m ← β₁m + (1−β₁)g``; adding ``(1−β₁)/β₁ · (clip(g) − g)`` to ``m`` before makes that
    ``β₁m + (1−β₁)clip(g)``, and leaves the second moment the gradient as it is.
    """
    if not isinstance(optimizer, torch.optim.Adam):  # AdamW is one
        raise UsageError(f"{type(optimizer).__name__} has no first moment that is known here: use target='grad'")
    pairs = list(_with_gradient(optimizer))
    threshold = fraction_threshold([p.grad for p, _ in pairs if p.grad is not None], fraction)
    if not math.isfinite(threshold):
        return
    for parameter, group in pairs:
        state, beta1 = optimizer.state[parameter], group["betas"][0]
        if not state:
            _initialise_adam_state(state, parameter, group)
        gradient = parameter.grad
        assert gradient is not None
        beta1 = float(beta1)
        if beta1 == 0:
            raise UsageError("clipping the first moment needs beta1 > 0")
        excess = gradient.clamp(-threshold, threshold).sub_(gradient)
        # With `maximize` the step sees the negative of the gradient.
        sign = -1 if group.get("maximize") else 1
        state["exp_avg"].add_(excess, alpha=sign * (1 - beta1) / beta1)


class UpdateClip:
    """Clips what a step changed: `before` remembers the parameters, `after` clips the difference."""

    def __init__(self, fraction: float) -> None:
        self.fraction = fraction
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def before(self, optimizer: Optimizer, *_: Any) -> None:
        """Step pre-hook."""
        self._before = [(parameter, parameter.clone()) for parameter, _ in _with_gradient(optimizer)]

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        """Step post-hook."""
        updates = [parameter - start for parameter, start in self._before]
        threshold = fraction_threshold(updates, self.fraction)
        clamp_(updates, threshold)
        for (parameter, start), update in zip(self._before, updates, strict=True):
            torch.add(start, update, out=parameter)
        self._before = []


def _with_gradient(optimizer: Optimizer) -> Iterator[tuple[Tensor, dict[str, Any]]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                yield parameter, group


def _initialise_adam_state(state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> None:
    """What `torch.optim.Adam` makes at its first step; it would be too late for the shift."""
    on_device = group.get("capturable") or group.get("fused")
    state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if on_device else "cpu")
    for name in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group.get("amsgrad") else [])):
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def count_of(fraction: float, total: int) -> int:
    """``⌊pN⌋`` of the decimal that was written: a tenth of 30 is 3, though the binary ``0.1 * 3`` isn't 0.3."""
    return math.floor(Fraction(repr(float(fraction))) * total)
