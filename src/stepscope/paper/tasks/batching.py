"""What tasks share: the examples in use, batches in a seed's order, a seed's weights, and the task of these."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from stepscope.paper.tasks.pretrained import Weights
from stepscope.paper.tasks.pretraining import Lesson, Pretraining, pretrained_here
from stepscope.paper.tasks.task import Batch, Source, Task

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


def halves(
    examples: Sequence[Example], parts: Callable[[Example], Iterable[Hashable]] = lambda example: (example,)
) -> tuple[list[Example], list[Example]]:
    """Sets a half of the examples apart at random, the same at every call: one for the task, one to pretrain on.

    Args:
        examples: what to divide.
        parts: what an example consists of. Nothing is in both halves: of the second, those that share a part with one
            of the first are left out.

    Returns:
        The task's half, the larger one, and the other, both in random order.

    Example:
        >>> own, apart = halves(["a b", "a c", "d", "e f"], str.split)
        >>> set(" ".join(own).split()) & set(" ".join(apart).split())
        set()
    """
    order = chosen(examples, len(examples))
    own = order[: (len(order) + 1) // 2]
    seen = {part for example in own for part in parts(example)}
    return own, [example for example in order[len(own) :] if seen.isdisjoint(parts(example))]


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


def initialized(make: Callable[[], object], seed: int) -> nn.Module:
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


def task_of(
    name: str,
    config: Any,
    examples: Sequence[Example],
    *,
    seed: int,
    model: Callable[[int, Weights | None], nn.Module],
    collate: Collate[Example],
    source: Source,
    initialisation: str = "random",
    lesson: tuple[Lesson, Pretraining] | None = None,
    order: Callable[[Example], Any] | None = None,
) -> Task:
    """Makes a task of examples and a model.

    Args:
        name: of the task.
        config: with ``batch_size``, ``eval_size`` and ``micro_batch_size``.
        examples: in random order; the first of them are evaluated on.
        seed: of the model's weights and of the order of training batches.
        model: gives the model of a seed, in training mode, with the weights that were pretrained on the spot, if any.
        collate: makes a batch of examples.
        source: where the examples are from.
        initialisation: see `Task`; of what is pretrained on the spot the lesson says it.
        lesson: what the model is pretrained on here, and how far, with each seed anew; None if it isn't.
        order: what the evaluation batch is sorted by; None leaves it as it is.
    """
    evaluated = list(examples[: config.eval_size])
    if order is not None:
        evaluated.sort(key=order)
    size = config.micro_batch_size
    eval_batches = tuple(collate(evaluated[start : start + size]) for start in range(0, len(evaluated), size))

    began = f"pretrained: {lesson[1].steps:,} steps of {lesson[0].title}" if lesson else initialisation

    def seeded(seed: int) -> Task:
        learned = pretrained_here(*lesson, seed) if lesson else None
        return Task(
            name=name,
            model=model(seed, learned.weights if learned else None),
            training_batches=training_batches(examples, config.batch_size, seed, collate),
            eval_batches=eval_batches,
            source=replace(source, examples=len(examples)),
            seeded=seeded,
            initialisation=began,
            pretraining=learned.record if learned else None,
        )

    return seeded(seed)
