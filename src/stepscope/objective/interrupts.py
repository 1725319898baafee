"""Signals while a model is measured: they wait until everything is restored.

A signal can arrive between any two lines, also those of a `finally`, and a handler that saves a checkpoint would save a
displaced point. So `held` takes the handlers' place from before the first change until after the last one.

Nor do two threads measure at the same time: what one has switched off, the other would take for how it was, and leave.
Where there are ranks, none waits for long: the one that measures may wait for another rank, and that for this thread.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from stepscope.errors import UsageError

_PATIENCE = 30.0
"""Seconds that a thread waits for another one to have measured, where there are ranks."""

_waiting: list[tuple[int, FrameType | None]] = []
_handlers: dict[int, Any] = {}
_turns = threading.RLock()


@contextmanager
def held() -> Iterator[None]:
    """Inside, a signal waits for the end, so that its handler runs when everything is restored.

    An exception that a signal raises between two lines of a context manager's own code would leave things half
    restored, and a handler that saves a checkpoint would save a displaced point. A `KeyboardInterrupt`
    by Ctrl-C needn't wait so long: `deliver` raises it earlier, and a second Ctrl-C isn't held. Where signals can't be
    held (another thread than the main one, a handler that isn't Python's), they come as they do. Another thread that
    comes here waits.

    Raises:
        UsageError: another thread has measured for long, and may wait for a rank whose threads wait for one another.
    """
    if _handlers or threading.current_thread() is not threading.main_thread():
        with _turn():
            yield
        return
    _waiting.clear()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                _handlers[number] = handler
                signal.signal(number, _hold)
        with _turn():
            yield
    finally:
        _release()


@contextmanager
def _turn() -> Iterator[None]:
    distributed = torch.distributed
    among_ranks = distributed.is_available() and distributed.is_initialized()
    if not _turns.acquire(timeout=_PATIENCE if among_ranks else -1):
        raise UsageError(
            f"another thread has measured for {_PATIENCE:g} s, and ranks whose threads measure in another order would "
            "wait for one another forever: measure in one thread of each process"
        )
    try:
        yield
    finally:
        _turns.release()


def deliver() -> None:
    """Raises the `KeyboardInterrupt` that waits; for lines at which an exception restores everything."""
    if _waiting and _raises(signal.SIGINT) and threading.current_thread() is threading.main_thread():
        for index, (number, _) in enumerate(_waiting):
            if number == signal.SIGINT:
                del _waiting[index]
                raise KeyboardInterrupt


def _raises(number: int) -> bool:
    return _handlers.get(number) is signal.default_int_handler


def _hold(number: int, frame: FrameType | None) -> None:
    if _raises(number) and any(waiting == number for waiting, _ in _waiting):
        raise KeyboardInterrupt  # the user insists
    _waiting.append((number, frame))


def _release() -> None:
    handlers = dict(_handlers)
    _handlers.clear()
    # The handler of Ctrl-C is restored last: from then on Ctrl-C can arrive at any line.
    for number in sorted(handlers, key=lambda n: n == signal.SIGINT):
        if signal.getsignal(number) is _hold:  # unless another was installed in the meantime
            signal.signal(number, handlers[number])
    waiting = list(_waiting)
    _waiting.clear()
    for number, frame in sorted(waiting, key=lambda w: w[0] == signal.SIGINT):
        handlers[number](number, frame)
