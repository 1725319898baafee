"""The optimizer's own steps, each measured on the batch that made it: the cheap measurement of a probe."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn

from stepscope.errors import UsageError, said
from stepscope.objective import LossFunction, dtensors, held
from stepscope.probe.step_batch import BatchWatch
from stepscope.probe.step_meter import StepMeter
from stepscope.probe.step_schedule import StepSchedule
from stepscope.runs import RecordedEdge, StepRecord

_MAX_FAILURES = 3

NO_BATCH = "compute the loss by `probe.loss_fn(model, batch)`, or inside `with probe.batch(batch):`"


class _NoBatchError(UsageError):
    """What made the step isn't known."""


class OwnSteps:
    """Measures steps of a training when it is told so. Whatever fails ends this, and not the training.

    Of ranks that measure together, all call its methods, and what fails on one fails on all.

    Args:
        watch: keeps the batches.
        measure: measures a step on its batch.
        schedule: which steps should be measured, by the clock of this process.
        trajectory: the name of the optimizer.
        groups: gives its parameter groups.
        say: tells a person, once, that the batch isn't known.
        logger: for warnings.
    """

    def __init__(
        self,
        watch: BatchWatch,
        measure: StepMeter,
        schedule: StepSchedule,
        trajectory: str,
        groups: Callable[[], Sequence[Mapping[str, Any]]],
        say: Callable[[str], None],
        logger: logging.Logger,
    ) -> None:
        self._watch = watch
        self._ranks, self._logger = measure.ranks, logger
        self._measure = measure
        self._schedule = schedule
        self._trajectory = trajectory
        self._groups = groups
        self._say = say
        self._parameters: Callable[[], Mapping[str, nn.Parameter]] = dict
        self._due = False
        self._unwatched: Exception | None = None
        self._peaks: list[float | None] = []
        self._rates: list[float | None] = []
        self._failures = 0
        self._has_said = False
        self._seconds: float | None = None
        self._left: list[tuple[Tensor, int]] = []
        self._has_said_written = False

    def batch(self, batch: Any) -> AbstractContextManager[None]:
        """See `Probe.batch`."""
        return self._watch.given(batch)

    def loss(self, loss_fn: LossFunction | None, model: nn.Module, batch: Any) -> Tensor:
        """See `Probe.loss_fn`."""
        return self._watch.loss(loss_fn, model, batch)

    def wants(self, step: int) -> bool:
        """Whether a step should be measured, by the clock of this process."""
        return self.is_on and self._schedule.is_due(step)

    def begin(self, due: bool, parameters: Callable[[], Mapping[str, nn.Parameter]]) -> None:
        """A step begins: where it is to be measured, its batch is kept.

        Args:
            due: whether it is.
            parameters: gives those that it will move.
        """
        self._parameters = parameters
        self._due, self._unwatched = due and self.is_on, None
        if self._due:
            try:
                self._watch.begin(parameters())
            except Exception as error:
                self._unwatched = error

    @property
    def is_due(self) -> bool:
        """Whether the step that has begun is to be measured."""
        return self._due

    @property
    def is_on(self) -> bool:
        """Whether steps of this training are measured, as far as is known."""
        return self._failures < _MAX_FAILURES and not self._measure.refusal

    def before(self, step: int, parameters: Callable[[], Mapping[str, nn.Parameter]]) -> None:
        """The step that is to be measured is about to be made."""
        started, self._due = time.perf_counter(), False
        try:
            with self._ranks.agreed("the step on its own batch", _NoBatchError), held():
                self._look(parameters())
            self._seconds = time.perf_counter() - started
        except _NoBatchError as error:
            self._lacks(step, str(error))
        except Exception as error:
            self._failed(step, error)
        except BaseException:  # Ctrl-C: the step isn't made
            self.drop()
            raise

    def _look(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """What is measured of the step before it is made.

        Raises:
            _NoBatchError: its batch isn't known.
        """
        with self._ranks.agreed("the batch of a step", _NoBatchError):
            if self._unwatched is not None:
                raise self._unwatched
            batch = self._watch.end()
            if batch is None:
                raise _NoBatchError(self._watch.lacking)
        try:
            self._measure.before(batch, parameters)
        except UsageError:
            raise
        except Exception as error:
            if batch.is_named:
                raise
            raise _NoBatchError(f"what the model was called with gives no loss ({said(error)})") from error

    def after(self, step: int, edges: dict[str, RecordedEdge] | None = None) -> StepRecord | None:
        """The step has been made: its record, where it was measured.

        Args:
            step: its number.
            edges: the loss at multiples of it, by the name of the examples, where that was measured.
        """
        terms = self._terms(step)
        if terms is None and not edges:
            return None
        parts = map(dtensors.part, self._parameters().values())
        self._left = [(part, part._version) for part in parts]
        return StepRecord(
            trajectory=self._trajectory,
            seed=0,
            step=step,
            steps=self._schedule.steps,
            lr=tuple(self._rates),
            peak_lr=tuple(self._peaks),
            edges=edges,
            **(terms or {"norm": next(iter((edges or {}).values())).norm}),
        )

    def _terms(self, step: int) -> dict[str, Any] | None:
        """What the step does to the loss of its own batch, where that was measured."""
        if self._seconds is None:
            return None
        started, seconds, self._seconds = time.perf_counter(), self._seconds, None
        try:
            with self._ranks.agreed("the step that was made"), held():
                norm, terms = self._measure.after()
        except Exception as error:
            self._failed(step, error)
            return None
        seconds += time.perf_counter() - started
        self._schedule.made(step, seconds)
        if self._measure.refusal:
            self._logger.warning("at step %d %s", step, self._measure.refusal)
        if terms is None:
            return None
        self._failures = 0
        return {"norm": norm, "seconds": seconds, **vars(terms)}

    def look_back(self, step: int) -> None:
        """A step is about to be made: says once if the weights were written to since the one before was measured.

        Decay or a projection that follows the step, in a loop or a replaced ``step``, is no part of what is measured.
        """
        left, self._left = self._left, []
        if not self._has_said_written and any(part._version != version for part, version in left):
            self._has_said_written = True
            self._logger.warning(
                "between steps %d and %d something else than the step of %s wrote to the weights (a decay, a "
                "projection, averages): what is measured is the step without that",
                step - 1, step, self._trajectory,
            )  # fmt: skip

    def note_rates(self) -> None:
        """Looks at the learning rates of a step that is about to be made: each group's largest is its peak."""
        rates = [group.get("lr") for group in self._groups()]
        if any(isinstance(rate, Tensor) for rate in rates) and not self.is_due:
            return  # on a GPU reading it would wait for all that is queued
        self._rates = [None if rate is None else float(rate) for rate in rates]
        self._peaks += [None] * (len(rates) - len(self._peaks))
        for group, rate in enumerate(self._rates):
            peak = self._peaks[group]
            self._peaks[group] = rate if peak is None or (rate is not None and rate > peak) else peak

    def stop(self) -> None:
        """No step is measured from now on."""
        self.drop()
        self._failures = _MAX_FAILURES

    @property
    def steps(self) -> int | None:
        """The length of the training, where it is known."""
        return self._schedule.steps

    def described(self) -> str:
        """When the first step is measured, in words."""
        return self._schedule.described()

    def drop(self) -> None:
        """The step that has begun won't be made, or the probe is taken off."""
        self._left, self._due = [], False
        self._watch.end()
        self._measure.drop()
        self._seconds = None

    def _lacks(self, step: int, why: str) -> None:
        self.drop()
        self._schedule.passed(step)
        self._failures += 1
        if not self._has_said:
            self._has_said = True
            self._say(
                f"nothing is known of the step on its own batch, so nothing of the learning rate: {why}; {NO_BATCH}"
            )

    def _failed(self, step: int, error: Exception) -> None:
        self.drop()
        self._schedule.passed(step)
        self._failures += 1
        if self._failures == 1:
            why = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            self._logger.warning("step %d wasn't measured on its own batch (%s)", step, why)
        self._logger.debug("the failure at step %d", step, exc_info=error)
