"""Coordinate-wise clipping for the user's own optimizer, by hooks on its step.

The optimizer stays the object it is: schedulers, ``state_dict``, ``add_param_group``, gradient scalers and compiled
steps work on as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepscope.clipping.steps import StepHook, unwrapped
from stepscope.clipping.threshold import Zeros, check_fraction, check_whole, clamp_, threshold_tensor
from stepscope.errors import UsageError

Scope = Literal["global", "group", "tensor"]
Target = Literal["grad", "first_moment", "update"]

Part = list[tuple[Tensor, dict[str, Any]]]
"""Parameters that share a threshold, each with its group."""


@dataclass(frozen=True)
class ClipStats:
    """What a clip has done so far.

    Attributes:
        steps: how often it has clipped: once a step, or at each evaluation of a closure.
        without_gradient: how often there was nothing to clip: no gradients, or all zero, as in the steps that
            distributed checkpointing makes. They don't count among `steps`.
        nonfinite: steps of which a part was left alone, since it holds a NaN.
        thresholds: of the last step, in the order of the parts: one for ``scope="global"``, else one for each group or
            tensor that had a gradient.
    """

    steps: int
    without_gradient: int
    nonfinite: int
    thresholds: tuple[float, ...]


class ClipHandle:
    """A clip on an optimizer; made by `clip_optimizer`.

    Attributes:
        fraction: the fraction that is clipped; may be changed at any time.
        last_threshold: of the last step: a scalar tensor, for ``scope="global"``; else one value for each group or
            tensor that had a gradient. ``None`` before the first.
    """

    def __init__(
        self, optimizer: Optimizer, fraction: float, scope: Scope, target: Target, zeros: Zeros, error: bool
    ) -> None:
        self.fraction = fraction
        self.last_threshold: Tensor | None = None
        self._scope, self._target, self._zeros, self._error = scope, target, zeros, error
        # Steps clipped, steps without gradient, steps with a NaN: on an accelerator as tensors, so as not to wait.
        self._counts: list[int | Tensor] = [0, 0, 0]
        # By optimizer: hooks may be shared, and steps fall into those of others.
        self._starts: WeakKeyDictionary[Optimizer, list[list[tuple[Tensor, Tensor]]]] = WeakKeyDictionary()
        self._splits: WeakKeyDictionary[Optimizer, list[_SplitGradient]] = WeakKeyDictionary()
        self._hook = StepHook(optimizer, self._before, self._after, every_call=target == "grad")

    def remove(self) -> None:
        """Takes the clip off; removing twice does nothing."""
        self._hook.remove()

    def stats(self) -> ClipStats:
        """What it has done so far."""
        last = () if self.last_threshold is None else tuple(self.last_threshold.reshape(-1).tolist())
        steps, without_gradient, nonfinite = map(int, self._counts)
        return ClipStats(steps, without_gradient, nonfinite, last)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, entered: float) -> None:
        del entered
        for split in self._splits.pop(optimizer, []):
            split.undo()  # the step before raised
        parts = _parts(optimizer, self._scope)
        if self._target == "update":
            self._starts[optimizer] = [[(p, p.detach().clone()) for p, _ in pairs] for pairs in parts]
            return
        gradients = [[_gradient(parameter) for parameter, _ in part] for part in parts]
        all_of_them = [g for part in gradients for g in part]
        found_inf = getattr(optimizer, "found_inf", None)
        skipped = self._error and isinstance(found_inf, Tensor) and bool(found_inf)  # by a gradient scaler
        if self._error and not skipped and not all(bool(g.isfinite().all()) for g in all_of_them):
            raise RuntimeError("a gradient has infinite or NaN values: nothing was clipped (error_if_nonfinite)")
        if self._without_gradients(all_of_them):
            return
        thresholds = [self._threshold(part) for part in gradients]
        if self._target == "grad":
            for part, threshold in zip(gradients, thresholds, strict=True):
                clamp_(part, threshold)
        else:
            self._splits[optimizer] = [
                _SplitGradient(optimizer, parameter, group, threshold)
                for pairs, threshold in zip(parts, thresholds, strict=True)
                for parameter, group in pairs
            ]
        self._note(thresholds, all_of_them)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, entered: float) -> None:
        del entered
        for split in self._splits.pop(optimizer, []):
            split.restore_gradient()
        parts = self._starts.pop(optimizer, None)
        if parts is None:
            return
        changes = [[parameter - before for parameter, before in pairs] for pairs in parts]
        all_of_them = [change for part in changes for change in part]
        if self._without_gradients(all_of_them):
            return
        thresholds = [self._threshold(part) for part in changes]
        for pairs, part, threshold in zip(parts, changes, thresholds, strict=True):
            clamp_(part, threshold)
            for (parameter, before), change in zip(pairs, part, strict=True):
                # Where nothing is clipped the sum may round to another number than the step's.
                parameter.copy_(torch.where(threshold.isfinite().to(parameter.device), before + change, parameter))
        self._note(thresholds, all_of_them)

    def _without_gradients(self, tensors: list[Tensor]) -> bool:
        """Whether there is nothing to clip; on an accelerator, which isn't waited for, that is counted by `_note`."""
        nothing = not tensors or (tensors[0].is_cpu and not any(bool(tensor.any()) for tensor in tensors))
        if nothing:
            self._counts[1] = self._counts[1] + 1
        return nothing

    def _threshold(self, tensors: Sequence[Tensor]) -> Tensor:
        return threshold_tensor(tensors, self.fraction, zeros=self._zeros)

    def _note(self, thresholds: list[Tensor], clipped: list[Tensor]) -> None:
        found = torch.stack([threshold.to(thresholds[0].device) for threshold in thresholds])
        self.last_threshold = found[0] if self._scope == "global" else found
        nonfinite = found.isnan().any()
        if clipped[0].is_cpu:
            self._counts[0] = self._counts[0] + 1
            self._counts[2] = self._counts[2] + int(nonfinite)
        else:
            zero = torch.stack([~tensor.any() for tensor in clipped]).all().long()
            self._counts[0] = self._counts[0] + (1 - zero)
            self._counts[1] = self._counts[1] + zero
            self._counts[2] = self._counts[2] + nonfinite.long()


