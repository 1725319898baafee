"""How often each verdict was right in the calibration."""

from __future__ import annotations

import functools
import importlib.resources
import json

FILE = "confidence.json"
"""``{kind: {least number of steps: [right, said]}}``, written by the calibration from its records."""

PROBES = (5, 10, 20)
"""From how many measured steps on a verdict is counted by itself."""

_FEWEST = 30


def confidence_of(kind: str, probes: int) -> float | None:
    """How often a verdict of so many steps was right, by the rule of succession.

    Args:
        kind: of the verdict.
        probes: how many steps it rests on.

    Returns:
        ``(right + 1) / (said + 2)``; ``None`` where it was said too rarely to tell.
    """
    right, said = _table().get(kind, {}).get(str(bin_of(probes)), (0, 0))
    return (right + 1) / (said + 2) if said >= _FEWEST else None


def bin_of(probes: int) -> int:
    """The number in `PROBES` under which so many steps are counted.

    Args:
        probes: at least 5.

    Example:
        >>> bin_of(5), bin_of(19), bin_of(200)
        (5, 10, 20)
    """
    return max(least for least in PROBES if least <= max(probes, PROBES[0]))


@functools.cache
def _table() -> dict[str, dict[str, tuple[int, int]]]:
    text = (importlib.resources.files("stepscope.judging") / FILE).read_text(encoding="utf-8")
    table: dict[str, dict[str, tuple[int, int]]] = json.loads(text)
    return table
