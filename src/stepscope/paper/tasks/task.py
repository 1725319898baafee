"""What an experiment needs to know of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError

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
        model: as initialized, in training mode; what is random in it comes from the task's seed.
            ``model(**batch).loss`` is the mean loss of a batch over its valid label tokens, or its examples.
        training_batches: called without arguments, gives an endless iterator over training batches, the same
            sequence at every call (its order depends on the task's seed alone and draws on no global RNG).
        eval_batches: the fixed evaluation batch, cut into micro-batches.
        source: where the data came from.
        seeded: the same task with the weights and the order of another seed, without reading its data again.
        initialisation: how the model got its weights, ``"random"`` or one line that says where it was pretrained.
        pretraining: of a model that was pretrained on the spot, how far: ``steps``, and the loss on held-out examples
            before and after, ``loss_before`` and ``loss_after`` (nats).
    """

    name: str
    model: nn.Module
    training_batches: Callable[[], Iterator[Batch]]
    eval_batches: tuple[Batch, ...]
    source: Source
    seeded: Callable[[int], Task]
    initialisation: str = "random"
    pretraining: Mapping[str, float] | None = None


def placed(task: Task, device: torch.device | str) -> Task:
    """A task on a device: its model there, and its batches.

    Weights are drawn on the CPU and moved, so they are the same on every device, as is the order of the batches.
    Training batches are moved one by one as they are asked for, the evaluation batch at once.

    Args:
        task: the task. Its model is moved itself, as ``model.to(device)`` does: use the task that is given back.
        device: such as ``"cuda"``.

    Raises:
        UsageError: there is no such device here.

    Example:
        >>> from stepscope.paper.tasks.small import small_task
        >>> next(placed(small_task("classifier"), "cpu").training_batches())["labels"].device
        device(type='cpu')
    """
    try:
        device = torch.device(device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"device {str(device)!r} cannot be used ({reason}): choose another, such as cpu") from error

    def moved(batch: Batch) -> Batch:
        return {name: tensor.to(device) for name, tensor in batch.items()}

    return replace(
        task,
        model=task.model.to(device),
        training_batches=lambda: map(moved, task.training_batches()),
        eval_batches=tuple(map(moved, task.eval_batches)),
        seeded=lambda seed: placed(task.seeded(seed), device),
    )
