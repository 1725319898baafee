"""Options of the command line that several experiments have."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stepscope.errors import UsageError


def add_source(command: argparse.ArgumentParser, text: str = "where the data come from") -> None:
    """``--source`` of an experiment with one task."""
    command.add_argument("--source", default="auto", metavar="NAME|FILE", help=text)


def add_sources(command: argparse.ArgumentParser) -> None:
    """``--source``, once a task; see `sources_of`."""
    command.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="TASK=NAME|FILE",
        help="where a task's data come from, such as translation=my_pairs.tsv; may be given once a task",
    )


def sources_of(given: Sequence[str]) -> dict[str, str]:
    """The values of ``--source`` by task.

    Raises:
        UsageError: one that isn't ``task=source``, or a task twice.

    Example:
        >>> sources_of(["code=my.py"])
        {'code': 'my.py'}
    """
    sources: dict[str, str] = {}
    for argument in given:
        task, separator, source = argument.partition("=")
        if not separator or not source or task in sources:
            raise UsageError(f"--source {argument}: give TASK=NAME or TASK=FILE, once a task")
        sources[task] = source
    return sources


def add_seeds(command: argparse.ArgumentParser, *default: int) -> None:
    """``--seeds``, a list of them."""
    shown = " ".join(map(str, default))
    command.add_argument(
        "--seeds", type=int, nargs="+", default=list(default), metavar="N", help=f"one run a seed (default: {shown})"
    )


def add_settings(command: argparse.ArgumentParser) -> None:
    """``--as``: whose settings."""
    command.add_argument(
        "--as", dest="settings", default="ours", metavar="SETTINGS", help="text, code or ours (the default)"
    )
