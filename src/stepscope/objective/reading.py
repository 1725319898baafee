"""Reading a user's data without a trace: what is drawn for it is drawn again by the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from stepscope.objective.randomness import random_state
from stepscope.objective.state_kinds import generator_of

_PARTS = ("sampler", "batch_sampler", "dataset", "datasets")
"""What a loader, a sampler or a data set holds that may hold a generator of its own."""


@contextmanager
def reading(source: Any) -> Iterator[None]:
    """Inside, data is read. At the end, all generators of random numbers that this moves are as at the beginning.

    Those are the global ones, and those that a `DataLoader`, its samplers and its data set hold: a training often
    shuffles by the generator that its other loaders have too. Workers that a loader keeps alive are let go, since the
    loader draws their seed when it makes them.

    Args:
        source: a loader or a data set.

    Example:
        >>> import torch
        >>> loader = torch.utils.data.DataLoader(range(9), shuffle=True, generator=torch.Generator().manual_seed(0))
        >>> with reading(loader): first = [int(batch) for batch in loader]
        >>> first == [int(batch) for batch in loader]
        True
    """
    with ExitStack() as stack:
        if getattr(source, "_iterator", source) is None:
            stack.callback(setattr, source, "_iterator", None)
        stack.enter_context(random_state())
        for value in _held_by(source):
            if (generator := generator_of("", value)) is not None:
                stack.callback(generator.restore)
        yield


def _held_by(source: Any) -> Iterator[Any]:
    """The attributes of a loader, its samplers and its data set."""
    parts, known = [source], set[int]()
    for part in parts:
        if id(part) in known or not isinstance(attributes := getattr(part, "__dict__", None), dict):
            continue
        known.add(id(part))
        yield from attributes.values()
        for name in _PARTS:
            inside = attributes.get(name)
            parts += inside if isinstance(inside, list | tuple) and name == "datasets" else [inside]
