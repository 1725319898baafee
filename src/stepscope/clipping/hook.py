"""Coordinate-wise clipping for the user's own optimizer, by hooks on its step.

The optimizer stays the same object: schedulers, ``state_dict``, ``add_param_group``, gradient scalers and compiled
steps work as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer

from stepscope.clipping.clip_at_fraction import (
    Zeros,
    check_fraction,
    check_gradients,
    check_whole,
    clamp_,
    threshold_tensor,
)
from stepscope.clipping.first_moment import SplitGradient, check_first_moment
from stepscope.clipping.steps import StepHook, unwrapped
from stepscope.errors import UsageError
from stepscope.objective import dtensors

Scope = Literal["global", "group", "tensor"]
Target = Literal["grad", "first_moment", "update"]

Pairs = list[tuple[Tensor, dict[str, Any]]]
"""Parameters that have one threshold, with their groups."""


@dataclass(frozen=True)
class ClipStats:
    """Counts of a clip.

    Attributes:
        steps: how many times it has clipped: once a step, or at each evaluation of a closure.
        without_gradient: how many times there was nothing to clip: no gradients, or all zero, as in the steps of
            distributed checkpointing. They don't count among `steps`.
        nonfinite: steps in which a vector with a NaN was not clipped.
        thresholds: of the last step: one for ``scope="global"``, else one for each group or tensor that had a
            gradient, in their order.
    """

    steps: int
    without_gradient: int
    nonfinite: int
    thresholds: tuple[float, ...]


class ClipHandle:
    """A clip on an optimizer: the result of `clip_optimizer`.

    Attributes:
        fraction: the fraction that is clipped; may be changed at any time.
        last_threshold: the threshold of the last step: a scalar tensor for ``scope="global"``, else one value for each
            group or tensor that had a gradient. ``None`` before the first step.
    """

    def __init__(
        self, optimizer: Optimizer, fraction: float, scope: Scope, target: Target, zeros: Zeros, error: bool
    ) -> None:
        self.fraction = fraction
        self.last_threshold: Tensor | None = None
        self._scope, self._target, self._zeros, self._error = scope, target, zeros, error
        # Steps clipped, steps without gradient, steps with a NaN: on an accelerator as tensors, without waiting for it.
        self._counts: list[int | Tensor] = [0, 0, 0]
        # By optimizer: a hook may serve several, and one optimizer may step inside the step of another.
        self._starts: WeakKeyDictionary[Optimizer, list[list[tuple[Tensor, Tensor]]]] = WeakKeyDictionary()
        self._splits: WeakKeyDictionary[Optimizer, list[SplitGradient]] = WeakKeyDictionary()
        self._hook = StepHook(optimizer, self._before, self._after, every_call=target == "grad")

    def remove(self) -> None:
        """Removes the clip; removing twice does nothing."""
        self._hook.remove()

    def stats(self) -> ClipStats:
        """The counts so far."""
        last = () if self.last_threshold is None else tuple(self.last_threshold.reshape(-1).tolist())
        steps, without_gradient, nonfinite = map(int, self._counts)
        return ClipStats(steps, without_gradient, nonfinite, last)

    @torch.no_grad()
    def _before(self, optimizer: Optimizer, entered: float) -> None:
        del entered
        for split in self._splits.pop(optimizer, []):
            split.undo()  # the step before raised
        check_gradients([p for group in optimizer.param_groups for p in group["params"]])
        scopes = _scopes(optimizer, self._scope)
        if self._target == "update":
            self._starts[optimizer] = [[(p, dtensors.part(p).clone()) for p, _ in pairs] for pairs in scopes]
            return
        gradients = [[_gradient(parameter) for parameter, _ in pairs] for pairs in scopes]
        all_gradients = [gradient for vector in gradients for gradient in vector]
        found_inf = getattr(optimizer, "found_inf", None)
        skipped = self._error and isinstance(found_inf, Tensor) and bool(found_inf)  # by a gradient scaler
        if self._error and not skipped and _has_nonfinite(all_gradients):
            raise RuntimeError("a gradient has infinite or NaN values: nothing was clipped (error_if_nonfinite)")
        if self._without_gradients(all_gradients):
            return
        thresholds = [self._threshold(vector) for vector in gradients]
        if self._target == "grad":
            for vector, threshold in zip(gradients, thresholds, strict=True):
                clamp_(vector, threshold)
        else:
            self._splits[optimizer] = [
                SplitGradient(optimizer, parameter, group, threshold)
                for pairs, threshold in zip(scopes, thresholds, strict=True)
                for parameter, group in pairs
            ]
        self._note(thresholds, all_gradients)

    @torch.no_grad()
    def _after(self, optimizer: Optimizer, entered: float) -> None:
        del entered
        for split in self._splits.pop(optimizer, []):
            split.restore_gradient()
        starts = self._starts.pop(optimizer, None)
        if starts is None:
            return
        changes = [[dtensors.from_parts(dtensors.part(p) - before, p) for p, before in pairs] for pairs in starts]
        all_changes = [change for vector in changes for change in vector]
        if self._without_gradients(all_changes):
            return
        thresholds = [self._threshold(vector) for vector in changes]
        for pairs, vector, threshold in zip(starts, changes, thresholds, strict=True):
            clamp_(vector, threshold)
            for (parameter, before), change in zip(pairs, vector, strict=True):
                # Where nothing is clipped, the parameter stays: the sum may round to another number than the step's.
                place = dtensors.part(parameter)
                clipped = before + dtensors.part(change)
                place.copy_(torch.where(threshold.isfinite().to(place.device), clipped, place))
        self._note(thresholds, all_changes)

    def _without_gradients(self, tensors: list[Tensor]) -> bool:
        """Whether there is nothing to clip. On an accelerator `_note` counts that, without waiting for it."""
        nothing = not tensors or (
            _is_known(tensors) and not dtensors.on_any_rank(any(bool(dtensors.part(t).any()) for t in tensors), tensors)
        )
        if nothing:
            self._counts[1] = self._counts[1] + 1
        return nothing

    def _threshold(self, tensors: Sequence[Tensor]) -> Tensor:
        return threshold_tensor(tensors, self.fraction, zeros=self._zeros)

    def _note(self, thresholds: list[Tensor], clipped: list[Tensor]) -> None:
        values = torch.stack([threshold.to(thresholds[0].device) for threshold in thresholds])
        self.last_threshold = values[0] if self._scope == "global" else values
        nonfinite = values.isnan().any()
        if _is_known(clipped):
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
    """Clips the largest ``fraction`` of all coordinates at each step of an optimizer.

    ``clip(v, τ)ᵢ = sign(vᵢ)·min(|vᵢ|, τ)``, with the threshold ``τ`` of each step taken from its own coordinates.

    Args:
        optimizer: any `torch.optim.Optimizer`, or Accelerate's wrapper of one. Copies of it (`copy.deepcopy`, pickle)
            don't clip, nor do `PseudoUpdates` of it. Its parameters may be sharded over ranks as `DTensor`s
            (`fully_shard`, tensor parallelism): all ranks clip by the threshold of the whole.
        fraction: ``p``: exactly ``⌊pN⌋`` of the ``N`` coordinates are clipped to the next smaller magnitude, where no
            magnitudes are equal (`stepscope.clipping.clip_at_fraction.fraction_threshold` has every case).
        scope: the vector ``v``: ``"global"``, all parameters of the optimizer (the paper's); ``"group"``, each group;
            ``"tensor"``, each tensor.
        target: ``"grad"``: the gradient is clipped in place, before the optimizer sees it. ``"first_moment"``: only the
            first moment of Adam, AdamW, NAdam, RAdam or Adamax gets the clipped gradient, while the second gets the
            gradient itself: the paper's clipped Adam. ``"update"``: the change of the parameters is clipped.
        zeros: ``"ignore"`` takes the fraction of the coordinates that aren't zero. The coordinates of a sparse gradient
            are those that it stores.
        error_if_nonfinite: whether to raise a `RuntimeError` where a gradient is infinite or NaN, as
            `torch.nn.utils.clip_grad_norm_` does. Otherwise a vector with a NaN is not clipped, and `ClipHandle.stats`
            counts it.

    Returns:
        A handle: ``remove()``, ``last_threshold``, ``stats()``.

    Raises:
        UsageError: an unknown setting, an optimizer without a first moment that is known here, parameters that
            are sharded in another way, or, at a step, complex gradients.

    References:
        Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204, §4.

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
        check_first_moment(optimizer)
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
        UsageError: see `clip_optimizer`; errors of an optimizer are raised when the factory makes it.

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


def _scopes(optimizer: Optimizer, scope: Scope) -> list[Pairs]:
    """The parameters that have a gradient, by the vectors that are clipped together."""
    groups = [[(p, group) for p in group["params"] if p.grad is not None] for group in optimizer.param_groups]
    if scope == "global":
        return [[pair for group in groups for pair in group]]
    if scope == "group":
        return [group for group in groups if group]
    return [[pair] for group in groups for pair in group]


def _is_known(tensors: Sequence[Tensor]) -> bool:
    """Whether what the tensors hold is known without waiting, or has been waited for."""
    return tensors[0].is_cpu or any(map(dtensors.is_spread, tensors))


def _has_nonfinite(tensors: Sequence[Tensor]) -> bool:
    return dtensors.on_any_rank(not all(bool(dtensors.part(t).isfinite().all()) for t in tensors), tensors)


def _gradient(parameter: Tensor) -> Tensor:
    """A gradient's coordinates, to be clipped in place; those that a sparse gradient stores."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_complex():
        raise UsageError("a gradient is complex, and clipping is only defined for real ones: nothing was clipped")
    check_whole([parameter])
    if gradient.layout == torch.sparse_coo:
        if not gradient.is_coalesced():
            parameter.grad = gradient = gradient.coalesce()
        return gradient._values()
    if not dtensors.is_like(gradient, parameter):
        parameter.grad = gradient = dtensors.placed_like(gradient, parameter)
    return gradient
