"""A chart a figure: each function turns records into one Altair chart, for the page and for print alike."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.errors import UsageError
from stepscope.report.axes import magnitude_axis, step_axis
from stepscope.report.comparison import BASELINE, baseline_scale, directions_of
from stepscope.report.figures import of_step, of_trajectory
from stepscope.report.landscape_curves import (
    Window,
    curve_of,
    fields_of,
    landing_of,
    minimum_of,
    model_before,
    seen,
    window_around,
    window_of,
)
from stepscope.report.looks import Looks
from stepscope.report.vega import alt, finish, layered, plot, plot_folded, rule, short
from stepscope.runs import DirectionRecord, family


@of_step(f"landscape around the minimum of {BASELINE}", on_page=False, around=BASELINE)
@of_step("landscape without Adafactor", on_page=False, without=("adafactor",))
@of_step("landscape", slides=True)
def landscapes(
    records: Sequence[DirectionRecord],
    trajectory: str,
    *steps: int,
    without: Sequence[str] = (),
    around: str | None = None,
    seed: int | None = None,
) -> alt.LayerChart:
    """The loss along every direction: `f(x + t·u) − f(x)` against `t`, a line each, minima marked.

    Steps are on a logarithmic axis, since the natural scales of directions differ by orders of magnitude. The
    vertical axis ends a little above the start: what matters is how far each line goes down. A dot is where the step
    that the optimizer makes lands, a triangle where that is above the axis.

    Several steps are one chart, whose parameter `step` says which of them is shown: the last one at first.

    `without` leaves families of directions out. `around` looks closely at one direction's own minimum instead, on
    linear axes that begin at the start. It is one seed's: the first that was measured there, unless one is given.
    """
    chosen = [_chosen(records, trajectory, step, without, seed) for step in steps]
    shown = [landscape for there in chosen for landscape in _shown_of(there, around)]
    if not any(chosen):
        places = f"at step {steps[0]}" if len(steps) == 1 else "at any step"
        raise UsageError(f"no landscape was measured on trajectory {trajectory!r} {places}")
    if not shown:
        raise UsageError(f"no minimum along {around!r} was measured on trajectory {trajectory!r} at step {steps[-1]}")
    looks = Looks(directions_of(records))
    x, y = _view_axes(around is None)
    notes = ["Ticks mark each direction's first minimum."]
    if any(each.landings for each in shown):
        notes[0] += " The dot is where the optimizer's own step lands."
    if len({record.seed for record in _at(records, trajectory)}) > 1:
        notes[0] += f" Seed {', '.join(str(seed) for seed in dict.fromkeys(each.seed for each in shown))}."
    if any("from" in row for each in shown for row in each.lines):
        notes.append("Thin lines: the second-order model, up to the first measured step.")
    views = {str(each.step): {name: short([*ends]) for name, ends in vars(each.window).items()} for each in shown}
    chart = (
        layered(rule(y, change=0), *_landscape_layers(looks, shown, x, y))
        .add_params(alt.param(name="views", value=views), alt.param(name="step", value=shown[-1].step))
        .add_params(alt.param(name="view", expr="views[step]"))
    )
    near = "" if around is None else f", around the minimum of {around}"
    at = f", step {steps[0]}" if len(steps) == 1 else ""
    return finish(chart, f"Loss along each direction{near}: {trajectory} trajectory{at}", *notes)


@dataclass(frozen=True)
class _Landscape:
    """What is drawn at one step: a row for each line, for each step that lands, and the part that is shown."""

    step: int
    seed: int
    lines: list[dict[str, Any]]
    landings: list[dict[str, Any]]
    window: Window


def _chosen(
    records: Sequence[DirectionRecord], trajectory: str, step: int, without: Sequence[str], seed: int | None
) -> list[DirectionRecord]:
    """One seed's records at a step, if they have a landscape, and another one where families are left out."""
    there = [record for record in _at(records, trajectory) if record.step == step]
    first = min((record.seed for record in there), default=None) if seed is None else seed
    own = [record for record in there if record.seed == first]
    chosen = [record for record in own if family(record.direction) not in without]
    same = bool(without) and len(chosen) == len(own)
    return [] if same or not any(map(curve_of, chosen)) else chosen


def _shown_of(chosen: Sequence[DirectionRecord], around: str | None) -> list[_Landscape]:
    """What is drawn of one step's records; nothing where the minimum that is looked at wasn't found."""
    curves = [point for record in chosen for point in curve_of(record)]
    minima = [minimum for record in chosen for minimum in minimum_of(record)]
    landings = [landing for record in chosen for landing in landing_of(record)]
    if not curves:
        return []
    window = window_of(curves, minima, landings) if around is None else window_around(minima, around)
    if window is None:
        return []
    top = window.y[1] - 0.03 * (window.y[1] - window.y[0])
    for row in landings:
        row["shown"] = min(row.get("change", top), top)
        row["mark"] = "circle" if row.get("change", math.inf) <= top else "triangle-up"
    step = chosen[0].step
    lines = [{**row, "step": step} for record in chosen for row in _line_of(record, window)]
    return [_Landscape(step, chosen[0].seed, lines, [{**row, "step": step} for row in landings], window)]


