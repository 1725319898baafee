"""When to measure: at the steps that were asked for, as far as the overhead allows."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

from stepscope.errors import UsageError

Plan = Literal["measure", "follow", "pass"]


class Schedule:
    """Keeps the time that measuring takes below a part of the time that training takes.

    Args:
        every: measure at each ``every``-th step, or ``every(step) -> bool``.
        max_overhead: measuring may take this part of the training time; ``None`` for no limit.
        estimate: seconds that a measurement will take, until one has been timed.
        window: how many steps before a measurement others follow the run.

    Raises:
        UsageError: an interval or a limit that can't be used.

    Example:
        >>> schedule = Schedule(4, None, estimate=1.0, window=1)
        >>> [schedule.plan(step) for step in range(1, 6)]
        ['pass', 'pass', 'follow', 'measure', 'pass']
    """

    def __init__(
        self, every: int | Callable[[int], bool], max_overhead: float | None, estimate: float, window: int
    ) -> None:
        if not callable(every) and (not isinstance(every, int) or every < 1):
            raise UsageError(f"every is {every!r}: give a number of steps ≥ 1, or a function of the step")
        if max_overhead is not None and not max_overhead > 0:
            raise UsageError(f"max_overhead is {max_overhead}: give a part > 0 of the training time, or None")
        self._every = every
        self._asked = every if callable(every) else (lambda step: step % every == 0)
        self._max_overhead = math.inf if max_overhead is None else max_overhead
        self._cost = estimate
        self._window = window
        self._training = 0.0
        self._measuring = 0.0
        self._steps = 0
        self._left = time.perf_counter()
        self._arrived = self._left
        self._owed = False
        self._followed = 0
        self._follow_cost = 0.0
        self._plan: Plan = "pass"

    @property
    def step_seconds(self) -> float | None:
        """Time of a training step, without measuring; ``None`` until two have passed."""
        return self._training / self._steps if self._steps > 1 else None

    @property
    def overhead(self) -> float:
        """Time spent measuring as a part of the training time, so far."""
        return self._measuring / self._training if self._training > 0 else 0.0

    def arrive(self) -> None:
        """The training has come to a step: what went before was its time."""
        self._arrived = time.perf_counter()
        self._training += self._arrived - self._left
        self._steps += 1

    def leave(self) -> None:
        """The training goes on: what went before was measuring."""
        self._left = time.perf_counter()
        spent = self._left - self._arrived
        if self._plan == "follow":
            self._follow_cost = max(spent, 0.5 * (self._follow_cost + spent))
        self._measuring += spent
        self._arrived = self._left

    def spend(self, seconds: float) -> None:
        """Time that was spent outside of a step."""
        self._measuring += seconds

    def plan(self, step: int) -> Plan:
        """What to do at this step; asked once a step. What was due and not afforded is made up for later."""
        self._owed |= self._asked(step)
        # Once begun, following ends in a measurement; what it cost beyond the forecast is earned before the next.
        if self._owed and (self._affordable(self._training, self._cost) or self._followed >= self._window > 0):
            self._owed, self._followed, self._plan = False, 0, "measure"
            return self._plan
        left = self._window - self._followed
        then = self._training + left * (self.step_seconds or 0.0)
        near = self._owed or any(self._asked(step + ahead) for ahead in range(1, self._window + 1))
        follows = near and (self._followed > 0 or self._affordable(then, self._cost + left * self._follow_cost))
        self._plan = "follow" if follows else "pass"
        self._followed = self._followed + 1 if follows else 0
        return self._plan

    def measured(self, seconds: float) -> None:
        """A measurement has been made, and took so long."""
        self._cost = seconds

    def described(self, step: int) -> str:
        """What to expect, in words."""
        text = f"a measurement takes about {self._cost:.2g} s"
        if math.isinf(self._max_overhead) or not self.step_seconds:
            return text
        interval = self._cost / self._max_overhead / self.step_seconds
        first = (self._measuring + self._cost) / self._max_overhead / self.step_seconds
        text += f", at {self._max_overhead:.0%} overhead one every {max(interval, 1):,.0f} steps or more"
        return f"{text}, the first at about step {max(first, step + 1):,.0f}"

    def _affordable(self, training: float, cost: float) -> bool:
        return math.isinf(self._max_overhead) or self._measuring + cost <= self._max_overhead * training
