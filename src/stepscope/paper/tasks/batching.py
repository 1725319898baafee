"""What tasks share: which examples are used, batches in a seed's order, padding, a model with a seed's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.paper.tasks.task import Batch

# Which examples are used, and which of them are evaluated on, is the same for every seed of a task: runs with other
# seeds then differ in weights and order alone, and all are measured on the same examples.
DATA_SEED = 20_230_601

Example = TypeVar("Example")
Collate = Callable[[Sequence[Example]], Batch]


def chosen(examples: Sequence[Example], count: int) -> list[Example]:
    """Chooses examples at random, the same ones at every call, in random order.

    Args:
        examples: what to choose from.
        count: how many; all where there are fewer.

    Example:
        >>> sorted(chosen("abc", 5)), chosen("abcdef", 2) == chosen("abcdef", 2)
        (['a', 'b', 'c'], True)
    """
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(DATA_SEED)).tolist()
    return [examples[index] for index in order[:count]]


def training_batches(
    examples: Sequence[Example], size: int, seed: int, collate: Collate[Example]
) -> Callable[[], Iterator[Batch]]:
    """Gives a function that starts the endless sequence of batches: each epoch in a new order, rest dropped.

    Args:
        examples: what to train on.
        size: examples of a batch; all of them where there are fewer.
        seed: of the order.
        collate: makes a batch of examples.
    """
    size = min(size, len(examples))

    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(examples), generator=generator).tolist()
            for start in range(0, len(order) - size + 1, size):
                yield collate([examples[index] for index in order[start : start + size]])

    return batches


def batches_by_length(
    examples: Sequence[Example], size: int, length: Callable[[Example], Any], collate: Collate[Example]
) -> tuple[Batch, ...]:
    """Cuts examples into batches in the order of their lengths: little padding, and unlike numbers of tokens.

    Args:
        examples: such as those of the evaluation batch.
        size: examples of a batch.
        length: what to sort by; equal ones stay in their order.
        collate: makes a batch of examples.
    """
    by_length = sorted(examples, key=length)
    return tuple(collate(by_length[start : start + size]) for start in range(0, len(by_length), size))


def padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    """Token numbers as one int64 tensor, shape (rows, longest), filled up at the end.

    Example:
        >>> padded([[5], [7, 8]], 0).tolist()
        [[5, 0], [7, 8]]
    """
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def initialised(make: Callable[[], object], seed: int) -> nn.Module:
    """Makes a model with the weights of a seed, in training mode; the global random state is left as it was.

    Args:
        make: makes the model, drawing its weights from torch's default generator.
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        # This generator only: torch.manual_seed would reseed the accelerators' too, which are not forked here.
        torch.default_generator.manual_seed(seed)
        model = make()
    assert isinstance(model, nn.Module)
    return model.train()


def check_sizes(config: object, *names: str) -> None:
    """Refuses a configuration in which one of these numbers is below 1.

    Raises:
        UsageError: one is.
    """
    for name in names:
        if getattr(config, name) < 1:
            raise UsageError(f"{name} is {getattr(config, name)}: at least 1 is needed")


def check_model_sizes(config: Any, *names: str) -> None:
    """Refuses sizes of a model beside a checkpoint, which has its own, and missing or impossible ones without one.

    Args:
        config: with a ``checkpoint``, empty for none.
        names: of the settings that hold the sizes.

    Raises:
        UsageError: one is set beside a checkpoint, or isn't set or below 1 without one.
    """
    given = [name for name in names if getattr(config, name) is not None]
    if config.checkpoint:
        if given:
            raise UsageError(f"{given[0]} is {getattr(config, given[0])}, but a checkpoint has its own: {_none(given)}")
    elif missing := [name for name in names if name not in given]:
        raise UsageError(f"{missing[0]} is not set: give it, or a checkpoint")
    else:
        check_sizes(config, *(name for name in names if isinstance(getattr(config, name), int)))


def _none(names: Sequence[str]) -> str:
    return f"set {', '.join(names)} to None"
