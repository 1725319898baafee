"""How often each verdict was right in the calibration."""

from __future__ import annotations

import functools
import importlib.resources
import json
from dataclasses import dataclass, field

FILE = "confidence.json"
"""What the calibration writes from its records: `Calibrated`."""

PROBES = (5, 10, 20)
"""From how many measured steps on a verdict is counted by itself."""

FEWEST = 30
"""A verdict that was said more rarely isn't calibrated, nor is an optimizer of fewer trainings."""

_ALIKE = {"Adam": "AdamW"}
"""Optimizers that differ in weight decay alone."""


@dataclass(frozen=True)
class Calibrated:
    """What the calibration has counted.

    Attributes:
        trainings: of each optimizer, by the name that a probe gives it.
        verdicts: ``{ground of the verdict: {least number of steps: (right, said)}}``.
        near: of trainings that are near a verdict and don't reach it, by that verdict: how many had a rate below
            the best one, how many the best, and how many one above it.
    """

    trainings: dict[str, int]
    verdicts: dict[str, dict[str, tuple[int, int]]]
    near: dict[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Confidence:
    """How far a verdict can be believed.

    Attributes:
        share: how often it was right, by the rule of succession, ``(right + 1) / (said + 2)``; ``None`` where it isn't
            calibrated.
        lacking: what the calibration lacks for it; empty where nothing.
    """

    share: float | None
    lacking: str


def confidence_of(ground: str, probes: int, optimizer: str) -> Confidence:
    """How often a verdict of so many steps was right, in trainings by optimizers that the calibration has tried.

    Where too few verdicts rest on so many steps, all with the same ground are counted.

    Args:
        ground: `RateVerdict.ground`.
        probes: how many steps it rests on.
        optimizer: its name, as records have it; several are joined by ``" + "``.
    """
    if not _is_tried(optimizer):
        return Confidence(None, f"the calibration has too few trainings by {optimizer.replace(' + ', ' with ')}")
    bins = _calibrated().verdicts.get(ground, {})
    right, said = bins.get(str(bin_of(probes)), (0, 0))
    if said < FEWEST:
        right, said = (sum(counts) for counts in zip((0, 0), *bins.values(), strict=True))
    if said < FEWEST:
        return Confidence(None, f"in the calibration that was said {said} times, fewer than {FEWEST}")
    return Confidence((right + 1) / (said + 2), "")


def trainings_near(kind: str, optimizer: str) -> tuple[int, int, int] | None:
    """Of the calibration's trainings that are near a verdict and don't reach it.

    Args:
        kind: the verdict.
        optimizer: its name, as records have it.

    Returns:
        How many had a rate below the best one, the best, and one above it; ``None`` where there are too few.
    """
    below, best, above = _calibrated().near.get(kind, (0, 0, 0))
    return (below, best, above) if below + best + above >= FEWEST and _is_tried(optimizer) else None


def _is_tried(optimizer: str) -> bool:
    """Whether the calibration has enough trainings by the parts of an optimizer, together."""
    parts = {_ALIKE.get(part, part) for part in optimizer.split(" + ")}
    tried = [set(name.split(" + ")) for name, count in _calibrated().trainings.items() if count >= FEWEST]
    return any(parts <= together for together in tried)


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
def _calibrated() -> Calibrated:
    text = (importlib.resources.files("stepscope.judging") / FILE).read_text(encoding="utf-8")
    return Calibrated(**json.loads(text))
