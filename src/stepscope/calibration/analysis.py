"""Verdicts held against the truth, and their errors."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from stepscope.calibration.jobs import NAMES
from stepscope.calibration.study import complete_curves
from stepscope.calibration.training import TrainingRecord
from stepscope.judging import PROBES, Calibrated, RateEvidence, Rule, bin_of, evidence_of, verdict_of
from stepscope.runs import StepRecord

TENFOLD = 2
"""Rates are √10 apart."""


@dataclass(frozen=True)
class Tried:
    """A way to come to a verdict.

    Attributes:
        name: in the tables.
        rule: its thresholds.
        seen: the steps that it looks at.
        rising_is_long: whether a loss that came to lie far above its start means that steps are too long.
    """

    name: str
    rule: Rule
    seen: Callable[[list[StepRecord]], list[StepRecord]] = list
    rising_is_long: bool = False

    def verdict(self, evidence: RateEvidence) -> str:
        """What it says."""
        kind = verdict_of(evidence, self.rule).kind
        if self.rising_is_long and kind == "cannot_tell" and evidence.rise.highest > self.rule.rise:
            return "step_too_long"
        return kind


def _until(part: float) -> Callable[[list[StepRecord]], list[StepRecord]]:
    return lambda records: [record for record in records if record.steps is None or record.step <= part * record.steps]


def _half(records: list[StepRecord]) -> list[StepRecord]:
    return records[::2]


def _third(records: list[StepRecord]) -> list[StepRecord]:
    return records[::3]


BY_RATIO = Rule(little=math.inf, late=math.inf, much=0.0, bent=0.5, worth=math.inf, most=math.inf)
"""What was shipped first: the trust ratio decides alone."""

SHIPPED = Tried("the rule that ships", Rule())
TRIED = (
    SHIPPED,
    Tried("by the trust ratio alone", BY_RATIO),
    Tried("without the interval", Rule(coverage=0.0)),
    Tried("steps that bring more than the loss decide nothing", Rule(most=math.inf)),
    Tried("without the guard against a risen loss", Rule(rise=math.inf)),
    Tried("a risen loss counts as too long", Rule(), rising_is_long=True),
    Tried("half of the measured steps", Rule(), seen=_half),
    Tried("a third of the measured steps", Rule(), seen=_third),
    Tried("after a tenth of the training", Rule(), seen=_until(0.1)),
    Tried("after a fifth of the training", Rule(), seen=_until(0.2)),
    Tried("between 3% and 30% of the training", Rule(window=(0.03, 0.3))),
    Tried("the whole training, at all rates", Rule(window=(0.0, 1.0), least_rate=0.0)),
    Tried("thresholds 0.95 and 0.7", Rule(short=0.95)),
    Tried("thresholds 0.99 and 0.5", Rule(short=0.99, bent=0.5)),
)


@dataclass(frozen=True)
class Case:
    """A training whose best rate is known.

    Attributes:
        record: the training.
        distance: how many factors of √10 its rate is above the best one.
        evidence: what its steps say.
    """

    record: TrainingRecord
    distance: int
    evidence: RateEvidence


def cases_of(records: Iterable[TrainingRecord], tried: Tried = SHIPPED) -> list[Case]:
    """The trainings of complete curves with their distance from the best rate.

    The best rate is that of the lowest held-out loss at the end. A curve whose lowest loss is at the end of its rates
    doesn't say which rate is best, and is left out.

    Args:
        records: of a study.
        tried: which steps count.
    """
    cases = []
    for curve in complete_curves(records).values():
        finals = [math.inf if record.final is None else record.final for record in curve]
        best = finals.index(min(finals))
        if 0 < best < len(curve) - 1 and math.isfinite(finals[best]):
            cases += [
                Case(record, place - best, evidence_of(tried.seen(record.step_records()), tried.rule))
                for place, record in enumerate(curve)
            ]
    return cases


@dataclass(frozen=True)
class Errors:
    """How often verdicts were right, each as ``(times, of how many)``.

    Attributes:
        right: ``too short`` and ``too long`` that were said on the right side of the best rate.
        small_found: rates ten times too small that were called too short.
        large_found: rates ten times too large that were called too long.
        best_short: best rates that were called too short.
        best_long: best rates that were called too long.
        inverted: rates at least a factor of √10 off that were called the opposite.
    """

    right: tuple[int, int]
    small_found: tuple[int, int]
    large_found: tuple[int, int]
    best_short: tuple[int, int]
    best_long: tuple[int, int]
    inverted: tuple[int, int]

    def __add__(self, other: Errors) -> Errors:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Errors(*((one[0] + two[0], one[1] + two[1]) for one, two in pairs))


def errors_of(cases: Sequence[Case], tried: Tried = SHIPPED) -> Errors:
    """The errors of a way to come to a verdict.

    Args:
        cases: see `cases_of`.
        tried: the way.
    """
    said = Counter((case.distance, tried.verdict(case.evidence)) for case in cases)
    at = Counter(case.distance for case in cases)

    def count(kind: str, distances: Iterable[int]) -> int:
        return sum(said[distance, kind] for distance in distances)

    below, above = [d for d in at if d < 0], [d for d in at if d > 0]
    short, long = count("step_too_short", at), count("step_too_long", at)
    return Errors(
        right=(count("step_too_short", below) + count("step_too_long", above), short + long),
        small_found=(said[-TENFOLD, "step_too_short"], at[-TENFOLD]),
        large_found=(said[TENFOLD, "step_too_long"], at[TENFOLD]),
        best_short=(said[0, "step_too_short"], at[0]),
        best_long=(said[0, "step_too_long"], at[0]),
        inverted=(count("step_too_short", above) + count("step_too_long", below), sum(at.values()) - at[0]),
    )


def calibrated(cases: Sequence[Case]) -> Calibrated:
    """How often each verdict of the rule that ships was right, by its ground and by the number of steps.

    ``too short`` is right at rates below the best one, ``too long`` above it, and ``healthy`` less than a factor of ten
    from it.

    Args:
        cases: see `cases_of`.
    """
    right: dict[str, Callable[[int], bool]] = {
        "straight": lambda distance: distance < 0,
        "little_ahead": lambda distance: distance < 0,
        "bent": lambda distance: distance > 0,
        "thrown_off": lambda distance: distance > 0,
        "healthy": lambda distance: abs(distance) < TENFOLD,
    }
    table = {ground: {str(least): (0, 0) for least in PROBES} for ground in right}
    for case in cases:
        ground = verdict_of(case.evidence, SHIPPED.rule).ground
        if ground in table:
            least = str(bin_of(case.evidence.trust.probes))
            before, said = table[ground][least]
            table[ground][least] = before + right[ground](case.distance), said + 1
    return Calibrated(dict(Counter(NAMES[case.record.optimizer] for case in cases)), table, near_verdicts(cases))


def near_verdicts(cases: Sequence[Case]) -> dict[str, tuple[int, int, int]]:
    """Of trainings that are near a verdict and don't reach it: on which side of the best rate they are.

    Args:
        cases: see `cases_of`.

    Returns:
        For each such verdict: how many had a rate below the best one, the best, and one above it.
    """
    found = {"step_too_short": (0, 0, 0), "step_too_long": (0, 0, 0)}
    for case in cases:
        if near := verdict_of(case.evidence, SHIPPED.rule).near:
            below, best, above = found[near]
            d = case.distance
            found[near] = below + (d < 0), best + (d == 0), above + (d > 0)
    return found


def with_thresholds(short: float, bent: float, little: float) -> Tried:
    """The rule that ships with other thresholds."""
    rule = Rule(short=short, bent=bent, little=little)
    return replace(SHIPPED, name=f"{short:g}, {bent:g}, {little:g}", rule=rule)
