"""Findings of a run: the verdict on its learning rate first, then what describes it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from stepscope.judging.confidence import confidence_of, trainings_near
from stepscope.judging.descriptions import OF_DIRECTIONS, OF_STEPS
from stepscope.judging.finding import Finding, Findings
from stepscope.judging.outlook import Outlook
from stepscope.judging.rate import RULE, RateEvidence, RateVerdict, judge_rate
from stepscope.judging.rise import Rise
from stepscope.runs import DirectionRecord, Record, StepRecord, latest, read_training

MOST_FINDINGS = 3


@runtime_checkable
class Recorded(Protocol):
    """What keeps records of a training and has findings of its own: a probe."""

    def findings(self) -> Findings:
        """What they show."""
        ...


def findings(run: str | os.PathLike[str] | Recorded | Iterable[Record]) -> Findings:
    """What the records of a training say about it, the verdict on its learning rate first.

    A pure function of records: while a training goes on it says what can be said so far. ``healthy`` means that there
    is no sign of a tenfold error of the rate, which is less than that the rate is right.

    Args:
        run: a run directory, a probe, or records in the order in which they were measured.

    Returns:
        At most three findings.

    Raises:
        UsageError: it is no run directory, or it is damaged.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "steps": 100, "lr": (0.1,)}
        >>> terms = {"batch_loss": 1.0, "batch_slope": -1.0}
        >>> steps = [StepRecord(**place, step=n, **terms, batch_change=-0.2 - n / 1000) for n in range(5, 8)]
        >>> [finding.kind for finding in findings(steps)]
        ['cannot_tell']
    """
    if isinstance(run, Recorded):
        return run.findings()
    if isinstance(run, str | os.PathLike):
        training = read_training(run)
        records: list[Record] = [*training.directions, *training.steps]
    else:
        records = latest(run)
    return _of_records(records)


def _of_records(records: Iterable[Record]) -> Findings:
    steps, directions = [], []
    for record in records:
        if isinstance(record, StepRecord):
            steps.append(record)
        elif isinstance(record, DirectionRecord):
            directions.append(record)
    described = [*(look(steps) for look in OF_STEPS), *(look(directions) for look in OF_DIRECTIONS)]
    found = [rate_finding(steps), *(finding for finding in described if finding is not None)]
    return Findings(found[:MOST_FINDINGS])


def rate_finding(steps: list[StepRecord]) -> Finding:
    """The verdict on the learning rate, in words. One that isn't calibrated isn't said.

    Args:
        steps: the steps of one training, in order.
    """
    verdict = judge_rate(steps)
    if verdict.kind == "cannot_tell":
        return _cannot_tell(verdict, steps)
    confidence = confidence_of(verdict.ground, verdict.evidence.trust.probes, steps[-1].trajectory)
    summary, against = _WORDS[verdict.ground]
    if confidence.share is None:
        sign = summary[0].lower() + summary[1:]
        return Finding(
            kind="cannot_tell",
            summary=_UNKNOWN,
            evidence=f"{_evidence(verdict)}. By this {sign}, but {confidence.lacking}",
            against="how often that is right isn't known",
        )
    factors = _FACTORS.get(verdict.kind, ())
    return Finding(
        kind=verdict.kind,
        summary=summary,
        confidence=confidence.share,
        evidence=_evidence(verdict),
        change=_peak_rates(steps, factors) if factors else None,
        cost=_COST.format("two more trainings") if factors else None,
        against=against,
    )


def _cannot_tell(verdict: RateVerdict, steps: list[StepRecord]) -> Finding:
    """What is known all the same: on which side of the best rate such trainings were, in the calibration."""
    why = verdict.why
    evidence = why if verdict.evidence.trust.ratio is None else f"{why}: {_evidence(verdict)}"
    counts = verdict.near and trainings_near(verdict.near, steps[-1].trajectory)
    if not counts:
        return Finding(kind="cannot_tell", summary=_UNKNOWN, evidence=evidence, against=_against(verdict.evidence.rise))
    small = verdict.near == "step_too_short"
    wrong, best, other = counts if small else counts[::-1]
    side, beyond = ("below", "above") if small else ("above", "below")
    return Finding(
        kind="cannot_tell",
        summary=f"{_UNKNOWN}; it may be too {'small' if small else 'large'}",
        evidence=f"{evidence}. In the calibration {wrong} of {sum(counts)} such rates lay {side} the best one",
        change=_peak_rates(steps, _FACTORS[verdict.near][:1]),
        cost=_COST.format("a second training"),
        against=f"{best} of these rates were the best, and {other} lay {beyond} it",
    )


def _against(rise: Rise) -> str:
    """What speaks against telling nothing."""
    if not rise.is_finite:
        return "a rate that is far too large does this, and so do examples or a loss that aren't finite"
    if rise.highest > RULE.rise:
        return "a rate that is too large does this, and so does a loss that the training itself changes"
    return "more measured steps may tell"


_SAID: dict[str, str] = {
    "straight": f"Too small is said above {RULE.short:g} if under {RULE.little:g} is predicted, or under {RULE.much:g} "
    f"and over {RULE.slight:g} of its later half comes true",
    "little_ahead": f"Too small is said above {RULE.straight:.2f} if under {RULE.little:g} is predicted and over "
    f"{RULE.late:g} of its later half comes true",
    "bent": f"Too large is said below {RULE.far:g}, and below {RULE.bent:g} if what comes true is predicted of under "
    f"{RULE.worth:g} steps",
}
"""Of each ground of a verdict, the thresholds of the trust ratio that it rests on."""

_NEITHER = f"Too large is said below {RULE.bent:g} at most, too small above {RULE.straight:.2f} at least"

_UNKNOWN = "Whether the learning rate is right can't be told"
_COST = "{} from the same start, as far as this one; keep the one with the lowest held-out loss"
_FACTORS = {"step_too_short": (3, 10), "step_too_long": (1 / 3, 1 / 10)}
"""Of a verdict: what to multiply the rate by, first and then."""

_TOO_SMALL = "The learning rate is probably at least three times too small"
_TOO_LARGE = "The learning rate is probably at least three times too large"
_WORDS = {
    "straight": (
        _TOO_SMALL,
        "small batches make the ratio larger; a rate may be small on purpose, to stay near pretrained weights",
    ),
    "little_ahead": (
        _TOO_SMALL,
        "of a loss that can't come near zero, for a floor or a constant in it, little is predicted at any rate; a rate "
        "may be small on purpose, to stay near pretrained weights",
    ),
    "bent": (
        _TOO_LARGE,
        "long trainings bear rates that look too large early on, and so does plain SGD with clipped gradients",
    ),
    "thrown_off": (
        _TOO_LARGE,
        "damaged examples, or a loss that the training itself changes, can do this at any rate",
    ),
    "healthy": (
        "No sign of a tenfold error of the learning rate",
        "that it is the best one can't be told: between the thresholds lie rates three times too large and too small",
    ),
}
"""Of each ground of a verdict: summary, and what speaks against it."""


def _evidence(verdict: RateVerdict) -> str:
    trust, steps = verdict.evidence.trust, verdict.evidence.steps
    if verdict.ground == "thrown_off":
        return _thrown_off(verdict.evidence)
    measured = (
        f"a step lowered the loss of its own batch by {trust.ratio:.3f} of what its gradient predicts (the trust "
        f"ratio; 80% interval {trust.low:.3f} to {trust.high:.3f}; {trust.probes} steps from step {steps[0]} to "
        f"{steps[-1]})"
    )
    ahead = verdict.evidence.outlook
    if ahead is None:
        return measured
    of = "For the whole training" if ahead.is_whole else "So far"
    return (
        f"{measured}. {of} the gradients predict a fall of the loss by {ahead.predicted:.3g} times itself, of which "
        f"{_came_true(verdict.ground, ahead)}. {_SAID.get(verdict.ground, _NEITHER)}"
    )


def _came_true(ground: str, ahead: Outlook) -> str:
    """In words; where next to nothing is predicted, the part is the noise of batches."""
    if ground == "little_ahead":
        return f"{_part(ahead.realized)} came true, of the later half {_part(ahead.late)}"
    whole = f"{_part(ahead.realized)} came true"
    return f"{whole}: what {ahead.worth:.3g} steps are predicted to bring" if 0 < ahead.realized < 1 else whole


def _part(part: float) -> str:
    return "nothing" if part <= 0 else "all" if part >= 1 else f"{part:.2g}"


def _thrown_off(evidence: RateEvidence) -> str:
    rise, ahead = evidence.rise, evidence.outlook
    if rise.thrown_off is not None:
        return f"from step {rise.thrown_off} on the loss wasn't finite: it rose before, or a step was far too long"
    return (
        f"a step is predicted to lower the loss of its own batch by {ahead.of_a_step if ahead else 0:.3g} times what "
        f"the training began with, in the mean; too large is said above {RULE.most:g}"
    )


def _peak_rates(steps: list[StepRecord], factors: Sequence[float]) -> str:
    """The peak rates to try, in numbers where these are recorded."""
    peaks: dict[int, float] = {}
    for step in steps:
        for group, rate in enumerate(step.peak_lr or step.lr or ()):
            peaks[group] = max(peaks.get(group, 0.0), rate or 0.0)
    rates = list(dict.fromkeys(peak for peak in peaks.values() if peak))
    if not rates:
        parts = [f"{factor:.2g} times" for factor in factors]
        return f"a peak rate {', then '.join(parts)} as large (the rate isn't in the records)"
    shown = [_listed([factor * rate for rate in rates]) for factor in factors]
    return f"a peak rate of {', then '.join(shown)} (now {_listed(rates)})"


def _listed(rates: Sequence[float]) -> str:
    return " and ".join(f"{rate:.2g}" for rate in rates[:3]) + " and so on" * (len(rates) > 3)
