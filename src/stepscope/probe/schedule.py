"""When to measure: at the steps that `every` names, as far as the overhead allows.

Other optimizers need some steps to gather their moments, so a measurement is preceded by 20 steps at which they follow
the run, or by all steps since the beginning. Where following costs more than the overhead allows, the schedule saves up
for measurement and following together.

The plan of a step is made when the step comes. Of ranks that measure together, one foretells its plans (`ahead`), and
all are given them.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from numbers import Real
from typing import Any, Literal

from stepscope.errors import UsageError

Plan = Literal["measure", "follow", "pass"]

MARGIN = 0.9
"""The part of the limit that is planned with: hooks take time that isn't seen, and costs change."""


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
        every: measure at each ``every``-th step, or ``every(step) -> bool``. The function is called once for each step,
            in order, at least `window` steps ahead.
        max_overhead: measuring may take this part of the training time; ``None`` for no limit.
        cost: seconds that a measurement will take, until one has been timed; ``None``: as `cost_in_steps` says.
        cost_in_steps: the same in steps of the training.
        window: how many steps before a measurement others follow the run.
        follow_cost: seconds that following takes a step, until it has been timed.
        first: the first step.

    Raises:
        UsageError: an interval or a limit that can't be used.

    Example:
        >>> schedule = Schedule(4, None, cost=1.0, window=1)
        >>> for step in range(1, 6):
        ...     with schedule.turn(step) as turn:
        ...         print(turn.plan)
        pass
        pass
        follow
        measure
        pass
    """

    def __init__(
        self,
        every: int | Callable[[int], bool],
        max_overhead: float | None,
        cost: float | None,
        window: int,
        *,
        cost_in_steps: float = 0.0,
        follow_cost: float = 0.0,
        first: int = 1,
    ) -> None:
        if not callable(every) and (not isinstance(every, int) or every < 1):
            raise UsageError(f"every is {every!r}: give a number of steps ≥ 1, or a function of the step")
        if max_overhead is not None and not _is_part(max_overhead):
            raise UsageError(
                f"max_overhead is {max_overhead!r}: give a part of the training time above 0 and up to 1 (0.05 is 5%), "
                "or None for no limit"
            )
        self._every: Callable[[int], bool] = every if callable(every) else lambda step: step % every == 0
        self._planned = math.inf if max_overhead is None else MARGIN * max_overhead
        self._cost_known = cost
        self._cost_in_steps = cost_in_steps
        self._window = window
        self._follow_cost = follow_cost
        self._due: dict[int, bool] = {}
        self._known_up_to = first - 1
        self._first = first
        self._owed = False
        self._promised = False
        self._history = 0
        self._unbroken = True  # the others know the run from its first step on
        self._training = 0.0
        self._measuring = 0.0
        self._steps = 0
        self._before = (False, False, 0, True)
        self._left = self._arrived = time.perf_counter()
        self._standstill_then = _standstill.seconds

    @property
    def step_seconds(self) -> float | None:
        """Time of a training step, without measuring; ``None`` until two have passed."""
        return self._training / self._steps if self._steps > 1 else None

    @property
    def planned(self) -> float:
        """The part of the training's time that measuring is planned to take; infinite for no limit."""
        return self._planned

    @property
    def spent(self) -> float:
        """Seconds that measuring has taken."""
        return self._measuring

    @property
    def cost(self) -> float:
        """Seconds that a measurement will take, with what goes before it."""
        return self._cost + self._window * self._follow_cost

    @property
    def _cost(self) -> float:
        if self._cost_known is not None:
            return self._cost_known
        return self._cost_in_steps * self.step_seconds if self.step_seconds else math.inf

    def expect(self, cost: float, follow_cost: float) -> None:
        """Seconds that a measurement will take, and following at a step, are known better now."""
        self._cost_known, self._follow_cost = cost, follow_cost

    @property
    def overhead(self) -> float:
        """Time spent measuring as a part of the training time, so far."""
        return self._measuring / self._training if self._training > 0 else 0.0

    def begin(self, spent: float) -> None:
        """The training begins, after checks that took so long."""
        self._measuring += spent
        self._left = time.perf_counter()
        self._standstill_then = _standstill.seconds

    @contextmanager
    def turn(self, step: int, at: float | None = None, plan: Plan | None = None) -> Iterator[Turn]:
        """The time between two steps of the training: what went before was the training's, what passes inside is not.

        Where an interruption leaves it (`KeyboardInterrupt`), the step isn't made: it will come again.

        Args:
            step: the step that is about to be made.
            at: when the training came to it, on the clock of `time.perf_counter`; ``None`` for now.
            plan: what was foretold of it; ``None``: it is planned now.
        """
        self._arrive(at)
        turn = Turn(self, "pass")
        try:
            turn.plan = self._plan_for(step, plan)
            yield turn
        except Exception:
            raise
        except BaseException:
            self._retract()
            raise
        finally:
            self._leave(turn.plan)

    def ahead(self, step: int, count: int) -> list[Plan]:
        """The plans of steps to come, up to the first that is measured, as if they took as long as those before.

        Args:
            step: the first of them, which is about to begin.
            count: how many, at most.
        """
        self._look_ahead(step, count)
        twin = copy.copy(self)
        twin._due = self._due.copy()
        plans: list[Plan] = []
        while len(plans) < count and "measure" not in plans:
            twin._training += self.step_seconds or 0.0
            plans.append(twin._plan_for(step + len(plans)))
            twin._measuring += self._follow_cost if plans[-1] == "follow" else 0.0
        return plans

    def count(self, seconds: float) -> None:
        """Adds time that was spent measuring between two turns."""
        self._measuring += seconds
        _standstill.add(seconds)

    def forget(self) -> None:
        """The others have lost what they followed."""
        self._history = 0
        self._promised = False
        self._unbroken = False

    def described(self, step: int, steps: int | None = None) -> str:
        """When measurements will be made, in words.

        Args:
            step: the step that is about to be made.
            steps: the length of the training, where it is known.
        """
        if math.isinf(self._planned) or not self.step_seconds:
            return "when due"
        interval = self.cost / self._planned / self.step_seconds
        earned = self._first - 1 + (self._measuring + self.cost) / self._planned / self.step_seconds
        due = next((ahead for ahead, due in self._due.items() if due and ahead > step), self._known_up_to)
        first = max(earned, due)
        if steps is not None and first > steps:
            return f"not before step {first:,.0f}, after the end: raise max_overhead=, or call probe.measure()"
        often = f", at most every {interval:,.0f} steps" if interval >= 2 else ""
        return f"from about step {first:,.0f}{often}"

    def _arrive(self, at: float | None) -> None:
        self._arrived = self._left + (_standstill.seconds - self._standstill_then)
        self._settle(at)
        self._steps += 1

    def _settle(self, at: float | None = None) -> None:
        now = time.perf_counter() if at is None else at
        self._training += now - self._arrived
        self._arrived = now

    def _leave(self, plan: Plan) -> None:
        self._left = time.perf_counter()
        spent = self._left - self._arrived
        if plan == "follow":
            self._follow_cost = max(spent, 0.5 * (self._follow_cost + spent))
        self.count(spent)
        self._standstill_then = _standstill.seconds
        self._arrived = self._left

    def _plan_for(self, step: int, foretold: Plan | None = None) -> Plan:
        """The plan of this step, made once. A measurement that was due and not afforded is made later."""
        self._look_ahead(step)
        self._before = (self._owed, self._promised, self._history, self._unbroken)
        self._owed |= self._due[step]
        plan = self._chosen(step) if foretold is None else foretold
        if plan == "measure":
            self._owed = False
        self._promised = plan == "follow"
        self._history = 0 if plan == "pass" else self._history + 1
        self._unbroken &= plan != "pass"
        return plan

    def _chosen(self, step: int) -> Plan:
        known = self._history >= self._window or self._unbroken
        if self._owed and known and (self._promised or self._affordable(self._training, self._cost)):
            return "measure"
        return "follow" if self._follows(step) else "pass"

    def _retract(self) -> None:
        self._owed, self._promised, self._history, self._unbroken = self._before
        self._steps -= 1

    def _look_ahead(self, step: int, count: int = 1) -> None:
        """Asks `every` up to `window` steps beyond so many from this one on; those before it are forgotten."""
        self._due = {known: due for known, due in self._due.items() if known >= step}
        while self._known_up_to < step + count - 1 + self._window:
            self._known_up_to += 1
            self._due[self._known_up_to] = False  # if it fails
            self._due[self._known_up_to] = bool(self._every(self._known_up_to))

    def _follows(self, step: int) -> bool:
        """Once begun, following ends in a measurement; what it cost beyond the forecast is earned before the next."""
        if not self._window:
            return False
        if self._promised:
            return True
        ahead = next((i for i in range(1, self._window + 1) if self._due[step + i]), None)
        if not self._owed and ahead is None:
            return False
        left = max(self._window - self._history, 0 if self._owed else ahead or 0)
        then = self._training + left * (self.step_seconds or 0.0)
        return left > 0 and self._affordable(then, self._cost + left * self._follow_cost)

    def _affordable(self, training: float, cost: float) -> bool:
        return math.isinf(self._planned) or self._measuring + cost <= self._planned * training


