"""How a run of any experiment is read, and what is written of it.

Experiments need torch, which takes longer to import than a page to make: a run of directions is read without them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stepscope.errors import UsageError
from stepscope.paper.experiments.command_lines import EXPERIMENTS, TRAJECTORY, Entry
from stepscope.paper.reproduction_runs import Run
from stepscope.report import render_report, save, training_figures
from stepscope.runs import (
    DirectionRecord,
    Head,
    Record,
    StepRecord,
    Training,
    is_run,
    parts_of,
    read_head,
    read_steps,
    read_whole,
    write_atomically,
)

if TYPE_CHECKING:
    from stepscope.paper.experiments.experiment import Experiment

_logger = logging.getLogger("stepscope")


def experiment_of(head: Mapping[str, Any]) -> type[Experiment[Any]]:
    """The experiment of a run; records of another kind, as a probe's, are of directions along a trajectory.

    Args:
        head: the content of `run.json`.

    Example:
        >>> experiment_of({"configuration": {"experiment": "theory"}}).__name__
        'TheoryExperiment'
    """
    return _entry_of(head).load()


def _entry_of(head: Mapping[str, Any]) -> Entry:
    name = (head.get("configuration") or {}).get("experiment")
    return EXPERIMENTS.get(name, TRAJECTORY) if isinstance(name, str) else TRAJECTORY


def read(path: str | os.PathLike[str]) -> tuple[Head, list[Record]]:
    """Reads a run of any experiment, or of a probe, without changing it.

    Args:
        path: the run directory.

    Returns:
        The content of `run.json`, and the records, of the type that its experiment has.

    Raises:
        UsageError: it is no run directory, a newer stepscope wrote it, or it is damaged.
    """

    def kind(head: Head) -> type[Record]:
        return DirectionRecord if _entry_of(head) is TRAJECTORY else experiment_of(head).record

    return read_whole(path, kind)


def run_directories(path: str | os.PathLike[str]) -> list[Path]:
    """The run directories of a reproduction, by name, also those of which only parts are there; no probe's."""
    below = sorted(Path(path).glob("*/"))
    found = [directory for directory in below if is_run(directory) or parts_of(directory)]
    return [directory for directory in found if not _is_of_a_probe(directory)]


def _is_of_a_probe(directory: Path) -> bool:
    with contextlib.suppress(UsageError):
        return bool(read_head(directory)["configuration"].get("experiment") == "probe")
    return False  # what can't be read is said where it is wanted


def read_runs(path: str | os.PathLike[str]) -> list[Run[Record]]:
    """The runs of a reproduction, by name.

    What can't be read is left out with a warning, and so is a copy of another run, which would count twice.

    Raises:
        UsageError: there are none in this directory.
    """
    runs: list[Run[Record]] = []
    for directory in run_directories(path):
        try:
            run = Run(directory.name, *read(directory))
        except UsageError as error:
            _logger.warning("%s is left out: %s", directory, error)
            continue
        same = next((other for other in runs if other.head["configuration"] == run.head["configuration"]), None)
        if same is None:
            runs.append(run)
        else:
            _logger.warning("%s is left out: it is the same run as %s", directory, same.name)
    if not runs:
        raise UsageError(f"{path} holds no run: give the directory of a reproduction (stepscope reproduce --out)")
    return runs


def render_run(head: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The page of a run of any experiment, as HTML that fetches nothing.

    Args:
        head: the content of `run.json`.
        records: the measurements.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    return experiment_of(head).page(head, records)


def write_page(run_path: str | os.PathLike[str], out_path: str | os.PathLike[str]) -> Path:
    """`stepscope.report.write_report` for a run of any experiment."""
    write_atomically(out_path, page_of(run_path).encode(errors="replace"))
    return Path(out_path)


def page_of(run_path: str | os.PathLike[str]) -> str:
    """The page of a run directory, of any experiment or of a probe.

    Args:
        run_path: the run directory.

    Raises:
        UsageError: it is no run directory, or is damaged.
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    head, records = read(run_path)
    if _entry_of(head) is TRAJECTORY:
        return render_report(head, cast("list[DirectionRecord]", records), _steps_of(run_path))
    return render_run(head, records)


def _steps_of(run_path: str | os.PathLike[str]) -> list[StepRecord]:
    """The steps of a probe's run; one of which only parts are there is another's."""
    return read_steps(run_path) if is_run(run_path) else []


def write_figures(
    run_path: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, suffix: str = "pdf"
) -> list[Path]:
    """Writes the figures of a run, each into a file: the charts of its page, and those that are for paper alone.

    Args:
        run_path: the run directory.
        out: the directory that they go to; ``None`` is that of the run.
        suffix: ``"pdf"`` and ``"svg"`` are of vectors, ``"png"`` has twice the screen's resolution.

    Returns:
        The files; none where nothing is finished yet.

    Raises:
        UsageError: it is no run directory, or a file cannot be written.
        MissingExtraError: altair or vl-convert is not installed.
    """
    head, records = read(run_path)
    if _entry_of(head) is TRAJECTORY:
        figures = training_figures(Training(head, cast("list[DirectionRecord]", records), _steps_of(run_path)))
    else:
        figures = experiment_of(head).figures(records)
    charts = {figure.name: figure.specification() for figure in figures}
    return [
        save(chart, Path(out or run_path) / f"{name}.{suffix}") for name, chart in charts.items() if chart is not None
    ]
