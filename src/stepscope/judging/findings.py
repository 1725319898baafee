"""Findings of a run: the verdict on its learning rate first, then what describes it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from stepscope.judging.confidence import confidence_of
from stepscope.judging.descriptions import OF_DIRECTIONS, OF_STEPS
from stepscope.judging.finding import Finding, Findings
from stepscope.judging.rate import RateVerdict, judge_rate
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
        evidence = verdict.why + ("" if verdict.evidence.trust.ratio is None else f"; {_evidence(verdict)}")
        return _cannot_tell(evidence, "more measured steps may tell")
    confidence = confidence_of(verdict.kind, verdict.evidence.trust.probes, steps[-1].trajectory)
    summary, change, against = _WORDS[verdict.kind]
    if confidence.share is None:
        sign = summary[0].lower() + summary[1:]
        return _cannot_tell(
            f"{_evidence(verdict)}: by the thresholds {sign}, but {confidence.lacking}",
            "how often that is right isn't known",
        )
    return Finding(
        kind=verdict.kind,
        summary=summary,
        confidence=confidence.share,
        evidence=_evidence(verdict),
        change=change and change.format(_rates(steps)),
        cost=change and "a second training from the same start, as far as this one; keep the one with the lower "
        "held-out loss",
        against=against,
    )  # fmt: skip


def _cannot_tell(evidence: str, against: str) -> Finding:
    return Finding(
        kind="cannot_tell",
        summary="Whether the learning rate is right can't be told",
        evidence=evidence,
        against=against,
    )


_WORDS = {
    "step_too_short": (
        "The learning rate is probably at least three times too small",
        "a peak rate three times as large, then ten times ({})",
        "small batches make the ratio larger; a rate may be small on purpose, to stay near pretrained weights",
    ),
    "step_too_long": (
        "The learning rate is probably at least three times too large",
        "a peak rate a third as large, then a tenth ({})",
        "plain SGD with clipped gradients, and long trainings, bear rates that look too large early on",
    ),
    "healthy": (
        "No sign of a tenfold error of the learning rate",
        None,
        "that it is the best one can't be told: between the thresholds lie rates three times too large and too small",
    ),
}
"""Of each verdict: summary, change, and what speaks against it."""


def _evidence(verdict: RateVerdict) -> str:
    trust, steps = verdict.evidence.trust, verdict.evidence.steps
    return (
        f"on its own batch a step brought about {trust.ratio:.3f} of the change that its gradient foretells (80% "
        f"interval {trust.low:.3f} to {trust.high:.3f}; {trust.probes} steps from step {steps[0]} to {steps[-1]})"
    )


def _rates(steps: list[StepRecord]) -> str:
    """The peak rates of this training."""
    peaks: dict[int, float] = {}
    for step in steps:
        for group, rate in enumerate(step.peak_lr or step.lr or ()):
            peaks[group] = max(peaks.get(group, 0.0), rate or 0.0)
    shown = ", ".join(dict.fromkeys(f"{peak:.3g}" for peak in peaks.values()))
    return f"now {shown}" if shown else "the rate isn't in the records"
