"""Landscapes as rows for a chart: the measured points, the minimum, the model before the first point."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.report.axes import powers_of_ten
from stepscope.report.comparison import NO_DESCENT
from stepscope.runs import DirectionRecord, is_own


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


def minimum_of(record: DirectionRecord) -> list[dict[str, Any]]:
    """The lowest point of one direction's landscape, as one row; none if it was not found."""
    curve = curve_of(record)
    if not curve or curve[0]["status"] in (NO_DESCENT, "unbounded"):
        return []
    step, decrease = record.best_step, record.best_decrease
    if step is None or decrease is None:
        lowest = min(curve, key=lambda point: point["change"])
        step, decrease = lowest["t"], -lowest["change"]
    found = step > 0 and decrease > 0
    return [fields_of(record, "seed") | {"t": step, "change": -decrease}] if found else []


def landing_of(record: DirectionRecord) -> list[dict[str, Any]]:
    """Where the step that the optimizer makes lands, as one row; of a direction that isn't its own there is none."""
    if not is_own(record) or not record.lr_step:
        return []
    lands = record.lr_loss is not None and record.loss is not None
    change = (record.lr_loss or 0.0) - (record.loss or 0.0) if lands else None
    return [fields_of(record, "seed") | {"t": record.lr_step} | ({} if change is None else {"change": change})]


def model_before(record: DirectionRecord, first: float) -> list[dict[str, Any]]:
    """The coefficients of the second-order model, and where it begins; none where points are measured from there on.

    A search for the minimum has few points near the start, where `f(x) + t·gᵀu + ½t²·uᵀHu` is good.

    Args:
        record: a measurement.
        first: the left end of the axis, 0 where it isn't logarithmic.
    """
    curve = curve_of(record)
    if not curve or record.slope is None or record.sharpness is None or first >= curve[0]["t"]:
        return []
    return [{"slope": record.slope, "from": first}]


@dataclass(frozen=True)
class Window:
    """What of a landscape is shown.

    Attributes:
        x: the ends of the axis of step lengths.
        y: the ends of the axis of the loss.
        ticks: of the first.
    """

    x: tuple[float, float]
    y: tuple[float, float]
    ticks: list[float]


def seen(curve: Sequence[dict[str, Any]], window: Window) -> list[dict[str, Any]]:
    """The points of a line that are seen, and those that it comes from and goes to; always the first.

    Far out the loss explodes, and a browser draws each dash of a line, also those outside: half a second for a chart.
    What a line goes to is at most 30 heights of the window away, which bends it by less than its width.
    """
    low, high = window.y
    most = 30 * (high - low)
    sides = [(point["change"] > high) - (point["change"] < low) for point in curve]
    between = [{*sides[max(place - 1, 0) : place + 2]} for place in range(len(curve))]
    shown = [point for place, point in enumerate(curve) if place == 0 or between[place] not in ({-1}, {1})]
    return [{**point, "change": min(max(point["change"], low - most), high + most)} for point in shown]


def window_of(curves: list[dict[str, Any]], minima: list[dict[str, Any]], landings: list[dict[str, Any]]) -> Window:
    """What the lines do below the start loss, on a logarithmic axis: far out the loss only explodes."""
    low = min([0.0, *(point["change"] for point in (*curves, *minima))])
    high = -0.3 * low or statistics.median(abs(point["change"]) for point in curves) or 1.0
    shown = [point["t"] for point in curves if point["change"] <= high] or [point["t"] for point in curves]
    first, last = min(shown), max(shown) * 1.5
    if minima:
        first = min(point["t"] for point in minima) / 25
    own = [point["t"] for point in landings]
    first, last = min([first, *(t / 2 for t in own)]), max([last, *(t * 2 for t in own)])
    return Window((first, last), (low * 1.06, high), powers_of_ten(first, last, 8))


def window_around(minima: list[dict[str, Any]], direction: str) -> Window | None:
    """From the start to some way past one direction's own minimum; None if it has none."""
    own = [point for point in minima if point["direction"] == direction]
    if not own:
        return None
    last, low = 3 * max(point["t"] for point in own), 1.6 * min(point["change"] for point in own)
    return Window((0, last), (low, -0.4 * low), [])