def _line_of(record: DirectionRecord, window: Window) -> list[dict[str, Any]]:
    """A landscape in one row: the points that are seen as lists, the minimum, what the model before them needs."""
    curve = curve_of(record)
    if not curve:
        return []
    # The points of lines are most of a page, and need fewer digits than the numbers in its tables.
    line = seen(curve, window)
    row = {**curve[0], **{name: short([point[name] for point in line], 4) for name in ("t", "change")}}
    for lowest in minimum_of(record):
        row |= {"best_step": lowest["t"], "best_decrease": -lowest["change"], "found": 1}
    return [row | part for part in model_before(record, window.x[0]) or [{}]]


def _view_axes(is_log: bool) -> tuple[alt.X, alt.Y]:
    """Axes whose ends are those of the step that is shown."""

    def ends(name: str) -> list[alt.ExprRef]:
        return [alt.ExprRef(f"view.{name}[{place}]") for place in (0, 1)]

    title = "step length t along the direction" + " (log)" * is_log
    ticks: Any = {"values": alt.ExprRef("view.ticks")} if is_log else {}
    x = alt.X(
        "t:Q",
        title=title,
        scale=alt.Scale(type="log" if is_log else "linear", domain=ends("x"), nice=False),
        axis=alt.Axis(format="~g", grid=False, **ticks),
    )
    scale = alt.Scale(domain=ends("y"), nice=False, zero=False)
    return x, alt.Y("change:Q", title="loss − start loss", scale=scale)


