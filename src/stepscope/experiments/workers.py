"""Jobs in processes of their own, which tell what they find as they go."""

from __future__ import annotations

import concurrent.futures as futures
import multiprocessing as mp
import multiprocessing.connection
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

import torch

from stepscope.errors import UsageError

Job = TypeVar("Job")
Tell = Callable[[Any], None]

_told: Any = None
_stop: Any = None


class _StoppedError(Exception):
    """The process that asked has given up."""


def run_jobs(
    work: Callable[[Job, Tell], None], jobs: Sequence[Job], processes: int, receive: Callable[[int, Any], None]
) -> None:
    """Does jobs side by side.

    Args:
        work: ``work(job, tell)`` does one; what it passes to ``tell`` is received here. A function of a module, and
            jobs and messages that can be sent to another process, where there are several.
        jobs: what to do, begun in this order.
        processes: how many at a time, each with one thread; 1 does them here.
        receive: ``receive(number of the job, message)``, called in this process.

    Raises:
        UsageError: fewer processes than 1, or one of them died.
        BaseException: what a job raised; the others stop at their next message.
    """
    check_processes(processes)
    if processes == 1 or len(jobs) < 2:
        for number, job in enumerate(jobs):
            work(job, lambda message, number=number: receive(number, message))  # type: ignore[misc]
        return
    context = mp.get_context("spawn")  # a fork of a process with threads may hang
    told, stop = context.Queue(), context.Event()
    pool = futures.ProcessPoolExecutor(
        min(processes, len(jobs)), mp_context=context, initializer=_begin, initargs=(told, stop)
    )
    try:
        running = {pool.submit(_carry_out, work, number, job) for number, job in enumerate(jobs)}
        unfinished = len(jobs)
        failed = None
        while unfinished:
            failed = failed or next((future for future in running if future.done() and future.exception()), None)
            if failed is not None:
                stop.set()  # what has been told till then is still received
            try:
                number, message, over = told.get(timeout=0.2)
            except queue.Empty:
                if failed is not None:
                    failed.result()
                continue
            unfinished -= over
            if not over:
                receive(number, message)
    except BrokenProcessPool as error:
        raise UsageError(
            "a process died, perhaps for want of memory: the same command goes on; --jobs 1 needs less"
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def check_processes(count: int) -> None:
    """Refuses fewer processes than 1.

    Raises:
        UsageError: there are.
    """
    if count < 1:
        raise UsageError(f"{count} jobs at a time: at least 1 is needed")


def _begin(told: Any, stop: Any) -> None:
    global _told, _stop
    _told, _stop = told, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent stops its workers
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A parent that is killed can't stop its workers."""
    parent = mp.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _carry_out(work: Callable[[Job, Tell], None], number: int, job: Job) -> None:
    def tell(message: Any) -> None:
        if _stop.is_set():
            raise _StoppedError
        _told.put((number, message, False))

    work(job, tell)
    _told.put((number, None, True))
