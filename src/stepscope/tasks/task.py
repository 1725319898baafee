"""What an experiment needs to know of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Source:
    """Where a task's data came from: what a record has to say so that a reader can judge it.

    Attributes:
        name: short key that finds the same source again, such as ``"homeassistant"``.
        title: one line for people, with the version.
        license: SPDX identifier where there is one.
        sha256: digest of the file that the data was read from, hexadecimal.
        examples: number of examples that it gave after cleaning.
    """

    name: str
    title: str
    license: str
    sha256: str
    examples: int


@dataclass(frozen=True)
class Task:
    """A model with its data, ready to be trained and measured.

    Attributes:
        name: such as ``"translation"``.
        model: as initialised, in training mode; what is random in it comes from the task's seed.
            ``model(**batch).loss`` is the mean loss of a batch over its valid label tokens, or its examples.
        training_batches: called without arguments, gives an endless iterator over training batches, the same
            sequence at every call (its order depends on the task's seed alone and draws on no global RNG).
        eval_batches: the fixed evaluation batch, cut into micro-batches.
        source: where the data came from.
        seeded: the same task with the weights and the order of another seed, without reading its data again.
        initialisation: how the model got its weights, ``"random"`` or one line that says where it was pretrained.
    """

    name: str
    model: nn.Module
    training_batches: Callable[[], Iterator[Batch]]
    eval_batches: tuple[Batch, ...]
    source: Source
    seeded: Callable[[int], Task]
    initialisation: str = "random"
