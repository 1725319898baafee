"""What is said at the end of a training: at most five lines, and the page."""

from __future__ import annotations

import logging
import sys

from stepscope.errors import UsageError
from stepscope.objective import random_state
from stepscope.probe import Probe
from stepscope.report.escaping import printable

_logger = logging.getLogger("stepscope")

PAGE = "report.html"


def conclude(probe: Probe, *, quiet: bool = False) -> None:
    """Writes the page into the run directory, and prints what was measured, the findings, where the page is.

    What goes wrong is a line: the training is over, and is to be saved.

    Args:
        probe: the probe, closed.
        quiet: whether to print nothing.
    """
    try:
        with random_state():
            where = _page(probe)
            lines = [_measured(probe), *(f"{found.summary} ({found.sureness})" for found in probe.findings()), where]
    except Exception as error:
        _logger.warning("what was measured can't be summed up (%s: %s)", type(error).__name__, error)
        return
    if not quiet:
        print(*(printable(f"stepscope: {line}") for line in lines), sep="\n", file=sys.stderr)


def _measured(probe: Probe) -> str:
    steps = sorted({record["step"] for record in probe.records})
    if not steps:
        return f"nothing was measured in {probe.step} steps ({probe.overhead:.1%} of the time spent on it)"
    directions = len({record["direction"] for record in probe.records})
    return (
        f"measured at {len(steps)} of {probe.step} steps, from {steps[0]} to {steps[-1]}, {directions} directions on "
        f"{probe.source}; it took {probe.overhead:.1%} of the training's time"
    )


def _page(probe: Probe) -> str:
    if probe.run_dir is None:
        return "the records are in memory: run_dir='runs/probe' keeps them, and writes a page"
    try:
        return f"the page is {probe.report(probe.run_dir / PAGE)}"
    except UsageError as error:
        return f"the records are in {probe.run_dir}; no page: {error}"
