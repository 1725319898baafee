"""What a claim is, what it is split into, and the one rule by which all of them are judged.

A *part* has one number a seed and a threshold that was fixed before any result. Student's 95% interval of the seeds'
mean decides: a part *holds* if the interval lies wholly on the claimed side of the threshold, *does not hold* if it
lies wholly beyond, and else *cannot tell*. A claim holds if all its deciding parts do, and does not if one does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean as mean
from typing import Any, TypeVar

from stepscope.paper.runs import Run
from stepscope.paper.statistics import MeanInterval, mean_interval
from stepscope.runs import Record, number

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot tell"

CONFIDENCE = 0.95

FEW = 3
"""Parts that a claim's line names one by one."""

Key = tuple[Any, ...]
"""What tells the measurements of one seed apart."""

Data = TypeVar("Data")


class Unmeasured(Exception):  # noqa: N818
    """A seed's records lack a number that a statistic needs; the message says which."""


@dataclass(frozen=True)
class Threshold:
    """What a part claims of its number.

    Attributes:
        relation: ``"<"``, ``"≤"``, ``">"`` or ``"≥"``.
        value: the number on its right.
        always: whether it is claimed of every single case, so that one seed on the other side refutes it, whatever the
            mean of several.
    """

    relation: str
    value: float
    always: bool = False

    def verdict(self, interval: MeanInterval) -> str:
        """The rule.

        Example:
            >>> [Threshold("<", 0.5).verdict(MeanInterval(m, m - 0.1, m + 0.1)) for m in (0.3, 0.45, 0.7)]
            ['holds', 'cannot tell', 'does not hold']
        """
        below = self.relation in ("<", "≤")
        # How far the interval's ends lie on the claimed side.
        worst = self.value - interval.high if below else interval.low - self.value
        best = self.value - interval.low if below else interval.high - self.value
        if worst > 0 or (worst == 0 and self.relation in ("≤", "≥")):
            return HOLDS
        return FAILS if best < 0 else UNCLEAR

    def __str__(self) -> str:
        return f"{self.relation} {self.value:g}"


