"""Jobs as commands that a scheduler runs: what is submitted are the lines of `stepscope reproduce --list`."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepscope.errors import require
from stepscope.paper.experiments.jobs import Execute, Failure, Job, Message

_PATIENCE = 1.0
"""Seconds from one look at the submitted jobs to the next."""


def by_submitit(
    command: Callable[[Job], str],
    folder: str | os.PathLike[str],
    at_a_time: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Execute:
    """Does jobs by Slurm where there is one, else in processes of this machine, and follows them.

    They go on if the process that follows them is killed, and are canceled if it is interrupted.

    Args:
        command: gives the line that does a job.
        folder: where submitit keeps its scripts and what the jobs print; all nodes see it.
        at_a_time: most jobs that are submitted at a time; None is one a core of this machine, and all by Slurm.
        parameters: of submitit's `AutoExecutor`, such as ``{"timeout_min": 60, "slurm_partition": "gpu"}``.

    Raises:
        MissingExtraError: submitit is not installed.
    """
    submitit = require("submitit", "submitit")
    helpers = require("submitit.helpers", "submitit")

    def execute(jobs: Sequence[Job], receive: Callable[[int, Message], None]) -> None:
        executor = submitit.AutoExecutor(folder=Path(folder))
        executor.update_parameters(**{"name": "stepscope", "timeout_min": 24 * 60, **(parameters or {})})
        most = at_a_time or (len(jobs) if executor.cluster != "local" else os.cpu_count() or 1)
        waiting, submitted = list(enumerate(jobs))[::-1], dict[int, Any]()
        try:
            while waiting or submitted:
                while waiting and len(submitted) < most:
                    number, job = waiting.pop()
                    words = shlex.split(command(job))
                    submitted[number] = executor.submit(helpers.CommandFunction(words, verbose=False))
                    receive(number, (0.0, f"{job.part} is submitted"))
                time.sleep(_PATIENCE)
                for number in [number for number, each in submitted.items() if each.done()]:
                    receive(number, _outcome(jobs[number], submitted.pop(number)))
        finally:
            for each in submitted.values():
                each.cancel()

    return execute


def _outcome(job: Job, submitted: Any) -> Message:
    if submitted.exception() is None:
        return 1.0, f"{job.part} is done"
    lines = (submitted.stderr() or "").strip().splitlines() or ["it died"]
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("stepscope reproduce: error: ")]
    return Failure(job.path.name, f"{job.part}: {(errors or lines)[-1]}")
