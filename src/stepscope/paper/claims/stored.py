"""Judged claims as JSON, as a reproduction stores them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from stepscope.paper.claims.verdicts import JudgedClaim, Judgment, Part


def claims_json(claims: Sequence[JudgedClaim]) -> list[dict[str, Any]]:
    """The claims as plain JSON; ends of intervals that are infinite are null."""
    return [
        {
            "id": claim.id,
            "statement": claim.statement,
            "verdict": claim.verdict,
            "judgments": [_judgment_json(judgment) for judgment in claim.judgments],
            "scale": ", ".join(dict.fromkeys(run.scale for run in claim.runs)),
            "parts": [_part_json(part) for part in claim.parts],
            "departures": list(claim.departures),
        }
        for claim in claims
    ]


def _judgment_json(judgment: Judgment) -> dict[str, Any]:
    return {
        "start": judgment.start,
        "reading": judgment.reading,
        "verdict": judgment.verdict,
        "threshold": judgment.threshold,
        "statistic": judgment.statistic,
        "seeds": judgment.seeds,
    }


def _part_json(part: Part) -> dict[str, Any]:
    interval = part.interval
    return {
        "name": part.name,
        "start": part.sample.start,
        "reading": part.criterion.reading,
        "deciding": part.deciding,
        "statistic": part.criterion.text,
        "threshold": part.criterion.threshold,
        "verdict": part.verdict,
        "seeds": list(part.values),
        "values": list(part.values.values()),
        "mean": interval.mean if interval else None,
        "interval": [end if math.isfinite(end) else None for end in interval[1:3]] if interval else None,
        "runs": [run.name for run in part.sample.runs],
        "scale": part.scale,
        "remark": part.remark,
    }
