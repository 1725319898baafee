"""The verdict on a training's learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from stepscope.judging.outlook import Outlook, outlook
from stepscope.judging.rise import Rise, is_not_finite, rise_of
from stepscope.judging.trust import TrustRatio, terms_of, trust_ratio
from stepscope.runs import StepRecord

Kind = Literal["step_too_short", "step_too_long", "healthy", "cannot_tell"]
Side = Literal["", "step_too_short", "step_too_long"]
Ground = Literal["straight", "little_ahead", "bent", "thrown_off", "healthy", "cannot_tell"]

_KINDS: dict[Ground, Kind] = {
    "straight": "step_too_short",
    "little_ahead": "step_too_short",
    "bent": "step_too_long",
    "thrown_off": "step_too_long",
    "healthy": "healthy",
    "cannot_tell": "cannot_tell",
}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The thresholds of the verdict; `docs/calibration.md` has their errors, and what was rejected.

    Attributes:
        short: the step is too short where the whole interval of the trust ratio lies above,
        slight: and a fall of the loss by less than `little` times itself is predicted; or by less than `much` times,
            and more than this part of its later half has come true.
        straight: it is too short as well where the interval lies above this: on a parabola, a step three times as long
            ends before its minimum where the ratio is above 5/6,
        little: the gradients predict, for the whole training, a fall of the loss below this multiple of it,
        late: and more than this part of its later half has come true.
        long: no rate is called healthy where the interval reaches below,
        much: a step is too long if more than this multiple of the loss is predicted,
        bent: the interval lies below this,
        worth: and what comes true in the whole training is predicted of fewer steps than so many;
        far: or the interval lies below this.
        most: it is too long as well where a step is predicted to bring more than this multiple of the loss, in the
            mean; or where the loss rose until it wasn't finite.
        window: the part of the training whose steps count for the trust ratio: before it the loss is that of the start,
            after it the ratio tells little.
        least_rate: the least learning rate of a step that counts, as a part of the peak: the small rates of a warm-up
            and of a schedule's end aren't the one that is judged.
        least_probes: the least number of steps.
        coverage: of the interval.
        rise: where the loss came to lie above its start by this part of it, the step isn't called short or healthy: a
            model that a step has thrown far off can be flat there.
    """

    short: float = 0.97
    slight: float = 0.1
    straight: float = 5 / 6
    little: float = 1.5
    late: float = 0.25
    long: float = 0.5
    much: float = 5.0
    bent: float = 0.7
    worth: float = 2.5
    far: float = 0.3
    most: float = 1.0
    window: tuple[float, float] = (0.03, 0.50)
    least_rate: float = 0.5
    least_probes: int = 5
    coverage: float = 0.8
    rise: float = 0.2


RULE = Rule()
"""The rule that ships."""


@dataclass(frozen=True)
class RateEvidence:
    """What the steps of a training say about its learning rate, before anything is judged.

    Attributes:
        trust: the trust ratio of the steps that count.
        steps: those steps, in order.
        silent: the reason to say nothing; empty where there is none.
        rise: how far the loss came to lie above its start.
        outlook: what the gradients predict for the whole training, and what came true.
    """

    trust: TrustRatio
    steps: tuple[int, ...]
    silent: str
    rise: Rise
    outlook: Outlook | None


@dataclass(frozen=True)
class RateVerdict:
    """What the steps say of the learning rate.

    Attributes:
        ground: what the verdict rests on, which is what the calibration counts. Steps are too short where the loss is
            ``"straight"`` along them, or, with ``"little_ahead"``, by the outlook of the training; too long where it is
            ``"bent"``, or the training is ``"thrown_off"``.
        evidence: the numbers.
        why: where nothing can be told, the reason.
        near: where nothing can be told since the interval reaches past one threshold alone, the verdict beyond that;
            none where the interval does so by rounding alone, nor where more or less than `Rule.much` is predicted than
            that verdict asks for.
    """

    ground: Ground
    evidence: RateEvidence
    why: str = ""
    near: Side = ""

    @property
    def kind(self) -> Kind:
        """The verdict. ``"healthy"`` means no sign of a tenfold error, and no more."""
        return _KINDS[self.ground]


