"""A chart a figure: each function turns records into one Altair chart, for the page and for print alike.

A direction looks the same in every chart that is drawn from the same records: directions of one family (`sgd`
and `sgd clip 10%`) share a colour, the family's own optimizer has a solid line and a circle, its variants
have dashes and other shapes.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from stepscope.errors import UsageError, require
from stepscope.report.comparison import baseline_scale, directions_of, family, is_own
from stepscope.report.curves import axes_around, curve_of, fields_of, folded, landscape_axes, minimum_of, model_before
from stepscope.report.drawing import (
    Style,
    dressed,
    finish,
    line_look,
    magnitude_axis,
    pick_directions,
    point_look,
    script_json,
    styles,
    tooltips,
    vega_lite_version,
    vega_script,
    xml_text,
)
from stepscope.runs import Record, number, write_atomically

__all__ = [
    "Style",
    "decrease_against_sharpness",
    "directions_of",
    "family",
    "landscapes",
    "overshoot_over_steps",
    "save",
    "sharpness_over_steps",
    "styles",
]


def landscapes(
    records: Sequence[Record],
    trajectory: str,
    step: int | float,
    without: Iterable[str] = (),
    around: str | None = None,
    seed: int | None = None,
) -> Any:
    """The loss along every direction: `f(x + t·u) − f(x)` against `t`, a line each, minima marked.

    Steps are on a logarithmic axis, since the natural scales of directions differ by orders of magnitude. The
    vertical axis ends a little above the start: what matters is how far each line goes down.

    Args:
        records: all records of a run (the others decide how directions look).
        trajectory: the optimizer that moved the weights.
        step: the training step.
        without: names of directions to leave out.
        around: a direction whose own minimum is looked at closely instead, on linear axes that begin at the start.
        seed: one seed; None draws all.

    Returns:
        An `altair.LayerChart`.

    Raises:
        UsageError: no loss along a direction was measured there, or that of `around` has no minimum.
        MissingExtraError: altair is not installed.
    """
    alt = require("altair", "report")
    left_out = set(without)
    there = [r for r in _at(records, trajectory) if r.get("step") == step and seed in (None, r.get("seed"))]
    chosen = [r for r in there if r.get("direction") not in left_out]
    curves = [point for record in chosen for point in curve_of(record)]
    if not curves:
        raise UsageError(f"no landscape was measured on trajectory {trajectory!r} at step {step}")
    minima = [minimum for record in chosen for minimum in minimum_of(record)]
    pick = pick_directions(alt)
    axes = landscape_axes(alt, curves, minima) if around is None else axes_around(alt, minima, around)
    if axes is None:
        raise UsageError(f"no minimum along {around!r} was measured on trajectory {trajectory!r} at step {step}")
    x, y = axes
    opacity = alt.when(pick).then(alt.value(0.95)).otherwise(alt.value(0.08))
    start = alt.Chart(alt.InlineData(values=[{"change": 0}])).mark_rule(color="#888", opacity=0.6).encode(y)
    layers = [start, *_curves_and_minima(alt, records, curves, minima, (x, y, opacity))]
    layers[1] = layers[1].add_params(pick)
    left = x.to_dict()["scale"]["domain"][0]
    model = [row for record in chosen for row in model_before(record, left)]
    notes = ["Points mark each direction's first minimum." + ("" if seed is None else f" Seed {seed}.")]
    if model:
        notes.append("Thin lines: the second-order model, up to the first measured step.")
        layers.append(
            alt.Chart(alt.InlineData(values=folded(dressed(model, records))))
            .transform_flatten(["t", "change"])
            .mark_line(clip=True, strokeWidth=0.8)
            .encode(x, y, color=alt.Color("colour:N", scale=None), detail=["direction:N", "seed:N"], opacity=opacity)
        )
    near = "" if around is None else f", around the minimum of {around}"
    name = f"Loss along each direction{near}: {trajectory} trajectory, step {step}"
    return finish(alt.layer(*layers), name, *notes)


def _curves_and_minima(
    alt: Any, records: Sequence[Record], curves: list[Any], minima: list[Any], encoded: tuple[Any, Any, Any]
) -> list[Any]:
    """The layers of a landscape that say what was measured: the lines, and their first minima if there are any."""
    x, y, opacity = encoded
    look = line_look(alt, records)
    facts = [
        alt.Tooltip("direction:N"),
        *tooltips(alt, best_step="best step", best_decrease="best decrease", sharpness="sharpness"),
        alt.Tooltip("status:N"),
        alt.Tooltip("seed:N"),
    ]
    lines = (
        alt.Chart(alt.InlineData(values=folded(curves)))
        .transform_flatten(["t", "change"])
        .mark_line(clip=True, strokeWidth=2, interpolate="monotone")
        .encode(x, y, look["color"], look["strokeDash"], detail="seed:N", opacity=opacity, tooltip=facts)
    )
    points = (
        alt.Chart(alt.InlineData(values=dressed(minima, records)))
        .mark_point(filled=True, size=70, clip=True)
        .encode(
            x,
            y,
            color=alt.Color("colour:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
            opacity=opacity,
            tooltip=facts,
        )
    )
    return [lines, points] if minima else [lines]


def sharpness_over_steps(records: Sequence[Record], trajectory: str) -> Any:
    """Directional sharpness `uᵀHu` against the training step, sign kept: hollow points are negative.

    The vertical axis is logarithmic away from zero and linear around it, so that both signs and all orders of
    magnitude fit. Several seeds: the line is their mean, each has its points.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.

    Returns:
        An `altair.LayerChart`.

    Raises:
        UsageError: no sharpness was measured there.
        MissingExtraError: altair is not installed.
    """
    alt = require("altair", "report")
    names = ("sharpness", "sharpness_stderr", "correlation")
    points = [
        fields_of(record, names, "step", "seed")
        for record in _at(records, trajectory)
        if number(record, "sharpness") is not None and number(record, "step") is not None
    ]
    if not points:
        raise UsageError(f"no sharpness was measured on trajectory {trajectory!r}")
    pick = pick_directions(alt)
    y = magnitude_axis(alt, "Y", "sharpness", [point["sharpness"] for point in points], "directional sharpness")
    steps = sorted({point["step"] for point in points})
    x = alt.X(
        "step:Q",
        title="training step",
        axis=alt.Axis(values=steps, format="~s", grid=False, labelOverlap=True) if len(steps) <= 12 else alt.Axis(),
        scale=alt.Scale(zero=False, nice=False, padding=14),
    )
    opacity = alt.when(pick).then(alt.value(0.95)).otherwise(alt.value(0.08))
    lines = _lines(alt, records, _mean_over_seeds(points), x, y, opacity).add_params(pick)
    hollow = alt.when("datum.sharpness < 0").then(alt.value(0)).otherwise(alt.value(1))
    marks = (
        alt.Chart(alt.InlineData(values=dressed(points, records)))
        .mark_point(size=60, strokeWidth=1.8)
        .encode(
            x,
            y,
            color=alt.Color("colour:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
            fill=alt.Fill("colour:N", scale=None),
            fillOpacity=hollow,
            opacity=opacity,
            tooltip=[
                alt.Tooltip("direction:N"),
                *tooltips(alt, step="step", sharpness="sharpness", sharpness_stderr="standard error"),
                *tooltips(alt, correlation="correlation"),
                alt.Tooltip("seed:N"),
            ],
        )
    )
    zero = alt.Chart(alt.InlineData(values=[{"sharpness": 0}])).mark_rule(color="#888", opacity=0.6).encode(y)
    note = "Hollow points are negative: the loss curves downwards along them."
    any_negative = any(point["sharpness"] < 0 for point in points)
    layers = [zero, lines, marks] if any_negative else [lines, marks]
    name = f"Directional sharpness during training: {trajectory} trajectory"
    return finish(alt.layer(*layers), name, note if any_negative else "")


def overshoot_over_steps(records: Sequence[Record], trajectory: str) -> Any:
    """Where the learning rate lands: the step of the optimizer that trains beside the best step, on a logarithmic axis.

    Above the line at 1 it goes past the minimum along its direction, below it falls short. The line through the points
    is their moving average.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.

    Returns:
        An `altair.LayerChart`.

    Raises:
        UsageError: no overshoot of the training optimizer was measured there, as in runs without a probe.
        MissingExtraError: altair is not installed.
    """
    alt = require("altair", "report")
    names = ("overshoot", "overshoot_smoothed", "lr_step", "best_step")
    points = [
        fields_of(record, names, "step", "seed")
        for record in _at(records, trajectory)
        if is_own(record) and number(record, "overshoot") is not None and number(record, "step") is not None
    ]
    if not points:
        raise UsageError(f"no learning rate was compared with the best step on trajectory {trajectory!r}")
    x = alt.X("step:Q", title="training step", scale=alt.Scale(zero=False, nice=False, padding=14))
    y = alt.Y("overshoot:Q", title="its step / the best step", scale=alt.Scale(type="log"))
    pick = pick_directions(alt)
    opacity = alt.when(pick).then(alt.value(0.95)).otherwise(alt.value(0.08))
    lines = _lines(alt, records, points, x, alt.Y("overshoot_smoothed:Q"), opacity).add_params(pick)
    marks = (
        alt.Chart(alt.InlineData(values=dressed(points, records)))
        .mark_point(size=60, strokeWidth=1.8, filled=True)
        .encode(
            x,
            y,
            color=alt.Color("colour:N", scale=None),
            shape=alt.Shape("shape:N", scale=None),
            opacity=opacity,
            tooltip=[
                alt.Tooltip("direction:N"),
                *tooltips(alt, step="step", overshoot="its step / the best step", overshoot_smoothed="smoothed"),
                *tooltips(alt, lr_step="its step", best_step="best step"),
            ],
        )
    )
    best = alt.Chart(alt.InlineData(values=[{"overshoot": 1}])).mark_rule(color="#888", opacity=0.8).encode(y)
    name = f"Where the learning rate lands: {trajectory} trajectory"
    note = "Above 1 the step goes past the minimum along its direction, below it falls short. The line is smoothed."
    return finish(alt.layer(best, lines, marks), name, note)


def _lines(alt: Any, records: Sequence[Record], values: Sequence[Any], x: Any, y: Any, opacity: Any) -> Any:
    look = line_look(alt, records)
    chart = alt.Chart(alt.InlineData(values=values)).mark_line(strokeWidth=1.8)
    return chart.encode(x, y, look["color"], look["strokeDash"], opacity=opacity)


def decrease_against_sharpness(records: Sequence[Record], trajectory: str) -> Any:
    """Does low sharpness mean a good step? Best local decrease against sharpness, a point each.

    Both are relative to their step, so that all steps share the axes: sharpness as a ratio to |SGD's|
    (absolute if SGD was not measured), the decrease as a share of the best one among all directions.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.

    Returns:
        An `altair.Chart`.

    Raises:
        UsageError: no decrease was measured there.
        MissingExtraError: altair is not installed.
    """
    alt = require("altair", "report")
    points, relative = _decreases(_at(records, trajectory))
    if not points:
        raise UsageError(f"no local decrease was measured on trajectory {trajectory!r}")
    pick = pick_directions(alt)
    title = "sharpness / |SGD's|" if relative else "directional sharpness"
    look = point_look(alt, records)
    chart = (
        alt.Chart(alt.InlineData(values=points))
        .mark_point(size=80, strokeWidth=1.8, filled=True)
        .encode(
            magnitude_axis(alt, "X", "x", [point["x"] for point in points], title),
            alt.Y("share:Q", title="best decrease / the step's largest", axis=alt.Axis(format="%")),
            look["color"],
            look["shape"],
            opacity=alt.when(pick).then(alt.value(0.9)).otherwise(alt.value(0.06)),
            tooltip=[
                alt.Tooltip("direction:N"),
                *tooltips(alt, step="step", sharpness="sharpness", best_decrease="best decrease"),
                alt.Tooltip("share:Q", format=".0%", title="of the best"),
                alt.Tooltip("seed:N"),
            ],
        )
        .add_params(pick)
    )
    name = f"Local decrease against sharpness: {trajectory} trajectory"
    return finish(chart, name, "One point per direction and measured step; higher is better, further left is flatter.")


def save(chart: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a chart to a file, in the format that the file's name says.

    Args:
        chart: what one of this module's functions returned.
        path: a name that ends in `.pdf` or `.svg` (vector), `.png` (twice the screen's resolution) or `.html`
            (interactive, needs no network).

    Returns:
        The path.

    Raises:
        UsageError: the suffix is another one, or the file cannot be written.
        MissingExtraError: vl-convert is not installed.
    """
    target = Path(path)
    converter = require("vl_convert", "report")
    version = vega_lite_version()
    suffix = target.suffix.lower()
    spec = chart.to_dict()
    printed = xml_text(spec)
    if suffix == ".pdf":
        content = converter.vegalite_to_pdf(printed, vl_version=version)
    elif suffix == ".svg":
        content = converter.vegalite_to_svg(printed, vl_version=version).encode()
    elif suffix == ".png":
        content = converter.vegalite_to_png(printed, vl_version=version, scale=2)
    elif suffix == ".html":
        content = _standalone_page(spec).encode(errors="replace")
    else:
        raise UsageError(f"cannot save a chart as {target.name!r}: end the name in .pdf, .svg, .png or .html")
    write_atomically(target, content)
    return target


