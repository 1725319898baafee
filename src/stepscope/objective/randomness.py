"""The random state of torch, Python and numpy: kept, seeded, and compared."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def random_state() -> Iterator[None]:
    """At the end, the random state of torch (CPU and CUDA), Python and numpy is as at the beginning."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(legacy)


def seed_everything(seed: int) -> None:
    """Seeds torch, Python and numpy; only inside `random_state`."""
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        # The CPU's generator alone: `torch.manual_seed` keeps a stack trace for a CUDA that may be initialized later.
        torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def random_states() -> tuple[Any, ...]:
    """The states of the global generators: two of them differ where numbers were drawn in between."""
    numpy: Any = sys.modules.get("numpy")
    device = torch.cuda.get_rng_state().tolist() if torch.cuda.is_initialized() else None  # type: ignore[no-untyped-call]
    if numpy is None:
        return torch.get_rng_state().tolist(), random.getstate(), device
    legacy = numpy.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), legacy[1].tobytes(), *legacy[2:], device


class RandomState:
    """The random state of torch (CPU and CUDA), Python and numpy as it is now, to begin from again.

    Example:
        >>> state = RandomState(); first = torch.rand(())
        >>> with random_state():
        ...     state.resume(); bool(torch.rand(()) == first)
        True
    """

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        self._devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        self._python = random.getstate()
        numpy: Any = sys.modules.get("numpy")
        self._numpy = numpy.random.get_state() if numpy is not None else None

    def resume(self) -> None:
        """Begins from this state; only inside `random_state`."""
        torch.set_rng_state(self._torch)
        if self._devices:
            torch.cuda.set_rng_state_all(self._devices)
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
