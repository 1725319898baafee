"""Tests on several processes: they are started once for a file, run all its cases, and hand their results over."""

import datetime
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from stepscope import UsageError
from stepscope.objective.process_group import OutOfStepError

Case = Callable[[], Any]
IMPORTED = ["stepscope.measuring", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.tensor.parallel"]
"""What all processes need, imported once."""


def on_ranks(cases: Sequence[Case], size: int, folder: Path) -> dict[str, list[Any]]:
    """Runs functions of a module on `size` processes of one gloo group, all ranks each of them in turn, in a folder.

    Returns:
        By the name of a case, what each rank has returned: numbers, strings, tensors, and containers of them.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(IMPORTED)
    mp.start_processes(_work, (size, folder, list(cases)), nprocs=size, start_method="forkserver")
    of_ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]
    return {case.__name__: [results[case.__name__] for results in of_ranks] for case in cases}


def refused(call: Callable[[], Any]) -> str:
    """The message by which a call is refused; empty where it isn't."""
    try:
        call()
    except (UsageError, RuntimeError, OutOfStepError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _work(rank: int, size: int, folder: Path, cases: list[Case]) -> None:
    torch.set_num_threads(1)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    timeout = datetime.timedelta(seconds=100)
    # By a file: a port that was free a moment ago may be taken.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=size, timeout=timeout
    )
    results = {}
    for case in cases:
        torch.manual_seed(0)
        results[case.__name__] = case()
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    # What was to be found out is on the disk. torch's own threads now and then abort an interpreter that winds down.
    os._exit(0)