def _at(records: Sequence[Record], trajectory: str) -> list[Record]:
    return [record for record in records if record.get("trajectory") == trajectory]


def _mean_over_seeds(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, float], list[float]] = {}
    for point in points:
        groups.setdefault((point["direction"], point["step"]), []).append(point["sharpness"])
    return [
        {"direction": direction, "step": step, "sharpness": statistics.fmean(values)}
        for (direction, step), values in groups.items()
    ]


def _decreases(records: Sequence[Record]) -> tuple[list[dict[str, Any]], bool]:
    """Rows for the scatter, and whether their sharpness is relative to SGD's."""
    measured: dict[tuple[Any, Any], list[Record]] = {}
    for record in records:
        if number(record, "sharpness") is not None and number(record, "best_decrease") is not None:
            measured.setdefault((record.get("step"), record.get("seed")), []).append(record)
    scales = {key: baseline_scale(group)[0] for key, group in measured.items()}
    relative = bool(scales) and all(scale is not None for scale in scales.values())
    rows = []
    for key, group in measured.items():
        best = max(record["best_decrease"] for record in group)
        if best <= 0:
            continue  # nothing decreases the loss there: no share of it
        for record in group:
            row = fields_of(record, ("sharpness", "best_decrease"), "step", "seed")
            row["x"] = row["sharpness"] / ((scales[key] or 1.0) if relative else 1.0)
            rows.append({**row, "share": max(row["best_decrease"], 0.0) / best})
    return rows, relative


def _standalone_page(spec: dict[str, Any]) -> str:
    """One interactive chart as a page that fetches nothing."""
    options = script_json({"actions": {"export": True, "source": False, "compiled": False, "editor": False}})
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>stepscope</title><div id="chart"></div>'
        f"<script>{vega_script()}</script>"
        f"<script>vegaEmbed('#chart', {script_json(spec)}, {options})</script></html>\n"
    )
