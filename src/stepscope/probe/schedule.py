"""When to measure: at the steps that were asked for, as far as the overhead allows."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from stepscope.errors import UsageError

Plan = Literal["measure", "follow", "pass"]


class _Standstill:
    """The time in which no training of this process goes on, whoever measures: no schedule takes it for training."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def add(self, seconds: float) -> None:
        if not self._depth:  # else it is a part of what is being added
            self.seconds += seconds

    @contextmanager
    def going_on(self) -> Iterator[None]:
        started = time.perf_counter()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            self.add(time.perf_counter() - started)


_standstill = _Standstill()


def paused() -> AbstractContextManager[None]:
    """Time inside is no training: a validation, say, or a measurement that wasn't planned."""
    return _standstill.going_on()


class Schedule:
    """Keeps the time that measuring takes below a part of the time that training takes.

    A measurement is preceded by `window` steps at which others follow the run, or by all steps since the beginning.

    Args:
        every: measure at each ``every``-th step, or ``every(step) -> bool``. The function is asked once for each step,
            in order, up to `window` steps ahead.
        max_overhead: measuring may take this part of the training time; ``None`` for no limit.
        cost: seconds that a measurement will take, until one has been timed.
        window: how many steps before a measurement others follow the run.
        follow_cost: seconds that following takes a step, until it has been timed.
        first: the first step.

    Raises:
        UsageError: an interval or a limit that can't be used.

    Example:
        >>> schedule = Schedule(4, None, cost=1.0, window=1)
        >>> [schedule.plan(step) for step in range(1, 6)]
        ['pass', 'pass', 'follow', 'measure', 'pass']
    """

    def __init__(
        self,
        every: int | Callable[[int], bool],
        max_overhead: float | None,
        cost: float,
        window: int,
        *,
        follow_cost: float = 0.0,
        first: int = 1,
    ) -> None:
        if not callable(every) and (not isinstance(every, int) or every < 1):
            raise UsageError(f"every is {every!r}: give a number of steps ≥ 1, or a function of the step")
        if max_overhead is not None and not 0 < max_overhead <= 1:
            raise UsageError(
                f"max_overhead is {max_overhead}: give a part of the training time above 0 and up to 1 (0.05 is 5%), "
                "or None for no limit"
            )
        self._asks: Callable[[int], bool] = every if callable(every) else lambda step: step % every == 0
        self._max_overhead = math.inf if max_overhead is None else max_overhead
        self._cost = cost
        self._window = window
        self._follow_cost = follow_cost
        self._answers: deque[bool] = deque()
        self._asked_up_to = first - 1
        self._first = first
        self._owed = False
        self._promised = False
        self._history = 0
        self._unbroken = True  # the others know the run from its first step on
        self._training = 0.0
        self._measuring = 0.0
        self._steps = 0
        self._plan: Plan = "pass"
        self._before = (False, False, 0, True, False)
        self._left = self._arrived = time.perf_counter()
        self._standstill_then = _standstill.seconds

    @property
    def step_seconds(self) -> float | None:
        """Time of a training step, without measuring; ``None`` until two have passed."""
        return self._training / self._steps if self._steps > 1 else None

    @property
    def overhead(self) -> float:
        """Time spent measuring as a part of the training time, so far."""
        return self._measuring / self._training if self._training > 0 else 0.0

    def begin(self, spent: float) -> None:
        """The training begins, after checks that took so long."""
        self._measuring += spent
        self._left = time.perf_counter()
        self._standstill_then = _standstill.seconds

    def arrive(self, at: float | None = None) -> None:
        """The training has come to a step: what went before was its time."""
        self._arrived = self._left + (_standstill.seconds - self._standstill_then)
        self.settle(at)
        self._steps += 1

    def settle(self, at: float | None = None) -> None:
        """What went by since `arrive` was the training's too: work that was still queued."""
        now = time.perf_counter() if at is None else at
        self._training += now - self._arrived
        self._arrived = now

    def leave(self) -> None:
        """The training goes on: what went before was measuring."""
        self._left = time.perf_counter()
        spent = self._left - self._arrived
        if self._plan == "follow":
            self._follow_cost = max(spent, 0.5 * (self._follow_cost + spent))
        self._measuring += spent
        _standstill.add(spent)
        self._standstill_then = _standstill.seconds
        self._arrived = self._left

    def spend(self, seconds: float) -> None:
        """Time that was spent measuring between `leave` and `arrive`."""
        self._measuring += seconds
        _standstill.add(seconds)

    def plan(self, step: int) -> Plan:
        """What to do at this step; asked once a step. What was due and not afforded is made up for later."""
        asked = self._ask(step)
        self._before = (self._owed, self._promised, self._history, self._unbroken, asked)
        self._owed |= asked
        known = self._history >= self._window or self._unbroken
        if self._owed and known and (self._promised or self._affordable(self._training, self._cost)):
            self._owed = self._promised = False
            self._plan = "measure"
        else:
            self._plan = "follow" if self._follows() else "pass"
        self._history = 0 if self._plan == "pass" else self._history + 1
        self._unbroken &= self._plan != "pass"
        return self._plan

    def retract(self) -> None:
        """The step that was planned last isn't made: it will come again."""
        self._owed, self._promised, self._history, self._unbroken, asked = self._before
        self._answers.appendleft(asked)
        self._steps -= 1

    def postpone(self) -> None:
        """Nothing could be measured at this step, through no fault of the model's: as soon as it can be, then."""
        self._owed = True

    def forget(self) -> None:
        """The others have lost what they followed."""
        self._history = 0
        self._promised = False
        self._unbroken = False

    def measured(self, seconds: float) -> None:
        """A measurement has been made, and took so long."""
        self._cost = seconds

    def described(self, step: int) -> str:
        """What to expect, in words."""
        text = f"a measurement takes about {self._cost:.2g} s"
        if math.isinf(self._max_overhead) or not self.step_seconds:
            return text
        cost = self._cost + self._window * self._follow_cost
        interval = cost / self._max_overhead / self.step_seconds
        first = self._first - 1 + (self._measuring + cost) / self._max_overhead / self.step_seconds
        asked = next((step + i for i, asked in enumerate(self._answers, 1) if asked), step + len(self._answers))
        text += f", at {100 * self._max_overhead:g}% overhead not more often than every {max(interval, 1):,.0f} steps"
        return f"{text}, so first at about step {max(first, asked):,.0f}"

    def _ask(self, step: int) -> bool:
        """Whether a measurement is wanted at this step; looks `window` steps ahead."""
        while self._asked_up_to < step + self._window:
            self._asked_up_to += 1
            self._answers.append(bool(self._asks(self._asked_up_to)))
        return self._answers.popleft()

    def _follows(self) -> bool:
        """Once begun, following ends in a measurement; what it cost beyond the forecast is earned before the next."""
        if not self._window:
            return False
        if self._promised:
            return True
        ahead = next((i for i, asked in enumerate(self._answers, 1) if asked), None)
        if not self._owed and ahead is None:
            return False
        left = max(self._window - self._history, 0 if self._owed else ahead or 0)
        then = self._training + left * (self.step_seconds or 0.0)
        self._promised = left > 0 and self._affordable(then, self._cost + left * self._follow_cost)
        return self._promised

    def _affordable(self, training: float, cost: float) -> bool:
        return math.isinf(self._max_overhead) or self._measuring + cost <= self._max_overhead * training
