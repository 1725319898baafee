"""The same statistics at several sizes of the models: do they move towards the paper's side?

A *rung* is one deciding part of a claim, from one start, at one scale. Rungs of other scales come from the
reproductions that stand beside; from both starts at two scales they are the 2 × 2 of start and size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stepscope.paper.claims.stored import claims_json
from stepscope.paper.claims.verdicts import MARKS, STARTS, JudgedClaim
from stepscope.report import NOTHING, Table

if TYPE_CHECKING:
    from stepscope.paper.claims.beside import Other

SCALES = ("smoke", "cpu", "desk", "gpu", "paper")
"""From the smallest models to the largest."""


@dataclass(frozen=True)
class Rung:
    """A deciding part of a claim, from one start, at one scale.

    Attributes:
        claim: its id.
        part: its name.
        claimed: what of its number, such as ``"< 0.5"``.
        start: where the weights began.
        scale: the size.
        mean: over seeds.
        interval: Student's, of the mean; an end that is infinite is None.
        seeds: how many.
        verdict: on it.
    """

    claim: str
    part: str
    claimed: str
    start: str
    scale: str
    mean: float
    interval: tuple[float | None, float | None]
    seeds: int
    verdict: str

    @property
    def title(self) -> str:
        """The claim and its part."""
        return f"{self.claim} {self.part}"

    @property
    def margin(self) -> float:
        """How far the mean lies on the claimed side."""
        return (self.mean - self.threshold) * (-1 if self.wants_less else 1)

    @property
    def threshold(self) -> float:
        """The number that it is claimed to keep."""
        return float(self.claimed.split()[1])

    @property
    def wants_less(self) -> bool:
        """Whether less than the threshold is claimed."""
        return self.claimed[0] in "<≤"

    @property
    def number(self) -> str:
        """Its mean and interval in words, with the verdict's mark."""
        ends = [f"{end:.3g}" for end in self.interval if end is not None]
        interval = f" [{', '.join(ends)}]" if len(ends) == 2 else " (one seed)"
        return f"{self.mean:.3g}{interval} {MARKS[self.verdict]}"


def rungs_of(claims: Iterable[Mapping[str, Any]]) -> list[Rung]:
    """The rungs of a reproduction: what was measured at one of the known scales.

    Args:
        claims: judged, as `claims_json` writes them.
    """
    return [
        Rung(
            str(claim["id"]), str(part["name"]), str(part["threshold"]), str(part["start"]), str(part["scale"]),
            float(part["mean"]), (part["interval"][0], part["interval"][1]), len(part["seeds"]), str(part["verdict"]),
        )
        for claim in claims
        for part in claim.get("parts", ())
        if part["deciding"] and part["start"] and part["mean"] is not None and part["scale"] in SCALES
    ]  # fmt: skip


def climbed(claims: Sequence[JudgedClaim], others: Iterable[Other]) -> list[Rung]:
    """What was measured at several scales: the rungs of one reproduction, and those of others at other scales.

    Args:
        claims: of the one.
        others: those that stand beside; of several at the same scale the first counts.
    """
    own = rungs_of(claims_json(claims))
    scales, first = {rung.scale for rung in own}, dict[tuple[str, str, str], Rung]()
    for rung in (rung for other in others for rung in other.rungs):
        if rung.scale not in scales:
            first.setdefault((rung.title, rung.start, rung.scale), rung)
    beside = list(first.values())
    shared = {(rung.title, rung.start) for rung in own} & {(rung.title, rung.start) for rung in beside}
    return [rung for rung in (*own, *beside) if (rung.title, rung.start) in shared]


def ladder_table(rungs: Sequence[Rung]) -> Table | None:
    """A row a part, a column a start and scale; None where nothing was measured at several scales.

    Args:
        rungs: see `climbed`.
    """
    if not rungs:
        return None
    places = [(start, scale) for start in STARTS for scale in SCALES]
    places = [place for place in places if any((rung.start, rung.scale) == place for rung in rungs)]
    starts = list(dict.fromkeys(start for start, _ in places))
    rows = []
    for title in dict.fromkeys(rung.title for rung in rungs):
        own = {(rung.start, rung.scale): rung for rung in rungs if rung.title == title}
        numbers = (own[place].number if place in own else NOTHING for place in places)
        moves = (_move([own[place] for place in places if place in own and place[0] == start]) for start in starts)
        rows.append((title, next(iter(own.values())).claimed, *numbers, *moves))
    headers = (
        "claim and part", "claimed", *(f"{start}, {scale}" for start, scale in places),
        *(f"{start}: with size" for start in starts),
    )  # fmt: skip
    note = (
        "A cell: the mean over seeds, Student's interval, and the verdict on this part (✓ holds, ✗ does not hold, ? "
        "cannot be told). The last columns say which way the mean moves from the smallest scale to the largest: "
        "towards the claimed side, or away from it. Parentheses: the intervals overlap, or one seed has none."
    )
    return Table("The ladder: the same statistics at several scales", headers, tuple(rows), note)


def climbed_in_words(rungs: Sequence[Rung]) -> Iterator[str]:
    """A sentence a start: how many parts move towards the paper's side with size, and how many beyond the intervals.

    Args:
        rungs: see `climbed`.
    """
    for start in STARTS:
        moves: dict[str, list[str]] = {}
        scales: list[str] = []
        for title in dict.fromkeys(rung.title for rung in rungs if rung.start == start):
            own = [r for scale in SCALES for r in rungs if (r.title, r.start, r.scale) == (title, start, scale)]
            scales += [rung.scale for rung in own]
            moves.setdefault(_move(own), []).append(title)
        if not moves:
            continue
        towards, maybe, away, perhaps = (len(moves.get(way, ())) for way in ("towards", "(towards)", "away", "(away)"))
        first, last = min(scales, key=SCALES.index), max(scales, key=SCALES.index)
        ones = any(rung.seeds < 2 for rung in rungs if rung.start == start)
        yield (
            f"From scale {first} to {last}, from {start} weights, of {sum(map(len, moves.values()))} parts of claims "
            f"{towards + maybe} move towards the paper's side and {away + perhaps} away from it; "
            + ("without intervals, of one seed." if ones else
               f"of {towards} and {away} of these the intervals don't overlap.")
        )  # fmt: skip


def _move(own: Sequence[Rung]) -> str:
    """Of one part from one start, from the smallest scale to the largest."""
    if len(own) < 2:
        return NOTHING
    first, last = own[0], own[-1]
    if first.mean == last.mean:
        return "the same"
    way = "towards" if last.margin > first.margin else "away"
    ends = [*first.interval, *last.interval]
    known = [end for end in ends if end is not None]
    apart = len(known) == 4 and (known[1] < known[2] or known[3] < known[0])
    return way if apart else f"({way})"
