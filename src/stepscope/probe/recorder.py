"""Where a probe's records go: into memory, a run directory and a tracker, once the step has been made."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stepscope.objective import random_state
from stepscope.probe.trackers import as_log, values_of, values_of_step
from stepscope.runs import DirectionRecord, RunDirectory, StepRecord, read_steps

_SMOOTHING = 0.7


class Recorder:
    """The records of one training.

    Args:
        run: where they are written; ``None`` keeps them in memory.
        tracker: where their numbers go too, see `stepscope.probe.trackers.as_log`.

    Attributes:
        records: what has been kept, in order.
        waiting: what was measured of a step that has not been made yet.
        steps: the steps that were measured on their own batches, in order.
    """

    def __init__(self, run: RunDirectory[DirectionRecord] | None, tracker: Any) -> None:
        self._log = as_log(tracker)
        self._run = run
        self._overshoot: dict[str, float] = {}
        self.records: list[DirectionRecord] = [] if run is None else run.records()
        self.waiting: list[DirectionRecord] = []
        self.steps: list[StepRecord] = [] if run is None else read_steps(run.path)

    def check(self, own: str, step_error: float, withdrawn: Collection[str] = ()) -> None:
        """The step has been made.

        Args:
            own: the direction that it was expected along.
            step_error: how far it was from that.
            withdrawn: directions that say nothing of the step that was made.
        """
        self.waiting = [
            replace(record, step_error=step_error) if record.direction == own else record
            for record in self.waiting
            if record.direction not in withdrawn
        ]

    def keep_waiting(self) -> None:
        """Keeps what was waiting."""
        records, self.waiting = self.waiting, []
        self.keep(records)

    def keep(self, records: Sequence[DirectionRecord]) -> None:
        """Keeps records of one step: in memory, on the disk, in the tracker."""
        if not records:
            return
        smoothed = [replace(r, overshoot_smoothed=self._smoothed(r.direction, r.overshoot)).as_read() for r in records]
        self.records += smoothed
        if self._run is not None:
            self._run.append(smoothed)
        with random_state():
            self._log(values_of(smoothed), smoothed[0].step)

    def describe(self, context: Mapping[str, Any]) -> None:
        """Adds to what the run directory says of its records."""
        if self._run is not None:
            self._run.describe(context)

    def keep_step(self, record: StepRecord) -> None:
        """Keeps the record of a step: in memory, on the disk, in the tracker."""
        record = record.as_read()
        self.steps.append(record)
        if self._run is not None:
            self._run.append_step(record)
        if values := values_of_step(record):
            with random_state():
                self._log(values, record.step)

    def close(self) -> None:
        """Keeps what was waiting, and gives the run directory free."""
        try:
            self.keep_waiting()
        finally:
            if self._run is not None:
                self._run.close()

    def _smoothed(self, direction: str, overshoot: float | None) -> float | None:
        """Geometric moving average: a ratio of 2 and one of 1/2 cancel."""
        if overshoot is not None and overshoot > 0:
            new = math.log(overshoot)
            old = self._overshoot.get(direction, new)
            self._overshoot[direction] = _SMOOTHING * old + (1 - _SMOOTHING) * new
        return math.exp(self._overshoot[direction]) if direction in self._overshoot else None
