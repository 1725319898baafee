"""What a run directory holds of a training: what was run, directions at some steps, and steps that were made."""

from __future__ import annotations

import os
from dataclasses import dataclass

from stepscope.runs.direction_record import DirectionRecord, is_own
from stepscope.runs.head import Head
from stepscope.runs.reading import read_run, read_steps
from stepscope.runs.step_record import StepRecord


@dataclass(frozen=True)
class Training:
    """The records of a training, or of several that lie in one directory.

    Attributes:
        head: the content of `run.json`.
        directions: of `measurements.jsonl`, in order.
        steps: of `steps.jsonl`, in order.
    """

    head: Head
    directions: list[DirectionRecord]
    steps: list[StepRecord]

    @property
    def is_probed(self) -> bool:
        """Whether a probe measured the steps of the optimizer that trained."""
        return bool(self.steps) or any(map(is_own, self.directions))


def read_training(path: str | os.PathLike[str]) -> Training:
    """Reads a run directory that holds directions, also while another process writes to it.

    Args:
        path: the run directory.

    Returns:
        All of its records; a torn last line is left out.

    Raises:
        UsageError: it is no run directory, a newer stepscope wrote it, or it is damaged.
    """
    head, directions = read_run(path, DirectionRecord)
    return Training(head, directions, read_steps(path))
