"""Figures of robust smoothness (Table 8 as a picture), of the bound of appendix A, and of §4.2's correlations.

Each takes the records of its experiment, and raises a `UsageError` where nothing was measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from stepscope.errors import UsageError
from stepscope.paper.records import BoundRecord, CorrelationRecord, Margins, SmoothnessRecord, TheoryRecord
from stepscope.report import alt, categories, finish, layered, log_axis, plot, symbols, tooltips

_Channel = TypeVar("_Channel", "alt.X", "alt.Y")
_BOUNDS = ("with clipping", "without", "by blocks")


def smoothness_over_steps(records: Sequence[SmoothnessRecord], trajectory: str) -> alt.LayerChart:
    """How many times smaller the Gauss-Newton matrix's norm is without the few large coordinates, by step (Table 8).

    For each group of coordinates and cut: the median over batches and seeds, with a bar from the smallest to the
    largest; and, as a short line, the largest ratio where as many coordinates go at random.
    """
    measured: dict[tuple[int, str, float], list[SmoothnessRecord]] = {}
    for record in records:
        if record.trajectory == trajectory and (record.ratio or 0) > 0:
            measured.setdefault((record.step, record.group, record.cut), []).append(record)
    rows = []
    for (step, group, cut), own in sorted(measured.items(), key=lambda item: item[0][2]):
        ratios = [record.ratio for record in own if record.ratio is not None]
        random = [record.random_ratio for record in own if record.random_ratio is not None and record.random_ratio > 0]
        row: dict[str, Any] = {"step": step, "group": group, "cut": f"{cut:g}", "series": f"{group}, {cut:g}"}
        row |= {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "count": len(ratios)}
        rows.append(row | ({"random": max(random)} if random else {}))
    if not rows:
        raise UsageError(f"no robust smoothness was measured on trajectory {trajectory!r}")
    lengths = [value for row in rows for value in (row["low"], row["high"], row.get("random", 1.0))]
    low, high = min(1.0, *lengths) / 1.15, max(2.0, *lengths) * 1.2
    y = log_axis(alt.Y, "ratio", "times smoother", low, high, 8)
    groups, cuts = list(dict.fromkeys(group for _, group, _ in measured)), _names(rows, "cut")
    series = [name for group in groups for name in _names([r for r in rows if r["group"] == group], "series")]
    x = alt.X("step:O", title="training step", sort=sorted({row["step"] for row in rows}), axis=alt.Axis(labelAngle=0))
    color = categories("group:N", groups, "coordinates")
    shape = symbols("cut:N", cuts, "cut, × the mean")
    base = plot(rows).encode(
        x,
        alt.XOffset("series:N", sort=series),
        tooltip=[
            *(alt.Tooltip(f"{name}:N") for name in ("group", "cut")),
            *tooltips(step="step", ratio="median", low="from", high="to", random="at random", count="measured"),
        ],
    )
    none = plot([{"ratio": 1}, {"ratio": 2}]).mark_rule(color="#888", opacity=0.6).encode(y)
    layers = [
        none,
        base.mark_rule(strokeWidth=1.6).encode(alt.Y("low:Q"), alt.Y2("high:Q"), color=color),
        base.mark_tick(thickness=2, size=11, color="#888").encode(alt.Y("random:Q"), color=alt.value("#888")),
        base.mark_point(filled=True, size=55, opacity=1).encode(y, color=color, shape=shape),
    ]
    seeds = len({record.seed for own in measured.values() for record in own})
    notes = (
        f"Medians over batches and {seeds} seeds, bars from smallest to largest." if seeds > 1 else "One seed.",
        "Gray: the largest ratio where as many coordinates go at random. Lines: 1 (nothing gained) and 2.",
    )
    return finish(layered(*layers), f"Robust smoothness: {trajectory} trajectory", *notes)


def bound_margins(records: Sequence[TheoryRecord]) -> alt.LayerChart:
    """How far what was measured lies within what appendix A guarantees, by family of losses and fraction clipped.

    A point is the median over seeds of the median over draws, its bar reaches to the least of all.
    """
    bound_records = [record for record in records if isinstance(record, BoundRecord)]
    measured: dict[tuple[str, str], list[Margins]] = {}
    for record in bound_records:
        for title, margins in zip(_BOUNDS, (record.clipped, record.plain, record.block), strict=True):
            if margins is not None and margins.median_margin is not None:
                measured.setdefault((record.group, title), []).append(margins)
    rows: list[dict[str, Any]] = [
        {
            "group": group,
            "bound": bound,
            "least": min(margins.least_margin for margins in own),
            "median": statistics.median(m.median_margin for m in own if m.median_margin is not None),
            "violations": sum(margins.violations for margins in own),
        }
        for (group, bound), own in measured.items()
    ]
    if not rows:
        raise UsageError("no margins of the bound were measured")
    bounds = [title for title in _BOUNDS if title in _names(rows, "bound")]
    ends = [value for row in rows for value in (row["least"], row["median"])]
    title = "margin, as a part of the bound"
    x = alt.X("median:Q", title=title, scale=alt.Scale(domain=[min(-0.02, *ends), max(0.1, *ends)], nice=True))
    tips = [
        alt.Tooltip("group:N"),
        alt.Tooltip("bound:N"),
        *tooltips(median="median margin", least="least margin", violations="violations"),
    ]
    base = plot(rows).encode(
        alt.Y("group:N", title=None, sort=None, axis=alt.Axis(labelLimit=260, grid=False)),
        alt.YOffset("bound:N", sort=bounds),
        color=categories("bound:N", bounds, "bound"),
        tooltip=tips,
    )
    zero = plot([{"median": 0}]).mark_rule(color="#888").encode(x)
    layers = [
        zero,
        base.mark_rule(strokeWidth=1.6).encode(alt.X("least:Q"), alt.X2("median:Q")),
        base.mark_point(filled=True, size=40, opacity=1).encode(x),
        base.mark_tick(thickness=2, size=7).encode(alt.X("least:Q")),
    ]
    broken, draws = sum(row["violations"] for row in rows), sum(record.draws for record in bound_records)
    notes = (
        f"{draws:,} draws, {broken:,} violations. Points: medians; ticks: the least margin over all draws.",
        "Of a decrease: measured / guaranteed − 1; by blocks: 1 − curvature / its bound. Left of 0 a bound is broken.",
    )
    return finish(layered(*layers), "Does the bound of appendix A hold?", *notes)


def curvature_against_gradient(records: Sequence[TheoryRecord], group: str, trajectory: str, step: int) -> alt.Chart:
    """|Hessian's diagonal| against |gradient|, a point a coordinate, both on logarithmic axes (§4.2)."""
    measured = [
        (record, record.points)
        for record in records
        if isinstance(record, CorrelationRecord) and record.points is not None
        if (record.group, record.trajectory, record.step) == (group, trajectory, step)
    ]
    coordinates = [
        {"gradient": abs(gradient), "diagonal": abs(diagonal), "seed": str(record.seed)}
        for record, values in measured
        for gradient, diagonal in zip(values.gradient, values.diagonal, strict=False)
    ]
    points: list[dict[str, Any]] = [point for point in coordinates if point["gradient"] and point["diagonal"]]
    left_out = len(coordinates) - len(points)
    ranks = [f"{record.diagonal.rho:.2f}" for record, _ in measured if record.diagonal.rho is not None]
    if not points:
        raise UsageError(f"no coordinates of {group!r} were measured on trajectory {trajectory!r} at step {step}")

    def axis(channel: type[_Channel], field: str, title: str) -> _Channel:
        sizes = [point[field] for point in points]
        return log_axis(channel, field, title, min(sizes) / 1.5, max(sizes) * 1.5)

    chart: alt.Chart = (
        plot(points)
        .mark_point(filled=True, size=16, opacity=0.55)
        .encode(
            axis(alt.X, "gradient", "|gradient|"),
            axis(alt.Y, "diagonal", "|Hessian's diagonal|"),
            categories("seed:N", _names(points, "seed"), "seed"),
            tooltip=[*tooltips(gradient="|gradient|", diagonal="|diagonal|"), alt.Tooltip("seed:N")],
        )
    )
    notes = [f"A point a coordinate. Spearman's rank correlation, by seed: {', '.join(ranks)}." if ranks else ""]
    notes.append(f"Left out, since one of the two is 0: {left_out} coordinates." if left_out else "")
    return finish(chart, f"Curvature against gradient, {group}: {trajectory} trajectory, step {step}", *notes)


