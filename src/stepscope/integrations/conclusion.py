"""What is said at the end of a training: at most five lines, and the page."""

from __future__ import annotations

import logging
import sys

from stepscope.errors import UsageError
from stepscope.judging import Finding
from stepscope.objective import random_state
from stepscope.probe import Probe
from stepscope.shown import printable

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
            lines = [_measured(probe), *map(_found, probe.findings()), where]
    except Exception as error:
        _logger.warning("what was measured can't be summed up (%s: %s)", type(error).__name__, error)
        return
    if not quiet:
        print(*(printable(f"stepscope: {line}") for line in lines), sep="\n", file=sys.stderr)


def _measured(probe: Probe) -> str:
    told = [record for record in probe.step_records if record["batch_loss"] is not None]  # others have only the edge
    own, compared = (len({record["step"] for record in records}) for records in (told, probe.records))
    return (
        f"of {probe.step} steps, {own} measured on their own batches, and {compared} beside others on {probe.source}; "
        f"it took {probe.overhead:.1%} of the training's time"
    )


def _found(finding: Finding) -> str:
    what = f"try {finding.change}" if finding.change else finding.evidence
    return f"{finding.headline}: {what}"


def _page(probe: Probe) -> str:
    if probe.run_dir is None:
        return "the records are in memory: run_dir='runs/probe' keeps them, and writes a page"
    try:
        return f"the page is {probe.report(probe.run_dir / PAGE)}"
    except UsageError as error:
        return f"the records are in {probe.run_dir}; no page: {error}"
