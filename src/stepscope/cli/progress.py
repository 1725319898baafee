"""How far a long command is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from stepscope.errors import require


@contextmanager
def shown_progress() -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error; a line now and then where that is no terminal."""
    console = require("rich.console", "cli").Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    bars = require("rich.progress", "cli")
    text = bars.TextColumn("{task.description}", markup=False)
    columns = (bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeRemainingColumn(), text)
    with bars.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=1.0)
        yield lambda done, text: shown.update(task, completed=done, description=text)


_QUIET = 60.0
"""Seconds after which a line is printed also where no tenth is done."""


def _lines() -> Callable[[float, str], None]:
    last, printed = 0, time.monotonic()

    def print_line(done: float, text: str) -> None:
        nonlocal last, printed
        if int(10 * done) > last or time.monotonic() - printed > _QUIET:
            last, printed = int(10 * done), time.monotonic()
            print(f"{done:4.0%}  {text}", file=sys.stderr, flush=True)

    return print_line
