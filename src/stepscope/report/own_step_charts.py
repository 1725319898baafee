"""Charts of the optimizer's own steps: where they land, how much of what was foretold comes true, and the loss.

The learning rate is drawn behind them, against an axis of its own. What has no place on an axis, as a step without
descent, has a row at the top, with its name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from stepscope.errors import UsageError
from stepscope.judging import Rule, judge_rate
from stepscope.report.axes import log_axis, step_axis
from stepscope.report.figures import Figure
from stepscope.report.looks import categories, symbols
from stepscope.report.names import file_name
from stepscope.report.run_top import rate_of
from stepscope.report.vega import alt, finish, layered, plot, plot_folded, rule, tooltips
from stepscope.runs import DirectionRecord, RecordedEdge, StepRecord, Training, is_own

Rows = list[dict[str, Any]]

LANDING = 2
"""So many of the figures say where the steps land."""

_INK, _TROUBLE = "#2a6fbb", "#c2410c"
_ROW = 17
"""Pixels from one row at the top to the next."""


def own_step_figures(training: Training, trajectory: str) -> list[Figure]:
    """The figures of the steps of one optimizer that trained, those first that say where they land.

    Args:
        training: its records.
        trajectory: the optimizer.
    """
    steps = [step for step in training.steps if step.trajectory == trajectory]
    own = [record for record in training.directions if record.trajectory == trajectory and is_own(record)]
    charts: dict[str, Callable[[], alt.LayerChart]] = {
        "critical multiple": lambda: critical_multiples(steps),
        "what came true": lambda: what_came_true(steps),
        "loss": lambda: losses(steps, own),
    }
    return [Figure(file_name(trajectory, title), title, draw) for title, draw in charts.items()]


def critical_multiples(steps: Sequence[StepRecord]) -> alt.LayerChart:
    """How many times as long each step would have to be to raise the loss of the evaluation examples.

    The line at 1 is the step itself. A bar is the bracket that the multiple lies in; a triangle stands at the largest
    multiple that was tried, where the loss was still lower.

    Args:
        steps: those of one training.

    Raises:
        UsageError: none was measured at multiples.
    """
    points, rows = _places(steps)
    if not points and not rows:
        raise UsageError("no step was measured at multiples of its length")
    values = [1.0, *(value for point in points for value in (point["low"], point["high"]))]
    low, high = min(values) / 1.5, max(values) * 1.5
    names = list(dict.fromkeys(row["row"] for row in rows))
    high *= (high / low) ** (0.07 * len(names))  # what lies below the rows
    x = step_axis(record.step for record in steps)
    y = log_axis(alt.Y, "multiple", "critical multiple", low, high)
    facts = tooltips("status", step="step", multiple="critical multiple", low="at least", high="at most")
    layers: list[alt.Chart] = [rule(y, multiple=1.0)]
    if points:
        data = plot_folded(points, "step", "multiple", "low", "high")
        marks = alt.Shape(
            "status:N",
            title="",
            scale=alt.Scale(domain=["found", _BEYOND], range=["circle", "triangle-up"]),
            legend=alt.Legend(orient="top"),
        )
        layers += [
            data.transform_filter("datum.status === 'found'").mark_line(color=_INK, opacity=0.4).encode(x, y),
            data.mark_rule(color=_INK, strokeWidth=2).encode(x, y=alt.Y("low:Q"), y2="high:Q"),
            data.mark_point(filled=True, size=55, color=_INK, opacity=1).encode(x, y, marks, tooltip=facts),
        ]  # fmt: skip
    note = "Of the evaluation examples. Below 1 the step itself raises it; on a parabola it ends at the minimum at 2."
    if len({point["examples"] for point in points}) > 1:
        note += " Several sets of examples."
    chart = _over_rate(layered(*layers, *_in_rows(rows, x)), steps, x)
    return finish(chart, "Critical multiple: how many times as long the step would raise the loss", note)


_BEYOND = "beyond all that was tried"
_ROWS = {"no descent": "no descent at any length", "within noise": "within noise"}


def _places(steps: Iterable[StepRecord]) -> tuple[Rows, Rows]:
    """Rows of the multiples that have a place on the axis, and of what was found where there is none."""
    points: Rows = []
    rows: Rows = []
    for step in steps:
        for name, edge in (step.edges or {}).items():
            place = {"step": step.step, "examples": name}
            if (ends := _ends(edge)) is not None:
                found = edge.critical_multiple is not None
                at = {"multiple": edge.critical_multiple or ends[0], "low": ends[0], "high": ends[1]}
                points.append({**place, **at, "status": "found" if found else _BEYOND})
            else:
                rows.append({**place, "row": _ROWS.get(edge.status, edge.status)})
    return points, rows


def _ends(edge: RecordedEdge) -> tuple[float, float] | None:
    """The ends of the bracket on a logarithmic axis; an unknown one is the multiple itself."""
    low, high = (*(edge.critical_bracket or ()), None, None)[:2]
    middle = edge.critical_multiple if edge.critical_multiple is not None else low
    if edge.status in _ROWS or middle is None or middle <= 0:
        return None
    return (low if low and low > 0 else middle), (high if high else middle)


def what_came_true(steps: Sequence[StepRecord]) -> alt.LayerChart:
    """The part of the change that its own batch's gradient foretells that each step brought about.

    Filled points are the steps that the verdict on the learning rate counts, with the predicted change as their area:
    in the trust ratio, which sums changes, they weigh as much. The band is its interval, and the lines across are two
    of the thresholds of the verdict, which asks for more.

    Args:
        steps: those of one training, in order.

    Raises:
        UsageError: none was measured on its own batch.
    """
    limits = Rule()
    evidence = judge_rate(steps).evidence
    points, rows = _parts(steps, set(evidence.steps))
    if not points and not rows:
        raise UsageError("no step was measured on its own batch")
    x = step_axis(record.step for record in steps)
    names = dict.fromkeys(row["row"] for row in rows)
    low = max(-1.0, min([0.0, *(point["part"] for point in points)]) - 0.1)
    high = 1.3 + 0.12 * len(names)
    y = alt.Y("part:Q", title="actual / predicted", scale=alt.Scale(domain=[low, high], nice=False))
    most = max((-point["slope"] for point in points), default=1.0)
    for point in points:
        point["shown"] = min(max(point["part"], low), 1.3)
        point["weight"] = -point["slope"] / most
    facts = tooltips("counted", step="step", part="actual / predicted", change="change", slope="predicted")
    trust = evidence.trust
    layers = [
        _threshold(y, limits.short, f"too small, maybe, above {limits.short:g}", dy=-8),
        _threshold(y, limits.bent, f"too large, maybe, below {limits.bent:g}", dy=10),
    ]
    if trust.ratio is not None and evidence.steps and math.isfinite(trust.low) and math.isfinite(trust.high):
        band = {"from": evidence.steps[0], "to": evidence.steps[-1]}
        ends = {"low": max(trust.low, low), "high": min(trust.high, 1.3)}
        middle = {"ratio": min(max(trust.ratio, low), 1.3)}
        area = plot([{**band, **ends, **middle}])
        across = {"x": alt.X("from:Q"), "x2": "to:Q"}
        layers += [
            area.mark_rect(color=_INK, opacity=0.2).encode(**across, y=alt.Y("low:Q"), y2="high:Q"),
            area.mark_rule(color=_INK, strokeWidth=2).encode(**across, y=alt.Y("ratio:Q")),
        ]
    filled = alt.FillOpacityValue(0, condition=[{"test": "datum.counted === 'yes'", "value": 1}])
    data = plot_folded(points, "step", "part", "change", "slope", "shown", "weight")
    size = alt.Size("weight:Q", scale=alt.Scale(domain=[0, 1], range=[18, 160]), legend=None)
    marks = data.mark_point(color=_INK, fill=_INK, opacity=1)
    layers.append(marks.encode(x, size, y=alt.Y("shown:Q"), fillOpacity=filled, tooltip=facts))
    notes = [
        "1: the loss of the step's own batch falls as its gradient predicts; 0: it is what it was; below: it rises.",
        "Line and band: all filled points together, by size, and their 80% interval: the trust ratio. The verdict asks",
        "too how far the loss falls over the training if all comes true that gradients predict, and how much does.",
    ]
    if outside := sum(point["shown"] != point["part"] for point in points):
        notes.append(f"At the ends of the axis: {outside} of {len(points)} points beyond it.")
    chart = _over_rate(layered(*layers, *_in_rows(rows, x)), steps, x)
    return finish(chart, "Actual over predicted change of loss", *notes)


def _parts(steps: Iterable[StepRecord], counted: set[int]) -> tuple[Rows, Rows]:
    points: Rows = []
    rows: Rows = []
    for step in steps:
        change, slope = step.batch_change, step.batch_slope
        if slope is None:
            continue
        if change is None or not math.isfinite(change / (slope or 1.0)):
            rows.append({"step": step.step, "row": "the loss of the batch isn't finite"})
        elif slope >= 0:
            rows.append({"step": step.step, "row": "no descent: uphill on its own batch"})
        else:
            facts = {"change": change, "slope": slope, "counted": "yes" if step.step in counted else "no"}
            points.append({"step": step.step, "part": change / slope, **facts})
    return points, rows


def losses(steps: Sequence[StepRecord], own: Sequence[DirectionRecord]) -> alt.LayerChart:
    """The loss along the training: of each step's own batch, and of the evaluation examples.

    Args:
        steps: those of one training.
        own: full measurements of the optimizer's own update.

    Raises:
        UsageError: no loss was measured.
    """
    found = list(dict.fromkeys(_losses(steps, own)))
    points: Rows = [{"step": step, "loss": loss, "of": name} for name, step, loss in found]
    if not points:
        raise UsageError("no loss was measured")
    names = list(dict.fromkeys(name for name, *_ in found))
    x = step_axis(step for _, step, _ in found)
    values = [loss for *_, loss in found]
    if min(values) > 0 and max(values) > 30 * min(values):
        y = log_axis(alt.Y, "loss", "loss", min(values) / 1.2, max(values) * 1.2)
    else:
        y = alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False))
    above = alt.Legend(orient="top", title=None)
    color, shape = categories("of:N", names, "", legend=above), symbols("of:N", names, "", legend=above)
    data = plot_folded(points, "step", "loss")
    marks = data.mark_point(filled=True, size=26, opacity=1)
    layers = layered(
        data.mark_line(strokeWidth=1.4).encode(x, y, color),
        marks.encode(x, y, color, shape, tooltip=tooltips("of", step="step", loss="loss")),
    )
    return finish(layers, "Loss", "Before each step; a batch as training evaluates it, the examples without dropout.")


def _losses(steps: Iterable[StepRecord], own: Iterable[DirectionRecord]) -> Iterator[tuple[str, int, float]]:
    for step in steps:
        if step.batch_loss is not None:
            yield "the step's own batch", step.step, step.batch_loss
    for record in own:
        if record.loss is not None:
            yield "evaluation examples", record.step, record.loss


def _threshold(y: alt.Y, value: float, text: str, *, dy: float) -> alt.LayerChart:
    """A line across a chart, with what it means at its right end."""
    row = plot([{"part": value, "text": text}])
    words = row.mark_text(align="right", dx=-4, dy=dy, color="#777", fontSize=11)
    return layered(
        row.mark_rule(color="#888", strokeDash=[4, 3]).encode(y),
        words.encode(x=alt.value("width"), y=y, text="text:N"),
    )


def _in_rows(rows: Rows, x: alt.X) -> list[alt.Chart]:
    """Crosses at the top of a chart, a row for each kind, with its name."""
    layers: list[alt.Chart] = []
    for place, name in enumerate(dict.fromkeys(row["row"] for row in rows)):
        here = [row for row in rows if row["row"] == name]
        height = alt.value(8 + _ROW * place)
        crosses = plot(here).mark_point(shape="cross", size=50, angle=45, filled=True, color=_TROUBLE, opacity=1)
        layers.append(crosses.encode(x, y=height, tooltip=tooltips("row", step="step")))
        count = f"{name} ({len(here)} step{'s' * (len(here) > 1)})"
        words = plot([{"text": count}]).mark_text(align="left", fontSize=11, color=_TROUBLE, dy=10)
        layers.append(words.encode(x=alt.value(4), y=height, text="text:N"))
    return layers


def _over_rate(chart: alt.LayerChart, steps: Iterable[StepRecord], x: alt.X) -> alt.LayerChart:
    """A chart over steps, in front of the learning rate."""
    rates = [{"step": step.step, "rate": rate} for step in steps if (rate := rate_of(step)) is not None]
    if not rates:
        return chart
    axis = alt.Axis(orient="right", grid=False, format="~g", tickCount=3, titleColor="#888")
    most = max(point["rate"] for point in rates) or 1.0
    y = alt.Y("rate:Q", title="learning rate (shaded)", axis=axis, scale=alt.Scale(domain=[0, 1.15 * most], nice=False))
    line = {"color": "#888", "opacity": 0.3, "strokeWidth": 1}
    area = plot_folded(rates, "step", "rate").mark_area(color="#888", opacity=0.07, line=line)
    both: Any = layered(area.encode(x, y), chart)
    shared: alt.LayerChart = both.resolve_scale(y="independent")
    return shared
