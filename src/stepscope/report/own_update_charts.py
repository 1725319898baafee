"""Charts of the update that the optimizer was about to make, as the full measurements of a probe have it.

Where its sharpness comes from: a map of its layers over the training, and what their interaction adds. What it could
gain: its slope and sharpness beside those of others, and what clipping changes.
"""

from __future__ import annotations

import itertools
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stepscope.errors import UsageError
from stepscope.report.axes import log_axis, magnitude_axis, powers_of_ten
from stepscope.report.comparison import directions_of
from stepscope.report.figures import Figure
from stepscope.report.landscape_curves import fields_of
from stepscope.report.looks import Looks, categories
from stepscope.report.names import file_name
from stepscope.report.vega import alt, finish, layered, plot, plot_folded, rule, short, tooltips
from stepscope.runs import DirectionRecord, family, is_own

Rows = list[dict[str, Any]]

# Names are in the domains of scales: of a sort order Vega makes an expression, which not every name can stand in.

MOST_LAYERS = 40
"""So many layers have a row in the map; the others are one."""

_SHORT = "length(datum.label) > 26 ? slice(datum.label, 0, 8) + '…' + slice(datum.label, -17) : datum.label"
"""What tells layers apart is at both ends of their names."""


def own_update_figures(records: Sequence[DirectionRecord], trajectory: str) -> list[Figure]:
    """The figures of the updates of one optimizer that trained, as far as a probe measured them in full.

    Args:
        records: all records of a run.
        trajectory: the optimizer.
    """
    if not any(is_own(record) for record in records):
        return []
    charts: dict[str, Callable[..., alt.Chart | alt.LayerChart]] = {
        "layers over steps": layers_over_steps,
        "interaction of layers": interaction_of_layers,
        "slope against sharpness": slope_against_sharpness,
        "clip sweep": clip_sweep_over_steps,
    }

    def figure(title: str, draw: Callable[..., alt.Chart | alt.LayerChart]) -> Figure:
        return Figure(file_name(trajectory, title), title, lambda: draw(records, trajectory))

    return [figure(title, draw) for title, draw in charts.items()]


def layers_over_steps(records: Sequence[DirectionRecord], trajectory: str) -> alt.Chart:
    """A map of the sharpness of the optimizer's own update: layers downwards, steps to the right.

    A cell is `u_ℓᵀ(Hu)_ℓ / Σ|u_mᵀ(Hu)_m|`, so that steps of any sharpness can be compared, and parts that cancel are
    seen as such.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.

    Raises:
        UsageError: fewer than two steps, or fewer than two layers, were measured.
    """
    shares = {record.step: _shares(record) for record in _at(records, trajectory) if is_own(record) and record.layers}
    names = list(dict.fromkeys(name for here in shares.values() for name in here))
    if len(names) < 2 or sum(map(bool, shares.values())) < 2:
        raise UsageError(f"no layers were measured at several steps on trajectory {trajectory!r}")
    shown = _largest(names, shares)
    rest = f"{len(names) - len(shown)} other layers"
    rows: Rows = []
    for step, here in sorted(shares.items()):
        rows += [{"layer": name, "step": step, "share": short(here[name], 3)} for name in shown if name in here]
        if here and len(shown) < len(names):
            others = sum(share for name, share in here.items() if name not in shown)
            rows.append({"layer": rest, "step": step, "share": short(others, 3)})
    most = max(abs(row["share"]) for row in rows)
    order = [*shown, *([rest] if len(shown) < len(names) else [])]
    scale = alt.Scale(scheme="blueorange", domain=[-most, most])
    legend = alt.Legend(orient="bottom", title="share of all parts", format=".0%", gradientLength=160, tickCount=4)
    percent = alt.Tooltip("share:Q", title="share of all parts", format=".1%")
    cells = plot_folded(rows, "step", "share").mark_rect()
    chart: alt.Chart = cells.encode(
        alt.X(
            "step:O",
            title="training step",
            axis=alt.Axis(labelOverlap=True, labelSeparation=12, labelAngle=0, ticks=False),
        ),
        alt.Y(
            "layer:N",
            title=None,
            scale=alt.Scale(domain=order),
            axis=alt.Axis(labelExpr=_SHORT, labelOverlap=True, ticks=False),
        ),
        alt.Color("share:Q", scale=scale, legend=legend),
        tooltip=["layer:N", *tooltips(step="step"), percent],
    )
    notes = [
        "Parts of the sharpness of its own update, by the sum of their sizes; negative: it curves downwards there."
    ]
    return finish(chart, f"Which layers hold the sharpness: {trajectory} trajectory", *notes)


