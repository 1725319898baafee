"""The k-th largest magnitude of many tensors, exactly, without concatenating or sorting them.

numpy does the pass on a CPU: comparing and counting is several times faster there than in torch. No threshold is
remembered from the step before: minibatch gradients move it much further than a sample errs, and what lies within a
bracket costs more than the sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

CHUNK = 1 << 18
"""Coordinates that are looked at together: what bounds the extra memory, and fits a processor's cache."""

# Bits of the magnitude of each floating-point type; the sign bit is shifted out, so that keys order as magnitudes do.
_KEYS: dict[torch.dtype, tuple[torch.dtype, int]] = {
    torch.float16: (torch.int16, 15),
    torch.bfloat16: (torch.int16, 15),
    torch.float32: (torch.int32, 31),
    torch.float64: (torch.int64, 63),
}
_RADIX_BITS = 16
_SAMPLED = 1 << 17
_ROOM, _CHUNKS = 32, 128
"""A 32nd of the coordinates may be copied, and a 128th is looked at together: less than 5% of extra memory."""
_DEVICE_CHUNK = 1 << 23  # counts in float32 are exact up to twice as many
_SMALL = 3 << 18
"""Up to here, all magnitudes together are three megabytes, and selecting among them is faster than sampling."""

DTYPES = tuple(_KEYS)
"""The types whose magnitudes can be selected among."""


def kth_largest(tensors: Sequence[Tensor], k: int) -> float:
    """The ``k``-th largest magnitude, counted from 1.

    On a CPU, a sample gives a bracket around it; one pass over the data counts what lies on either side and collects
    what lies within, about a hundredth, in which it is selected (Floyd and Rivest, 1975). Up to 786,432 coordinates it
    is selected in a copy of them. Where the bracket misses, or equal magnitudes fill it, in half precision, and
    elsewhere, the bits of the magnitudes are counted, sixteen at a time.

    Args:
        tensors: floating-point tensors, together at least ``k`` coordinates.
        k: the rank.

    Returns:
        The magnitude; NaN if there is a NaN anywhere.

    Example:
        >>> kth_largest([torch.tensor([3.0, -1.0]), torch.tensor([-4.0])], 2)
        3.0
    """
    dtype = common_dtype(tensors)
    if dtype in (torch.float32, torch.float64) and all(tensor.device.type == "cpu" for tensor in tensors):
        found = _by_bracket(tensors, k, dtype)
        if found is not None:
            return found
    if any(bool(chunk.isnan().any()) for chunk in chunks(tensors)):
        return math.nan
    return by_bits({1: tensors}, k, dtype)


def kth_largest_without_waiting(tensors: Sequence[Tensor], k: int | Tensor) -> Tensor:
    """The same as a scalar tensor, by counting bits on the tensors' own device, which is never waited for.

    Args:
        tensors: floating-point tensors without NaN on one device.
        k: the rank, a number or a scalar tensor.
    """
    dtype = common_dtype(tensors)
    if dtype in (torch.float16, torch.bfloat16):
        dtype = torch.float32  # whose magnitudes order likewise
    integer, bits = _KEYS[dtype]
    device = tensors[0].device
    rank = torch.as_tensor(k, dtype=torch.int64, device=device).reshape(1)
    prefix = torch.zeros(1, dtype=integer, device=device)
    for width in (11, *[10] * ((bits - 11) // 10), (bits - 11) % 10):
        if not width:
            break
        bits -= width
        counts = torch.zeros(1 << width, dtype=torch.int64, device=device)
        for chunk in chunks(tensors, _DEVICE_CHUNK):
            keys = chunk.to(dtype).abs().view(integer) >> bits
            digits = torch.where((keys >> width) == prefix, keys & ((1 << width) - 1), -1)
            # Digits are small whole numbers, so each falls into its own bin; -1 into none.
            counts += torch.histc(digits.float(), 1 << width, 0, 1 << width).long()
        from_largest = counts.flip(0).cumsum(0)
        place = torch.searchsorted(from_largest, rank)
        before = from_largest.index_select(0, (place - 1).clamp_(min=0))
        rank = rank - torch.where(place > 0, before, 0)
        prefix = (prefix << width) | ((1 << width) - 1 - place).to(integer)
    return prefix.view(dtype).reshape(())


def smallest_nonzero(tensors: Sequence[Tensor]) -> float:
    """The smallest magnitude that isn't zero; infinite if there is none."""
    return float(smallest_nonzero_without_waiting(tensors, CHUNK))


def smallest_nonzero_without_waiting(tensors: Sequence[Tensor], most: int = _DEVICE_CHUNK) -> Tensor:
    """The same as a scalar tensor in double precision."""
    found = [torch.where(chunk == 0, torch.inf, chunk.abs()).amin().double() for chunk in chunks(tensors, most)]
    return torch.stack(found).amin()


def integer_of(dtype: torch.dtype) -> torch.dtype:
    """The integer type as wide as a floating-point type: positive numbers have the same order in both."""
    return _KEYS[dtype][0]


def chunks(tensors: Sequence[Tensor], most: int = CHUNK) -> Iterator[Tensor]:
    """All coordinates in flat pieces of at most `most`: small tensors of one kind together, large ones cut."""
    waiting: list[Tensor] = []
    size = 0
    for tensor in tensors:
        for piece in torch.split(_flat(tensor), most):
            other = bool(waiting) and (piece.dtype, piece.device) != (waiting[0].dtype, waiting[0].device)
            if waiting and (other or size + piece.numel() > most):
                yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]
                waiting, size = [], 0
            waiting.append(piece)
            size += piece.numel()
    if waiting:
        yield torch.cat(waiting) if len(waiting) > 1 else waiting[0]


def _flat(tensor: Tensor) -> Tensor:
    """The coordinates in whatever order they lie in memory; a copy only if they don't lie together."""
    tensor = tensor.resolve_neg()
    if tensor.dim() == 1:
        return tensor
    if tensor.is_contiguous():
        return tensor.view(-1)
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride()[d], d))
    return tensor.permute(order).reshape(-1)