def judge_rate(records: Sequence[StepRecord], rule: Rule = RULE) -> RateVerdict:
    """Judges the peak learning rate of one training by the steps that were measured on their own batches.

    Two things are looked at. The trust ratio `T` of the steps between 3% and 50% of the training, at rates of at least
    half of the peak, says how straight the loss is along a step. The outlook says how far the loss falls over the
    training if all comes true that the gradients predict, as a multiple of the loss, and which part of it does.

    The rate is too large if more than five times the loss is predicted, and the interval of `T` lies below 0.3, or
    below 0.7 where the whole training comes to less than two and a half of its steps are predicted to; or if the loss
    rose until it wasn't finite, or a single step is predicted to bring more than all of the loss, in the mean. It is
    too small if the interval lies above 5/6, less than 1.5 times the loss is predicted, and more than a quarter of its
    later half comes true; or above 0.97, where less than 1.5 times the loss is predicted, or less than five times, of
    whose later half more than a tenth comes true. Where the length of a training isn't known, little may be predicted
    since it has just begun: that decides nothing.

    Args:
        records: the steps of one training, in order. Where its length isn't recorded, it is taken to end at the last.
        rule: the thresholds.

    Returns:
        The verdict.
    """
    return verdict_of(evidence_of(records, rule), rule)


def evidence_of(records: Sequence[StepRecord], rule: Rule = RULE) -> RateEvidence:
    """What the thresholds of a verdict are held against.

    Args:
        records: the steps of one training, in order.
        rule: which steps count.
    """
    counted = counted_steps(records, rule)
    return RateEvidence(
        trust_ratio(counted, rule.coverage),
        tuple(record.step for record in counted),
        _reason_to_be_silent(records, counted, rule),
        rise_of(records),
        outlook(records),
    )


def verdict_of(evidence: RateEvidence, rule: Rule = RULE) -> RateVerdict:
    """The verdict on evidence.

    Args:
        evidence: see `evidence_of`.
        rule: the thresholds.
    """
    rise, ahead = evidence.rise, evidence.outlook
    if rise.thrown_off is not None or (ahead and ahead.of_a_step > rule.most):
        return RateVerdict("thrown_off", evidence)
    if evidence.silent:
        return RateVerdict("cannot_tell", evidence, evidence.silent)
    return _judged(evidence, rule)


def counted_steps(records: Sequence[StepRecord], rule: Rule = RULE) -> list[StepRecord]:
    """The steps that the rate is judged by: within the window, and at the peak's rate or near it.

    Args:
        records: the steps of one training.
        rule: the thresholds.
    """
    first, last = (part * _length(records) for part in rule.window)
    peaks = _peaks(records)
    return [
        record
        for record in records
        if first <= record.step <= last
        and terms_of(record) is not None
        and _part_of_peak(record, peaks) >= rule.least_rate
    ]


def _length(records: Sequence[StepRecord]) -> int:
    known = [record.steps for record in records if record.steps is not None]
    return known[-1] if known else max((record.step for record in records), default=0)


def _peaks(records: Sequence[StepRecord]) -> list[float]:
    """The largest rate of each parameter group."""
    peaks: list[float] = []
    for record in records:
        for rates in (record.lr, record.peak_lr):
            for group, rate in enumerate(rates or ()):
                peaks += [0.0] * (group + 1 - len(peaks))
                peaks[group] = max(peaks[group], rate or 0.0)
    return peaks


def _part_of_peak(record: StepRecord, peaks: Sequence[float]) -> float:
    """The rate as a part of its peak, the least of all groups; 1 where no rate is known."""
    rates = zip(record.lr or (), peaks, strict=False)
    return min((rate / peak for rate, peak in rates if rate is not None and peak), default=1.0)


