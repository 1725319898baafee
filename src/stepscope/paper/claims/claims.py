"""The twelve claims of the paper, each with what the runs of a reproduction say of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.paper.claims.departures import departures
from stepscope.paper.claims.loss_claims import clipped_is_faster, local_predicts_global
from stepscope.paper.claims.theory_claims import bound_holds, curvature_follows_gradient, robustly_smoother
from stepscope.paper.claims.trajectory_claims import (
    absent_on_images,
    clipping_lowers_adaptive,
    clipping_lowers_sgd,
    concentrated,
    decreases_more,
    far_above,
    lowest_is_not_best,
)
from stepscope.paper.claims.verdicts import CONFIDENCE, Claim, Part
from stepscope.paper.runs import Run
from stepscope.report import Table


@dataclass(frozen=True)
class _Statement:
    """What the paper says, and the parts that it is judged by."""

    id: str
    text: str
    parts: Callable[[Sequence[Run]], list[Part]]


_STATEMENTS = (
    _Statement(
        "C1",
        "On transformers SGD's directional sharpness is far above every adaptive method's, at every measured step, on "
        "both trajectories.",
        far_above,
    ),
    _Statement("C2", "Clipping 10% cuts the sharpness of SGD and of normalized SGD strongly.", clipping_lowers_sgd),
    _Statement("C3", "Clipping 50% cuts the sharpness of Adam and of Adafactor.", clipping_lowers_adaptive),
    _Statement(
        "C4",
        "Adafactor has the lowest sharpness, yet not the best local decrease: low sharpness alone is not enough.",
        lowest_is_not_best,
    ),
    _Statement("C5", "The best local decrease ranks adaptive and clipped methods above SGD.", decreases_more),
    _Statement(
        "C6",
        "SGD's sharpness is concentrated in the few largest coordinates, and its coordinates span many orders of "
        "magnitude.",
        concentrated,
    ),
    _Statement(
        "C7",
        "Clipped variants converge faster than their originals, each at its own tuned learning rate.",
        clipped_is_faster,
    ),
    _Statement(
        "C8",
        "The local ranking (decrease along the direction) predicts the global one (training loss).",
        local_predicts_global,
    ),
    _Statement("C9", "On a ResNet the contrast is absent or reversed.", absent_on_images),
    _Statement(
        "C10", "Without its few largest coordinates the loss is two to three times smoother.", robustly_smoother
    ),
    _Statement("C11", "Coordinates of |Hessian| and |gradient| are positively correlated.", curvature_follows_gradient),
    _Statement("C12", "The bound of appendix A holds.", bound_holds),
)


def judge(runs: Sequence[Run]) -> list[Claim]:
    """What these runs say of each of the twelve claims.

    Args:
        runs: of one reproduction; some may be missing or unfinished.

    Returns:
        All twelve, in order. What wasn't measured can't be told.

    Example:
        >>> claims = judge([])
        >>> len(claims), claims[0].id, {claim.verdict for claim in claims}
        (12, 'C1', {'cannot tell'})
    """
    claims = []
    for statement in _STATEMENTS:
        parts = tuple(statement.parts(runs))
        used = {run.name: run for part in parts for run in part.runs}
        local = [run.task for run in used.values() if run.experiment == "trajectory"]
        claims.append(Claim(statement.id, statement.text, parts, departures(used.values(), local or None)))
    return claims


def claims_table(claims: Sequence[Claim]) -> Table:
    """One row a claim.

    Example:
        >>> claims_table(judge([])).rows[11]
        ('C12', 'The bound of appendix A holds.', 'cannot tell', 'not measured', '-')
    """
    rows = tuple((each.id, each.statement, each.verdict, each.statistic, _counts(each)) for each in claims)
    note = (
        "Each claim is split into parts with a threshold that was fixed before the results (next table). A part holds "
        f"if Student's {CONFIDENCE:.0%} interval of the seeds' mean lies wholly on the claimed side, and does not if "
        "it lies wholly beyond; one seed never tells. A claim holds if all its deciding parts do, and does not hold if "
        "one does not."
    )
    return Table(
        f"The paper's claims{_at_scale(claims)}", ("claim", "statement", "verdict", "statistic", "seeds"), rows, note
    )


def parts_table(claims: Sequence[Claim]) -> Table:
    """One row a part of a claim."""
    rows = tuple(
        (
            claim.id,
            part.name if part.deciding else f"({part.name})",
            f"{part.statistic} {part.threshold}",
            part.number,
            str(len(part.values)),
            ", ".join(_unique(run.scale for run in part.runs)),
            part.verdict,
            part.remark,
        )
        for claim in claims
        for part in claim.parts
    )
    headers = ("claim", "part", "claimed", "mean over seeds", "seeds", "scale", "verdict", "remark")
    note = "In square brackets Student's interval. A part in parentheses stands beside: no verdict depends on it."
    return Table("The parts of the claims", headers, rows, note)


def departures_table(claims: Sequence[Claim]) -> Table:
    """One row a departure from the paper's settings, with the claims that it touches."""
    found: dict[str, list[str]] = {}
    for claim in claims:
        for departure in claim.departures:
            found.setdefault(departure, []).append(claim.id)
    rows = tuple((departure, ", ".join(ids)) for departure, ids in found.items())
    note = "Read off the records. A verdict is on these runs; on the paper's own settings it may be another."
    return Table("Departures from the paper's settings", ("departure", "claims"), rows, note)


def claims_json(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """The claims as plain JSON; ends of intervals that are infinite are null.

    Example:
        >>> found = claims_json(judge([]))[0]
        >>> found["id"], found["verdict"], found["parts"]
        ('C1', 'cannot tell', [])
    """
    return [
        {
            "id": claim.id,
            "statement": claim.statement,
            "verdict": claim.verdict,
            "threshold": claim.threshold,
            "statistic": claim.statistic,
            "seeds": _unique(seed for part in claim.deciding for seed in part.values),
            "scale": ", ".join(_unique(run.scale for part in claim.parts for run in part.runs)),
            "parts": [_part_json(part) for part in claim.parts],
            "departures": list(claim.departures),
        }
        for claim in claims
    ]


def _part_json(part: Part) -> dict[str, Any]:
    interval = part.interval
    ends = [end if math.isfinite(end) else None for end in interval[1:]] if interval else None
    return {
        "name": part.name,
        "deciding": part.deciding,
        "statistic": part.statistic,
        "threshold": str(part.threshold),
        "verdict": part.verdict,
        "seeds": list(part.values),
        "values": list(part.values.values()),
        "mean": interval.mean if interval else None,
        "interval": ends,
        "runs": [run.name for run in part.runs],
        "scale": ", ".join(_unique(run.scale for run in part.runs)),
        "remark": part.remark,
    }


def _at_scale(claims: Sequence[Claim]) -> str:
    """The scales of all runs that were used, for a title."""
    scales = _unique(run.scale for claim in claims for part in claim.parts for run in part.runs)
    return f", scale{'s' * (len(scales) > 1)} {' and '.join(scales)}" if scales else ""


def _counts(claim: Claim) -> str:
    """How many seeds each deciding part has: a number, or from fewest to most."""
    counts = [len(part.values) for part in claim.deciding]
    if not counts:
        return "-"
    return str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _unique(values: Any) -> list[Any]:
    return list(dict.fromkeys(values))
