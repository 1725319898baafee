"""Verdicts of other reproductions, which stand beside those of one: the same with other seeds, or at another size.

They are kept in the reproduction's own directory (`BESIDE`), as the claims that were judged there, so that its tables
stay functions of what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepscope.errors import UsageError
from stepscope.paper.claims.ladder import Rung, rungs_of
from stepscope.paper.claims.verdicts import JudgedClaim, Judgment

BESIDE = "beside"
"""The folder of a reproduction that holds the claims of others, one file each."""


@dataclass(frozen=True)
class Said:
    """What another reproduction says of a claim, from one start and in one reading.

    Attributes:
        verdict: there.
        seeds: that counted.
        departures: in what its runs differ from the paper's.
    """

    verdict: str
    seeds: tuple[int, ...]
    departures: tuple[str, ...]


@dataclass(frozen=True)
class Other:
    """Another reproduction.

    Attributes:
        name: of its file.
        says: ``{(id of a claim, start, reading): what it says}``.
        rungs: its numbers, to compare with those of another size.
    """

    name: str
    says: Mapping[tuple[str, str, str], Said]
    rungs: Sequence[Rung] = ()

    def on(self, claim: JudgedClaim, judgment: Judgment) -> Said | None:
        """What it says of the same; None if it measured nothing of it."""
        return self.says.get((claim.id, judgment.start, judgment.reading))

    def repeats(self, claim: JudgedClaim, judgment: Judgment) -> bool:
        """Whether it judges the same on the same settings by other seeds."""
        said = self.on(claim, judgment)
        if said is None or not said.seeds or not set(said.seeds).isdisjoint(judgment.seeds):
            return False
        return said.departures == claim.departures


def read_others(directory: Path) -> list[Other]:
    """The other reproductions whose claims a reproduction holds.

    Raises:
        UsageError: a file holds no claims.
    """
    return [_read(path) for path in sorted((directory / BESIDE).glob("*.json"))]


def _read(path: Path) -> Other:
    try:
        claims = json.loads(path.read_text())
        says = {
            (str(claim["id"]), str(own["start"]), str(own["reading"])): Said(
                str(own["verdict"]), tuple(map(int, own["seeds"])), tuple(map(str, claim["departures"]))
            )
            for claim in claims
            for own in claim["judgments"]
        }
        return Other(path.stem, says, rungs_of(claims))
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise UsageError(f"{path} holds no judged claims: remove it, or name its reproduction once more") from error


def verdict_beside(claim: JudgedClaim, judgment: Judgment, others: Sequence[Other]) -> str:
    """A verdict; *unstable* where other seeds gave another one.

    Args:
        claim: what is judged.
        judgment: one of its own.
        others: what may repeat it.
    """
    again = [said.verdict for other in others if other.repeats(claim, judgment) and (said := other.on(claim, judgment))]
    changed = [verdict for verdict in again if verdict != judgment.verdict]
    return f"{judgment.verdict} (unstable: {changed[0]} with other seeds)" if changed else judgment.verdict
