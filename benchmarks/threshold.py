"""What the threshold of a clip costs where the gradient lies in parts on several ranks, beside one process.

    python benchmarks/threshold.py   (two minutes on two cores)

A gradient of N coordinates in 20 tensors of unlike sizes, 10% to be clipped, is sharded over 2 and 4 processes. The
bytes that a rank gives to exchanges and their number are counted. Time is that of the processor, a median of several
rounds in turn: of the slowest rank, as a multiple of one process that has the whole gradient, and of one that has
that rank's part alone; and that of the same exchanges alone, of zeros, below which no way by exchanges can be. Results
go to benchmarks/threshold.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_map_only

from environment import environment
from on_ranks import Counted, Rows, measured_by
from stepscope.clipping import fraction_threshold

RESULTS = Path(__file__).with_suffix(".json")
SIZES, RANKS, FRACTION, ROUNDS = (10**5, 10**6, 10**7, 10**8), (2, 4), 0.1, 5


def gradient(size: int) -> list[Tensor]:
    """Tensors as a network has them: a few large, many small; each a whole number of rows for 4 ranks."""
    shares = torch.tensor([0.7**i for i in range(20)], dtype=torch.float64)
    sizes = ((shares / shares.sum() * size).long() // 4 * 4).clamp(min=4).tolist()
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator) * (i + 1) ** -0.5 for i, n in enumerate(sizes)]


class Exchanges:
    """Inside, notes what a rank exchanges."""

    def __enter__(self) -> Self:
        """Begins."""
        self._kept = {name: getattr(dist, name) for name in ("all_reduce", "all_gather")}
        self._made: list[tuple[str, tuple[Any, ...]]] = []
        for name, function in self._kept.items():
            setattr(dist, name, partial(self._noted, name, function))
        return self

    def _noted(self, name: str, function: Callable[..., Any], *given: Any) -> Any:
        self._made.append((name, given))
        return function(*given)

    def __exit__(self, *_: object) -> None:
        """Ends."""
        for name, function in self._kept.items():
            setattr(dist, name, function)
        self._made = [(name, tree_map_only(Tensor, torch.zeros_like, given)) for name, given in self._made]

    def again(self) -> None:
        """The same exchanges, of zeros."""
        for name, given in self._made:
            self._kept[name](*given)


def timed(ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """The median processor time of each, in turn, after one round that doesn't count."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(ROUNDS + 1):
        for name, way in ways.items():
            dist.barrier()
            started = time.process_time()
            way()
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def measure(rank: int, ranks: int) -> Rows:
    """One process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh, rows = init_device_mesh("cpu", (ranks,)), []
    for size in SIZES:
        whole = gradient(size)
        parts = [distribute_tensor(tensor, mesh, [Shard(0)], src_data_rank=None) for tensor in whole]
        own = [part.to_local().clone() for part in parts]
        with Counted() as counted, Exchanges() as exchanges:
            found = fraction_threshold(parts, FRACTION)
        # The whole is in one process alone: others would take its cache and its memory.
        ways = {
            "sharded": lambda parts=parts: fraction_threshold(parts, FRACTION),
            "whole": lambda whole=whole: fraction_threshold(whole, FRACTION) if rank == 0 else None,
            "part": lambda own=own: fraction_threshold(own, FRACTION),
            "exchanges": exchanges.again,
        }
        seconds = timed(ways)
        same = found == fraction_threshold(whole, FRACTION)
        everyone: list[Any] = [None] * ranks
        dist.all_gather_object(everyone, (seconds, same))
        rows.append({
            "coordinates": sum(map(len, whole)), "ranks": ranks, "bytes": counted.small + counted.bytes,
            "calls": counted.calls, "equal": all(same for _, same in everyone),
            "sharded": max(one["sharded"] for one, _ in everyone), "whole": everyone[0][0]["whole"],
            **{name: max(one[name] for one, _ in everyone) for name in ("part", "exchanges")},
        })  # fmt: skip
        del whole, parts, own, ways
    return rows


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: Rows = []
    for ranks in RANKS:
        rows += measured_by(ranks, measure)
    for row in rows:
        print(row, *(f"{name} {row[name] / row['whole']:.2f}" for name in ("sharded", "exchanges")))
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
