"""The comparisons as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stepscope.errors import require
from stepscope.report.comparison import Row, sharpness_rows, trajectories_of
from stepscope.report.escaping import printable
from stepscope.report.tables import Table
from stepscope.runs import DirectionRecord


def print_directions(records: Sequence[DirectionRecord], console: Any = None) -> None:
    """Prints a table for each trajectory and step: sharpness, correlation, best step and best decrease by direction.

    Args:
        records: all records of a run.
        console: a `rich.console.Console`; None makes one.

    Raises:
        MissingExtraError: rich is not installed.
    """
    text, target = text_and_console(console)
    marked = False
    for trajectory in trajectories_of(records):
        rows = sharpness_rows(records, trajectory)
        for step in dict.fromkeys(row.step for row in rows):
            found = [row for row in rows if row.step == step]
            target.print(_table(found, f"{printable(trajectory)} trajectory, step {step:g}", text))
            marked |= found[0].baseline in ("robust", "negative")
    if marked:
        target.print(text("† SGD's sharpness is negative there: the ratio is to its robust value (eq. 4) if measured."))


def print_tables(tables: Sequence[Table], console: Any = None) -> None:
    """Prints tables of text.

    Args:
        tables: the tables.
        console: a `rich.console.Console`; None makes one.

    Raises:
        MissingExtraError: rich is not installed.
    """
    text, target = text_and_console(console)
    for table in tables:
        first, *others = table.headers
        drawn = plain_table(text(table.title), first, [printable(row[0]) for row in table.rows])
        for header, words in zip(others, table.wordy[1:], strict=True):
            # What is narrow in numbers is to stay whole where words leave too little room.
            shown = text(header.replace(" ", "\n"))
            drawn.add_column(shown, justify="left" if words else "right", overflow="fold", no_wrap=not words)
        for row in table.rows:
            drawn.add_row(*(text(printable(cell)) for cell in row))
        target.print(drawn)
        target.print(text(table.note))


def plain_table(title: Any, first: str, names: Sequence[str]) -> Any:
    """A `rich.table.Table` with its first column, which stays whole where it can."""
    module, box = require("rich.table", "cli"), require("rich.box", "cli").SIMPLE_HEAD
    table = module.Table(title=title, title_justify="left", caption_justify="left", box=box, padding=(0, 1, 0, 0))
    longest = max(map(len, names))
    # One that may not be narrower must not be asked to: the table would be wider than the terminal.
    table.add_column(first, overflow="fold", min_width=min(31, longest), no_wrap=longest <= 31)
    return table


def text_and_console(console: Any) -> tuple[Callable[[str], Any], Any]:
    """What makes text that rich doesn't read as markup, and where to print."""
    target = console if console is not None else require("rich.console", "cli").Console()
    return require("rich.text", "cli").Text, target


def _table(rows: Sequence[Row], title: str, text: Callable[[str], Any]) -> Any:
    """Directions down. Names go in as `Text`: in a string, rich would read `[...]` as markup."""
    table = plain_table(text(title), "direction", [row.direction for row in rows])
    mark = "†" if rows[0].baseline in ("robust", "negative") else ""
    table.add_column(text(f"sharpness\n/ |SGD's|{mark}" if rows[0].relative else "sharpness"), justify="right")
    for header in ("correlation\nwith gradient", "best\nstep", "best\ndecrease"):
        table.add_column(text(header), justify="right")
    for row in rows:
        table.add_row(
            text(printable(row.direction)),
            text(_cell(row.sharpness, row.sharpness_spread)),
            text(_cell(row.correlation)),
            text(_cell(row.best_step)),
            text(_cell(row.best_decrease, row.best_decrease_spread)),
        )
    return table


def _cell(value: float | None, spread: float | None = None) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if spread is None else f"{value:.2g} ±{spread:.1g}"