def correlations(records: Sequence[TheoryRecord]) -> alt.LayerChart:
    """Spearman's rank correlation of |gradient| with the Hessian's diagonal, a mark each, by part of a model."""
    rows: list[dict[str, Any]] = [
        {name: str(getattr(record, name)) for name in ("group", "trajectory", "step", "seed")}
        | {name: value for name, value in asdict(record.diagonal).items() if value is not None}
        for record in records
        if isinstance(record, CorrelationRecord) and record.diagonal.rho is not None
    ]
    if not rows:
        raise UsageError("no correlations of curvature and gradient were measured")
    trajectories = _names(rows, "trajectory")
    low = min(-0.1, *(row["rho"] for row in rows))
    x = alt.X("rho:Q", title="Spearman's rank correlation", scale=alt.Scale(domain=[low, 1], nice=True))
    ticks = (
        plot(rows)
        .mark_tick(thickness=2, size=9, opacity=0.75)
        .encode(
            x,
            alt.Y("group:N", title=None, sort=None, axis=alt.Axis(labelLimit=330, grid=False)),
            alt.YOffset("trajectory:N", sort=trajectories),
            categories("trajectory:N", trajectories, "trajectory"),
            tooltip=[
                *(alt.Tooltip(f"{name}:N") for name in ("group", "trajectory", "step", "seed")),
                *tooltips(rho="correlation", low="from", high="to"),
            ],
        )
    )
    zero = plot([{"rho": 0}]).mark_rule(color="#888").encode(x)
    above = sum(row.get("low", -1.0) > 0 for row in rows)
    note = f"A mark a step and seed; {above} of {len(rows)} 95% intervals lie wholly above 0."
    return finish(layered(zero, ticks), "Curvature against gradient, coordinate by coordinate", note)


def _names(rows: Iterable[dict[str, Any]], field: str) -> list[str]:
    return list(dict.fromkeys(row[field] for row in rows))
