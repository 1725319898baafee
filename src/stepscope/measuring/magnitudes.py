"""The coordinates of a direction by their magnitude: their histogram, and which of them are the largest.

One sort answers both. numpy sorts on a CPU: it is many times faster there than torch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from stepscope.clipping import Parts
from stepscope.objective import dtensors, vectors

BINS_PER_DECADE = 4


@dataclass(frozen=True)
class Magnitudes:
    """A histogram of the coordinates ``|dᵢ|`` by their size, relative to the root mean square, on a logarithmic axis.

    Attributes:
        zeros: coordinates that are zero.
        lowest: number of the first bin. Bin ``k`` holds magnitudes from ``10^(k/per_decade)`` to
            ``10^((k+1)/per_decade)`` times the root mean square.
        per_decade: bins to a power of ten.
        counts: coordinates in each bin.
    """

    zeros: int
    lowest: int
    per_decade: int
    counts: list[int]


@dataclass(frozen=True)
class Largest:
    """Some coordinates of largest ``|uᵢ|``.

    Attributes:
        threshold: coordinates above it have weight 1.
        tied: the weight of coordinates that equal it.
        norm: ``Σ uᵢ²`` over them.
    """

    threshold: float
    tied: float
    norm: float

    def sum(self, sizes: Tensor, values: Tensor) -> Tensor:
        """The sum of the values that belong to them, of coordinates with the magnitudes `sizes`."""
        total = torch.dot((sizes > self.threshold).to(values.dtype), values)
        if self.tied:
            total += self.tied * torch.dot((sizes == self.threshold).to(values.dtype), values)
        return total


class SortedMagnitudes:
    """``|dᵢ|`` in ascending order, for as long as this object lives.

    A direction that lies in parts on several ranks is sorted on each of them, and what is counted is added up.

    Args:
        direction: ``d``, finite.

    Attributes:
        size: coordinates of the whole.
    """

    def __init__(self, direction: Mapping[str, Tensor]) -> None:
        tensors = list(direction.values())
        self._whole = Parts(tensors) if any(map(dtensors.is_spread, tensors)) else None
        by_times: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            by_times.setdefault(dtensors.shards(tensor) if self._whole else 1, []).append(dtensors.part(tensor))
        self._sorted = {times: _sorted(parts) for times, parts in by_times.items()}
        self._squares = vectors.norm(direction) ** 2
        self.size = self._whole.count if self._whole else self._sorted[1].numel()

    def histogram(self) -> Magnitudes:
        """The histogram of a direction that isn't zero."""
        zeros = self._below([0.0], right=True)[0]
        scale = math.sqrt(self._squares / self.size)
        lowest, highest = (_bin(self._largest(k) / scale) for k in (self.size - zeros, 1))
        # A millionth of a bin is added: magnitudes that are 1 up to rounding, as after a sign, share a bin.
        edges = [scale * 10 ** ((k - 1e-6) / BINS_PER_DECADE) for k in range(lowest + 1, highest + 1)]
        ends = [zeros, *self._below(edges), self.size]
        counts = [end - start for start, end in itertools.pairwise(ends)]
        return Magnitudes(zeros, lowest, BINS_PER_DECADE, counts)

    def largest(self, count: int) -> Largest:
        """The largest, `count` of them. Of those that tie at the threshold, each has the same weight."""
        if not count:
            return Largest(math.inf, 0.0, 0.0)
        threshold = self._largest(count)
        first, after = (self._below([threshold], right=right)[0] for right in (False, True))
        above = self.size - after
        tied = (count - above) / (after - first)
        return Largest(threshold, tied, self._squares_above(threshold) + (count - above) * threshold**2)

    def _largest(self, k: int) -> float:
        return self._whole.kth_largest(k) if self._whole else float(self._sorted[1][-k])

    def _below(self, edges: list[float], *, right: bool = False) -> list[int]:
        """How many magnitudes are below each edge, or at it as well."""
        counts = torch.zeros(len(edges), dtype=torch.int64, device="cpu")
        for times, values in self._sorted.items():
            counts += times * torch.searchsorted(values, _rounded_up(edges, values), right=right).cpu()
        return (self._whole.total(counts) if self._whole else counts).tolist()

    def _squares_above(self, threshold: float) -> float:
        sums = []
        for times, values in self._sorted.items():
            first = int(torch.searchsorted(values, threshold, right=True))
            sums.append(times * vectors.norm({"values": values[first:]}) ** 2)
        return self._whole.sum(math.fsum(sums)) if self._whole else math.fsum(sums)


def magnitudes(direction: Mapping[str, Tensor]) -> Magnitudes:
    """The histogram of a direction's coordinates by magnitude.

    Args:
        direction: ``d``, finite, any length but zero.

    Example:
        >>> magnitudes({"w": torch.tensor([0.0, 1.0, -1.0, 1.0])})  # the root mean square is 0.866
        Magnitudes(zeros=1, lowest=0, per_decade=4, counts=[3])
    """
    return SortedMagnitudes(direction).histogram()


def _sorted(tensors: Sequence[Tensor]) -> Tensor:
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32
    values = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype, device=tensors[0].device)
    for place, tensor in zip(torch.split(values, [t.numel() for t in tensors]), tensors, strict=True):
        place.copy_(tensor.detach().abs().reshape(-1))
    if values.device.type == "cpu":
        with suppress(RuntimeError):  # numpy is missing
            values.numpy().sort()
            return values
    return values.sort().values


def _bin(relative: float) -> int:
    return math.floor(BINS_PER_DECADE * math.log10(relative) + 1e-6)


def _rounded_up(edges: list[float], like: Tensor) -> Tensor:
    """The least numbers of a type that aren't below the edges: whatever isn't below one isn't below the other."""
    exact = torch.tensor(edges, dtype=torch.float64, device="cpu")
    rounded = exact.to(like.dtype)
    above = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    return torch.where(rounded.double() < exact, above, rounded).to(like.device)
