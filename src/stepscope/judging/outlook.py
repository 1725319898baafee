"""How far the loss can come by the steps of a training, as the gradients predict it, and what came true of that."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stepscope.judging.trust import terms_of
from stepscope.runs import StepRecord

_AT_EACH_END = 5
"""The loss at the start and at the end so far is the median of so many measured steps, or of half of all."""


@dataclass(frozen=True)
class Outlook:
    """What the gradients of the measured steps predict for the whole training.

    Attributes:
        predicted: the fall of the loss over the training, as a multiple of the loss that it began with.
        realized: the part of the predicted fall so far that the loss of new batches has come down by.
        is_whole: whether the length of the training is known; where it isn't, `predicted` is that of the steps so far.
    """

    predicted: float
    realized: float
    is_whole: bool


def outlook(records: Sequence[StepRecord]) -> Outlook | None:
    """Adds up over a training what the gradient of each step's batch predicts that the step does to the loss.

    A step is predicted to lower the loss of its own batch by `−g_bᵀd`. Summed over the training,

        ``predicted = Σ −g_bᵀd / f_b(x₀)``,

    by the trapezoidal rule over the measured steps; the last of them stands for the steps to come. It grows with the
    rate. At a good rate most of it is noise: each step lowers the loss of its own batch, and the next batch knows
    little of it. So `predicted` comes to several times the loss, and a small part comes true:

        ``realized = [f_b(x₀) − f_b(x)] / Σ −g_bᵀd``, up to `x`.

    Where `predicted` is below 1, the loss couldn't vanish if all came true; a large `realized` says that the steps
    follow what batches have in common. Both together are a sign of steps that are too short. That several times the
    loss are predicted, and a hundredth of it comes true, is one of steps that are too long.

    Args:
        records: the steps of one training, in order.

    Returns:
        Both numbers; ``None`` where fewer than two steps were measured on their batches, the loss began at zero or
        below, or the steps go uphill.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "steps": 100}
        >>> steps = [
        ...     StepRecord(**place, step=n, batch_loss=2.0 - n / 200, batch_slope=-0.01, batch_change=-0.009)
        ...     for n in range(5, 105, 5)
        ... ]
        >>> seen = outlook(steps)
        >>> round(seen.predicted, 2), round(seen.realized, 2)
        (0.49, 0.5)
    """
    length = next((record.steps for record in reversed(records) if record.steps is not None), None)
    measured = [record for record in records if terms_of(record) is not None and record.batch_loss is not None]
    count = min(_AT_EACH_END, len(measured) // 2)
    if not count:
        return None
    steps = [record.step for record in measured]
    losses = [record.batch_loss or 0.0 for record in measured]
    falls = [-(record.batch_slope or 0.0) for record in measured]
    pairs = itertools.pairwise(zip(steps, falls, strict=True))
    between = [(after - before) * (fall / 2 + next_fall / 2) for (before, fall), (after, next_fall) in pairs]
    predicted = list(itertools.accumulate(between, initial=0.0))
    middle = count // 2
    so_far = predicted[-1 - middle] - predicted[middle]
    start, end = statistics.median(losses[:count]), statistics.median(losses[-count:])
    in_all = predicted[-1] + falls[-1] * max((length or 0) - steps[-1], 0)
    if not (start > 0 and so_far > 0 and in_all > 0):
        return None
    return Outlook(in_all / start, (start - end) / so_far, length is not None)
