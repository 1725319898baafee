"""How far the optimizer's own step is from the edge, from losses alone: also where no full measurement is afforded.

A full measurement says it too. Where one is within reach little is spent on others; a training too short for any can
have critical multiples all the same. The verdict on the rate comes first: what the steps on their own batches will cost
isn't spent on edges. They are measured at the same steps, where these are
known: what a step does to its batch and what it does to other examples tell noise from a step that is too long.
"""

from __future__ import annotations

import logging
import math
import time

from stepscope.errors import UsageError
from stepscope.objective import Direction, Ranks
from stepscope.probe.compared_updates import ComparedUpdates, NoUpdateError
from stepscope.probe.measurer import Measurer
from stepscope.probe.schedule import Schedule
from stepscope.probe.step_schedule import SECONDS_ANYWAY, SHARE, SHORTEST, StepSchedule
from stepscope.runs import RecordedEdge

SHARE_BESIDE = 0.1
"""The part of the limit that they may take alone, beside full measurements and in a training of unknown length, 0.5% of
a training by default. Elsewhere they share `SHARE` with the steps on their own batches."""

MOST, FEWEST = 20, 5
"""So many are wanted in a training, and so many made where the limit allows fewer, in the time that is spent anyway."""

GROWTH = 1.3
"""Of a training of unknown length, each is at least so many times as late as the one before."""

_MAX_FAILURES = 3


class EdgeSchedule:
    """Which steps are to be measured, within the limit that is shared with all other measurements.

    Args:
        schedule: that of the full measurements.
        own: that of the steps on their own batches.
        first: the first step.
        cost_in_steps: what one takes, in steps of the training, until it has been timed.

    Example:
        >>> full = Schedule(10**9, None, cost=1.0, window=0)
        >>> steps = EdgeSchedule(full, StepSchedule(full, 400), 1, cost_in_steps=8)
        >>> made = [step for step in range(1, 401) if steps.is_due(step) and not steps.made(step, 0.01)]
        >>> made[:4], len(made)
        ([12, 32, 52, 72], 20)
    """

    def __init__(self, schedule: Schedule, own: StepSchedule, first: int, cost_in_steps: float) -> None:
        self._schedule, self._own, self._first = schedule, own, first
        self._steps = steps = own.steps
        self._cost_in_steps = cost_in_steps
        self._cost = self._spent = 0.0
        self._made = 0
        self._next = first - 1 + (10 if steps is None else max(2, 3 * steps // 100))

    def is_due(self, step: int) -> bool:
        """Whether this step is to be measured."""
        return step >= self._next and self._affordable(step) >= 1

    def made(self, step: int, seconds: float) -> None:
        """This step has been measured, in so much time."""
        self._made += 1
        self._spent += seconds
        # The first takes longer: what the loss reaches is looked through, and micro-batches are weighed.
        self._cost = seconds if self._made < 3 else max(0.5 * (self._cost + seconds), 0.8 * self._cost)
        self.passed(step)

    def passed(self, step: int) -> None:
        """This step was due, or a full measurement was made at it: the next one comes after an interval."""
        if self._steps is None:
            self._next = self._first - 1 + math.ceil((step - self._first + 1) * GROWTH)
            return
        left = max(0, self._steps - step)
        self._next = step + max(1, self._steps // MOST, round(left / max(self._affordable(step), 1)))

    def _affordable(self, step: int) -> float:
        """How many more can be made in the rest of the training."""
        limit, seconds = self._schedule.planned, self._schedule.step_seconds
        if math.isinf(limit):
            return math.inf
        if not seconds:
            return 0.0
        cost = self._cost or self._cost_in_steps * seconds
        length = max(SHORTEST if self._steps is None else self._steps, step) - self._first + 1
        budget = limit * seconds * length
        spent = self._schedule.spent + self._own.reserve(step)
        if self._steps is None or self._schedule.cost <= budget / 2:
            earned = min(SHARE_BESIDE * budget - self._spent, budget - spent)
        else:  # nothing else is measured
            earned = SHARE * budget - spent
        anyway = SECONDS_ANYWAY - spent
        return max(earned / cost, min(anyway / cost, FEWEST - self._made))


class OwnEdges:
    """Measures the edge of the optimizer's own step. What fails is left out, and ends this after some failures.

    Compiled code would be compiled once more, for evaluation mode, which can take longer than the training: there a
    full measurement, which needs that too, has to come first.

    Args:
        schedule: which steps are measured.
        measurer: measures on the evaluation batches.
        compared: gives the optimizer's own update.
        ranks: those that measure together; what fails on one fails on all.
        logger: for warnings.
    """

    def __init__(
        self,
        schedule: EdgeSchedule,
        measurer: Measurer,
        compared: ComparedUpdates,
        ranks: Ranks,
        logger: logging.Logger,
    ) -> None:
        self._schedule, self._measurer, self._compared = schedule, measurer, compared
        self._ranks, self._logger = ranks, logger
        self._failures = 0
        self._has_compiled = False

    def is_due(self, step: int) -> bool:
        """Whether the step is to be measured."""
        return self._failures < _MAX_FAILURES and self._schedule.is_due(step)

    def passed(self, step: int) -> None:
        """A full measurement is made at this step."""
        self._has_compiled = True
        self._schedule.passed(step)

    def measured(self, step: int) -> tuple[Direction, RecordedEdge] | None:
        """The step that is about to be made, and its edge; ``None`` where it isn't measured."""
        started = time.perf_counter()
        try:
            with self._ranks.agreed("the edge of a step", NoUpdateError):
                found = self._found(step)
        except NoUpdateError:
            self._schedule.passed(step)
            return None
        except Exception as error:
            self._failures += 1
            self._schedule.passed(step)
            if self._failures == 1:
                why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
                self._logger.warning("the edge wasn't measured at step %d (%s)", step, why)
            self._logger.debug("the failure at step %d", step, exc_info=error)
            return None
        if found is not None:
            self._failures = 0
            self._schedule.made(step, time.perf_counter() - started)
        return found

    def _found(self, step: int) -> tuple[Direction, RecordedEdge] | None:
        parameters = self._measurer.parameters
        self._compared.check_gradients(self._ranks, parameters)
        if any(self._ranks.concatenated([float(self._compared.skipped())])):
            return None
        if not self._has_compiled and any(self._ranks.concatenated([float(self._measurer.objective.is_compiled())])):
            self._schedule.passed(step)
            return None
        self._has_compiled = True  # there is nothing to compile
        with self._ranks.agreed("the update of a step", NoUpdateError):
            own = self._compared.own_update(parameters)
        return own, self._measurer.edge(own, None, self._compared.decay(parameters))
