"""Landscapes as rows for a chart: the measured points, the minimum, the model before the first point."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from stepscope.report.axes import log_axis
from stepscope.report.vega import alt
from stepscope.runs import DirectionRecord


def fields_of(record: DirectionRecord, *names: str) -> dict[str, Any]:
    """A row for a chart, of the direction and other fields; what is None is left out: Vega shows null as a value."""
    return {name: value for name in ("direction", *names) if (value := getattr(record, name)) is not None}


def curve_of(record: DirectionRecord) -> list[dict[str, Any]]:
    """The measured points of one landscape, as rows; without t = 0, since the axis is logarithmic."""
    landscape = record.landscape
    if landscape is None:
        return []
    points = zip(landscape.steps, landscape.losses, strict=False)
    pairs = [(step, loss) for step, loss in points if loss is not None]
    start = next((loss for step, loss in pairs if step == 0), record.loss)
    if start is None:
        return []
    facts = fields_of(record, "best_step", "best_decrease", "sharpness", "seed") | {"status": landscape.status}
    return [{**facts, "t": step, "change": loss - start} for step, loss in pairs if step > 0]


def folded(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per curve with its points as lists: what is the same for all of them is then written once."""
    curves: dict[tuple[Any, Any], dict[str, Any]] = {}
    for point in points:
        key = (point["direction"], point["seed"])
        curve = curves.setdefault(key, {**point, "t": [], "change": []})
        curve["t"].append(point["t"])
        curve["change"].append(point["change"])
    return list(curves.values())


def minimum_of(record: DirectionRecord) -> list[dict[str, Any]]:
    """The lowest point of one direction's landscape, as one row; none if it was not found."""
    curve = curve_of(record)
    if not curve or curve[0]["status"] in ("no descent", "unbounded"):
        return []
    step, decrease = record.best_step, record.best_decrease
    if step is None or decrease is None:
        lowest = min(curve, key=lambda point: point["change"])
        step, decrease = lowest["t"], -lowest["change"]
    return [{**curve[0], "t": step, "change": -decrease}] if step > 0 and decrease > 0 else []


def model_before(record: DirectionRecord, first: float) -> list[dict[str, Any]]:
    """Rows of the second-order model from an axis' left end (0 where it isn't logarithmic) to the first measured step.

    A search for the minimum has few points near the start, where `f(x) + t·gᵀu + ½t²·uᵀHu` is good.
    """
    curve, slope, sharpness = curve_of(record), record.slope, record.sharpness
    if not curve or slope is None or sharpness is None:
        return []
    last = min(point["t"] for point in curve)
    if first >= last:
        return []
    if first:
        steps = [first * (last / first) ** (index / 12) for index in range(13)]
    else:
        steps = [last * index / 12 for index in range(13)]
    model = [slope * t + 0.5 * sharpness * t**2 for t in steps]
    return [{**fields_of(record, "seed"), "t": t, "change": y} for t, y in zip(steps, model, strict=True)]


def landscape_axes(curves: list[dict[str, Any]], minima: list[dict[str, Any]]) -> tuple[alt.X, alt.Y]:
    """Axes around what the lines do below the start loss: far out the loss only explodes."""
    low = min([0.0, *(point["change"] for point in (*curves, *minima))])
    high = -0.3 * low or statistics.median(abs(point["change"]) for point in curves) or 1.0
    shown = [point["t"] for point in curves if point["change"] <= high] or [point["t"] for point in curves]
    first, last = min(shown), max(shown) * 1.5
    if minima:
        first = min(point["t"] for point in minima) / 25
    x = log_axis(alt.X, "t", "step length t along the direction", first, last, 8, grid=False)
    y = alt.Y(
        "change:Q",
        title="loss − start loss",
        scale=alt.Scale(domain=[low * 1.06, high], nice=False, zero=False),
    )
    return x, y


def axes_around(minima: list[dict[str, Any]], direction: str) -> tuple[alt.X, alt.Y] | None:
    """Linear axes from the start to some way past one direction's own minimum; None if it has none."""
    own = [point for point in minima if point["direction"] == direction]
    if not own:
        return None
    last, low = 3 * max(point["t"] for point in own), 1.6 * min(point["change"] for point in own)
    x = alt.X(
        "t:Q",
        title="step length t along the direction",
        scale=alt.Scale(domain=[0, last], nice=False),
        axis=alt.Axis(format="~g", grid=False),
    )
    y = alt.Y("change:Q", title="loss − start loss", scale=alt.Scale(domain=[low, -0.4 * low], nice=False, zero=False))
    return x, y
