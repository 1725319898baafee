"""Figures of trainings side by side (Figure 6 of the paper and what goes with it), for the page and for print.

Each takes the records of its experiment, and raises a `UsageError` where nothing was measured.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from stepscope.errors import UsageError
from stepscope.paper.claims.losses import Final, finals_of, pairs_of
from stepscope.paper.records import LossRecord
from stepscope.paper.statistics import CONFIDENCE
from stepscope.report import Looks, alt, finish, layered, log_axis, plot, rule, tooltips


def losses_over_steps(records: Sequence[LossRecord], task: str) -> alt.Chart:
    """Loss against training steps, a line for each optimizer at its own learning rate: the mean over seeds."""
    finals = [final for final in finals_of(records) if final.task == task]
    points: list[dict[str, Any]] = []
    for final in finals:
        curves = list(final.curves.values())
        for step in sorted(set.intersection(*(set(curve) for curve in curves)) if curves else ()):
            values = [curve[step] for curve in curves]
            row = {"direction": final.optimizer, "step": step, "loss": statistics.fmean(values), "rate": final.lr}
            points.append(row | ({"spread": statistics.stdev(values)} if len(values) > 1 else {}))
    if not points:
        raise UsageError(f"no training on task {task!r} is finished")
    looks = _looks(finals)
    # What rises above the start is cut off: it would flatten the rest.
    low, high = min(p["loss"] for p in points), max(p["loss"] for p in points if p["step"] == points[0]["step"])
    chart: alt.Chart = (
        plot(points)
        .mark_line(strokeWidth=1.8, clip=True)
        .encode(
            alt.X("step:Q", title="training step", scale=alt.Scale(nice=False)),
            alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False, domain=[low - 0.03 * (high - low), high])),
            tooltip=looks.tooltip(step="step", loss="loss", spread="± over seeds", rate="learning rate"),
            **looks.line(),
        )
        .add_params(looks.pick)
    )
    seeds = max(len(final.losses) for final in finals)
    note = f"Mean over {seeds} seeds." if seeds > 1 else "One seed."
    return finish(chart, f"Loss while training: {task}", f"Each at the best learning rate of its search. {note}")


def losses_over_rates(records: Sequence[LossRecord], task: str) -> alt.LayerChart:
    """What the searches saw: the loss after a full training against the learning rate."""
    chosen = [record for record in records if record.task == task and record.phase == "search" and record.step > 0]
    last = max((record.step for record in chosen), default=0)
    points: list[dict[str, Any]] = [
        {"direction": record.optimizer, "rate": record.lr, "loss": record.loss}
        for record in chosen
        if record.step == last and record.loss is not None and record.lr > 0
    ]
    if not points:
        raise UsageError(f"no search on task {task!r} is finished")
    looks = _looks(finals_of(records))
    base = plot(looks.rows(points))
    rates = [point["rate"] for point in points]
    x = log_axis(alt.X, "rate", "learning rate", min(rates) / 1.2, max(rates) * 1.2, 8)
    # What ended above the start is cut off: it would flatten the rest.
    starts = [r.loss for r in records if r.task == task and r.step == 0 and r.loss is not None]
    low, high = min(p["loss"] for p in points), min(max(starts, default=math.inf), max(p["loss"] for p in points))
    domain = [low - 0.03 * (high - low), high + 0.03 * (high - low)]
    y = alt.Y("loss:Q", title=f"loss after {last} steps", scale=alt.Scale(zero=False, domain=domain, nice=False))
    lines = base.mark_line(strokeWidth=1.4, clip=True).encode(x, y, **looks.line()).add_params(looks.pick)
    tips = looks.tooltip(rate="learning rate", loss="loss")
    dots = base.mark_point(filled=True, size=45, clip=True).encode(x, y, tooltip=tips, **looks.beside())
    note = "The rates that trained to the end, on the weights and batches of the search alone."
    return finish(layered(lines, dots), f"Loss against learning rate: {task}", note)


def differences(records: Sequence[LossRecord], task: str) -> alt.LayerChart:
    """Each variant's loss minus its original's, with the interval of the mean over seeds."""
    finals = [final for final in finals_of(records) if final.task == task]
    rows: list[dict[str, Any]] = []
    for pair in pairs_of(finals):
        if pair.difference is not None and math.isfinite(pair.difference.low):
            low, high = pair.difference.low, pair.difference.high
            row = {"direction": pair.variant.optimizer, "pair": pair.title, "mean": pair.difference.mean}
            rows.append(row | {"low": low, "high": high, "verdict": pair.verdict})
    if not rows:
        raise UsageError(f"no differences with an interval on task {task!r}")
    # The largest intervals say "nobody knows": the axis is made for the others, and cuts them off.
    reach = 3 * statistics.median(max(abs(row["low"]), abs(row["high"])) for row in rows)
    reach = max(reach, 1.1 * max(abs(row["mean"]) for row in rows))
    domain = [max(-reach, min(0.0, *(r["low"] for r in rows))), min(reach, max(0.0, *(r["high"] for r in rows)))]
    looks = _looks(finals)
    y = alt.Y("pair:N", title=None, sort=None, axis=alt.Axis(labelLimit=260))
    scale = alt.Scale(domain=domain, nice=True)
    base = plot(looks.rows(rows))
    tips = [alt.Tooltip("pair:N", title="variant"), *tooltips(mean="difference", low="from", high="to")]
    tips += tooltips("verdict")
    title = "loss − the original's loss (left: the variant is faster)"
    bars = base.mark_rule(strokeWidth=2, clip=True).encode(
        y, alt.X("low:Q", title=title, scale=scale), alt.X2("high:Q"), tooltip=tips, **looks.beside(marked=False)
    )
    x = alt.X("mean:Q", title=title, scale=scale)
    means = base.mark_point(filled=True, size=70, clip=True).encode(y, x, tooltip=tips, **looks.beside())
    name = f"Does the variant beat the original? {task}"
    note = f"Means over seeds with {CONFIDENCE:.0%} intervals, paired by seed."
    return finish(layered(rule(alt.X("mean:Q"), mean=0), bars.add_params(looks.pick), means), name, note)


def _looks(finals: Sequence[Final]) -> Looks:
    """Those of the optimizers of all tasks, so that one looks the same on each."""
    return Looks(dict.fromkeys(final.optimizer for final in finals), "optimizer")
