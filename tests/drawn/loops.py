"""How a training loop may be written around the same model, loss and optimizer."""

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import stepscope


@dataclass(frozen=True)
class Loop:
    """What is done beside the plain loop.

    Attributes:
        accumulate: how many backward passes make a step.
        scaled: a gradient scaler, and autocast to bfloat16.
        probes: how many are attached.
        frozen: at the third step the first half of the parameters is frozen, at the fifth thawed.
        loaded: before the fourth step the states of model and optimizer after the second are loaded.
        warm_up: the learning rate rises from 0.
        clip_norm: the gradients' norm is clipped.
        clip_fraction: stepscope's clip is put on the optimizer before the probe.
        closed: the probe is closed midway, and another attached.
    """

    accumulate: int = 1
    scaled: bool = False
    probes: int = 1
    frozen: bool = False
    loaded: bool = False
    warm_up: bool = False
    clip_norm: bool = False
    clip_fraction: bool = False
    closed: bool = False


LOOPS: dict[str, Loop] = {
    "plain": Loop(),
    "accumulation": Loop(accumulate=2),
    "scaler, autocast": Loop(scaled=True),
    "two probes": Loop(probes=2),
    "frozen midway": Loop(frozen=True),
    "state loaded midway": Loop(loaded=True),
    "warm-up from 0": Loop(warm_up=True),
    "clip_grad_norm_": Loop(clip_norm=True),
    "clip_optimizer before": Loop(clip_fraction=True),
    "closed and attached again": Loop(closed=True),
}

STEPS = 6


def trained(
    loop: Loop,
    model: nn.Module,
    optimizer: Any,
    loss: Callable[[Any], torch.Tensor],
    batches: list[Any],
    between: Callable[[nn.Module, Any], None] | None,
    *,
    closure: bool = False,
    curved: bool = False,
) -> Iterator[tuple[int, list[float]]]:
    """Trains; gives the number of each step, once made, and its losses.

    Args:
        loop: which.
        model: in training mode.
        optimizer: whatever has ``step`` and ``zero_grad``.
        loss: ``loss(batch)``, the mean loss of a batch with its graph.
        batches: of the whole training, `STEPS` times ``loop.accumulate``.
        between: called with model and batch before the gradients of a step are made.
        closure: whether the step takes one.
        curved: whether gradients need their graph.
    """
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if loop.scaled else None
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, s / 3)) if loop.warm_up else None
    parameters = [p for p in model.parameters() if p.requires_grad]
    kept: Any = None
    for step in range(1, STEPS + 1):
        if loop.frozen and step in (3, 5):
            for parameter in parameters[: len(parameters) // 2]:
                parameter.requires_grad_(step == 5)
                parameter.grad = None
        if loop.loaded and step == 4:
            model.load_state_dict(kept[0])
            optimizer.load_state_dict(kept[1])
        mine = batches[(step - 1) * loop.accumulate : step * loop.accumulate]
        if between is not None:
            between(model, mine[0])
        losses = _step(loop, optimizer, loss, mine, parameters, scaler, closure, curved)
        if schedule is not None:
            schedule.step()
        if loop.loaded and step == 2:
            kept = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        yield step, losses


def _step(
    loop: Loop,
    optimizer: Any,
    loss: Callable[[Any], torch.Tensor],
    batches: list[Any],
    parameters: list[nn.Parameter],
    scaler: torch.amp.GradScaler | None,
    closure: bool,
    curved: bool,
) -> list[float]:
    losses: list[float] = []

    def gradients() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.zeros(())
        for batch in batches:
            mode: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if loop.scaled else nullcontext()
            with mode:
                value = loss(batch) / len(batches)
            losses.append(float(value.detach()))
            (scaler.scale(value) if scaler else value).backward(create_graph=curved)
        return value

    if closure:
        optimizer.step(gradients)
        return losses
    gradients()
    if loop.clip_norm:
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return losses


def clipped(loop: Loop, optimizer: Any) -> Any:
    """Puts stepscope's clip on the optimizer where the loop has one; gives its handle."""
    return stepscope.clip_optimizer(optimizer, 0.3) if loop.clip_fraction else None
