"""What several processes measure together, by gloo, and what they exchange meanwhile."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

Rows = list[dict[str, Any]]


class Counted(TorchDispatchMode):
    """Counts what this rank receives by gathering and sends by scattering, and how many collectives there are."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.small, self.calls = 0, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch."""
        name = str(function)
        if name.startswith("c10d."):
            self.calls += 1
            if "_allgather_base_" in name or "_reduce_scatter_base_" in name:
                self.bytes += abs(args[0].nbytes - args[1].nbytes)
            else:
                self.small += sum(t.nbytes for t in torch.utils._pytree.tree_leaves(args) if torch.is_tensor(t))
        return function(*args, **(kwargs or {}))


def measured_by(ranks: int, work: Callable[[int, int], Rows]) -> Rows:
    """The rows of rank 0, of so many processes of one thread that do the work together.

    Args:
        ranks: how many.
        work: is given the rank and their number, in a process whose default group is theirs.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_run, (ranks, work, folder), nprocs=ranks, start_method="spawn")
        return list(json.loads(Path(folder, "rows.json").read_text()))


def _run(rank: int, ranks: int, work: Callable[[int, int], Rows], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    rows = work(rank, ranks)
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    dist.barrier()
    os._exit(0)
