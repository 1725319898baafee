"""Figures of trainings side by side (Figure 6 of the paper and what goes with it), for the page and for print."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from stepscope.errors import UsageError, require
from stepscope.paper.claims.losses import finals_of, pairs_of
from stepscope.paper.statistics import CONFIDENCE
from stepscope.report import dressed, finish, line_look, pick_directions, powers_of_ten, tooltips
from stepscope.runs import Record, number


def losses_over_steps(records: Sequence[Record], task: str) -> Any:
    """Loss against training steps, a line for each optimizer at its own learning rate: the mean over seeds.

    Args:
        records: those of a convergence experiment.
        task: the task's name.

    Returns:
        An `altair.Chart`.

    Raises:
        UsageError: no training of the task was finished.
        MissingExtraError: altair is not installed.
    """
    alt = require("altair", "report")
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
    pick = pick_directions(alt)
    look = line_look(alt, _named(finals))
    # What rises above the start is cut off: it would flatten the rest.
    low, high = min(p["loss"] for p in points), max(p["loss"] for p in points if p["step"] == points[0]["step"])
    chart = (
        alt.Chart(alt.InlineData(values=points))
        .mark_line(strokeWidth=1.8, clip=True)
        .encode(
            alt.X("step:Q", title="training step", scale=alt.Scale(nice=False)),
            alt.Y("loss:Q", title="loss", scale=alt.Scale(zero=False, domain=[low - 0.03 * (high - low), high])),
            look["color"],
            look["strokeDash"],
            opacity=alt.when(pick).then(alt.value(0.95)).otherwise(alt.value(0.08)),
            tooltip=[
                alt.Tooltip("direction:N", title="optimizer"),
                *tooltips(alt, step="step", loss="loss", spread="± over seeds", rate="learning rate"),
            ],
        )
        .add_params(pick)
    )
    seeds = max(len(final.losses) for final in finals)
    note = f"Mean over {seeds} seeds." if seeds > 1 else "One seed."
    return finish(chart, f"Loss while training: {task}", f"Each at the best learning rate of its search. {note}")


def losses_over_rates(records: Sequence[Record], task: str) -> Any:
    """What the searches saw: the loss after a full training against the learning rate.

    Args:
        records: those of a convergence experiment.
        task: the task's name.

    Returns:
        An `altair.LayerChart`.

    Raises:
        UsageError: no full training of a search is finished.
        MissingExtraError: altair is not installed.
    """
    alt = require("altair", "report")
    chosen = [r for r in records if r.get("task") == task and r.get("phase") == "search" and number(r, "step")]
    last = max((r["step"] for r in chosen), default=0)
    points = [
        {"direction": str(r["optimizer"]), "rate": r["lr"], "loss": r["loss"]}
        for r in chosen
        if r["step"] == last and number(r, "loss") is not None and (number(r, "lr") or 0) > 0
    ]
    if not points:
        raise UsageError(f"no search on task {task!r} is finished")
    pick = pick_directions(alt)
    named = _named(finals_of(records))
    base = alt.Chart(alt.InlineData(values=dressed(points, named)))
    opacity = alt.when(pick).then(alt.value(0.9)).otherwise(alt.value(0.08))
    rates = [point["rate"] for point in points]
    axis = alt.Axis(values=powers_of_ten(min(rates), max(rates), 8), format="~g")
    x = alt.X("rate:Q", title="learning rate (log)", scale=alt.Scale(type="log"), axis=axis)
    # What ended above the start is cut off: it would flatten the rest.
    starts = [r for r in records if r.get("task") == task and r.get("step") == 0]
    start = max((loss for r in starts if (loss := number(r, "loss")) is not None), default=math.inf)
    low, high = min(p["loss"] for p in points), min(start, max(p["loss"] for p in points))
    domain = [low - 0.03 * (high - low), high + 0.03 * (high - low)]
    y = alt.Y("loss:Q", title=f"loss after {last} steps", scale=alt.Scale(zero=False, domain=domain, nice=False))
    lines = line_look(alt, named)
    tips = [alt.Tooltip("direction:N", title="optimizer"), *tooltips(alt, rate="learning rate", loss="loss")]
    drawn = base.mark_line(strokeWidth=1.4, clip=True).encode(
        x, y, lines["color"], lines["strokeDash"], opacity=opacity
    )
    dots = base.mark_point(filled=True, size=45, clip=True).encode(
        x,
        y,
        color=alt.Color("colour:N", scale=None),
        opacity=opacity,
        tooltip=tips,
    )
    note = "The rates that trained to the end, on the weights and batches of the search alone."
    return finish(alt.layer(drawn.add_params(pick), dots), f"Loss against learning rate: {task}", note)


def differences(records: Sequence[Record], task: str) -> Any:
    """Each variant's loss minus its original's, with the interval of the mean over seeds.

    Args:
        records: those of a convergence experiment.
        task: the task's name.

    Returns:
        An `altair.LayerChart`.

    Raises:
        UsageError: no variant and its original are finished.
        MissingExtraError: altair is not installed.
    """
    alt = require("altair", "report")
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
    pick = pick_directions(alt)
    opacity = alt.when(pick).then(alt.value(0.95)).otherwise(alt.value(0.15))
    y = alt.Y("pair:N", title=None, sort=None, axis=alt.Axis(labelLimit=260))
    scale = alt.Scale(domain=domain, nice=True)
    colour = alt.Color("colour:N", scale=None)
    base = alt.Chart(alt.InlineData(values=dressed(rows, _named(finals))))
    tips = [
        alt.Tooltip("pair:N", title="variant"),
        *tooltips(alt, mean="difference", low="from", high="to"),
        alt.Tooltip("verdict:N"),
    ]
    title = "loss − the original's loss (left: the variant is faster)"
    bars = base.mark_rule(strokeWidth=2, clip=True).encode(
        y, alt.X("low:Q", title=title, scale=scale), alt.X2("high:Q"), color=colour, opacity=opacity, tooltip=tips
    )
    means = base.mark_point(filled=True, size=70, clip=True).encode(
        y, alt.X("mean:Q", title=title, scale=scale), color=colour, opacity=opacity, tooltip=tips
    )
    zero = alt.Chart(alt.InlineData(values=[{"mean": 0}])).mark_rule(color="#888").encode(alt.X("mean:Q"))
    name = f"Does the variant beat the original? {task}"
    note = f"Means over seeds with {CONFIDENCE:.0%} intervals, paired by seed."
    return finish(alt.layer(zero, bars.add_params(pick), means), name, note)


def _named(finals: Sequence[Any]) -> list[Record]:
    """Names as the looks are given to: those of all tasks, so that an optimizer looks the same on each."""
    return [{"direction": name} for name in dict.fromkeys(final.optimizer for final in finals)]
