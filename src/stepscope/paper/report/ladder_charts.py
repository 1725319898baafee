"""A figure of the ladder: each part of a claim at each scale and start, beside its threshold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from stepscope.errors import UsageError
from stepscope.paper.claims.ladder import SCALES, Rung
from stepscope.paper.claims.verdicts import STARTS
from stepscope.report import Figure, alt, categories, finish, layered, log_axis, plot, rule, symbols, tooltips

_LEAST, _MOST = 0.1, 100.0
"""What lies farther from the threshold is drawn at the edge: it is no nearer to it than that."""


def ladder_figure(rungs: Sequence[Rung]) -> Figure:
    """The figure of what was measured at several scales; none where nothing was."""
    return Figure("ladder", "the ladder", partial(ladder, rungs))


def ladder(rungs: Sequence[Rung]) -> alt.LayerChart:
    """How many times each number keeps its threshold: right of the line is the claimed side, whichever that is."""
    shown = [rung for rung in rungs if rung.threshold]  # of a threshold of 0 nothing is a multiple
    rows = [_row(rung) for rung in shown]
    if not rows:
        raise UsageError("nothing was measured at several scales")
    parts = list(dict.fromkeys(rung.title for rung in shown))
    places = [f"{start}, {scale}" for start in STARTS for scale in SCALES]
    x = log_axis(alt.X, "kept", "times the threshold is kept: above 1 as claimed", _LEAST, _MOST)
    own = [scale for scale in SCALES if any(rung.scale == scale for rung in rungs)]
    of_part = alt.Y("part:N", sort=parts, title=None, axis=alt.Axis(labels=False, ticks=False, domain=False))
    base = plot(rows).encode(
        of_part,
        alt.YOffset("place:N", sort=["", *places]),
        color=categories("start:N", STARTS, "weights", legend=alt.Legend(orient="top")),
        tooltip=tooltips("part", "start", "scale", "number", "claimed", seeds="seeds"),
    )
    shape = symbols("scale:N", own, "scale", legend=alt.Legend(orient="top"))
    names = plot([{"part": part, "place": "", "kept": _LEAST} for part in parts])
    chart = layered(
        rule(x, kept=1.0),
        base.mark_rule(strokeWidth=1.3, opacity=0.7).encode(alt.X("low:Q"), alt.X2("high:Q")),
        base.mark_point(filled=True, size=55, opacity=1).encode(x, shape=shape),
        # Within the chart: on a phone an axis of such names would leave no room for the numbers.
        names.mark_text(align="left", dx=4, color="#888").encode(
            x, of_part, alt.YOffset("place:N", sort=["", *places]), text="part:N"
        ),
    )
    finish(
        chart, "The ladder: the same statistics at several scales",
        "Right of the line is the claimed side. Means over seeds, with Student's intervals; one seed has none.",
        f"What lies beyond {_LEAST:g} or {_MOST:g} is drawn there.",
    )  # fmt: skip
    chart["height"] = 46 * len(parts)
    return chart


def _row(rung: Rung) -> dict[str, Any]:
    low, high = (_kept(rung, end) for end in rung.interval)
    names = {"part": rung.title, "start": rung.start, "scale": rung.scale, "place": f"{rung.start}, {rung.scale}"}
    numbers = {"kept": _kept(rung, rung.mean), "number": rung.number, "claimed": rung.claimed, "seeds": rung.seeds}
    return {**names, **numbers} | ({} if low is None or high is None else {"low": low, "high": high})


def _kept(rung: Rung, value: float | None) -> float | None:
    """A number over its threshold, or the other way round where less is claimed, within what is drawn."""
    if value is None:
        return None
    if value <= 0:
        return _MOST if rung.wants_less else _LEAST
    ratio = rung.threshold / value if rung.wants_less else value / rung.threshold
    return min(max(ratio, _LEAST), _MOST)
