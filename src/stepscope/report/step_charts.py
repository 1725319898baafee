"""A chart a figure: each function turns records into one Altair chart, for the page and for print alike."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from stepscope.errors import UsageError
from stepscope.report.axes import magnitude_axis, step_axis
from stepscope.report.comparison import BASELINE, baseline_scale, directions_of
from stepscope.report.figures import of_step, of_trajectory
from stepscope.report.landscape_curves import (
    axes_around,
    curve_of,
    fields_of,
    folded,
    landscape_axes,
    minimum_of,
    model_before,
)
from stepscope.report.looks import Looks
from stepscope.report.vega import alt, finish, layered, plot, rule
from stepscope.runs import DirectionRecord, family, is_own


@of_step(f"landscape around the minimum of {BASELINE}", on_page=False, around=BASELINE)
@of_step("landscape without Adafactor", on_page=False, without=("adafactor",))
@of_step("landscape")
def landscapes(
    records: Sequence[DirectionRecord],
    trajectory: str,
    step: int,
    without: Sequence[str] = (),
    around: str | None = None,
    seed: int | None = None,
) -> alt.LayerChart:
    """The loss along every direction: `f(x + t·u) − f(x)` against `t`, a line each, minima marked.

    Steps are on a logarithmic axis, since the natural scales of directions differ by orders of magnitude. The
    vertical axis ends a little above the start: what matters is how far each line goes down.

    `without` leaves families of directions out. `around` looks closely at one direction's own minimum instead, on
    linear axes that begin at the start. It is one seed's: the first that was measured there, unless one is given.
    """
    there = [record for record in _at(records, trajectory) if record.step == step]
    seeds = {record.seed for record in there}
    own = [record for record in there if record.seed == (min(seeds) if seed is None else seed)]
    chosen = [record for record in own if family(record.direction) not in without]
    curves = [point for record in chosen for point in curve_of(record)]
    if not curves or (without and len(chosen) == len(own)):
        raise UsageError(f"no landscape was measured on trajectory {trajectory!r} at step {step}")
    minima = [minimum for record in chosen for minimum in minimum_of(record)]
    axes = landscape_axes(curves, minima) if around is None else axes_around(minima, around)
    if axes is None:
        raise UsageError(f"no minimum along {around!r} was measured on trajectory {trajectory!r} at step {step}")
    x, y = axes
    looks = Looks(directions_of(records))
    layers = [rule(y, change=0), *_curves_and_minima(looks, curves, minima, x, y)]
    horizontal: Any = x.to_dict()
    left = horizontal["scale"]["domain"][0]
    model = [row for record in chosen for row in model_before(record, left)]
    notes = ["Points mark each direction's first minimum." + (f" Seed {own[0].seed}." if len(seeds) > 1 else "")]
    if model:
        notes.append("Thin lines: the second-order model, up to the first measured step.")
        layers.append(
            plot(folded(looks.rows(model)))
            .transform_flatten(["t", "change"])
            .mark_line(clip=True, strokeWidth=0.8)
            .encode(x, y, detail=[alt.Detail("direction:N"), alt.Detail("seed:N")], **looks.beside(marked=False))
        )
    near = "" if around is None else f", around the minimum of {around}"
    name = f"Loss along each direction{near}: {trajectory} trajectory, step {step}"
    return finish(layered(*layers), name, *notes)


def _curves_and_minima(looks: Looks, curves: list[Any], minima: list[Any], x: alt.X, y: alt.Y) -> list[alt.Chart]:
    """The layers of a landscape that say what was measured: the lines, and their first minima if there are any."""
    facts = looks.tooltip("status", "seed", best_step="best step", best_decrease="best decrease", sharpness="sharpness")
    lines = (
        plot(folded(curves))
        .transform_flatten(["t", "change"])
        .mark_line(clip=True, strokeWidth=2, interpolate="monotone")
        .encode(x, y, detail=alt.Detail("seed:N"), tooltip=facts, **looks.line())
        .add_params(looks.pick)
    )
    points = plot(looks.rows(minima)).mark_point(filled=True, size=70, clip=True)
    return [lines, points.encode(x, y, tooltip=facts, **looks.beside())] if minima else [lines]


@of_trajectory("overshoot")
def overshoot_over_steps(records: Sequence[DirectionRecord], trajectory: str) -> alt.LayerChart:
    """Where the learning rate lands: the step of the optimizer that trains beside the best step, on a logarithmic axis.

    Above the line at 1 it goes past the minimum along its direction, below it falls short. The line through the points
    is their moving average.
    """
    names = ("overshoot", "overshoot_smoothed", "lr_step", "best_step")
    points = [
        fields_of(record, *names, "step", "seed")
        for record in _at(records, trajectory)
        if is_own(record) and record.overshoot is not None
    ]
    if not points:
        raise UsageError(f"no learning rate was compared with the best step on trajectory {trajectory!r}")
    x = step_axis(point["step"] for point in points)
    y = alt.Y("overshoot:Q", title="its step / the best step", scale=alt.Scale(type="log"))
    looks = Looks(directions_of(records))
    lines = plot(points).mark_line(strokeWidth=1.8).encode(x, alt.Y("overshoot_smoothed:Q"), **looks.line())
    facts = {"step": "step", "overshoot": "its step / the best step", "overshoot_smoothed": "smoothed"}
    marks = plot(looks.rows(points)).mark_point(size=60, strokeWidth=1.8, filled=True)
    marks = marks.encode(
        x, y, tooltip=looks.tooltip(**facts, lr_step="its step", best_step="best step"), **looks.beside()
    )
    name = f"Where the learning rate lands: {trajectory} trajectory"
    note = "Above 1 the step goes past the first minimum along its direction. It describes, and doesn't judge the rate."
    return finish(layered(rule(y, overshoot=1), lines.add_params(looks.pick), marks), name, note)


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
    lines = plot(_mean_over_seeds(points)).mark_line(strokeWidth=1.8).encode(x, y, **looks.line())
    hollow = alt.FillOpacityValue(1, condition=[{"test": "datum.sharpness < 0", "value": 0}])
    marks = plot(looks.rows(points)).mark_point(size=60, strokeWidth=1.8)
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
        plot(points)
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
