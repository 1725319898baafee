"""The exact threshold of tensors that lie in parts on several ranks.

Each rank counts the leading bits of its magnitudes, eleven at a time, and the counts are added up over ranks: in
float32 by exchanges of 37 kB in all, whatever the size of the model. On a CPU, some magnitudes of all ranks give a
bracket around the threshold before; one pass counts what lies above and collects what lies within, whose bits are
counted. Where the bracket misses, the bits of all are.

A coordinate that several ranks hold is counted on each of them, as often as makes the number of ranks in all, and the
sums are divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from stepscope.clipping import order_statistics
from stepscope.errors import UsageError
from stepscope.objective import dtensors

_DIGIT = 11

_SAMPLED = 768
"""Magnitudes of all ranks that give a bracket: some hundredths of the coordinates lie within."""


class Parts:
    """This rank's parts of tensors, with what is known of the whole.

    Args:
        tensors: at least one of them lies in parts on all ranks; the others are the same on all.
        count_zeros: whether to count the coordinates that aren't zero.

    Attributes:
        count: coordinates of the whole.
        nonzero: those of them that aren't zero; all, where that isn't asked for.
        has_nan: whether one is NaN.
    """

    def __init__(self, tensors: Sequence[Tensor], *, count_zeros: bool = False) -> None:
        whole = [dtensors.without_terms(tensor) for tensor in tensors]
        self._dtype = order_statistics.common_dtype(whole)
        self._device = whole[0].device
        # By the number of times that a coordinate counts on a rank that holds it.
        self._by_times: dict[int, list[Tensor]] = {}
        for tensor in whole:
            part = dtensors.part(tensor)
            if part.numel():
                self._by_times.setdefault(dtensors.shards(tensor), []).append(part)
        counts = torch.zeros(3, dtype=torch.int64, device="cpu")
        for times, parts in self._by_times.items():
            numel = sum(part.numel() for part in parts)
            nonzero = sum(int(torch.count_nonzero(part)) for part in parts) if count_zeros else numel
            # A sum is quicker; it may be NaN of infinities too.
            nan = sum(int(part.isnan().sum()) for part in parts if bool(part.sum().isnan()))
            counts += times * torch.tensor([numel, nonzero, nan], device="cpu")
        self.count, self.nonzero, nan = self.total(counts).tolist()
        self.has_nan = nan > 0

    def kth_largest(self, k: int) -> float:
        """The ``k``-th largest magnitude of the whole, which has no NaN."""
        if self._device.type == "cpu" and self._dtype in (torch.float32, torch.float64):
            with suppress(ImportError):  # numpy is missing
                found = self._by_bracket(k)
                if found is not None:
                    return found
        return order_statistics.by_bits(self._by_times, k, self._dtype, _DIGIT, self.total)

    def _by_bracket(self, k: int) -> float | None:
        """``None``, on all ranks, where the bracket missed, or much lies within."""
        low, high = self._bracket(k / self.count)
        counts = torch.zeros(3, dtype=torch.int64, device="cpu")
        within: dict[int, list[Tensor]] = {}
        for times, parts in self._by_times.items():
            above, inside, collected = order_statistics.above_and_within(parts, low, high, self._dtype)
            counts += times * torch.tensor([above, inside, collected is None], device="cpu")
            within[times] = [] if collected is None else [collected]
        above, inside, failed = self.total(counts).tolist()
        if failed or not above < k <= above + inside:
            return None
        return order_statistics.by_bits(within, k - above, self._dtype, _DIGIT, self.total, (low, high))

    def _bracket(self, fraction: float) -> tuple[float, float]:
        """Magnitudes between which the one very probably lies above which a fraction is: from some of each rank's."""
        ranks = torch.distributed.get_world_size()
        most = max(_SAMPLED // ranks, 8)
        length = sum(times * sum(part.numel() for part in parts) for times, parts in self._by_times.items())
        every = max(length / (most - len(self._by_times)), 1.0)
        own = torch.full((most + 1,), -1.0, dtype=self._dtype, device="cpu")
        used = 0
        for times, parts in self._by_times.items():
            step, passed = math.ceil(every / times) | 1, 0
            for part in parts:
                taken = part.reshape(-1)[-passed % step :: step].abs()
                own[used : used + len(taken)] = taken
                used, passed = used + len(taken), passed + part.numel()
        own[-1] = length / max(used, 1)  # coordinates for each
        everyone = [torch.empty_like(own) for _ in range(ranks)]
        torch.distributed.all_gather(everyone, own)
        weights = torch.cat([one[-1].double().expand(most) for one in everyone])
        sample = torch.cat([one[:-1] for one in everyone])
        weights, sample = weights[sample >= 0], sample[sample >= 0]
        sample, order = sample.sort(descending=True)
        above = weights[order].cumsum(0) / weights.sum()
        size = float(weights.sum() ** 2 / (weights**2).sum())
        # Four standard deviations of the rank of a quantile, and a few places more for those at the ends.
        margin = 4 * math.sqrt(fraction * (1 - fraction) / size) + 4 / size
        upper, lower = (int(torch.searchsorted(above, fraction + sign * margin)) for sign in (-1, 1))
        high = float(sample[upper - 1]) if upper else math.inf
        low = float(sample[lower]) if lower < len(sample) else 0.0
        return low, high

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
