"""How far a long command is."""

from __future__ import annotations

import sys
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
        yield lambda part, what: shown.update(task, completed=part, description=what)


def _lines() -> Callable[[float, str], None]:
    last = 0

    def told(part: float, what: str) -> None:
        nonlocal last
        if int(10 * part) > last:
            last = int(10 * part)
            print(f"{part:4.0%}  {what}", file=sys.stderr, flush=True)

    return told
