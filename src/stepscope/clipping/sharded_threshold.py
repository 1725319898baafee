"""The exact threshold of tensors that lie in parts on several ranks.

Each rank counts the leading bits of its magnitudes, eleven at a time, and the counts are added up over ranks: in
float32 by five exchanges of 37 kB in all, whatever the size of the model. A coordinate that several ranks hold is
counted on each of them, as often as makes the number of ranks in all, and the sums are divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stepscope.clipping import order_statistics
from stepscope.errors import UsageError
from stepscope.objective import dtensors

_DIGIT = 11


class Parts:
    """This rank's parts of tensors, with what is known of the whole.

    Args:
        tensors: at least one of them lies in parts on all ranks; the others are the same on all.

    Attributes:
        count: coordinates of the whole.
        nonzero: those of them that aren't zero.
        has_nan: whether one is NaN.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        whole = [dtensors.without_terms(tensor.detach()) for tensor in tensors]
        self._dtype = order_statistics.common_dtype(whole)
        self._device = whole[0].device
        # By the number of times that a coordinate counts on a rank that holds it.
        self._by_times: dict[int, list[Tensor]] = {}
        for tensor in whole:
            part = dtensors.part(tensor)
            if part.numel():
                self._by_times.setdefault(dtensors.shards(tensor), []).append(part)
        counts = torch.zeros(3, dtype=torch.int64)
        for times, parts in self._by_times.items():
            numel = sum(part.numel() for part in parts)
            nonzero = sum(int(torch.count_nonzero(part)) for part in parts)
            nan = sum(int(part.isnan().sum()) for part in parts)
            counts += times * torch.tensor([numel, nonzero, nan])
        self.count, self.nonzero, nan = self.total(counts).tolist()
        self.has_nan = nan > 0

    def kth_largest(self, k: int) -> float:
        """The ``k``-th largest magnitude of the whole, which has no NaN."""
        return order_statistics.by_bits(self._by_times, k, self._dtype, _DIGIT, self.total)

    def smallest_nonzero(self) -> float:
        """The smallest magnitude of the whole that isn't zero; infinite if there is none."""
        found = [order_statistics.smallest_nonzero(parts) for parts in self._by_times.values()]
        smallest = torch.tensor([min(found, default=math.inf)], dtype=torch.float64, device=self._device)
        torch.distributed.all_reduce(smallest, torch.distributed.ReduceOp.MIN)
        return float(smallest)

    def total(self, counts: Tensor) -> Tensor:
        """Counts of the whole, from those of this rank, of a part as often as `dtensors.shards` says."""
        counts, ranks = counts.to(self._device), torch.distributed.get_world_size()
        torch.distributed.all_reduce(counts)
        if bool((counts % ranks).any()):
            raise UsageError("tensors that should be the same on all ranks differ: gradients that aren't synchronized?")
        return (counts // ranks).cpu()

    def sum(self, value: float) -> float:
        """A sum over the whole, from that over this rank's parts, each as often as `dtensors.shards` says."""
        own = torch.tensor(value, dtype=torch.float64, device=self._device)
        everyone = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(everyone, own)
        return math.fsum(map(float, everyone)) / len(everyone)