def clip_optimizer(
    optimizer: Optimizer,
    fraction: float,
    *,
    scope: Scope = "global",
    target: Target = "grad",
    zeros: Zeros = "keep",
    error_if_nonfinite: bool = False,
) -> ClipHandle:
    """Clips the largest ``fraction`` of all coordinates at each step of an optimizer (Pan and Li, §4).

    Args:
        optimizer: any `torch.optim.Optimizer`, or Accelerate's wrapper of one. Copies of it (`copy.deepcopy`, pickle)
            don't clip, nor do `PseudoUpdates` of it.
        fraction: ``p``: exactly ``⌊pN⌋`` of the ``N`` coordinates are clipped to the next smaller magnitude, where no
            magnitudes are equal (`stepscope.clipping.threshold.fraction_threshold` has every case).
        scope: what is one vector: ``"global"``, all that the optimizer holds (the paper's); ``"group"``, each parameter
            group; ``"tensor"``, each tensor.
        target: ``"grad"``: the gradient, before the optimizer sees it, in place. ``"first_moment"``: only what enters
            the first moment of Adam, AdamW, NAdam, RAdam or Adamax, while the second sees the gradient as it is: the
            paper's clipped Adam. ``"update"``: what the step changed.
        zeros: ``"ignore"`` takes the fraction of the coordinates that aren't zero. A sparse gradient has those that it
            holds.
        error_if_nonfinite: whether to raise a `RuntimeError` where a gradient is infinite or NaN, as
            `torch.nn.utils.clip_grad_norm_` does. Otherwise a vector with a NaN is left alone, and `ClipHandle.stats`
            counts it.

    Returns:
        A handle: ``remove()``, ``last_threshold``, ``stats()``.

    Raises:
        UsageError: a setting that is unknown, an optimizer without a first moment that is known here, parameters that
            are sharded, or, at a step, gradients that are complex.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(4)); optimizer = torch.optim.SGD([w], lr=1.0)
        >>> handle = clip_optimizer(optimizer, 0.25)
        >>> w.grad = torch.tensor([1.0, -8.0, 3.0, 2.0]); optimizer.step()
        >>> w.tolist(), float(handle.last_threshold)
        ([-1.0, 3.0, -3.0, -2.0], 3.0)
    """
    optimizer = unwrapped(optimizer)
    check_fraction(fraction)
    for name, value, known in (("scope", scope, Scope), ("target", target, Target), ("zeros", zeros, Zeros)):
        if value not in get_args(known):
            *most, last = get_args(known)
            raise UsageError(f"unknown {name} {value!r}: choose {', '.join(most)} or {last}")
    check_whole(p for group in optimizer.param_groups for p in group["params"])
    if target == "first_moment":
        _check_first_moment(optimizer)
    if target == "update" and isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError("LBFGS moves the parameters while it searches: clip its gradients (target='grad')")
    return ClipHandle(optimizer, fraction, scope, target, zeros, error_if_nonfinite)