@dataclass(frozen=True)
class Part:
    """One thing that a claim says: of a task, of a method.

    Attributes:
        name: of what, such as ``"code, sgd"``.
        statistic: what each seed's number is.
        threshold: what is claimed of it.
        runs: the runs that it is measured by.
        values: ``{seed: number}``, whole seeds only.
        remarks: what has to be known beside.
        deciding: whether the claim's verdict depends on it.
    """

    name: str
    statistic: str
    threshold: Threshold
    runs: tuple[Run, ...]
    values: Mapping[Any, float]
    remarks: tuple[str, ...] = ()
    deciding: bool = True

    @property
    def interval(self) -> MeanInterval | None:
        """Of the seeds' mean; None if nothing was measured."""
        return mean_interval(list(self.values.values()), confidence=CONFIDENCE) if self.values else None

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"does not hold"`` or ``"cannot tell"``."""
        if self.threshold.always and len(self.values) > 1:
            alone = [MeanInterval(value, value, value) for value in self.values.values()]
            return FAILS if FAILS in map(self.threshold.verdict, alone) else HOLDS
        return self.threshold.verdict(self.interval) if self.interval else UNCLEAR

    @property
    def remark(self) -> str:
        """All remarks, first why nothing can be told from too few seeds."""
        few = {0: ("not measured",), 1: ("one seed",)}.get(len(self.values), ())
        return "; ".join(dict.fromkeys(remark for remark in (*few, *self.remarks) if remark))

    @property
    def number(self) -> str:
        """Its mean and interval in words.

        Example:
            >>> Part("code", "ratio", Threshold("<", 0.5), (), {0: 0.3, 1: 0.31, 2: 0.32}).number
            '0.31 [0.285, 0.335]'
        """
        if self.interval is None:
            return "not measured"
        mean, low, high = self.interval
        return f"{mean:.3g} [{low:.3g}, {high:.3g}]" if len(self.values) > 1 else f"{mean:.3g} (one seed)"


@dataclass(frozen=True)
class Claim:
    """One of the paper's claims, and what the records say of it.

    Attributes:
        id: such as ``"C1"``.
        statement: what the paper says.
        parts: what it is split into.
        departures: in what the runs that were used differ from the paper's.
    """

    id: str
    statement: str
    parts: tuple[Part, ...]
    departures: tuple[str, ...]

    @property
    def deciding(self) -> tuple[Part, ...]:
        """The parts that its verdict depends on."""
        return tuple(part for part in self.parts if part.deciding)

    @property
    def verdict(self) -> str:
        """``"holds"``, ``"does not hold"`` or ``"cannot tell"``."""
        verdicts = {part.verdict for part in self.deciding}
        if FAILS in verdicts:
            return FAILS
        return HOLDS if verdicts == {HOLDS} else UNCLEAR

    @property
    def threshold(self) -> str:
        """What is claimed of which number, in words."""
        return "; ".join(dict.fromkeys(f"{part.statistic} {part.threshold}" for part in self.deciding))

    @property
    def statistic(self) -> str:
        """The numbers in words, of many parts the least and the greatest; and how many parts hold.

        Example:
            >>> Claim("C1", "", (Part("code", "ratio", Threshold("<", 0.5), (), {0: 0.25, 1: 0.25}),), ()).statistic
            'code 0.25 [0.25, 0.25]; 1 of 1 holds'
        """
        if not self.deciding:
            return "not measured"
        told_of = self.deciding
        measured = sorted((part for part in told_of if part.interval), key=lambda part: mean(part.values.values()))
        if len(told_of) > FEW and len(measured) > 1:
            told_of = (measured[0], measured[-1])
        numbers = (" to " if len(told_of) < len(self.deciding) else "; ").join(f"{p.name} {p.number}" for p in told_of)
        verdicts = [part.verdict for part in self.deciding]
        held, failed = verdicts.count(HOLDS), verdicts.count(FAILS)
        told = f"{held} of {len(verdicts)} {'holds' if held == 1 else 'hold'}"
        against = f", {failed} {'does' if failed == 1 else 'do'} not" if failed else ""
        return f"{numbers}; {told}{against}"


def whole_seeds(
    run: Run, wanted: Collection[Key], key: Callable[[Record], Key], records: Iterable[Record] | None = None
) -> tuple[dict[Any, dict[Key, Record]], tuple[str, ...]]:
    """The measurements of the seeds for which there are all: an unfinished one would speak of a part of the run.

    Args:
        run: its configuration says which seeds there are to be.
        wanted: the keys of all measurements of a seed.
        key: of a record.
        records: those to look at; None for all of the run.

    Returns:
        ``{seed: {key: record}}`` in the configuration's order, of equal keys the later; and what is missing, in words.
    """
    found: dict[Any, dict[Key, Record]] = {}
    for record in run.records if records is None else records:
        if (own := key(record)) in wanted:
            found.setdefault(record.get("seed"), {})[own] = record
    seeds = run.head["configuration"].get("seeds") or ()
    whole = {seed: found[seed] for seed in seeds if wanted and len(found.get(seed, ())) == len(set(wanted))}
    rest = [str(seed) for seed in seeds if seed not in whole]
    return whole, unfinished(rest)


def unfinished(seeds: Sequence[Any]) -> tuple[str, ...]:
    """The remark on seeds that aren't finished.

    Example:
        >>> unfinished([1, 2]), unfinished([])
        (('seeds 1, 2 are not finished',), ())
    """
    if not seeds:
        return ()
    return (
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))} {'are' if len(seeds) > 1 else 'is'} not finished",
    )


def by_seed(seeds: Mapping[Any, Data], statistic: Callable[[Data], float]) -> tuple[dict[Any, float], tuple[str, ...]]:
    """A statistic of each seed; and in words, for which seeds it has no value.

    Args:
        seeds: ``{seed: what was measured}``.
        statistic: raises `Unmeasured` where a number that it needs is missing.
    """
    values, lost = {}, []
    for seed, measured in seeds.items():
        try:
            value = statistic(measured)
        except Unmeasured as missing:
            lost.append(f"seed {seed} doesn't count: {missing}")
            continue
        if math.isfinite(value):
            values[seed] = value
        else:
            lost.append(f"seed {seed} doesn't count: its value is not finite")
    return values, tuple(lost)


def needed(record: Record, name: str, what: str) -> float:
    """A number of a record.

    Args:
        record: the record.
        name: of the number.
        what: whose number it is, for the message.

    Raises:
        Unmeasured: it isn't there, or isn't finite.
    """
    value = number(record, name)
    if value is None:
        raise Unmeasured(f"there is no {name} of {what}")
    return value
