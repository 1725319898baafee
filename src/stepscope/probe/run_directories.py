"""Which run directory a training gets: the one that is named, or the next in a row of numbered ones.

A training that is started again is the usual case, and its records are to lie beside those of the last: in
``runs/probe``, ``runs/probe-2``, ``runs/probe-3``, the newest last.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError
from stepscope.runs import DirectionRecord, DirectoryInUseError, RunDirectory, holds_measurements, is_run, show


def open_run(
    run_dir: str | os.PathLike[str],
    configuration: Mapping[str, Any],
    context: Mapping[str, Any],
    *,
    step: int = 0,
    overwrite: bool = False,
    quiet: bool = False,
) -> RunDirectory[DirectionRecord]:
    """The run directory of a training that begins, or goes on after so many steps.

    Args:
        run_dir: the directory, and the name of the numbered ones. A training that begins takes the first that comes
            after all that hold measurements or that another process writes to; one that goes on takes the newest.
        configuration: see `RunDirectory.open`.
        context: see `RunDirectory.open`.
        step: steps that the training made before.
        overwrite: whether to take the directory itself, and replace what it holds where the training begins.
        quiet: whether to keep to itself that it is a numbered one.

    Raises:
        UsageError: the directory can't be written, or holds something else than a run; a training goes on in one of
            another configuration, or that another process writes to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     runs = [open_run(folder + "/probe", {}, {}, quiet=True) for _ in range(2)]  # both are in use
        ...     print(*(run.path.name for run in runs))
        ...     for run in runs: run.close()
        probe probe-2
    """
    named = Path(run_dir)
    if overwrite:
        return RunDirectory.open(named, DirectionRecord, configuration, context=context, overwrite=not step)
    number = _newest(named)
    if step:
        run = RunDirectory.open(_numbered(named, number), DirectionRecord, configuration, context=context)
    else:
        run = _next_free(named, number, configuration, context)
    if run.path != named and not quiet:
        print(f"stepscope: {show(named)} holds another training: records go to {show(run.path)}", file=sys.stderr)
    return run


def _next_free(
    named: Path, number: int, configuration: Mapping[str, Any], context: Mapping[str, Any]
) -> RunDirectory[DirectionRecord]:
    while True:
        directory = _numbered(named, number)
        if not holds_measurements(directory):
            try:
                run = RunDirectory.open(directory, DirectionRecord, configuration, context=context)
            except DirectoryInUseError:
                pass
            except UsageError:
                if not is_run(directory):  # else one of another configuration
                    raise
            else:
                if not holds_measurements(directory):  # by a process that was faster
                    return run
                run.close()
        number += 1


def _numbered(named: Path, number: int) -> Path:
    return named if number == 1 else named.parent / f"{named.name}-{number}"


def _newest(named: Path) -> int:
    """The largest number of a run directory that is there, beginning with 1."""
    try:
        names = [entry.name for entry in named.parent.iterdir()]
    except (OSError, ValueError):
        return 1
    found = (re.fullmatch(re.escape(named.name) + r"-([1-9]\d*)", name) for name in names)
    numbers = sorted((int(match[1]) for match in found if match), reverse=True)
    return next((number for number in numbers if number > 1 and is_run(_numbered(named, number))), 1)
