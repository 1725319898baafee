"""Figures of the coordinates of directions: how their magnitudes spread (Figure 1), and what the largest carry."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import stepscope.report.step_charts  # noqa: F401 (its charts come first on a page)
from stepscope.errors import UsageError
from stepscope.report.axes import log_axis, step_axis
from stepscope.report.comparison import directions_of
from stepscope.report.direction_tables import top_shares
from stepscope.report.figures import of_last_step, of_step, of_trajectory
from stepscope.report.looks import Looks
from stepscope.report.vega import alt, finish, layered, plot
from stepscope.runs import DirectionRecord, RecordedMagnitudes, is_own

_WHOLES = {"norm": "squared norm", "sharpness": "sharpness"}


@of_step("magnitudes")
def magnitudes(
    records: Sequence[DirectionRecord],
    trajectory: str,
    step: int,
    directions: Sequence[str] = ("sgd", "adam"),
) -> alt.Chart:
    """How many coordinates of a direction have which magnitude, both on logarithmic axes (Figure 1).

    Magnitudes are in units of the direction's own root mean square, so that directions of any length can be compared.
    Several seeds: counts are means over them. Drawn are the optimizer's own update and `directions`, as far as
    they were measured.
    """
    rows: list[dict[str, Any]] = []
    zeros, seeds = [], 0
    there = [record for record in records if _place(record) == (trajectory, step)]
    for name in dict.fromkeys([*(record.direction for record in there if is_own(record)), *directions]):
        own = [record for record in there if record.direction == name]
        histograms = [record.magnitudes for record in own if record.magnitudes is not None]
        rows += _mean_counts(name, histograms)
        seeds = max(seeds, len(histograms))
        if any(histogram.zeros for histogram in histograms):
            fractions = [histogram.zeros / (histogram.zeros + sum(histogram.counts)) for histogram in histograms]
            zeros.append(f"{name} {statistics.fmean(fractions):.2g}")
    counts = [row["count"] for row in rows if row["count"]]
    if not counts:
        raise UsageError(f"no magnitudes of coordinates were measured on trajectory {trajectory!r} at step {step}")
    low, high = min(row["magnitude"] for row in rows) / 2, max(row["magnitude"] for row in rows) * 2
    x = log_axis(alt.X, "magnitude", "|coordinate| / root mean square", low, high, most=9, grid=False)
    y = log_axis(alt.Y, "count", "coordinates", min(counts) / 1.5, max(counts) * 2, format="~s")
    looks = Looks(directions_of(records))
    chart: alt.Chart = (
        plot(rows)
        .mark_line(strokeWidth=1.8, point=alt.OverlayMarkDef(size=22))
        .encode(
            x, y, **looks.line(dict.fromkeys(row["direction"] for row in rows)),
            tooltip=looks.tooltip(magnitude="|coordinate| / root mean square", count="coordinates"),
        )
        .add_params(looks.pick)
    )  # fmt: skip
    notes = ["Counts are means over seeds." if seeds > 1 else "One seed."]
    if zeros:
        notes.append(f"Left out, the part of the coordinates that is exactly 0: {', '.join(zeros)}.")
    return finish(chart, f"Magnitudes of coordinates: {trajectory} trajectory, step {step}", " ".join(notes))


@of_last_step("concentration of the norm", on_page=False, part="norm")
@of_last_step("concentration of the sharpness")
def concentration(
    records: Sequence[DirectionRecord], trajectory: str, step: int, part: str = "sharpness"
) -> alt.LayerChart:
    """What the largest coordinates of each direction carry of its sharpness, or of its squared norm.

    Several seeds: the line is their median, each has its points. `part` is ``"sharpness"`` or ``"norm"``. Where a
    sharpness isn't positive there are no shares of it.
    """
    points: list[dict[str, Any]] = [
        {"direction": r.direction, "seed": r.seed, "largest": largest, "share": share}
        for r in records
        if _place(r) == (trajectory, step)
        for largest, share in top_shares(r, part).items()
    ]
    if not points:
        raise UsageError(
            f"no share of the largest coordinates was measured on trajectory {trajectory!r} at step {step}"
        )
    fractions = sorted({point["largest"] for point in points})
    x = log_axis(
        alt.X, "largest", "the largest … % of the coordinates", fractions[0] / 1.3, fractions[-1] * 1.3,
        values=fractions, grid=False,
    )  # fmt: skip
    title = f"Carried by the largest coordinates, of the {_WHOLES[part]}: {trajectory} trajectory, step {step}"
    return _shares(records, points, "largest", x, part, title)


@of_trajectory("concentration of the sharpness over steps", on_page=False)
def concentration_over_steps(
    records: Sequence[DirectionRecord], trajectory: str, part: str = "sharpness", largest: float = 1.0
) -> alt.LayerChart:
    """The same against the training step, for the `largest` so many per cent of the coordinates."""
    points: list[dict[str, Any]] = [
        {"direction": r.direction, "seed": r.seed, "step": r.step, "share": share}
        for r in records
        if r.trajectory == trajectory and (share := top_shares(r, part).get(largest)) is not None
    ]
    if not points:
        raise UsageError(f"no share of the largest {largest:g}% was measured on trajectory {trajectory!r}")
    x = step_axis(point["step"] for point in points)
    title = f"Carried by the largest {largest:g}% of the coordinates, of the {_WHOLES[part]}: {trajectory} trajectory"
    return _shares(records, points, "step", x, part, title)


def _shares(
    records: Sequence[DirectionRecord], points: Sequence[dict[str, Any]], over: str, x: alt.X, part: str, title: str
) -> alt.LayerChart:
    """Lines through the medians over seeds, and a point for each seed.

    Medians, since a sharpness near 0 can make one seed's share anything.
    """
    # Parts of a sharpness have either sign, so shares have no bounds; what is far outside says only that they cancel.
    shares = [point["share"] for point in points]
    scale = alt.Scale(domain=[max(-0.25, min(0.0, *shares)), min(1.25, max(1.0, *shares))], nice=False)
    y = alt.Y("share:Q", title=f"share of the {_WHOLES[part]}", axis=alt.Axis(format="%"), scale=scale)
    groups: dict[tuple[str, Any], list[float]] = {}
    for point in points:
        groups.setdefault((point["direction"], point[over]), []).append(point["share"])
    middles = [{"direction": d, over: at, "share": statistics.median(own)} for (d, at), own in groups.items()]
    looks = Looks(directions_of(records))
    lines = plot(middles).mark_line(strokeWidth=1.8, clip=True).encode(x, y, **looks.line()).add_params(looks.pick)
    marks = plot(looks.rows(points)).mark_point(filled=True, size=34, clip=True)
    tips = looks.tooltip(alt.Tooltip("share:Q", format=".1%"), "seed", **{over: over})
    layers = layered(lines, marks.encode(x, y, tooltip=tips, **looks.beside()))
    notes = ["Lines are medians over seeds." if len({p["seed"] for p in points}) > 1 else "One seed."]
    if part == "sharpness":
        notes.append("Where a direction's sharpness is negative it has no shares, and no mark.")
    outside = sum(not -0.25 <= point["share"] <= 1.25 for point in points)
    if outside:
        notes.append(f"{outside} of {len(points)} points lie outside: large parts of either sign cancel there.")
    return finish(layers, title, *notes)


def _place(record: DirectionRecord) -> tuple[str, int]:
    return record.trajectory, record.step


def _mean_counts(name: str, histograms: Sequence[RecordedMagnitudes]) -> list[dict[str, Any]]:
    """Rows with the middle of each bin; a bin that is empty has no count, since a logarithmic axis has no 0."""
    if not histograms:
        return []
    per_decade = histograms[0].per_decade
    alike = [histogram for histogram in histograms if histogram.per_decade == per_decade]
    totals: dict[int, int] = {}
    for histogram in alike:
        for place, count in enumerate(histogram.counts, start=histogram.lowest):
            totals[place] = totals.get(place, 0) + count
    return [
        {
            "direction": name,
            "magnitude": 10 ** ((place + 0.5) / per_decade),
            "count": totals.get(place, 0) / len(alike) or None,
        }
        for place in range(min(totals), max(totals) + 1)
    ]
