"""How far the loss can come by the steps of a training, as the gradients predict it, and what came true of that."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from stepscope.judging.trust import terms_of
from stepscope.runs import StepRecord

_AT_EACH_END = 5
"""The loss at the start and at the end so far is the median of so many measured steps, or of half of all; there have to
be so many."""


@dataclass(frozen=True)
class Outlook:
    """What the gradients of the measured steps predict for the whole training.

    Attributes:
        predicted: the fall of the loss over the training, as a multiple of the loss that it began with.
        realized: the part of the predicted fall so far that the loss of new batches has come down by.
        late: the realized part again, counted from where half of the fall so far had been predicted.
        steps: the length of the training.
        is_whole: whether the length of the training is known; where it isn't, the steps so far are taken for it.
    """

    predicted: float
    realized: float
    late: float
    steps: int
    is_whole: bool

    @property
    def worth(self) -> float:
        """How many steps are predicted to bring what comes true of the whole training, if it goes on so."""
        return self.realized * self.steps

    @property
    def of_a_step(self) -> float:
        """The fall that is predicted of one step, in the mean, as a multiple of the loss at the start."""
        return self.predicted / self.steps


def outlook(records: Sequence[StepRecord]) -> Outlook | None:
    """Adds up over a training what the gradient of each step's batch predicts that the step does to the loss.

    A step is predicted to lower the loss of its own batch by `−g_bᵀd`. Summed over the training,

        ``predicted = Σ −g_bᵀd / f_b(x₀)``,

    by the trapezoidal rule over the measured steps; the last of them stands for the steps to come. It grows with the
    rate. At a good rate most of it is noise: each step lowers the loss of its own batch, and the next batch knows
    little of it. So `predicted` comes to several times the loss, and a small part comes true:

        ``realized = [f_b(x₀) − f_b(x)] / Σ −g_bᵀd``, up to `x`.

    Where `predicted` is below 1, the loss wouldn't vanish if all came true; a large `realized` says that the steps
    follow what batches have in common. Both together are a sign of steps that are too short, unless the loss has come
    to a floor: then little of the later half comes true, ``late``.

    The longer a training, the more is predicted, and the smaller a part of it comes true, at any rate. Times the number
    of steps it is as many steps as are predicted to bring what the whole training does, ``worth = realized · steps``.
    That a training which predicts several times its loss comes to two of its steps or less is a sign of steps that
    are too long. And where a step is predicted to bring more than all of the loss, in the mean, the steps have thrown
    the training off.

    Args:
        records: the steps of one training, in order.

    Returns:
        These numbers; ``None`` where fewer than five steps were measured on their batches, the loss began at zero or
        below, or the steps go uphill.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "steps": 100}
        >>> steps = [
        ...     StepRecord(**place, step=n, batch_loss=2.0 - n / 200, batch_slope=-0.01, batch_change=-0.009)
        ...     for n in range(5, 105, 5)
        ... ]
        >>> seen = outlook(steps)
        >>> round(seen.predicted, 2), round(seen.realized, 2), round(seen.worth)
        (0.49, 0.5, 50)
    """
    length = next((record.steps for record in reversed(records) if record.steps is not None), None)
    measured = [record for record in records if terms_of(record) is not None and record.batch_loss is not None]
    count = min(_AT_EACH_END, len(measured) // 2)
    if len(measured) < _AT_EACH_END:
        return None
    steps = [record.step for record in measured]
    losses = [record.batch_loss or 0.0 for record in measured]
    falls = [-(record.batch_slope or 0.0) for record in measured]
    pairs = itertools.pairwise(zip(steps, falls, strict=True))
    between = [(after - before) * (fall / 2 + next_fall / 2) for (before, fall), (after, next_fall) in pairs]
    predicted = list(itertools.accumulate(between, initial=0.0))
    middle = count // 2
    last = len(measured) - 1 - middle
    half = next((at for at in range(middle, last) if predicted[at] >= predicted[-1] / 2), max(middle, last - 1))
    windows = losses[:count], losses[half - middle :][:count], losses[-count:]
    start, amid, end = map(statistics.median, windows)
    so_far, later = (predicted[last] - predicted[at] for at in (middle, half))
    in_all = predicted[-1] + falls[-1] * max((length or 0) - steps[-1], 0)
    if not (start > 0 and so_far > 0 and in_all > 0):
        return None
    realized = (start - end) / so_far
    return Outlook(
        predicted=in_all / start,
        realized=realized,
        late=(amid - end) / later if later > 0 else 0.0,
        steps=length or steps[-1],
        is_whole=length is not None,
    )
