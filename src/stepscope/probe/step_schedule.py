"""When the optimizer's own step is measured on its own batch: early, often, and within the limit of the overhead.

What says whether a rate is right lies between 3% and 50% of a training (`judging/rate.py`). Most measurements lie in
the first 30%, so that it is said early.
Where the length of a training is known, they are paid from what the whole training will earn, so that the first comes
within its first 2%. Where it isn't, they are paid from what it has earned, as if it had 200 steps at least, and become
sparser as it goes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator

from stepscope.errors import UsageError
from stepscope.probe.schedule import Schedule

PHASES = ((0.03, 2), (0.30, 20), (0.50, 4), (1.0, 5))
"""Up to which part of the training how many measurements are wanted, at equal distances. What couldn't be paid at its
time isn't made up later: steps side by side tell the same, and those at the end count too (`judging/outlook.py`)."""

DENSEST, SPARSEST = 1.12, 1.5
"""Of a training of unknown length, each is so many times as late as the one before: between 20 and 6 from a tenth of it
to the whole, as the limit allows."""

SHORTEST = 200
"""Steps that a training of unknown length is taken to have, at least."""

ANYWAY, SECONDS_ANYWAY, SHARE_ANYWAY = 12, 0.5, 0.4
"""So many are planned also where the limit allows fewer, if all together usually take no longer than this, or than this
part of the limit, 2% of the training by default: one at which the machine stalled isn't to end the others. The last of
them may come to lie behind the end.
"""

ENOUGH, SHARE = 20, 0.3
"""After so many, a training of known length pays for more from this part of the limit, 1.5% of it by default."""

BESIDE, ALONE = 0.5, 0.8
"""The part of the planned limit that own steps take where a full measurement is within reach, and where none is but the
length is known: of few steps little evens out, and idle steps take some thousandths more, which nothing counts.
"""

RECENT = 5
"""What a measurement takes is the least of so many: of some, gradients are compared too, and a machine may stall."""


class StepSchedule:
    """Which steps are measured on their own batches.

    Args:
        schedule: that of the measurements, with which the limit is shared. Where one of these is within reach, half of
            the limit is left to them.
        steps: the length of the training; ``None`` where it isn't known.
        first: the first step.

    Raises:
        UsageError: a length that is none.

    Example:
        >>> steps = StepSchedule(Schedule(10**9, None, cost=1.0, window=0), steps=400)
        >>> made = [step for step in range(1, 401) if steps.is_due(step) and not steps.made(step, 0.01)]
        >>> made[:6], len(made), len([step for step in made if 12 <= step <= 120])
        ([5, 11, 17, 23, 28, 34], 31, 20)
    """

    def __init__(self, schedule: Schedule, steps: int | None, first: int = 1) -> None:
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
            raise UsageError(f"steps is {steps!r}: give the number of steps of the training")
        self._schedule = schedule
        self.steps = steps
        self._first = first
        self._made: list[int] = []
        self._seconds: list[float] = []
        self._cost = self._usual = 0.0
        self._next: float = first - 1 + (5 if steps is None else max(1, min(5, steps // 50)))

    def is_due(self, step: int) -> bool:
        """Whether this step is to be measured."""
        return step >= self._next and self._affordable(step) >= 1

    def made(self, step: int, seconds: float) -> None:
        """This step has been measured, in so much time."""
        self._made.append(step)
        self._seconds.append(seconds)
        # Of the first step gradients are compared. The others take a forward pass, which is less than a step.
        first = min(self._seconds[0], self._schedule.step_seconds or math.inf)
        self._cost = first if len(self._made) == 1 else min(self._seconds[-RECENT:])
        self._usual = statistics.median_low([first, *self._seconds[1:]])
        self.passed(step)

    def passed(self, step: int) -> None:
        """This step was due: the next one comes after an interval."""
        on_time = step - self._next < 1
        self._next = (self._next if on_time else step) + self._interval(step)

    def described(self) -> str:
        """When the first step is measured, in words."""
        length = "" if self.steps is None else f" of {self.steps:,}"
        return f"from step {math.ceil(self._next)}{length}"

    def reserve(self, step: int) -> float:
        """Seconds that what is still wanted will take: nothing else is to spend them."""
        return 0.0 if self.steps is None else self._cost * self._wanted(step)

    @property
    def _spent(self) -> float:
        return math.fsum(self._seconds)

    def _affordable(self, step: int) -> float:
        """How many measurements can be made in the rest of the training."""
        made, anyway = len(self._made), 0.0
        if self._cost and made < ANYWAY:
            seconds = max(SECONDS_ANYWAY, SHARE_ANYWAY * self._budget(step))
            anyway = min((seconds - made * self._usual) / self._cost, ANYWAY - made)
        return max(self._earned(step), anyway)

    def _earned(self, step: int) -> float:
        """How many more measurements the training pays for, if it is at this step."""
        budget = self._budget(step)
        if math.isinf(budget) or not self._cost:
            return math.inf
        if not budget:
            return 0.0
        share = BESIDE if self._schedule.cost <= budget / 2 else 1.0 if self.steps is None else ALONE
        earned = min(share * budget - self._spent, budget - self._schedule.spent) / self._cost
        if self.steps is None:
            return earned
        return min(earned, max(ENOUGH - len(self._made), (SHARE * budget - self._spent) / self._cost))

    def _budget(self, step: int) -> float:
        """Seconds that the limit allows this process until the end; 0 while the time of a step isn't known."""
        limit, seconds = self._schedule.planned, self._schedule.step_seconds
        if math.isinf(limit):
            return math.inf
        return 0.0 if seconds is None else limit * seconds * self._length(step)

    def _length(self, step: int) -> float:
        """Steps that this process will have made at the end."""
        if self.steps is None:
            return max(SHORTEST, step - self._first + 1)
        return max(self.steps, step) - self._first + 1

    def _interval(self, step: int) -> float:
        if self.steps is None:
            # What is earned until twice as many steps have been made is spread over them.
            made = step - self._first + 1
            doublings = 1 / max(self._earned(step + made), 1)
            return max(1, round(made * (min(max(2**doublings, DENSEST), SPARSEST) - 1)))
        wanted = self._wanted(step)
        for begin, end, count in self._phases():
            if end - step >= 1:
                thinned = min(1.0, self._affordable(step) / wanted)
                return max(1.0, (end - begin) / max(count * thinned, 0.5))
        return max(1, self.steps // 20)

    def _wanted(self, step: int) -> float:
        """How many measurements are wanted from a step on."""
        return sum(count * max(0.0, end - max(begin, step)) / (end - begin) for begin, end, count in self._phases())

    def _phases(self) -> Iterator[tuple[float, float, int]]:
        """Steps between which so many measurements are wanted."""
        begin = 0.0
        for part, count in PHASES:
            end = part * (self.steps or 0)
            yield begin, end, count
            begin = end