def _shares(record: DirectionRecord) -> dict[str, float]:
    """The parts of the layers by the sum of their sizes."""
    parts = {name: part for name, part in (record.layers or {}).items() if part is not None}
    whole = sum(map(abs, parts.values()))
    return {name: part / whole for name, part in parts.items()} if whole else {}


def _largest(names: Sequence[str], shares: dict[int, dict[str, float]]) -> list[str]:
    """The layers with the largest share at any step, in the order of the model."""
    if len(names) <= MOST_LAYERS:
        return list(names)
    most = {name: max(abs(here.get(name, 0.0)) for here in shares.values()) for name in names}
    kept = set(sorted(names, key=lambda name: -most[name])[: MOST_LAYERS - 1])
    return [name for name in names if name in kept]


def interaction_of_layers(records: Sequence[DirectionRecord], trajectory: str) -> alt.LayerChart:
    """The sharpness of each direction, and what is left of it when layers don't interact, at the last step that has it.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.

    Raises:
        UsageError: it was not measured, as it is on demand alone.
    """
    there = [record for record in _at(records, trajectory) if record.within_layer is not None]
    last = max((record.step for record in there), default=None)
    rows = [
        fields_of(record, "sharpness", "within_layer", "cross_layer")
        for record in there
        if record.step == last and record.sharpness is not None
    ]
    if not rows:
        raise UsageError(f"no interaction of layers was measured on trajectory {trajectory!r}")
    values = [row[name] for row in rows for name in ("sharpness", "within_layer")]
    x = magnitude_axis(alt.X, "sharpness", values, "directional sharpness")
    y = alt.Y("direction:N", title=None, scale=alt.Scale(domain=[row["direction"] for row in rows]))
    looks = Looks(directions_of(records))
    data = plot(looks.rows(rows))
    facts = looks.tooltip(sharpness="sharpness", within_layer="within layers", cross_layer="their interaction")
    color = looks.beside(marked=False)
    layers = [
        data.mark_rule(strokeWidth=2).encode(x, y, x2="within_layer:Q", **color).add_params(looks.pick),
        data.mark_point(size=90, filled=True).encode(x, y, tooltip=facts, **color),
        data.mark_point(size=90, filled=False, strokeWidth=2).encode(
            x=alt.X("within_layer:Q"), y=y, tooltip=facts, **color
        ),
    ]
    if any(value < 0 for value in values):
        layers.insert(0, rule(x, sharpness=0))
    note = "Filled: the sharpness. Hollow: what is left of it when layers don't interact."
    return finish(layered(*layers), f"Interaction of layers: {trajectory} trajectory, step {last}", note)


def slope_against_sharpness(records: Sequence[DirectionRecord], trajectory: str) -> alt.LayerChart:
    """Whether a step is good because it descends steeply or because it is flat, at the last step that can be compared.

    That is the last at which the optimizer's own update was measured, where any was. Both axes are logarithmic. The
    second-order model's decrease `(gᵀu)² / 2uᵀHu` is the same along each gray line.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.

    Raises:
        UsageError: fewer than two directions descend and curve upwards.
    """
    there = _at(records, trajectory)
    _, last = max(((is_own(record), record.step) for record in there), default=(False, None))
    own = [record for record in there if record.step == last]
    points = [
        fields_of(record, "sharpness") | {"descent": -record.slope, "decrease": record.slope**2 / record.sharpness / 2}
        for record in own
        if record.slope is not None and record.sharpness is not None and record.slope < 0 < record.sharpness
    ]
    if len(points) < 2:
        raise UsageError(f"no two directions descend and curve upwards on trajectory {trajectory!r}")
    window = {name: _ends([point[name] for point in points]) for name in ("sharpness", "descent")}
    x = log_axis(alt.X, "sharpness", "directional sharpness", *window["sharpness"], grid=False)
    y = log_axis(alt.Y, "descent", "slope downwards", *window["descent"], grid=False)
    looks = Looks(directions_of(records))
    facts = looks.tooltip(sharpness="sharpness", descent="slope downwards", decrease="predicted decrease")
    marks = plot(points).mark_point(size=80, strokeWidth=1.8, filled=True)
    lines = plot(_equal_decrease(window["sharpness"], window["descent"]))
    chart = layered(
        lines.mark_line(color="#888", opacity=0.5, strokeWidth=1).encode(x, y, detail=alt.Detail("decrease:N")),
        lines.transform_filter("datum.label").mark_text(align="right", dx=-3, dy=-7, color="#777", fontSize=11)
        .encode(x, y, text="label:N"),
        marks.encode(x, y, tooltip=facts, **looks.point()).add_params(looks.pick),
    )  # fmt: skip
    notes = ["Along a gray line the second-order model's best step gains the same. Higher descends, left is flat."]
    if left := len(own) - len(points):
        notes.append(f"{left} of {len(own)} directions don't descend, or don't curve upwards: they have no place here.")
    return finish(chart, f"Slope against sharpness: {trajectory} trajectory, step {last}", *notes)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values) / 2, max(values) * 2


