"""Jobs in processes of their own, which tell what they find as they go."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import torch

from stepscope.errors import UsageError

Job = TypeVar("Job")
Tell = Callable[[Any], None]


def run_jobs(
    work: Callable[[Job, Tell], None],
    jobs: Sequence[Job],
    processes: int,
    receive: Callable[[int, Any], None],
    lost: Callable[[int, str], None],
) -> None:
    """Does jobs side by side.

    Args:
        work: ``work(job, tell)`` does one; what it passes to ``tell`` is received here. A function of a module, and
            jobs and messages that can be sent to another process, where there are several.
        jobs: what to do, begun in this order.
        processes: how many at a time, each with one thread; 1 does them here.
        receive: ``receive(number of the job, message)``, called in this process.
        lost: ``lost(number of the job, why)``, called in this process where the one that was at it died; the others go
            on, and another takes its place.

    Raises:
        UsageError: fewer processes than 1.
        BaseException: what a job raised; the others are stopped.
    """
    check_processes(processes)
    if processes == 1 or len(jobs) < 2:
        for number, job in enumerate(jobs):
            work(job, lambda message, number=number: receive(number, message))  # type: ignore[misc]
        return
    waiting = list(enumerate(jobs))[::-1]
    workers: dict[Connection, mp.process.BaseProcess] = {}
    at: dict[Connection, int] = {}

    def begin(connection: Connection | None) -> None:
        """Gives the next job to a worker, or to a new one."""
        if not waiting:
            return
        if connection is None:
            connection, workers[connection] = _started(work)
        at[connection] = waiting[-1][0]
        try:
            connection.send(waiting.pop())
        except OSError:
            lose(connection)

    def lose(connection: Connection) -> None:
        lost(at.pop(connection), _DIED)
        begin(None)

    try:
        for _ in range(min(processes, len(jobs))):
            begin(None)
        while at:
            ready = wait(list(at))
            for connection in [connection for connection in at if connection in ready]:
                try:
                    number, kind, content = connection.recv()
                except (EOFError, OSError):
                    lose(connection)
                    continue
                if kind == "told":
                    receive(number, content)
                elif kind == "failed":
                    raise content
                else:
                    del at[connection]
                    begin(connection)
    finally:
        # What they have found is here already; they hold nothing that has to be restored.
        for process in workers.values():
            process.kill()
        for connection, process in workers.items():
            process.join()
            connection.close()


def check_processes(count: int) -> None:
    """Refuses fewer processes than 1.

    Raises:
        UsageError: there are.
    """
    if count < 1:
        raise UsageError(f"{count} jobs at a time: at least 1 is needed")


_DIED = "a process died, perhaps for want of memory: the same command goes on; --jobs 1 needs less"


def _started(work: Callable[[Any, Tell], None]) -> tuple[Connection, mp.process.BaseProcess]:
    context = mp.get_context("spawn")  # a fork of a process with threads may hang
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(work, theirs), daemon=True)
    with _without_interrupts():
        process.start()
    theirs.close()  # so that its end is the end of the messages
    return ours, process


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; those that start here don't take it: this one stops them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It is started with the first process otherwise, and lets the signal through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(work: Callable[[Any, Tell], None], connection: Connection) -> None:
    """Does the jobs that come, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    while True:
        number, job = connection.recv()
        try:
            work(job, lambda message, number=number: connection.send((number, "told", message)))  # type: ignore[misc]
        except Exception as error:
            connection.send((number, "failed", error))
        else:
            connection.send((number, "over", None))


def _die_with_parent() -> None:
    """A parent that is killed can't stop its workers."""
    parent = mp.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
