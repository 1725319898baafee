"""Judged claims as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from stepscope.paper.claims.beside import Other, verdict_beside
from stepscope.paper.claims.verdicts import STARTS, JudgedClaim, Judgment
from stepscope.paper.statistics import CONFIDENCE
from stepscope.report import NOTHING, Table

LATER_RULES = (
    ("a single violation refutes the bound", "C12", "there was none"),
    (
        "a point where neither SGD's sharpness nor its robust value is positive speaks against the claim where an "
        "adaptive method's is higher",
        "C1",
        "without it the claim would hold on the first version's BERT",
    ),
    ("points where no direction lowers the loss say nothing of which is best", "C4, C5", "such a point has no best"),
    ("sentiment decides nothing", "C1 to C6", "the paper measures no directions on it"),
    (
        "on each task the optimizers of the paper's own lists decide: on code not SGD's clipping, normalized SGD and "
        "signSGD; clipping an update nowhere",
        "C1, C2, C4, C5, C7, C8",
        "the paper claims nothing of the others; of the first results C1 did not hold with them and cannot be told "
        "without, and C8 the other way round",
    ),
    (
        "pretrained weights decide, random ones are the contrast",
        "all",
        "the paper's are pretrained; the first results were from random weights, but for images",
    ),
    (
        "what is claimed of every point is judged of their median too, after it, and the strict reading decides",
        "C1, C10",
        "the paper's words allow both",
    ),
)  # fmt: skip
"""Rules that came after the first results: what is claimed, of which claims, and why or what it changed."""

NOT_THERE = "not measured"


def claims_table(claims: Sequence[JudgedClaim], others: Sequence[Other] = ()) -> Table:
    """One row a claim and reading, with the verdict from each start.

    Args:
        claims: those of a reproduction.
        others: reproductions that stand beside. One with other seeds on the same settings says whether a verdict is
            stable; each other has columns.
    """
    scales = _unique(run.scale for claim in claims for run in claim.runs)
    at_scale = f", scale{'s' * (len(scales) > 1)} {' and '.join(scales)}" if scales else ""
    beside = [(other, start) for other in others for start in STARTS if _stands_beside(other, start, claims)]
    rows = tuple(row for claim in claims for row in _rows(claim, others, beside))
    note = (
        "Each claim is split into parts with a threshold that was fixed before the results (next table). A part holds "
        f"if Student's {CONFIDENCE:.0%} interval of the seeds' mean lies wholly on the claimed side, and does not if "
        "it lies wholly beyond; one seed never tells. A claim holds if all its deciding parts do, and does not hold if "
        "one does not. The paper's models are pretrained: those decide, and random weights are the contrast. Statistic "
        "and seeds are of the first start that was measured. A verdict that other seeds changed is unstable."
    )
    headers = (
        "claim",
        "statement",
        *STARTS,
        *(f"{other.name}, {start}" for other, start in beside),
        "statistic",
        "seeds",
    )
    return Table(f"The paper's claims{at_scale}", headers, rows, note)


def _stands_beside(other: Other, start: str, claims: Sequence[JudgedClaim]) -> bool:
    """Whether another reproduction has something of this start to say that isn't the same with other seeds."""
    own = [(claim, judgment) for claim in claims for judgment in claim.judgments if judgment.start == start]
    return any(other.on(*each) and not other.repeats(*each) for each in own)


def _rows(
    claim: JudgedClaim, others: Sequence[Other], beside: Sequence[tuple[Other, str]]
) -> Iterator[tuple[str, ...]]:
    readings: dict[str, dict[str, Judgment]] = {}
    for judgment in claim.judgments:
        readings.setdefault(judgment.reading, {})[judgment.start] = judgment
    for reading, own in readings.items():
        first = next(iter(own.values()))
        # What has no start says the same of both.
        verdicts = [own.get(start) or own.get("") for start in STARTS]
        elsewhere = [other.says.get((claim.id, start, reading)) for other, start in beside]
        yield (
            claim.id,
            f"the same, read as the {reading}" if reading else claim.statement,
            *(verdict_beside(claim, verdict, others) if verdict else NOT_THERE for verdict in verdicts),
            *(said.verdict if said else NOT_THERE for said in elsewhere),
            first.statistic,
            _counts(first),
        )


def parts_table(claims: Sequence[JudgedClaim]) -> Table:
    """One row a part of a claim."""
    rows = tuple(
        (
            claim.id,
            part.name if part.deciding else f"({part.name})",
            part.sample.start or NOTHING,
            f"{part.criterion.text} {part.criterion.threshold}",
            part.number,
            str(len(part.values)),
            part.scale,
            part.verdict,
            part.remark,
        )
        for claim in claims
        for part in claim.parts
    )
    headers = ("claim", "part", "start", "claimed", "mean over seeds", "seeds", "scale", "verdict", "remark")
    note = (
        "In square brackets Student's interval. A part in parentheses stands beside: no verdict depends on it. Of what "
        "is beyond the paper, the paper claims nothing."
    )
    return Table("The parts of the claims", headers, rows, note)


def departures_table(claims: Sequence[JudgedClaim]) -> Table:
    """One row a departure from the paper's settings, with the claims that it touches."""
    touched: dict[str, list[str]] = {}
    for claim in claims:
        for departure in claim.departures:
            touched.setdefault(departure, []).append(claim.id)
    rows = tuple((departure, ", ".join(ids)) for departure, ids in touched.items())
    note = "Read off the records. A verdict is on these runs; on the paper's own settings it may be another."
    return Table("Departures from the paper's settings", ("departure", "claims"), rows, note)


def later_rules_table() -> Table:
    """One row a rule that came after the first results."""
    note = "Thresholds were fixed before any result, and stayed."
    return Table("Rules that came after the first results", ("rule", "claims", "why"), LATER_RULES, note)


def _counts(judgment: Judgment) -> str:
    """How many seeds each deciding part has: a number, or from fewest to most."""
    counts = [len(part.values) for part in judgment.parts]
    if not counts:
        return NOTHING
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _unique(values: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(values))