def _equal_decrease(sharpness: tuple[float, float], descent: tuple[float, float]) -> Rows:
    """Both ends of the lines `descent² = 2·c·sharpness` within a window, with `c` at the upper one."""
    rows: Rows = []
    for c in powers_of_ten(descent[0] ** 2 / sharpness[1] / 2, descent[1] ** 2 / sharpness[0] / 2):
        first, last = (clamp(end, at**2 / c / 2) for clamp, end, at in zip((max, min), sharpness, descent, strict=True))
        if first * (sharpness[1] / sharpness[0]) ** 0.1 < last:  # a shorter one is a speck in a corner
            rows += [
                {"decrease": c, "sharpness": at, "descent": (2 * c * at) ** 0.5, "label": label}
                for at, label in ((first, ""), (last, f"{c:g}"))
            ]
    return rows


def clip_sweep_over_steps(records: Sequence[DirectionRecord], trajectory: str) -> alt.LayerChart:
    """What clipping a part of the gradient does to the optimizer's own update: its sharpness, and its best decrease.

    Both are relative to the update without clipping, at the same step. Lines are medians over steps.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.

    Raises:
        UsageError: fewer than two fractions were measured.
    """
    points, lost = _clipped(_at(records, trajectory))
    percents = sorted({point["clipped"] for point in points})
    if len(percents) < 2:
        raise UsageError(f"no two fractions to clip were measured on trajectory {trajectory!r}")
    names = list(dict.fromkeys(point["of"] for point in points))
    x = log_axis(
        alt.X, "clipped", "% of the gradient's coordinates clipped", percents[0] / 1.3, percents[-1] * 1.3,
        values=percents, grid=False,
    )  # fmt: skip
    y = _ratio_axis([1.0, *(point["ratio"] for point in points)])
    color = categories("of:N", names, "", legend=alt.Legend(orient="top", title=None, symbolOpacity=1))
    middles = [
        {"of": name, "clipped": percent, "ratio": statistics.median(there)}
        for name, percent in itertools.product(names, percents)
        if (there := [p["ratio"] for p in points if (p["of"], p["clipped"]) == (name, percent)])
    ]
    marks = plot_folded(points, "step", "ratio").mark_point(filled=True, size=26, opacity=0.45)
    chart = layered(
        rule(y, ratio=1.0),
        plot(middles).mark_line(strokeWidth=2).encode(x, y, color),
        marks.encode(
            x, y, color, tooltip=tooltips("of", step="step", clipped="clipped %", ratio="clipped / unclipped")
        ),
    )
    notes = ["A point for each measured step; lines are medians. What one step could gain is no verdict on a training."]
    if lost:
        notes.append(f"{lost} values aren't positive, and have no place on the axis.")
    return finish(chart, f"What clipping does to its own update: {trajectory} trajectory", *notes)


def _ratio_axis(ratios: Sequence[float]) -> alt.Y:
    """Logarithmic where they are of several magnitudes."""
    low, high = min(ratios), max(ratios)
    if high > 4 * low:
        return log_axis(alt.Y, "ratio", "clipped / unclipped", low / 1.3, high * 1.3)
    return alt.Y("ratio:Q", title="clipped / unclipped", scale=alt.Scale(zero=False, padding=10))


def _clipped(records: Iterable[DirectionRecord]) -> tuple[Rows, int]:
    """Rows of ratios to the unclipped update of the step, and how many have none for their sign."""
    there = list(records)
    plain = {record.step: record for record in there if is_own(record)}
    points: Rows = []
    lost = 0
    for record in there:
        found = re.fullmatch(r".* clip (\d+(?:\.\d+)?(?:e-\d+)?)%", record.direction, flags=re.DOTALL)
        own = plain.get(record.step)
        if not found or not float(found[1]) or own is None or family(record.direction) != own.direction:
            continue
        for name, field in (("sharpness", "sharpness"), ("best decrease", "best_decrease")):
            above, below = getattr(record, field), getattr(own, field)
            if above is None or below is None:
                continue
            if above <= 0 or below <= 0:
                lost += 1
                continue
            place = {"of": name, "clipped": float(found[1]), "step": record.step}
            points.append({**place, "ratio": above / below})
    return points, lost


def _at(records: Sequence[DirectionRecord], trajectory: str) -> list[DirectionRecord]:
    return [record for record in records if record.trajectory == trajectory]
