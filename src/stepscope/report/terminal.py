"""The comparison as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stepscope.errors import require
from stepscope.records import Record
from stepscope.report.comparison import Row, sharpness_table, trajectories_of


def print_tables(records: Sequence[Record], console: Any = None) -> None:
    """Prints a table for each trajectory and step: sharpness, correlation, best step and best decrease by direction.

    Args:
        records: all records of a run.
        console: a `rich.console.Console`; None makes one.

    Raises:
        MissingExtraError: rich is not installed.
    """
    text = require("rich.text", "cli").Text
    target = console if console is not None else require("rich.console", "cli").Console()
    marked = False
    for trajectory in trajectories_of(records):
        rows = sharpness_table(records, trajectory)
        for step in dict.fromkeys(row.step for row in rows):
            found = [row for row in rows if row.step == step]
            target.print(_table(found, f"{printable(trajectory)} trajectory, step {step:g}", text))
            marked |= found[0].baseline in ("robust", "negative")
    if marked:
        target.print(text("† SGD's sharpness is negative there: the ratio is to its robust value (eq. 4) if measured."))


def printable(name: str) -> str:
    """A user's name without what a terminal would act on."""
    return "".join(character if character.isprintable() else "�" for character in name)


def _table(rows: Sequence[Row], title: str, text: Callable[[str], Any]) -> Any:
    """Directions down. Names go in as `Text`: in a string, rich would read `[...]` as markup."""
    module, box = require("rich.table", "cli"), require("rich.box", "cli").SIMPLE_HEAD
    table = module.Table(title=text(title), title_justify="left", box=box, padding=(0, 1, 0, 0))
    table.add_column("direction", overflow="fold", min_width=min(31, max(len(row.direction) for row in rows)))
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