def _landscape_layers(looks: Looks, shown: Sequence[_Landscape], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """Lines, the model before them, ticks at the minima and dots where steps land: as far as there are any.

    Vega gives no name to a group of marks that is empty at one of the steps, so a screen reader is not told of it.
    """
    rows = [{**row, "color": looks[row["direction"]].color} for each in shown for row in each.lines]
    facts = looks.tooltip("status", "seed", best_step="best step", best_decrease="best decrease", sharpness="sharpness")
    told = ("best_step", "best_decrease", "sharpness", "status")
    data = plot_folded(rows, "step", "t", "change", "found", "slope", "from", *told)
    data = data.transform_filter("datum.step === step")
    lines = data.transform_flatten(["t", "change"]).mark_line(clip=True, strokeWidth=2, interpolate="monotone")
    layers = [lines.encode(x, y, detail=alt.Detail("seed:N"), tooltip=facts, **looks.line()).add_params(looks.pick)]
    if any("from" in row for row in rows):
        model = _modelled(data).mark_line(clip=True, strokeWidth=0.8)
        detail = [alt.Detail("direction:N"), alt.Detail("seed:N")]
        layers.append(model.encode(x, y, detail=detail, **looks.beside(marked=False)))
    if any("found" in row for row in rows):
        always = all(any("found" in row for row in each.lines) for each in shown)
        ticks = data.transform_filter("datum.found === 1").mark_point(
            shape="stroke", angle=90, size=260, strokeWidth=2.5, clip=True, aria=always
        )
        ticks = ticks.transform_calculate(t="datum.best_step", change="-datum.best_decrease")
        layers.append(ticks.encode(x, y, tooltip=facts, **looks.beside(marked=False)))
    if landings := [row for each in shown for row in each.landings]:
        colored = [{**row, "color": looks[row["direction"]].color} for row in landings]
        always = all(each.landings for each in shown)
        dots = plot(colored).transform_filter("datum.step === step")
        dots = dots.mark_point(filled=True, size=130, clip=True, aria=always)
        landed = looks.tooltip(t="length of its step", change="change of the loss")
        layers.append(dots.encode(x, y=alt.Y("shown:Q"), tooltip=landed, **looks.beside()))
    return layers


def _modelled(chart: alt.Chart) -> alt.Chart:
    """The points of second-order models, a line each, from their coefficients up to the first measured point."""
    between = "datum.from > 0 ? datum.from * pow(datum.t[0] / datum.from, datum.part) : datum.t[0] * datum.part"
    points: alt.Chart = (
        chart.transform_filter("isNumber(datum.from)")
        .transform_calculate(part="sequence(13)")
        .transform_flatten(["part"])
        .transform_calculate(part="datum.part / 12")
        .transform_calculate(t=between)
        .transform_calculate(change="datum.t * (datum.slope + datum.t * datum.sharpness / 2)")
    )
    return points


@of_trajectory("sharpness")
def sharpness_over_steps(records: Sequence[DirectionRecord], trajectory: str) -> alt.LayerChart:
    """Directional sharpness `uᵀHu` against the training step, sign kept: hollow points are negative.

    The vertical axis is logarithmic away from zero and linear around it, so that both signs and all orders of
    magnitude fit. Several seeds: the line is their mean, each has its points.
    """
    names = ("sharpness", "sharpness_stderr", "correlation")
    points = [
        fields_of(record, *names, "step", "seed") for record in _at(records, trajectory) if record.sharpness is not None
    ]
    if not points:
        raise UsageError(f"no sharpness was measured on trajectory {trajectory!r}")
    y = magnitude_axis(alt.Y, "sharpness", [point["sharpness"] for point in points], "directional sharpness")
    x = step_axis(point["step"] for point in points)
    looks = Looks(directions_of(records))
    means = plot_folded(_mean_over_seeds(points), "step", "sharpness")
    lines = means.mark_line(strokeWidth=1.8).encode(x, y, **looks.line())
    hollow = alt.FillOpacityValue(1, condition=[{"test": "datum.sharpness < 0", "value": 0}])
    size = 60 if len({point["step"] for point in points}) <= 30 else 14
    marks = plot_folded(looks.rows(points), "step", *names).mark_point(size=size, strokeWidth=1.8)
    facts = {"sharpness": "sharpness", "sharpness_stderr": "standard error", "correlation": "correlation"}
    marks = marks.encode(
        x, y, fill=alt.Fill("color:N", scale=None), fillOpacity=hollow,
        tooltip=looks.tooltip("seed", step="step", **facts), **looks.beside(),
    )  # fmt: skip
    note = "Hollow points are negative: the loss curves downwards along them."
    any_negative = any(point["sharpness"] < 0 for point in points)
    layers: list[alt.Chart] = [lines.add_params(looks.pick), marks]
    if any_negative:
        layers.insert(0, rule(y, sharpness=0))
    name = f"Directional sharpness during training: {trajectory} trajectory"
    return finish(layered(*layers), name, note if any_negative else "")


@of_trajectory("decrease against sharpness")
def decrease_against_sharpness(records: Sequence[DirectionRecord], trajectory: str) -> alt.Chart:
    """Does low sharpness mean a good step? Best local decrease against sharpness, a point each.

    Both are relative to their step, so that all steps share the axes: sharpness as a ratio to |SGD's|
    (absolute if SGD was not measured), the decrease as a share of the best one among all directions.
    """
    points, relative = _decreases(_at(records, trajectory))
    if not points:
        raise UsageError(f"no local decrease was measured on trajectory {trajectory!r}")
    title = "sharpness / |SGD's|" if relative else "directional sharpness"
    looks = Looks(directions_of(records))
    share = alt.Tooltip("share:Q", format=".0%", title="of the best")
    chart: alt.Chart = (
        plot_folded(points, "step", "x", "share", "sharpness", "best_decrease")
        .mark_point(size=80, strokeWidth=1.8, filled=True)
        .encode(
            magnitude_axis(alt.X, "x", [point["x"] for point in points], title),
            alt.Y("share:Q", title="best decrease / the step's largest", axis=alt.Axis(format="%")),
            tooltip=looks.tooltip(share, "seed", step="step", sharpness="sharpness", best_decrease="best decrease"),
            **looks.point(),
        )
        .add_params(looks.pick)
    )
    name = f"Local decrease against sharpness: {trajectory} trajectory"
    return finish(chart, name, "One point per direction and measured step; higher is better, further left is flatter.")


def _at(records: Sequence[DirectionRecord], trajectory: str) -> list[DirectionRecord]:
    return [record for record in records if record.trajectory == trajectory]


def _mean_over_seeds(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, float], list[float]] = {}
    for point in points:
        groups.setdefault((point["direction"], point["step"]), []).append(point["sharpness"])
    return [
        {"direction": direction, "step": step, "sharpness": statistics.fmean(values)}
        for (direction, step), values in groups.items()
    ]


def _decreases(records: Sequence[DirectionRecord]) -> tuple[list[dict[str, Any]], bool]:
    """Rows for the scatter, and whether their sharpness is relative to SGD's."""
    measured: dict[tuple[Any, Any], list[DirectionRecord]] = {}
    for record in records:
        if record.sharpness is not None and record.best_decrease is not None:
            measured.setdefault((record.step, record.seed), []).append(record)
    scales = {key: baseline_scale(group)[0] for key, group in measured.items()}
    relative = bool(scales) and all(scale is not None for scale in scales.values())
    rows = []
    for key, group in measured.items():
        best = max(record.best_decrease or 0.0 for record in group)
        if best <= 0:
            continue  # nothing decreases the loss there: no share of it
        for record in group:
            row = fields_of(record, "sharpness", "best_decrease", "step", "seed")
            row["x"] = row["sharpness"] / ((scales[key] or 1.0) if relative else 1.0)
            rows.append({**row, "share": max(row["best_decrease"], 0.0) / best})
    return rows, relative