def clipped(factory: Callable[[Any], Any], fraction: float, target: Target = "grad") -> Callable[[Any], Any]:
    """An optimizer factory whose optimizers clip, as one of the paper's variants.

    Args:
        factory: ``parameters -> Optimizer``.
        fraction: see `clip_optimizer`.
        target: see `clip_optimizer`.

    Raises:
        UsageError: see `clip_optimizer`; what it rules out of an optimizer, when one is made.

    Example:
        >>> factory = clipped(lambda parameters: torch.optim.SGD(parameters, lr=1.0), 0.5)
        >>> w = torch.nn.Parameter(torch.zeros(2)); optimizer = factory([w])
        >>> w.grad = torch.tensor([5.0, 1.0]); optimizer.step(); w.tolist()
        [-1.0, -1.0]
    """
    check_fraction(fraction)
    if target not in get_args(Target):
        raise UsageError(f"unknown target {target!r}: choose grad, first_moment or update")

    def build(parameters: Any) -> Optimizer:
        optimizer = factory(parameters)
        if not isinstance(optimizer, Optimizer):
            raise UsageError(f"a factory that gives a {type(optimizer).__name__} can't be clipped as one: clip each")
        clip_optimizer(optimizer, fraction, target=target)
        return optimizer

    return build


def _parts(optimizer: Optimizer, scope: Scope) -> list[Part]:
    groups = [[(p, group) for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    if scope == "global":
        return [[pair for group in groups for pair in group]]
    if scope == "group":
        return [group for group in groups if group]
    return [[pair] for group in groups for pair in group]


def _gradient(parameter: Tensor) -> Tensor:
    """A gradient's coordinates, to be clipped in place; of a sparse one those that it holds."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_complex():
        raise UsageError("a gradient is complex: which of its parts to clip isn't defined, so nothing is")
    check_whole([parameter])
    if gradient.layout == torch.sparse_coo:
        if not gradient.is_coalesced():
            parameter.grad = gradient = gradient.coalesce()
        return gradient._values()
    return gradient


_SECOND_MOMENT: dict[type[Optimizer], str] = {
    torch.optim.Adam: "exp_avg_sq",
    torch.optim.AdamW: "exp_avg_sq",
    torch.optim.NAdam: "exp_avg_sq",
    torch.optim.RAdam: "exp_avg_sq",
    torch.optim.Adamax: "exp_inf",
}
"""Optimizers whose numerator is a moment of the gradient, with the state that scales it."""


def _check_first_moment(optimizer: Optimizer) -> None:
    # Not a subclass: it may make other states.
    if type(optimizer) not in _SECOND_MOMENT:
        raise UsageError(f"{type(optimizer).__name__} has no first moment that is known here: use target='grad'")


class _SplitGradient:
    """Has a coming step see the clipped gradient ``c`` in its numerator and the gradient ``g`` in its second moment.

    The step gets ``c`` as the gradient, so that ``m ← β₁m + (1−β₁)c``. It computes ``v ← β₂v + (1−β₂)c²``; adding
    ``(1−β₂)/β₂ · (g² − c²)`` to ``v`` before makes that ``β₂v + (1−β₂)g²``. All terms are positive, so nothing cancels,
    however large an outlier is (shifting ``m`` instead would lose it). Adamax takes ``max(β₂u, |g| + ε)``: there ``u``
    is raised to ``(|g| + ε)/β₂``. A coupled weight decay ``λx`` is a part of ``g`` and of ``c``.
    """

    def __init__(self, optimizer: Optimizer, parameter: Tensor, group: dict[str, Any], threshold: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        if gradient.layout != torch.strided:
            raise UsageError("the first moment of a sparse gradient can't be clipped: use target='grad'")
        state = optimizer.state[parameter]
        name = _SECOND_MOMENT[type(optimizer)]
        if not state:
            _initialise(optimizer, state, parameter, group, name)
        clipped = gradient.clone()
        clamp_([clipped], threshold)
        self._parameter, self._gradient, self._clipped = parameter, gradient, clipped
        self._moment, beta2 = state[name], float(group["betas"][1])
        seen, part = gradient, clipped
        scale = getattr(optimizer, "grad_scale", None)
        if isinstance(scale, Tensor):  # a fused optimizer unscales the gradient itself
            seen, part = seen / scale.to(seen.device), part / scale.to(part.device)
        if group.get("maximize"):
            seen, part = -seen, -part
        if group["weight_decay"] and not _decouples(optimizer, group):
            decay = group["weight_decay"] * parameter.detach()
            seen, part = seen + decay, part + decay
        if name == "exp_inf":
            raised = torch.maximum(self._moment, (seen.abs() + group["eps"]) / beta2)
            change = torch.where(seen == part, 0.0, raised - self._moment)
        else:
            change = torch.where(seen == part, 0.0, (seen - part) * (seen + part) * ((1 - beta2) / beta2))
        found_inf = getattr(optimizer, "found_inf", None)
        if isinstance(found_inf, Tensor):  # then the step is skipped
            change = torch.where(found_inf.to(change.device) > 0, 0.0, change)
        self._change = change.to(self._moment.dtype)
        self._moment.add_(self._change)
        clipped.__dict__["_unclipped"] = gradient
        parameter.grad = clipped

    def restore_gradient(self) -> None:
        """Gives the parameter its gradient back, if nobody has given it another meanwhile."""
        if self._parameter.grad is self._clipped:
            original = self._gradient
            while (below := original.__dict__.get("_unclipped")) is not None:  # another clip's
                original = below
            self._parameter.grad = original

    def undo(self) -> None:
        """As if the step had not been prepared, up to rounding."""
        self._moment.sub_(self._change)
        self.restore_gradient()


def _decouples(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) or bool(group.get("decoupled_weight_decay"))


def _initialise(
    optimizer: Optimizer, state: dict[str, Any], parameter: Tensor, group: dict[str, Any], second_moment: str
) -> None:
    """What the optimizer makes at its first step; it would be too late for the second moment."""
    fused = bool(group.get("fused"))
    device = parameter.device if group.get("capturable") or fused else torch.device("cpu")
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 and not fused else torch.float32
    state["step"] = torch.zeros((), dtype=dtype, device=device)
    if isinstance(optimizer, torch.optim.NAdam):
        state["mu_product"] = torch.ones((), dtype=dtype, device=device)
    for name in ("exp_avg", second_moment, *(["max_exp_avg_sq"] if group.get("amsgrad") else [])):
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
