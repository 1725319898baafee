"""A run of a reproduction, which is a directory with one run directory for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from stepscope.runs.records import AnyRecord


@dataclass(frozen=True)
class Run(Generic[AnyRecord]):
    """One run directory; generic in the type of its records.

    Attributes:
        name: its directory's name, such as ``"trajectory-code"``.
        head: the content of ``run.json``.
        records: its measurements.
    """

    name: str
    head: Mapping[str, Any]
    records: Sequence[AnyRecord]

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