def _reason_to_be_silent(records: Sequence[StepRecord], counted: Sequence[StepRecord], rule: Rule) -> str:
    measured = [record for record in records if terms_of(record) is not None]
    if not measured and any(map(is_not_finite, records)):
        return "after the measured steps, or before, the loss of their batches wasn't finite"
    if not measured:
        return (
            "no step was measured on the batch that made it: compute the loss by `probe.loss_fn(model, batch)`, or see "
            "what the probe warned of"
        )
    if _warming_up(records):
        return "the learning rate was still rising at the last measured step"
    if len(counted) < rule.least_probes and any(map(is_not_finite, records)):
        return "before or after a measured step the loss of its batch wasn't finite"
    if len(counted) < rule.least_probes:
        first, last = (part * _length(records) for part in rule.window)
        unknown = all(record.steps is None for record in records)
        return (
            f"{len(counted)} of the {len(measured)} measured steps lie between steps {first:.0f} and {last:.0f}, at a "
            f"rate near the peak, and {rule.least_probes} are needed"
            + ("; `steps=` tells the probe how long the training is" if unknown else "")
        )
    return ""


def _warming_up(records: Sequence[StepRecord]) -> bool:
    """Whether the learning rate of the last step is its peak, and above that of the step before."""
    if len(records) < 2:
        return False
    peaks = _peaks(records)
    before, last = (_part_of_peak(record, peaks) for record in records[-2:])
    return before < last == 1


def _judged(evidence: RateEvidence, rule: Rule) -> RateVerdict:
    trust, ahead, rise = evidence.trust, evidence.outlook, evidence.rise
    if trust.ratio is None:
        return RateVerdict("cannot_tell", evidence, "the measured steps don't go downhill on their own batches")
    if ahead is None:
        why = "the loss began at zero or below, or steps go uphill: no part of a fall of it can come true"
        return RateVerdict("cannot_tell", evidence, why)
    much = ahead.predicted > rule.much
    if much and (trust.high < rule.far or (trust.high < rule.bent and ahead.worth < rule.worth)):
        return RateVerdict("bent", evidence)
    if rise.highest > rule.rise or not rise.is_finite:
        why = f"the loss came to lie {rule.rise:.0%} above its start, or wasn't finite: often a step that is too long"
        return RateVerdict("cannot_tell", evidence, why)
    little = ahead.is_whole and ahead.predicted < rule.little
    if trust.low > rule.short and (little or (not much and ahead.late > rule.slight)):
        return RateVerdict("straight", evidence)
    if trust.low > rule.straight and little and ahead.late > rule.late:
        return RateVerdict("little_ahead", evidence)
    return _undecided(evidence, trust, rule)


def _undecided(evidence: RateEvidence, trust: TrustRatio, rule: Rule) -> RateVerdict:
    """Between the verdicts, or near one."""
    if trust.high < rule.long or trust.low > rule.short:
        side = "large" if trust.high < rule.long else "small"
        why = (
            f"the trust ratio is that of a rate that is too {side}, and what is predicted of the training, or comes "
            "true of it, isn't"
        )
        return RateVerdict("cannot_tell", evidence, why)
    past = [f"below {rule.long:g}"] * (trust.low < rule.long) + [f"above {rule.short:g}"] * (trust.high > rule.short)
    if not past:
        return RateVerdict("healthy", evidence)
    # Weights in low precision that are too small a step away don't move: as if all steps were far too long.
    without = trust.high - trust.rounding
    is_rounding = without < rule.long or without <= rule.short < trust.high
    near: Side = "step_too_long" if trust.low < rule.long else "step_too_short"
    much = evidence.outlook is not None and evidence.outlook.predicted > rule.much
    if len(past) == 2 or is_rounding or much != (near == "step_too_long"):
        near = ""
    return RateVerdict("cannot_tell", evidence, f"the interval of the trust ratio reaches {' and '.join(past)}", near)
