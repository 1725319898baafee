"""Names of files for figures and tables."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from stepscope.report.figures import Figure
    from stepscope.report.tables import Table


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


_Named = TypeVar("_Named", "Figure", "Table")


def distinct(things: Iterable[_Named]) -> list[_Named]:
    """Figures or tables with names that differ: what tells two names apart can be lost when they become file names.

    Example:
        >>> from stepscope.report import Figure
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
