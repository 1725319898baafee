"""The trust ratio of a training's steps, each on the batch that made it."""

from __future__ import annotations

import functools
import math
import operator
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepscope.runs import StepRecord

_DRAWS = 1000


@dataclass(frozen=True)
class TrustRatio:
    """The realized part of the change that the gradients foretell, over some steps.

    Attributes:
        ratio: ``T``; ``None`` where the slopes don't add up to descent, or there is a single step.
        low: the lower end of its interval.
        high: the upper end.
        probes: how many steps it is made of.
        rounding: by how much the losses' errors in their precision widen the interval, at its upper end.
    """

    ratio: float | None
    low: float
    high: float
    probes: int
    rounding: float = 0.0


def trust_ratio(records: Sequence[StepRecord], coverage: float = 0.8) -> TrustRatio:
    """How much of the change that its own batch's gradient foretells a step brings about.

    The loss on the batch whose gradient made the step ``d`` is compared before and after it. Where the loss is straight
    along the step, all of the foretold change comes true, and the step could be longer; at the minimum of a parabola
    half of it does, and at its far side none:

        ``T = Σ [f_b(x + d) − f_b(x)] / Σ g_bᵀd``,

    ``1 − ρ/2`` on a quadratic loss with the edge ratio ``ρ = dᵀHd / (−gᵀd)``. The interval is a bootstrap's over the
    steps, with a fixed seed. Rounding differs from step to step, so their spread has it already. But where a step is
    too small for weights in low precision to move at all, no change is seen at any step, as if all were far too long:
    the upper end is widened by the losses' errors in their precision.

    Args:
        records: the steps; those without the two terms are left out.
        coverage: of the interval; 0 leaves the ratio itself.

    Returns:
        The ratio and its interval, which is without ends where the slopes may not add up to descent.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "batch_loss": 1.0}
        >>> steps = [StepRecord(**place, step=n, batch_change=-0.9, batch_slope=-1.0) for n in range(5)]
        >>> trust_ratio(steps)
        TrustRatio(ratio=0.9, low=0.9, high=0.9, probes=5, rounding=0.0)
    """
    terms = _scaled([term for record in records if (term := terms_of(record)) is not None])
    slope = math.fsum(slope for _, slope, _ in terms)
    if len(terms) < 2 or not slope < 0:
        return TrustRatio(None, -math.inf, math.inf, len(terms))
    ratio = math.fsum(change for change, _, _ in terms) / slope
    noise = math.hypot(*(noise for *_, noise in terms)) / -slope
    if not coverage:
        return TrustRatio(ratio, ratio, ratio + noise, len(terms), noise)
    draws = _drawn_ratios(terms)
    below, above = sorted(low for low, _ in draws), sorted(high for _, high in draws)
    tail = round((1 - coverage) / 2 * _DRAWS)
    return TrustRatio(ratio, below[tail], above[-1 - tail] + noise, len(terms), noise)


def terms_of(record: StepRecord) -> tuple[float, float, float] | None:
    """Change, slope and the change's error, where the step was measured on its own batch."""
    if record.batch_change is None or record.batch_slope is None:
        return None
    terms = record.batch_change, record.batch_slope, record.batch_noise or 0.0
    return terms if all(map(math.isfinite, terms)) else None


def _scaled(terms: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Terms that are divided by one power of 2: those of a training that diverges would add up to more than a float."""
    _, exponent = math.frexp(max((abs(number) for term in terms for number in term), default=0.0))
    return [(math.ldexp(a, -exponent), math.ldexp(b, -exponent), math.ldexp(c, -exponent)) for a, b, c in terms]


def _drawn_ratios(terms: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Ratios of drawn steps, as they count at the lower and at the upper end: a drawn ascent tells nothing."""
    changes, slopes = [change for change, *_ in terms], [slope for _, slope, _ in terms]
    ratios = []
    for drawn in _draws(len(terms)):
        slope = sum(drawn(slopes))
        ratio = sum(drawn(changes)) / slope if slope < 0 else None
        ratios.append((-math.inf, math.inf) if ratio is None else (ratio, ratio))
    return ratios


@functools.lru_cache(maxsize=64)
def _draws(count: int) -> list[Callable[[Sequence[float]], tuple[float, ...]]]:
    """What picks so many of so many with replacement, the same for all."""
    draw, places = random.Random(0), range(count)
    return [operator.itemgetter(*draw.choices(places, k=count)) for _ in range(_DRAWS)]
