"""What a person is told."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

from stepscope.shown import html_table, printable


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the records of a training show.

    Attributes:
        kind: a word for programs, such as ``"step_too_short"``.
        summary: the finding in a sentence.
        confidence: how often the verdict was right in the calibration, between 0 and 1; ``None`` where nothing is
            judged.
        evidence: the numbers of this training behind it.
        change: what to change; ``None`` where nothing is to be changed for it.
        cost: what it costs to try that.
        against: what speaks against the finding.
    """

    kind: str
    summary: str
    confidence: float | None = None
    evidence: str
    change: str | None = None
    cost: str | None = None
    against: str

    def parts(self) -> list[tuple[str, str]]:
        """What stands below the summary, as names and sentences."""
        named = [("Evidence", self.evidence), ("Try", self.change), ("Cost", self.cost), ("Against", self.against)]
        return [(name, text) for name, text in named if text]

    @property
    def sureness(self) -> str:
        """The confidence in words; empty where there is none."""
        return "" if self.confidence is None else f"right in {self.confidence:.0%} of the calibration's cases"

    @property
    def headline(self) -> str:
        """The summary, and how sure it is."""
        return f"{self.summary} ({self.sureness})" if self.sureness else self.summary


class Findings(tuple[Finding, ...]):
    """Findings, the most important first; printed, they are text, and in a notebook paragraphs.

    Example:
        >>> print(Findings([Finding(kind="healthy", summary="All is well", evidence="T is 0.8.", against="Little.")]))
        All is well
          Evidence: T is 0.8.
          Against:  Little.
    """

    __slots__ = ()

    def as_json(self) -> list[dict[str, Any]]:
        """The findings as JSON holds them."""
        return [asdict(finding) for finding in self]

    def __str__(self) -> str:
        lines = []
        for finding in self:
            lines.append(finding.headline)
            lines += [f"  {name + ':':9} {text}" for name, text in finding.parts()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return "\n".join(printable(line) for line in str(self).split("\n")) or "no findings"

    def _repr_html_(self) -> str:
        lines = []
        for finding in self:
            sure = f" ({escape(finding.sureness)})" if finding.sureness else ""
            lines.append(f"<p><b>{escape(finding.summary)}</b>{sure}</p>")
            lines.append(html_table((), finding.parts()))
        return "".join(lines)