class Turn:
    """What the schedule plans between two steps of the training.

    Attributes:
        plan: ``"measure"``; ``"follow"``: the other optimizers see the gradients; or ``"pass"``.
    """

    def __init__(self, schedule: Schedule, plan: Plan) -> None:
        self._schedule = schedule
        self.plan: Plan = plan

    def settle(self) -> None:
        """The time so far was the training's: work that was still queued on a GPU."""
        self._schedule._settle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time inside is spent measuring, and isn't that of the planned measurement."""
        started = time.perf_counter()
        try:
            yield
        finally:
            spent = time.perf_counter() - started
            self._schedule.count(spent)
            self._schedule._arrived += spent

    def measured(self) -> None:
        """A measurement has been made, in the time since the training's."""
        self._schedule._cost_known = time.perf_counter() - self._schedule._arrived

    def reconsider(self) -> None:
        """The cost is known better now: what can't be afforded yet is put off, and nothing is done at this step."""
        schedule = self._schedule
        if not schedule._affordable(schedule._training, schedule.cost):
            schedule._owed = schedule._owed or self.plan == "measure"
            schedule.forget()
            self.plan = "pass"

    def postpone(self) -> None:
        """Nothing could be measured at this step, through no fault of the model's: the next one is due."""
        self._schedule._owed = True


def _is_part(value: Any) -> bool:
    return isinstance(value, Real) and 0 < float(value) <= 1
