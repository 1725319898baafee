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
        yield lambda done, text: shown.update(task, completed=done, description=text)


def _lines() -> Callable[[float, str], None]:
    last = 0

    def print_tenths(done: float, text: str) -> None:
        nonlocal last
        if int(10 * done) > last:
            last = int(10 * done)
            print(f"{done:4.0%}  {text}", file=sys.stderr, flush=True)

    return print_tenths
