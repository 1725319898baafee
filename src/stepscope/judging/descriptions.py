"""Findings that describe a training without judging it: no calibration says how often they help."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Sequence

from stepscope.judging.finding import Finding
from stepscope.runs import DirectionRecord, StepRecord, is_own

FEWEST_STEPS = 5
FEWEST_POINTS = 3
MOST = 0.75
"""The part of the measured steps at which something has to be seen."""

NEAR = 1.25
"""A critical multiple below is called near."""


def uphill(steps: Sequence[StepRecord]) -> Finding | None:
    """The steps don't go downhill on the batches that made them."""
    slopes = [step.batch_slope for step in steps if step.batch_slope is not None]
    up = sum(slope > 0 for slope in slopes)
    if len(slopes) < FEWEST_STEPS or up < len(slopes) / 2:
        return None
    return Finding(
        kind="poorly_aligned",
        summary="The step often goes uphill on the batch that made it",
        evidence=f"at {up} of {len(slopes)} measured steps its slope on its own batch was positive",
        against="momentum of other batches, weight decay and noise do this without harm; it is no verdict on the rate",
    )


def at_the_edge(steps: Sequence[StepRecord]) -> Finding | None:
    """A step only a little longer would raise the loss of some examples."""
    for name in _sets_of(steps):
        edges = [step.edges[name] for step in steps if step.edges and name in step.edges]
        multiples = [edge.critical_multiple for edge in edges if edge.critical_multiple is not None]
        if len(edges) < FEWEST_STEPS or len(multiples) < MOST * len(edges):
            continue
        if (multiple := statistics.median(multiples)) > NEAR:
            continue
        return Finding(
            kind="at_the_edge",
            summary=f"A step {max(multiple, 0):.2g} times as long raises the loss of the {name} examples",
            evidence=f"median critical multiple of {len(multiples)} of {len(edges)} measured steps",
            against="full-batch training settles near 1 by itself, and small batches are noisy: it says how near the "
            "edge is, and not that the rate is wrong",
        )  # fmt: skip
    return None


def noise_limited(steps: Sequence[StepRecord]) -> Finding | None:
    """The steps lower the loss of their own batches, and raise that of others."""
    for name in _sets_of(steps):
        pairs = [
            (step.batch_change, step.edges[name].realized_change) for step in steps if step.edges and name in step.edges
        ]
        known = [(own, other) for own, other in pairs if own is not None and other is not None]
        noisy = sum(own < 0 < other for own, other in known)
        if len(known) < FEWEST_STEPS or noisy < MOST * len(known):
            continue
        return Finding(
            kind="noise_limited",
            summary=f"Most steps lower the loss of their own batch and raise that of the {name} examples",
            evidence=f"at {noisy} of {len(known)} measured steps",
            against="healthy trainings do this often, and noise averages out over steps; a larger batch or a falling "
            "learning rate lessens it",
        )  # fmt: skip
    return None


def few_coordinates(records: Sequence[DirectionRecord]) -> Finding | None:
    """The step with a few of the gradient's coordinates clipped is flatter, and gains more."""
    own = {record.step: record for record in records if is_own(record)}
    best: tuple[float, str, int, int] | None = None
    for label in dict.fromkeys(r.direction for r in records if r.direction.startswith("own ") and not is_own(r)):
        pairs = [(own[r.step], r) for r in records if r.direction == label and r.step in own]
        gains = [
            clipped.best_decrease / plain.best_decrease
            for plain, clipped in pairs
            if plain.best_decrease and clipped.best_decrease is not None and _flatter(clipped, plain)
        ]
        won = sum(gain > 1 for gain in gains)
        if len(pairs) >= FEWEST_POINTS and won >= MOST * len(pairs):
            best = max(best or (0.0, "", 0, 0), (statistics.median(gains), label, won, len(pairs)))
    if best is None:
        return None
    gain, label, won, points = best
    percent = label.rpartition(" clip ")[2].rstrip("%")
    return Finding(
        kind="few_coordinates",
        summary=f"A few coordinates hold the step short: with {percent}% of the gradient's clipped it could gain more",
        evidence=f"at {won} of {points} measured steps the clipped step was half as sharp or less, and its best step "
        f"lowered the loss more, by a median factor of {gain:.3g}",
        change=f"stepscope.clip_optimizer(optimizer, {float(percent) / 100:g})",
        cost="a second training from the same start, as far as this one; keep the one with the lower held-out loss",
        against="what one step could gain says little of a whole training, and a clipped step can bear another rate",
    )  # fmt: skip


def one_layer(records: Sequence[DirectionRecord]) -> Finding | None:
    """One layer has most of the sharpness of the optimizer's own step."""
    own = [r for r in records if is_own(r) and r.sharpness is not None and r.sharpness > 0 and len(r.layers or {}) > 3]
    if len(own) < FEWEST_POINTS:
        return None
    parts = [(name, (part or 0.0) / (r.sharpness or 1.0)) for r in own for name, part in (r.layers or {}).items()]
    most = Counter(name for name, part in parts if part > 0.5).most_common(1)
    if not most or most[0][1] < MOST * len(own):
        return None
    name, times = most[0]
    median = statistics.median(part for layer, part in parts if layer == name)
    return Finding(
        kind="one_layer",
        summary=f"One layer has most of the step's sharpness: {name}",
        evidence=f"a median of {median:.0%}, more than half at {times} of {len(own)} measured steps",
        against="parts of other layers can be negative, and a layer may be sharp because it does the work; what a "
        "smaller rate for it alone gains wasn't measured",
    )  # fmt: skip


def _flatter(clipped: DirectionRecord, plain: DirectionRecord) -> bool:
    return clipped.sharpness is not None and plain.sharpness is not None and clipped.sharpness <= plain.sharpness / 2


def _sets_of(steps: Sequence[StepRecord]) -> list[str]:
    """The sets of examples that didn't make the steps."""
    return list(dict.fromkeys(name for step in steps for name in step.edges or {} if name != "own"))


OF_STEPS: tuple[Callable[[Sequence[StepRecord]], Finding | None], ...] = (uphill, at_the_edge, noise_limited)
OF_DIRECTIONS: tuple[Callable[[Sequence[DirectionRecord]], Finding | None], ...] = (few_coordinates, one_layer)
"""What is looked for, in order of importance: each a function of all records that gives a finding or nothing."""
