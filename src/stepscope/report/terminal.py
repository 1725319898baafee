"""Tables for the terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from stepscope.errors import require
from stepscope.report.comparison import trajectories_of
from stepscope.report.direction_tables import step_tables
from stepscope.report.tables import Table
from stepscope.runs import DirectionRecord
from stepscope.shown import printable, shortened

WHOLE = 31
"""A column of names needs no more room than this."""

_WORD = 12
"""So long a word is whole where longer ones have no room."""


def print_directions(records: Sequence[DirectionRecord], console: Any = None) -> None:
    """Prints a table for each trajectory and step: sharpness, correlation, best step and best decrease by direction.

    Args:
        records: all records of a run.
        console: a `rich.console.Console`; None makes one.

    Raises:
        MissingExtraError: rich is not installed.
    """
    names = trajectories_of(records)
    print_tables([table for name in names for table in step_tables(records, name).values()], console)


def print_tables(tables: Sequence[Table], console: Any = None) -> None:
    """Prints tables of text.

    Args:
        tables: the tables.
        console: a `rich.console.Console`; None makes one.

    Raises:
        MissingExtraError: rich is not installed.
    """
    target = console if console is not None else require("rich.console", "cli").Console()
    for place, table in enumerate(tables):
        if place and tables[place - 1].note:
            target.print()
        rows = tuple((shortened(name), *cells) for name, *cells in table.rows)
        target.print(_drawn(replace(table, title=shortened(table.title), rows=rows), target.width))
        if table.note:
            target.print(_text(table.note))


def _drawn(table: Table, width: int) -> Any:
    """A `rich.table.Table`. Texts go in as `rich.text.Text`: in a string, rich would read `[...]` as markup."""
    box = require("rich.box", "cli").SIMPLE_HEAD
    module = require("rich.table", "cli")
    drawn = module.Table(title=_text(table.title), title_justify="left", box=box, padding=(0, 1, 0, 0))
    for header, words, size in zip(table.headers, table.wordy, _widths(table, width), strict=True):
        drawn.add_column(_header(header), justify="left" if words else "right", overflow="fold", width=size)
    for row in table.rows:
        drawn.add_row(*map(_text, row))
    return drawn


def _widths(table: Table, width: int) -> list[int]:
    """The widths of the columns. Whatever has no room on one line is folded: rich alone would cut numbers off.

    Names and numbers are whole where there is room for them, else the names alone, else single words, else those that
    aren't very long. What is left goes to the column that lacks the most.
    """
    columns = list(zip(table.headers, *table.rows, strict=True))
    words = [max(len(word) for text in column for word in text.split(" ")) for column in columns]
    longest = [max(word, *map(len, cells)) for word, (_, *cells) in zip(words, columns, strict=True)]
    names = min(WHOLE, longest[0])
    numbers = [word if wordy else long for word, long, wordy in zip(words, longest, table.wordy, strict=True)]
    room = width - 2 * len(columns) - 1  # a space on either side of each column
    broken = [min(word, _WORD) for word in words]
    whole = max(names, words[0])
    tried = ([whole, *numbers[1:]], [names, *numbers[1:]], [names, *words[1:]], words, broken, [1] * len(columns))
    sizes = next((sizes for sizes in tried if sum(sizes) <= room), tried[-1])
    while sum(sizes) < min(room, sum(longest)):
        lacking = max(range(len(sizes)), key=lambda place: longest[place] / sizes[place])
        sizes[lacking] += 1
    return sizes


def _header(text: str) -> Any:
    """A word a line, but for what is divided by."""
    return require("rich.text", "cli").Text("\n".join(map(printable, re.split("(?<!/) ", text))))


def _text(text: str) -> Any:
    return require("rich.text", "cli").Text(printable(text))
