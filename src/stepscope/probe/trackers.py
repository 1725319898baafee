"""Where numbers go beside the records: any experiment tracker, as a function of values and step."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from stepscope.errors import UsageError
from stepscope.runs import DirectionRecord, StepRecord

Log = Callable[[Mapping[str, float], int], None]
"""``log(values, step)``."""

_LOGGED = ("sharpness", "correlation", "best_step", "best_decrease", "lr_step", "overshoot")

_STEP = "stepscope/step"

_logger = logging.getLogger("stepscope")


def as_log(tracker: Any) -> Log:
    """One function for every tracker; a tracker that fails is said so once, and never stops training.

    Args:
        tracker: a function of ``(values, step)`` such as ``trackio.log``, ``mlflow.log_metrics`` or the ``log`` of an
            `accelerate.Accelerator`; an object with ``add_scalar`` such as TensorBoard's ``SummaryWriter``; an object
            with ``log(values, step=step)``; a run of wandb, whose rows stay the loop's own; or ``None`` for none.

    Raises:
        UsageError: it is none of these.

    Example:
        >>> seen = []
        >>> as_log(lambda values, step: seen.append((step, values)))({"sharpness": 2.0}, 10)
        >>> seen
        [(10, {'sharpness': 2.0})]
    """
    if tracker is None:
        return lambda *_: None
    owner = getattr(tracker, "__self__", tracker)
    send: Log
    if hasattr(owner, "define_metric"):
        send = _WandbRows(owner)
    elif hasattr(tracker, "add_scalar"):

        def send(values: Mapping[str, float], step: int) -> None:
            for name, value in values.items():
                tracker.add_scalar(name, value, step)

    elif callable(tracker):

        def send(values: Mapping[str, float], step: int) -> None:
            tracker(dict(values), step)

    elif callable(getattr(tracker, "log", None)):

        def send(values: Mapping[str, float], step: int) -> None:
            tracker.log(dict(values), step=step)

    else:
        raise UsageError(f"log is a {type(tracker).__name__}: give a function of (values, step), or a SummaryWriter")
    return _Guarded(send)


def values_of(records: Iterable[DirectionRecord]) -> dict[str, float]:
    """The numbers of a measurement, by names that every tracker takes.

    Example:
        >>> record = DirectionRecord(trajectory="SGD", seed=0, step=1, direction="sgd clip 10%", sharpness=2.0)
        >>> values_of([record])
        {'stepscope/sgd clip 10pct/sharpness': 2.0}
    """
    values = {}
    for record in records:
        label = re.sub(r"[^\w.\- ]", "_", record.direction.replace("%", "pct"))
        for name in _LOGGED:
            value = getattr(record, name)
            if value is not None and math.isfinite(value):
                values[f"stepscope/{label}/{name}"] = value
    return values


def values_of_step(record: StepRecord) -> dict[str, float]:
    """The numbers of the optimizer's own step, by names that are the same for every optimizer.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "step": 1}
        >>> values_of_step(StepRecord(**place, batch_loss=2.0, batch_change=-0.5, batch_slope=-1.0))
        {'stepscope/batch_loss': 2.0, 'stepscope/trust_ratio': 0.5}
    """
    values = {"batch_loss": record.batch_loss}
    if record.batch_change is not None and record.batch_slope is not None and record.batch_slope < 0:
        values["trust_ratio"] = record.batch_change / record.batch_slope
    if edge := (record.edges or {}).get("evaluation"):
        values["critical_multiple"] = edge.critical_multiple
    return {f"stepscope/{name}": v for name, v in values.items() if v is not None and math.isfinite(v)}


class _WandbRows:
    """Adds values to the row that a run of wandb is at, as the user's own calls make rows.

    A run drops whatever comes with a step below that of its last row. Rows with the steps of a probe, counted from 1,
    would so lose a loop its own values where it counts from 0 or by epochs. Here the step is a value, which wandb draws
    the others over; a row is ended only where it holds a step already, and the loop has ended none since.
    """

    def __init__(self, run: Any) -> None:
        self._run = run
        self._begun: tuple[int, int] | None = None  # the row and the step that was last written to it

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        if self._begun is None:
            self._run.define_metric(_STEP, hidden=True)
            self._run.define_metric("stepscope/*", step_metric=_STEP)
        elif self._begun[0] == self._run.step and self._begun[1] != step:
            self._run.log({}, commit=True)
        self._run.log({**values, _STEP: step}, commit=False)
        self._begun = self._run.step, step


class _Guarded:
    """A tracker's failure is reported the first time and otherwise ignored."""

    def __init__(self, send: Log) -> None:
        self._send = send
        self._failed = False

    def __call__(self, values: Mapping[str, float], step: int) -> None:
        try:
            self._send(values, step)
        except Exception as error:
            if not self._failed:
                _logger.warning("the log function failed at step %d (%s); training goes on", step, error)
            self._failed = True
