"""Coordinate-wise clipping for the user's own optimizer, by hooks on its step.

The optimizer stays the object it is: schedulers, ``state_dict``, ``add_param_group``, gradient scalers and compiled
steps work on as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepscope.clipping import Zeros, check_fraction, clamp_, threshold_tensor
from stepscope.errors import UsageError
from stepscope.steps import StepHook, unwrapped

Scope = Literal["global", "group", "tensor"]
Target = Literal["grad", "first_moment", "update"]

Part = list[tuple[Tensor, dict[str, Any]]]
"""Parameters that share a threshold, each with its group."""


@dataclass(frozen=True)
class ClipStats:
    """What a clip has done so far.

    Attributes:
        steps: steps that were clipped.
        without_gradient: steps left alone since all gradients were zero or none was there (distributed checkpointing
            makes such steps). They don't count among `steps`.
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
        # By optimizer: hooks are shared with forks of it, whose steps fall into those of others.
        self._starts: WeakKeyDictionary[Optimizer, list[Tensor]] = WeakKeyDictionary()
        self._corrections: WeakKeyDictionary[Optimizer, list[tuple[Tensor, Tensor]]] = WeakKeyDictionary()
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
        parts = _parts(optimizer, self._scope)
        gradients = [[_gradient(parameter) for parameter, _ in part] for part in parts]
        if self._error and not all(bool(g.isfinite().all()) for part in gradients for g in part):
            raise RuntimeError("a gradient has infinite or NaN values: nothing was clipped (error_if_nonfinite)")
        all_of_them = [g for part in gradients for g in part]
        if not all_of_them or (all_of_them[0].is_cpu and not any(bool(g.any()) for g in all_of_them)):
            self._counts[1] = self._counts[1] + 1
            return
        if self._target == "update":
            self._starts[optimizer] = [parameter.detach().clone() for part in parts for parameter, _ in part]
            return
        thresholds = [self._threshold(part) for part in gradients]
        if self._target == "grad":
            for part, threshold in zip(gradients, thresholds, strict=True):
                clamp_(part, threshold)
        else:
            self._corrections[optimizer] = []
            for pairs, threshold in zip(parts, thresholds, strict=True):
                for parameter, group in pairs:
                    self._corrections[optimizer] += _shift_first_moment(optimizer, parameter, group, threshold)
        self._note(thresholds, all_of_them)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, entered: float) -> None:
        del entered
        for moment, excess in self._corrections.pop(optimizer, []):
            moment.sub_(excess)
        starts = self._starts.pop(optimizer, None)
        if starts is None:
            return
        parts, start_of = _parts(optimizer, self._scope), iter(starts)
        thresholds = []
        for pairs in parts:
            befores = [next(start_of) for _ in pairs]
            changes = [parameter - before for (parameter, _), before in zip(pairs, befores, strict=True)]
            thresholds.append(self._threshold(changes))
            clamp_(changes, thresholds[-1])
            for (parameter, _), before, change in zip(pairs, befores, changes, strict=True):
                # Where nothing is clipped the sum may round to another number than the step's.
                moved = torch.where(thresholds[-1].isfinite().to(parameter.device), before + change, parameter)
                parameter.copy_(moved)
        self._note(thresholds, [parameter for pairs in parts for parameter, _ in pairs])

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
            don't clip.
        fraction: ``p``: exactly ``⌊pN⌋`` of the ``N`` coordinates are clipped to the next smaller magnitude, where no
            magnitudes are equal (`stepscope.clipping.fraction_threshold` has every case).
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
        UsageError: a setting that is unknown, an optimizer without a first moment that is known here, or, at a step,
            gradients that are complex or sharded.

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
    if type(gradient).__name__ == "DTensor":
        raise UsageError("a gradient is sharded over processes: the threshold of one part isn't that of all")
    if gradient.layout == torch.sparse_coo:
        if not gradient.is_coalesced():
            parameter.grad = gradient = gradient.coalesce()
        return gradient._values()
    return gradient


