"""Jobs as commands that a scheduler runs: what is submitted are the lines of `stepscope reproduce --list`.

A scheduler is three functions: what submits a command, what says how one ended, and what cancels it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stepscope.errors import require
from stepscope.paper.experiments.jobs import Execute, Failure, Job, Message

_PATIENCE = 1.0
"""Seconds from one look at the submitted jobs to the next."""

Ended = tuple[bool, str] | None
"""Whether a submitted command came to its end, and what it wrote to stderr; None while it is going on."""


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

    def ended(submitted: Any) -> Ended:
        return (submitted.exception() is None, submitted.stderr() or "") if submitted.done() else None

    def execute(jobs: Sequence[Job], receive: Callable[[int, Message], None]) -> None:
        executor = submitit.AutoExecutor(folder=Path(folder))
        executor.update_parameters(**{"name": "stepscope", "timeout_min": 24 * 60, **(parameters or {})})
        most = at_a_time or (len(jobs) if executor.cluster != "local" else os.cpu_count() or 1)

        def submit(words: Sequence[str]) -> Any:
            return executor.submit(helpers.CommandFunction(words, verbose=False))

        _follow(jobs, receive, command, most, submit, ended, lambda submitted: submitted.cancel())

    return execute


def by_ray(
    command: Callable[[Job], str],
    at_a_time: int | None = None,
    parameters: Mapping[str, Any] | None = None,
) -> Execute:
    """Does jobs by the Ray cluster at ``RAY_ADDRESS``, or one that is started on this machine, and follows them.

    They are canceled if the process that follows them is interrupted.

    Args:
        command: gives the line that does a job.
        at_a_time: most jobs that are submitted at a time; None is all: Ray starts one a processor.
        parameters: of a Ray task, such as ``{"num_gpus": 1}``.

    Raises:
        MissingExtraError: ray is not installed.
    """
    ray = require("ray", "ray")

    def ended(submitted: Any) -> Ended:
        if not ray.wait([submitted], timeout=0)[0]:
            return None
        try:
            done = ray.get(submitted)
        except ray.exceptions.RayError as error:
            return False, str(error)
        return done.returncode == 0, done.stderr

    def execute(jobs: Sequence[Job], receive: Callable[[int, Message], None]) -> None:
        begun = not ray.is_initialized()
        ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level="warning")
        task = ray.remote(**{"max_retries": 0, **(parameters or {})})(subprocess.run)

        def submit(words: Sequence[str]) -> Any:
            return task.remote(words, cwd=str(Path.cwd()), capture_output=True, text=True, check=False)

        try:
            _follow(jobs, receive, command, at_a_time or len(jobs), submit, ended, ray.cancel)
        finally:
            if begun:
                ray.shutdown()

    return execute


def _follow(
    jobs: Sequence[Job],
    receive: Callable[[int, Message], None],
    command: Callable[[Job], str],
    most: int,
    submit: Callable[[Sequence[str]], Any],
    ended: Callable[[Any], Ended],
    cancel: Callable[[Any], Any],
) -> None:
    """Submits the jobs, `most` at a time, and tells how each ends. Where it is left early, the others are canceled."""
    waiting, submitted = list(enumerate(jobs))[::-1], dict[int, Any]()
    try:
        while waiting or submitted:
            while waiting and len(submitted) < most:
                number, job = waiting.pop()
                submitted[number] = submit(shlex.split(command(job)))
                receive(number, (0.0, f"{job.part} is submitted"))
            time.sleep(_PATIENCE)
            for number, each in list(submitted.items()):
                if (end := ended(each)) is not None:
                    del submitted[number]
                    receive(number, _outcome(jobs[number], *end))
    finally:
        for each in submitted.values():
            cancel(each)


def _outcome(job: Job, done: bool, printed: str) -> Message:
    if done:
        return 1.0, f"{job.part} is done"
    lines = printed.strip().splitlines() or ["it died"]
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("stepscope reproduce: error: ")]
    return Failure(job.path.name, f"{job.part}: {(errors or lines)[-1]}", lasting=bool(errors))
