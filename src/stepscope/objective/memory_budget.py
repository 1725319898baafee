"""Micro-batches that fit a given memory: how large one may be is found by a trial at two sizes."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stepscope.errors import UsageError
from stepscope.objective.batches import tensors
from stepscope.objective.joined_batches import length, rows_of
from stepscope.objective.loss_calls import is_out_of_memory

_logger = logging.getLogger("stepscope")
TRIED = (1, 4)
"""Examples in the micro-batches of the trial."""
SEEN = 0.8
"""The part of a budget for what the trial sees: kernels take memory within themselves too, convolutions most."""


@dataclass(frozen=True)
class MemoryPlan:
    """The micro-batches that were chosen for a memory budget.

    Attributes:
        budget: bytes that a measurement may take, beside the model and the directions.
        needed: bytes that it takes, by the trial.
        examples: at most in a micro-batch.
        count: of micro-batches.
    """

    budget: int
    needed: int
    examples: int
    count: int

    def __str__(self) -> str:
        return (
            f"{self.count} micro-batches of at most {self.examples} examples need about {self.needed / 2**20:,.0f} MiB"
            f" of {self.budget / 2**20:,.0f} MiB"
        )


class PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made inside, as long as they live.

    What a kernel uses within itself isn't seen.

    Attributes:
        peak: the most at any time.

    Example:
        >>> with PeakMemory() as memory: _ = torch.ones(1000) + torch.ones(1000)
        >>> memory.peak
        12000
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._held = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Called by torch for each operation."""
        before = {_memory_of(value) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and (key := _memory_of(value)) not in before and key not in self._known:
                self._hold(key, value.untyped_storage())
        self.peak = max(self.peak, self._held)
        return result

    def _hold(self, key: int, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()

        def release() -> None:
            self._held -= size
            self._known.pop(key, None)

        self._held += size
        self._known[key] = weakref.finalize(storage, release)


def _memory_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def within(
    memory: float, batches: list[Any], trial: Callable[[Any], int], device: torch.device
) -> tuple[list[Any], MemoryPlan]:
    """Batches cut into micro-batches that fit a budget.

    Args:
        memory: bytes, or a part of what is free, below 1.
        batches: what may have to be cut.
        trial: the bytes that a measurement on one micro-batch takes.
        device: of the model.

    Raises:
        UsageError: nothing fits, or the batches can't be cut.
    """
    budget = _budget(memory, device)
    counts = [length(batch, 0) for batch in batches]
    if None in counts:
        raise UsageError("memory=… cuts batches along their first dimension, and these have none: cut them yourself")
    # The one whose examples are the largest.
    largest, count = max(
        ((batch, count) for batch, count in zip(batches, counts, strict=True) if count),
        key=lambda item: sum(tensor.numel() for tensor in tensors(item[0])) / item[1],
    )
    sizes = sorted({min(examples, count) for examples in TRIED})
    needs: list[int] = []
    for size in sizes:
        try:
            needs.append(trial(rows_of(largest, 0, size)))
        except Exception as error:
            if not needs or not is_out_of_memory(error):
                raise
    # Of a single trial all is taken to grow with the number of examples.
    each = (needs[1] - needs[0]) / (sizes[1] - sizes[0]) if len(needs) > 1 else needs[0]
    fixed = needs[0] - each * sizes[0]
    most = max(count for count in counts if count is not None)
    usable = SEEN * budget
    examples = min(most, math.floor((usable - fixed) / each)) if each > 0 else most
    if examples < 1 or needs[0] > usable:
        raise UsageError(
            f"a measurement takes about {needs[0] / 2**20:,.0f} MiB for one example, and memory={memory} are "
            f"{budget / 2**20:,.0f} MiB: give more, or shorter examples"
        )
    cut = [piece for batch in batches for piece in _pieces(batch, examples)]
    examples = max(length(piece, 0) or 0 for piece in cut)
    plan = MemoryPlan(budget, round(fixed + each * examples), examples, len(cut))
    _logger.info("%s", plan)
    return cut, plan


def _pieces(batch: Any, examples: int) -> Iterator[Any]:
    count = length(batch, 0) or 0
    if count <= examples:
        yield batch
        return
    pieces = math.ceil(count / examples)
    for number in range(pieces):  # of sizes that differ by one at most
        yield rows_of(batch, count * number // pieces, count * (number + 1) // pieces)


def _budget(memory: float, device: torch.device) -> int:
    if isinstance(memory, bool) or not isinstance(memory, int | float) or not memory > 0:
        raise UsageError(f"memory={memory!r}: give bytes, or a part of what is free, such as 0.5")
    if memory >= 1:
        return int(memory)
    return int(memory * _free(device))


def _free(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and (table := Path("/proc/meminfo")).exists():
        lines = dict(line.split(":") for line in table.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    raise UsageError(f"how much memory is free on {device.type} isn't known here: give memory in bytes")
