"""The runs of a reproduction: a directory with one run directory for each."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError
from stepscope.runs import Record, read_run

_logger = logging.getLogger("stepscope")


@dataclass(frozen=True)
class Run:
    """One run directory.

    Attributes:
        name: its directory's name, such as ``"trajectory-code"``.
        head: the content of ``run.json``.
        records: its measurements.
    """

    name: str
    head: Mapping[str, Any]
    records: Sequence[Record]

    @property
    def experiment(self) -> str:
        """The name of its experiment, such as ``"trajectory"``."""
        return str(self.head["configuration"].get("experiment"))

    @property
    def scale(self) -> str:
        """The name of its size."""
        return str(self.head["configuration"].get("scale"))

    @property
    def task(self) -> str:
        """Of a trajectory experiment, the name of its task, such as ``"code"``."""
        return str(self.head["configuration"].get("kind"))

    @property
    def context(self) -> Mapping[str, Any]:
        """What a reader has to know beside the configuration: source, model, versions."""
        return self.head.get("context") or {}


def section(head: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A mapping in a mapping; empty where there is none.

    Example:
        >>> section({"model": {"parameters": 9}}, "model"), section({"model": None}, "model")
        ({'parameters': 9}, {})
    """
    value = head.get(name)
    return value if isinstance(value, Mapping) else {}


def read_runs(path: str | os.PathLike[str]) -> list[Run]:
    """The runs of a reproduction, by name.

    What can't be read is left out with a warning, and so is a copy of another run, which would count twice.

    Raises:
        UsageError: there are none in this directory.
    """
    found: list[Run] = []
    for each in sorted(file.parent for file in Path(path).glob("*/run.json")):
        try:
            run = Run(each.name, *read_run(each))
        except UsageError as error:
            _logger.warning("%s is left out: %s", each, error)
            continue
        same = next((other for other in found if other.head["configuration"] == run.head["configuration"]), None)
        if same is None:
            found.append(run)
        else:
            _logger.warning("%s is left out: it is the same run as %s", each, same.name)
    if not found:
        raise UsageError(f"{path} holds no run: give the directory of a reproduction (stepscope reproduce --out)")
    return found