_STATES: dict[type[Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: ("exp_avg", "exp_avg_sq"),  # AdamW is one
    torch.optim.NAdam: ("exp_avg", "exp_avg_sq"),
    torch.optim.RAdam: ("exp_avg", "exp_avg_sq"),
    torch.optim.Adamax: ("exp_avg", "exp_inf"),
}
"""Optimizers whose first moment is ``m ← β₁m + (1−β₁)g``, with the states that they make at their first step."""


def _check_first_moment(optimizer: Optimizer) -> None:
    if not isinstance(optimizer, tuple(_STATES)):
        raise UsageError(f"{type(optimizer).__name__} has no first moment that is known here: use target='grad'")
    if isinstance(optimizer, torch.optim.NAdam) and optimizer.defaults.get("capturable"):
        raise UsageError("a capturable NAdam keeps its step where it can't be read: use target='grad'")


def _shift_first_moment(
    optimizer: Optimizer, parameter: Tensor, group: dict[str, Any], threshold: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shifts a first moment so that the coming step adds the clipped gradient to it.

    The step computes ``m ← β₁m + (1−β₁)g``; adding ``(1−β₁)/β₁ · (clip(g) − g)`` to ``m`` before makes that
    ``β₁m + (1−β₁)clip(g)``, and leaves the second moment the gradient as it is. NAdam's numerator holds the gradient
    once more, ``c₁g + c₂m``: its share is added to ``m`` too and taken away after the step.

    Yields:
        What to subtract from which moment after the step.
    """
    beta1 = float(group["betas"][0])
    if beta1 == 0:
        raise UsageError("clipping the first moment needs beta1 > 0")
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise UsageError("the first moment of a sparse gradient can't be clipped: use target='grad'")
    state = optimizer.state[parameter]
    if not state:
        _initialise(optimizer, state, parameter, group)
    excess = gradient.clone()
    clamp_([excess], threshold)
    excess.sub_(gradient)
    excess.nan_to_num_(0.0, 0.0, 0.0)  # an infinite coordinate stays what the optimizer makes of it
    scale, found_inf = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
    if isinstance(scale, Tensor):  # a fused optimizer unscales the gradient itself, and skips the step if it must
        excess.div_(scale.to(excess.device))
    if isinstance(found_inf, Tensor):
        excess.mul_((found_inf == 0).to(excess))
    # With `maximize` the step sees the negative of the gradient.
    excess.mul_(-1 if group.get("maximize") else 1)
    moment = state["exp_avg"]
    moment.add_(excess, alpha=(1 - beta1) / beta1)
    if isinstance(optimizer, torch.optim.NAdam):
        excess.mul_(_nadam_ratio(state, group))
        moment.add_(excess, alpha=1 / beta1)
        yield moment, excess


def _nadam_ratio(state: dict[str, Any], group: dict[str, Any]) -> float:
    """``c₁/c₂`` of the coming step (Dozat, 2016, as in `torch.optim.NAdam`)."""
    step, beta1 = float(state["step"]) + 1, float(group["betas"][0])
    decay = float(group["momentum_decay"])
    mu, mu_next = (beta1 * (1 - 0.5 * 0.96 ** (t * decay)) for t in (step, step + 1))
    product = float(state["mu_product"]) * mu
    ratio: float = (1 - mu) / (1 - product) * (1 - product * mu_next) / mu_next
    return ratio


def _initialise(optimizer: Optimizer, state: dict[str, Any], parameter: Tensor, group: dict[str, Any]) -> None:
    """What the optimizer makes at its first step; it would be too late for the shift."""
    on_device = group.get("capturable") or group.get("fused")
    device = parameter.device if on_device else "cpu"
    state["step"] = torch.zeros((), dtype=torch.float32, device=device)
    if isinstance(optimizer, torch.optim.NAdam):
        state["mu_product"] = torch.ones((), dtype=torch.float32, device=device)
    [names] = {names for kind, names in _STATES.items() if isinstance(optimizer, kind)}
    for name in (*names, *(["max_exp_avg_sq"] if group.get("amsgrad") else [])):
        state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
