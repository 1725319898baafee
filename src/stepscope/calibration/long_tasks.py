"""Trainings of thousands of steps: some tasks of the study and of the fresh ones, ten times as long."""

from __future__ import annotations

from dataclasses import replace

from stepscope.calibration.fresh_tasks import FRESH
from stepscope.calibration.tasks import TASKS

_TIMES = 10
_CHOSEN = ("words", "classification", "regression", "clicks", "autoencoder", "ratings")
"""Those whose steps are cheap."""

LONG = {
    f"long {name}": replace(task, name=f"long {name}", steps=_TIMES * task.steps)
    for name, task in (TASKS | FRESH).items()
    if name in _CHOSEN
}
