"""What a claim is, and the one rule by which all of them are judged.

A claim is tested on *samples* (a task, a method) by *criteria* (a statistic of one seed, a threshold that was fixed
before any result). Student's 95% interval of the seeds' mean decides: a *part*, one criterion on one sample, *holds* if
the interval lies wholly on the claimed side of the threshold, *does not hold* if it lies wholly beyond, and else
*cannot tell*. A claim holds if all its deciding parts do, and does not if one does not. Only whole seeds count, and one
seed never tells. An interval that touches a strict threshold can't tell, as between a variant and its equal original.

The paper's models are pretrained, so from pretrained weights a claim is decided; from random ones, the contrast, it is
judged by the same rule beside it. Where the paper's words allow a weaker reading, that is judged too, after the strict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean as mean
from typing import Any

from stepscope.paper.claims.departures import departures
from stepscope.paper.claims.papers_lists import NOT_COMPARED, compares
from stepscope.paper.reproduction_runs import Run
from stepscope.paper.statistics import MeanInterval, mean_interval
from stepscope.runs import Record

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot tell"
MARKS = {HOLDS: "✓", FAILS: "✗", UNCLEAR: "?"}

FEW = 3
"""Parts that a claim's line names one by one."""

PRETRAINED, RANDOM = "pretrained", "random"
STARTS = (PRETRAINED, RANDOM)
"""Where weights begin; the first decides where both were measured."""

Key = tuple[Any, ...]
"""What tells the measurements of one seed apart."""


class Unmeasured(Exception):  # noqa: N818
    """A seed's records lack a number that a statistic needs; the message says which."""


