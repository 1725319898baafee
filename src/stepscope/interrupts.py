"""Ctrl-C while a model is measured: it waits until everything can be put back."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_pending: list[tuple[int, FrameType | None]] = []
_original: dict[int, Any] = {}


@contextmanager
def held() -> Iterator[None]:
    """Inside, an interrupt waits for the end, or for `deliver`; a second one doesn't wait.

    An exception that a signal raises between two lines of a context manager's own code would leave things half put
    back. Where signals can't be held (another thread than the main one, a handler that isn't Python's), nothing
    happens.
    """
    if _original or threading.current_thread() is not threading.main_thread():
        yield
        return
    _pending.clear()
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                _original[number] = handler
                signal.signal(number, _hold)
        yield
    finally:
        _release()


def deliver() -> None:
    """Raises what an interrupt that waits would have raised; for places from which everything is put back."""
    if _pending and _original and threading.current_thread() is threading.main_thread():
        number, frame = _pending.pop()
        _original[number](number, frame)


def _hold(number: int, frame: FrameType | None) -> None:
    if _pending and number in _original:  # the user insists
        _pending.clear()
        _original[number](number, frame)
        return
    _pending.append((number, frame))


def _release() -> None:
    handlers = dict(_original)
    _original.clear()
    # The last one to be put back is that of Ctrl-C, which can arrive at any line from then on.
    for number in sorted(handlers, key=lambda n: n == signal.SIGINT):
        signal.signal(number, handlers[number])
    waiting = list(_pending)
    _pending.clear()
    for number, frame in waiting:
        handlers[number](number, frame)
