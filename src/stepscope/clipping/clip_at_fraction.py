"""Coordinate-wise clipping at a fraction: ``clip(v, τ)ᵢ = sign(vᵢ)·min(|vᵢ|, τ)`` (Pan and Li, §4).

``τ`` is chosen so that exactly a fraction ``p`` of all coordinates of the model is clipped: with ``N`` coordinates,
``k = ⌊pN⌋`` of them lie above the ``(k+1)``-th largest magnitude, which is ``τ``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from stepscope.clipping import order_statistics
from stepscope.clipping.sharded_threshold import Parts
from stepscope.errors import UsageError
from stepscope.objective import dtensors, sharded

Zeros = Literal["keep", "ignore"]
"""Whether coordinates that are exactly zero count among the ``N``."""


def fraction_threshold(tensors: Sequence[Tensor], fraction: float, *, zeros: Zeros = "keep") -> float:
    """The magnitude above which exactly ``⌊pN⌋`` of the ``N`` coordinates lie, where no magnitudes are equal.

    Args:
        tensors: floating-point tensors of any shapes, together the vector. They may lie in parts on several ranks
            (`DTensor`); then all ranks call this together, with the same fraction.
        fraction: ``p``, between 0 and 1.
        zeros: ``"ignore"`` takes the fraction of the coordinates that aren't zero: most of an embedding's gradient is.

    Returns:
        ``τ``. In the cases that the rule leaves open:

        - ``⌊pN⌋ = 0``, no coordinates, or all of them zero: ``inf``, which clips nothing.
        - Else a NaN anywhere: NaN.
        - ``p = 1``: the smallest non-zero magnitude, so that clipping gives ``τ·sign(v)``.
        - Only zeros are left below: likewise, so that clipping never wipes the vector out.
        - Infinities are the largest magnitudes: clipped if they are no more than ``⌊pN⌋``, else ``τ`` is infinite.
        - Equal magnitudes: those equal to ``τ`` are not changed, so ties can only lower the count.

    Raises:
        UsageError: the fraction isn't in [0, 1], or a tensor isn't of real floating-point type.

    Example:
        >>> fraction_threshold([torch.tensor([3.0, -1.0]), torch.tensor([-4.0, 2.0])], 0.5)
        2.0
    """
    tensors = _checked(tensors, fraction)
    if any(map(dtensors.is_spread, tensors)):
        return _threshold_of_parts(tensors, fraction, zeros)
    count = sum(tensor.numel() for tensor in tensors)
    counted = count if zeros == "keep" else sum(int(torch.count_nonzero(tensor)) for tensor in tensors)
    clipped = count_of(fraction, counted)
    if clipped == 0:
        return math.inf
    return order_statistics.kth_largest(tensors, min(clipped + 1, count)) or order_statistics.smallest_nonzero(tensors)


def _threshold_of_parts(tensors: Sequence[Tensor], fraction: float, zeros: Zeros) -> float:
    parts = Parts(tensors, count_zeros=zeros == "ignore")
    clipped = count_of(fraction, parts.count if zeros == "keep" else parts.nonzero)
    if clipped == 0:
        return math.inf
    if parts.has_nan:
        return math.nan
    return parts.kth_largest(min(clipped + 1, parts.count)) or parts.smallest_nonzero()


@torch.no_grad()
def threshold_tensor(tensors: Sequence[Tensor], fraction: float, *, zeros: Zeros = "keep") -> Tensor:
    """`fraction_threshold` as a scalar tensor in double precision, on the tensors' device.

    On a GPU it is found without waiting for it.

    Args:
        tensors: see `fraction_threshold`; on one device, else they are waited for.
        fraction: see there.
        zeros: see there.

    Raises:
        UsageError: see there.
    """
    devices = {tensor.device for tensor in tensors}
    spread = any(map(dtensors.is_spread, tensors))
    if (
        spread or len(devices) != 1 or devices.pop().type not in ("cuda", "xpu")
    ):  # others know no double precision, or no rush
        return torch.tensor(fraction_threshold(tensors, fraction, zeros=zeros), dtype=torch.float64, device="cpu")
    return _threshold_without_waiting(_checked(tensors, fraction), fraction, zeros)


def _threshold_without_waiting(tensors: Sequence[Tensor], fraction: float, zeros: Zeros) -> Tensor:
    count = sum(tensor.numel() for tensor in tensors)
    if not count or not count_of(fraction, count):
        return torch.full((), math.inf, dtype=torch.float64, device=tensors[0].device if tensors else None)
    if zeros == "keep":
        clipped = torch.full((), count_of(fraction, count), dtype=torch.int64, device=tensors[0].device)
    else:
        nonzero = torch.stack([torch.count_nonzero(tensor) for tensor in tensors]).sum()
        # The product may lie a rounding below the whole number that is meant.
        clipped = torch.floor(fraction * nonzero.double() * (1 + 2.0**-51)).long()
    threshold = order_statistics.kth_largest_without_waiting(tensors, (clipped + 1).clamp(max=count)).double()
    threshold = torch.where(threshold == 0, order_statistics.smallest_nonzero_without_waiting(tensors), threshold)
    has_nan = torch.stack([tensor.isnan().any() for tensor in tensors]).any()
    threshold = torch.where(has_nan, math.nan, threshold)
    return torch.where(clipped == 0, math.inf, threshold)


def clip_grad_fraction_(parameters: Tensor | Iterable[Tensor], fraction: float) -> Tensor:
    """Clips the largest ``fraction`` of all gradient coordinates in place, as `clip_grad_norm_` does by norm.

    Args:
        parameters: a tensor or tensors, of which those with a ``.grad`` are taken together as one vector.
        fraction: the part of all coordinates to clip, between 0 and 1.

    Returns:
        The threshold, a scalar tensor: `fraction_threshold` says what it is in every case. With a NaN anywhere it
        is NaN and the gradients are left as they are.

    Raises:
        UsageError: see `fraction_threshold`; a parameter is sharded otherwise than as a `DTensor` on all ranks.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(4))
        >>> w.grad = torch.tensor([1.0, -8.0, 3.0, 2.0])
        >>> float(clip_grad_fraction_([w], 0.25)), w.grad.tolist()
        (3.0, [1.0, -3.0, 3.0, 2.0])
    """
    if isinstance(parameters, Tensor):
        parameters = [parameters]
    parameters = list(parameters)
    check_whole(parameters)
    check_gradients(parameters)
    for parameter in parameters:
        if parameter.grad is not None and not dtensors.is_like(parameter.grad, parameter):
            parameter.grad = dtensors.placed_like(parameter.grad, parameter)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    threshold = threshold_tensor(gradients, fraction)
    clamp_(gradients, threshold)
    return threshold


@torch.no_grad()
def clamp_(tensors: Iterable[Tensor], threshold: float | Tensor) -> None:
    """Clamps magnitudes to `threshold` in place; NaN or infinite thresholds change nothing."""
    bound = torch.as_tensor(threshold, dtype=torch.float64, device=getattr(threshold, "device", "cpu"))
    on_host = bound.device.type == "cpu"
    if on_host and not math.isfinite(threshold):
        return
    bounds: dict[torch.dtype, Any] = {}
    for tensor in tensors:
        if tensor.dtype not in bounds:
            rounded = _rounded_down(bound, tensor.dtype)
            # A number costs one read of the data, a tensor several; but reading the number back waits for a GPU.
            bounds[tensor.dtype] = float(rounded) if on_host else torch.where(bound.isfinite(), rounded, math.inf)
        dtensors.part(tensor).clamp_(-bounds[tensor.dtype], bounds[tensor.dtype])


def _rounded_down(threshold: Tensor, dtype: torch.dtype) -> Tensor:
    """The largest number of a type that isn't above a threshold: of mixed types it may be none of this one's."""
    rounded = threshold.clamp(max=torch.finfo(dtype).max).to(dtype)
    integer = order_statistics.integer_of(dtype)
    below = (rounded.view(integer) - 1).view(dtype)
    return torch.where(rounded.double() > threshold.double(), below, rounded)


def _checked(tensors: Sequence[Tensor], fraction: float) -> list[Tensor]:
    check_fraction(fraction)
    check_whole(tensors)
    for tensor in tensors:
        if tensor.dtype not in order_statistics.DTYPES or tensor.layout != torch.strided:
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise UsageError(f"cannot clip a tensor of {kind}: only dense ones of real floating-point type")
    # Those that are spread lose their graph with `dtensors.part`, which takes a tenth of the time.
    return [tensor if dtensors.is_spread(tensor) else tensor.detach() for tensor in tensors if tensor.numel() > 0]


def check_whole(parameters: Iterable[Tensor]) -> None:
    """Raises a `UsageError` where the parts of parameters can't be counted together: each process would clip its own.

    Of a `DTensor` they can.
    """
    parameters = list(parameters)
    if owner := sharded(parameter for parameter in parameters if not dtensors.is_spread(parameter)):
        raise UsageError(
            f"the gradients are sharded over processes by {owner}: the threshold of a part isn't that of all"
        )
    if not dtensors.spans_all(parameters):
        raise UsageError("the parameters lie on some of the ranks only (a pipeline?): the threshold isn't that of all")


def check_gradients(parameters: Sequence[Tensor]) -> None:
    """Raises a `UsageError`, on all ranks, where sharded parameters have a gradient on some of the ranks only.

    Their ranks would wait for one another, or clip by different thresholds.
    """
    present = bytes(parameter.grad is not None for parameter in parameters)
    if not dtensors.is_same_on_all(float(zlib.crc32(present)), parameters):
        raise UsageError(
            "some ranks lack gradients that others have, so nothing was clipped: all must use the same parameters"
        )


def check_fraction(fraction: float) -> None:
    """Raises a `UsageError` where a fraction isn't in [0, 1]."""
    try:
        within = bool(0 <= fraction <= 1)
    except TypeError:  # no number
        within = False
    if not within:
        raise UsageError(f"fraction is {fraction!r}: it is the part of all coordinates to clip, between 0 and 1")


def count_of(fraction: float, total: int) -> int:
    """``⌊pN⌋`` of the decimal that was written: a tenth of 30 is 3, though the binary ``0.1 * 3`` isn't 0.3."""
    return math.floor(Fraction(repr(float(fraction))) * total)