@dataclass(frozen=True)
class Sample:
    """What a claim is tested on.

    Attributes:
        name: of what, such as ``"code"``.
        runs: the runs that it was measured by; none for a task that the claim is about and that has no run.
        seeds: ``{seed: what the statistic takes}``, whole seeds only.
        remarks: why it can't decide, or what is missing.
        deciding: whether the claim's verdict may depend on it.
        start: where its weights began, one of `STARTS`; empty where it has none.
        task: its task, where that decides what the paper claims of it.
        beyond: why the paper doesn't claim it of this; then no verdict depends on it. Empty where the paper does.
    """

    name: str
    runs: tuple[Run[Record], ...] = ()
    seeds: Mapping[Any, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    deciding: bool = True
    start: str = ""
    task: str = ""
    beyond: str = ""


@dataclass(frozen=True)
class Criterion:
    """A statistic of one seed, and the threshold that it is claimed to keep.

    Attributes:
        relation: ``"<"``, ``"≤"``, ``">"`` or ``"≥"``.
        value: the number on its right.
        statistic: of one seed of a sample; raises `Unmeasured` where a number that it needs is missing.
        text: what that number is.
        name: behind the sample's, where a claim has several criteria.
        deciding: whether the claim's verdict may depend on it.
        always: whether it is claimed of every single case, so that one seed on the other side refutes it, whatever the
            mean of several.
        optimizer: whose number it is; empty where it is of several optimizers, or of none.
        reading: of a weaker reading of the paper's words, what it is called; empty for the strict one.
    """

    relation: str
    value: float
    statistic: Callable[[Any], float]
    text: str
    name: str = ""
    deciding: bool = True
    always: bool = False
    optimizer: str = ""
    reading: str = ""

    def verdict(self, interval: MeanInterval) -> str:
        """The rule, for the interval of the seeds' mean."""
        sign = -1 if self.relation in "<≤" else 1
        # How far the interval's ends lie on the claimed side.
        worst, best = sorted(sign * (end - self.value) for end in (interval.low, interval.high))
        if worst > 0 or (worst == 0 and self.relation in "≤≥"):
            return HOLDS
        return FAILS if best < 0 else UNCLEAR

    @property
    def threshold(self) -> str:
        """In words."""
        return f"{self.relation} {self.value:g}"


@dataclass(frozen=True)
class Claim:
    """What the paper says, and how it is tested: each criterion on every sample.

    Attributes:
        id: such as ``"C1"``.
        statement: what the paper says.
        samples: of the runs, what it is tested on.
        criteria: what is claimed of them.
    """

    id: str
    statement: str
    samples: Callable[[Sequence[Run[Record]]], Iterable[Sample]]
    criteria: tuple[Criterion, ...]

    def judge(self, runs: Sequence[Run[Record]]) -> JudgedClaim:
        """What the runs say of it."""
        parts = (_part(sample, criterion) for sample in self.samples(runs) for criterion in self.criteria)
        return JudgedClaim(self.id, self.statement, tuple(parts))


@dataclass(frozen=True)
class Part:
    """One criterion on one sample.

    Attributes:
        sample: of what.
        criterion: what is claimed.
        values: ``{seed: number}``, whole seeds only.
        lost: which seeds have no number, and why.
    """

    sample: Sample
    criterion: Criterion
    values: Mapping[Any, float]
    lost: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Such as ``"code, lowest"``."""
        return f"{self.sample.name}, {self.criterion.name}" if self.criterion.name else self.sample.name

    @property
    def beyond(self) -> str:
        """Why the paper doesn't claim it; empty where it does."""
        if self.criterion.optimizer and not compares(self.sample.task, self.criterion.optimizer):
            return NOT_COMPARED
        return self.sample.beyond

    @property
    def deciding(self) -> bool:
        """Whether the claim's verdict depends on it."""
        return self.sample.deciding and self.criterion.deciding and not self.beyond

    @property
    def interval(self) -> MeanInterval | None:
        """Of the seeds' mean; None if nothing was measured."""
        return mean_interval(list(self.values.values())) if self.values else None

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"does not hold"`` or ``"cannot tell"``."""
        if self.criterion.always and len(self.values) > 1:
            alone = [MeanInterval(value, value, value, 0.0) for value in self.values.values()]
            return FAILS if FAILS in map(self.criterion.verdict, alone) else HOLDS
        return self.criterion.verdict(self.interval) if self.interval else UNCLEAR

    @property
    def remark(self) -> str:
        """Why it can't be told, or can't decide; first that seeds are too few."""
        few = {0: ("not measured",), 1: ("one seed",)}.get(len(self.values), ())
        remarks = (*few, self.beyond, *self.sample.remarks, *self.lost)
        return "; ".join(dict.fromkeys(remark for remark in remarks if remark))

    @property
    def scale(self) -> str:
        """Of the runs that it was measured by; several one after another."""
        return ", ".join(dict.fromkeys(run.scale for run in self.sample.runs))

    @property
    def number(self) -> str:
        """Its mean and interval in words."""
        if self.interval is None:
            return "not measured"
        mean, low, high, _ = self.interval
        return f"{mean:.3g} [{low:.3g}, {high:.3g}]" if len(self.values) > 1 else f"{mean:.3g} (one seed)"


@dataclass(frozen=True)
class Judgment:
    """What is said of a claim from one start, in one reading.

    Attributes:
        start: one of `STARTS`; empty where no part has one.
        reading: empty for the strict one.
        parts: those that decide.
    """

    start: str
    reading: str
    parts: tuple[Part, ...]

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"does not hold"`` or ``"cannot tell"``."""
        verdicts = {part.verdict for part in self.parts}
        if FAILS in verdicts:
            return FAILS
        return HOLDS if verdicts == {HOLDS} else UNCLEAR

    @property
    def threshold(self) -> str:
        """What is claimed of which number, in words."""
        return "; ".join(dict.fromkeys(f"{part.criterion.text} {part.criterion.threshold}" for part in self.parts))

    @property
    def seeds(self) -> list[Any]:
        """All that count, each once."""
        return list(dict.fromkeys(seed for part in self.parts for seed in part.values))

    @property
    def statistic(self) -> str:
        """The numbers in words, of many parts the least and the greatest; and how many parts hold."""
        if not self.parts:
            return "not measured"
        shown = self.parts
        measured = sorted((part for part in shown if part.values), key=lambda part: mean(part.values.values()))
        if len(shown) > FEW and len(measured) > 1:
            shown = (measured[0], measured[-1])
        numbers = (" to " if len(shown) < len(self.parts) else "; ").join(f"{p.name} {p.number}" for p in shown)
        verdicts = [part.verdict for part in self.parts]
        held, failed = verdicts.count(HOLDS), verdicts.count(FAILS)
        against = f", {failed} {'does' if failed == 1 else 'do'} not" if failed else ""
        return f"{numbers}; {held} of {len(verdicts)} {'holds' if held == 1 else 'hold'}{against}"


@dataclass(frozen=True)
class JudgedClaim:
    """What the records say of a claim.

    Attributes:
        id: of the claim.
        statement: what the paper says.
        parts: each criterion on each sample.
    """

    id: str
    statement: str
    parts: tuple[Part, ...]

    @property
    def runs(self) -> list[Run[Record]]:
        """All that were used, each once."""
        return list({run.name: run for part in self.parts for run in part.sample.runs}.values())

    @property
    def departures(self) -> tuple[str, ...]:
        """In what these runs differ from the paper's."""
        return departures(self.runs)

    @property
    def judgments(self) -> list[Judgment]:
        """From each start that was measured, in each reading: first what decides."""
        deciding = [part for part in self.parts if part.deciding]
        own = {part.sample.start for part in deciding}
        starts = [start for start in STARTS if start in own] or [""]
        return [
            Judgment(start, reading, tuple(
                part for part in deciding if part.sample.start in (start, "") and part.criterion.reading == reading
            ))
            for reading in dict.fromkeys(part.criterion.reading for part in deciding) or [""]
            for start in starts
        ]  # fmt: skip

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"does not hold"`` or ``"cannot tell"``: read strictly, from the start that decides."""
        return self.judgments[0].verdict


def _part(sample: Sample, criterion: Criterion) -> Part:
    values, lost = {}, []
    for seed, measured in sample.seeds.items():
        try:
            value = float(criterion.statistic(measured))
        except Unmeasured as missing:
            lost.append(f"seed {seed} doesn't count: {missing}")
            continue
        if math.isfinite(value):
            values[seed] = value
        else:
            lost.append(f"seed {seed} doesn't count: its value is not finite")
    return Part(sample, criterion, values, tuple(lost))


def whole_seeds(
    run: Run[Record], fields: Sequence[str], wanted: Iterable[Key], records: Iterable[Any]
) -> tuple[dict[int, dict[Key, Any]], tuple[str, ...]]:
    """The measurements of the seeds for which there are all: an unfinished one would speak of a part of the run.

    Args:
        run: its configuration says which seeds there are to be.
        fields: of a record, which tell the measurements of a seed apart.
        wanted: the values of these fields, for each measurement of a seed.
        records: those of the run to look at.

    Returns:
        ``{seed: {values: record}}`` in the configuration's order, of equal values the later; and what is missing, in
        words.
    """
    keys = set(wanted)
    measured: dict[int, dict[Key, Any]] = {}
    for record in records:
        if (key := tuple(getattr(record, field) for field in fields)) in keys:
            measured.setdefault(record.seed, {})[key] = record
    seeds = run.head["configuration"].get("seeds") or ()
    whole = {seed: measured[seed] for seed in seeds if keys and len(measured.get(seed, ())) == len(keys)}
    return whole, unfinished([seed for seed in seeds if seed not in whole])


def unfinished(seeds: Sequence[Any]) -> tuple[str, ...]:
    """The remark on seeds that aren't finished.

    Example:
        >>> unfinished([1, 2]), unfinished([])
        (('seeds 1, 2 are not finished',), ())
    """
    if not seeds:
        return ()
    several = len(seeds) > 1
    return (f"seed{'s' * several} {', '.join(map(str, seeds))} {'are' if several else 'is'} not finished",)


def needed(value: float | None, name: str) -> float:
    """A number that a statistic needs; raises `Unmeasured` with its name where it wasn't measured or isn't finite."""
    if value is None:
        raise Unmeasured(f"there is no {name}")
    return value