def common_dtype(tensors: Sequence[Tensor]) -> torch.dtype:
    """The type in which magnitudes of tensors are compared."""
    found = {tensor.dtype for tensor in tensors}
    if len(found) == 1:
        return found.pop()
    return torch.float64 if torch.float64 in found else torch.float32


def _by_bracket(tensors: Sequence[Tensor], k: int, dtype: torch.dtype) -> float | None:
    """``None`` where it fails: numpy is missing, the bracket missed, or too much lies within."""
    try:
        import numpy as np
    except ImportError:
        return None
    total = sum(tensor.numel() for tensor in tensors)
    kind = np.float32 if dtype == torch.float32 else np.float64
    if total <= _SMALL:
        values = next(_magnitudes(tensors, np.empty(total, kind)))
        if math.isnan(values.max()):
            return math.nan
        values.partition(total - k)
        return float(values[total - k])
    room = np.empty(max(total // _ROOM, 1), kind)  # for the sample first, then for what lies within the bracket
    low, high = _bracket(tensors, k, total, room)
    if not low <= high:  # the sample has a NaN
        return None
    up_to_high, within = 0, 0
    for piece, below, places in _split(tensors, low, high, min(CHUNK, max(total // _CHUNKS, 1)), kind):
        up_to_high += below
        if low < high:
            if within + places.size > room.size:
                return None
            piece.take(places, out=room[within : within + places.size], mode="clip")
        elif np.isnan(piece.take(places)).any():  # else all that lies within is equal
            return math.nan
        within += places.size
    if low < high and np.isnan(room[:within]).any():
        return math.nan
    above = total - up_to_high
    if not above < k <= above + within:
        return None
    if low == high:
        return low
    values, place = room[:within], within - (k - above)
    values.partition(place)
    return float(values[place])


def above_and_within(
    tensors: Sequence[Tensor], low: float, high: float, dtype: torch.dtype
) -> tuple[int, int, Tensor | None]:
    """How many magnitudes are above `high`, how many lie from `low` to `high`, and these; there is no NaN.

    Returns:
        The magnitudes, ``None`` where they are more than a quarter of all, and of many.

    Raises:
        ImportError: numpy is missing.
    """
    import numpy as np

    total = sum(tensor.numel() for tensor in tensors)
    kind = np.float32 if dtype == torch.float32 else np.float64
    found: list[NDArray[Any]] | None = []
    up_to_high, within = 0, 0
    for piece, below, places in _split(tensors, low, high, min(CHUNK, total), kind):
        up_to_high += below
        within += places.size
        if within > max(total // 4, CHUNK):
            found = None
        if found is not None:
            found.append(piece.take(places))
    values = None if found is None else torch.from_numpy(np.concatenate([np.empty(0, kind), *found]))
    return total - up_to_high, within, values


def _split(
    tensors: Sequence[Tensor], low: float, high: float, size: int, kind: type[Any]
) -> Iterator[tuple[NDArray[Any], int, NDArray[Any]]]:
    """All magnitudes, some at a time: how many are at most `high`, and the places of those from `low` to `high`."""
    import numpy as np

    first_mask, second_mask = np.empty(size, bool), np.empty(size, bool)
    for piece in _magnitudes(tensors, np.empty(size, kind)):
        inside, from_low = first_mask[: piece.size], second_mask[: piece.size]
        np.less_equal(piece, high, out=inside)
        np.greater_equal(piece, low, out=from_low)
        up_to_high = int(np.count_nonzero(inside))
        # Within, both are true; of a NaN, neither is: it is found among what lies within.
        yield piece, up_to_high, np.flatnonzero(np.equal(inside, from_low, out=inside))


def _magnitudes(tensors: Sequence[Tensor], buffer: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """All magnitudes in turn, a buffer of them at a time."""
    import numpy as np

    dtype = torch.from_numpy(buffer).dtype
    used = 0
    for tensor in tensors:
        flat, start, count = _flat(tensor), 0, tensor.numel()
        array = flat.numpy() if flat.dtype == dtype else None  # slices of arrays are made faster
        while start < count:
            stop = min(count, start + buffer.size - used)
            piece = flat[start:stop].to(dtype).numpy() if array is None else array[start:stop]
            np.abs(piece, out=buffer[used : used + piece.size])
            used, start = used + piece.size, stop
            if used == buffer.size:
                yield buffer
                used = 0
    if used:
        yield buffer[:used]


def _bracket(tensors: Sequence[Tensor], k: int, total: int, room: NDArray[Any]) -> tuple[float, float]:
    """Magnitudes between which the ``k``-th largest very probably lies, from coordinates at equal distances."""
    # An odd step meets all columns of a matrix whose width is a power of two.
    step = max(-(-total // min(_SAMPLED, room.size)), 1) | 1
    every: list[Tensor] = []
    passed = 0
    for tensor in tensors:
        every.append(_flat(tensor)[-passed % step :: step])
        passed += tensor.numel()
    sample = next(_magnitudes(every, room[: -(-total // step)]))
    rank = k / total * sample.size
    # Four standard deviations of the rank of a quantile, and a few places more for those at the ends.
    margin = 4 * math.sqrt(rank * (1 - k / total)) + 4
    above, below = sample.size - math.floor(rank - margin), sample.size - math.ceil(rank + margin)
    low, high = 0.0, math.inf
    # One after the other: numpy partitions by one place several times faster than by two.
    if above < sample.size:
        sample.partition(above)
        high = float(sample[above])
    if below >= 0:
        sample[:above].partition(below)
        low = float(sample[below])
    return low, high


def by_bits(
    by_times: Mapping[int, Sequence[Tensor]],
    k: int,
    dtype: torch.dtype,
    digit: int = _RADIX_BITS,
    total: Callable[[Tensor], Tensor] = Tensor.cpu,
    between: tuple[float, float] | None = None,
) -> float:
    """The ``k``-th largest magnitude by counting the leading bits, digit by digit; there is no NaN.

    The measurement of concentration counts bits too, but keeps the counts for many questions: one loop for both was
    two to five times slower.

    Args:
        by_times: tensors, by how often each of their coordinates counts.
        k: the rank.
        dtype: the type in which magnitudes are compared.
        digit: bits of a digit.
        total: what makes the counts of all, of the counts of these tensors.
        between: two numbers of the type between which all magnitudes lie.
    """
    integer, bits = _KEYS[dtype]
    lowest = 0
    if between is not None:
        lowest, highest = torch.tensor(between, dtype=dtype, device="cpu").view(integer).tolist()
        bits = (highest - lowest).bit_length()
    prefix, remaining = 0, bits
    while remaining > 0:
        width = min(digit, remaining)
        counts = torch.zeros(1 << width, dtype=torch.int64, device="cpu")
        for times, tensors in by_times.items():
            for chunk in chunks(tensors):
                keys = chunk.to(dtype).abs().view(integer) - lowest
                digits = keys if remaining == bits else keys[(keys >> remaining) == prefix]
                digits = (digits >> (remaining - width)) & ((1 << width) - 1)
                counts += times * torch.bincount(digits, minlength=1 << width).cpu()
        from_largest = total(counts).flip(0).cumsum(0)
        place = int(torch.searchsorted(from_largest, k))
        k -= int(from_largest[place - 1]) if place else 0
        prefix = (prefix << width) | ((1 << width) - 1 - place)
        remaining -= width
    return float(torch.tensor(lowest + prefix, dtype=integer, device="cpu").view(dtype))
