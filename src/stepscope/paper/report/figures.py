"""Figures, each under the name of its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from stepscope.errors import MissingExtraError, UsageError
from stepscope.report import Table


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn.

    Attributes:
        name: of its file, without the suffix.
        title: what a link to it says.
        draw: makes the chart; raises a `UsageError` where nothing was measured.
        on_page: whether a page shows it, or only links to its file.
    """

    name: str
    title: str
    draw: Callable[[], Any]
    on_page: bool = True

    def chart(self) -> Any:
        """The chart; None where it shows something that wasn't measured.

        Raises:
            MissingExtraError: altair is not installed.
        """
        try:
            return self.draw()
        except MissingExtraError:
            raise
        except UsageError:
            return None


def file_name(*parts: object) -> str:
    """A name for a file, from words that may hold anything.

    Example:
        >>> file_name("trajectory-code", "sgd", "step", 60), file_name("../../up"), file_name("é")
        ('trajectory-code-sgd-step-60', 'up', 'unnamed')
    """
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", str(part)).strip("-.") for part in parts)
    name = "-".join(word for word in words if word) or "unnamed"
    if len(name) > 150:  # what is cut off may be all that tells it from others
        name = f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


_Named = TypeVar("_Named", Figure, Table)


def distinct(things: Iterable[_Named]) -> list[_Named]:
    """Figures or tables with names that differ: what tells two names apart can be lost when they become file names.

    Example:
        >>> [figure.name for figure in distinct([Figure("a", "", int), Figure("A", "", int)])]
        ['a', 'A-2']
    """
    by_name: dict[str, _Named] = {}
    for thing in things:
        name, count = thing.name, 1
        while name.lower() in by_name:  # not every file system tells capitals
            count += 1
            name = f"{thing.name}-{count}"
        by_name[name.lower()] = replace(thing, name=name)
    return list(by_name.values())
