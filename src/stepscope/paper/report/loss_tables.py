"""Trainings side by side: the tables (Table 3), numbers and figures of a convergence experiment."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from stepscope.paper.claims.losses import Final, Pair, finals_of, pairs_of
from stepscope.paper.records import LossRecord
from stepscope.paper.report.loss_charts import differences, losses_over_rates, losses_over_steps
from stepscope.paper.statistics import CONFIDENCE
from stepscope.report import NOTHING, Cell, Figure, Table, distinct, file_name

TERMS = {
    "the same start": "A seed draws the same weights and the same order of batches for every optimizer, so the "
    "difference of two losses of a seed is what the optimizers made of them.",
    "learning rates": "Each optimizer looks for its own within the same budget: successive halving on a grid, then a "
    "climb among neighbors at full length, on weights and batches of the search alone.",
    "loss": "The mean loss of a fixed batch that was drawn from the training data, as in the paper. It says how fast "
    "training goes, nothing about unseen data.",
    "verdict": f"“Faster” and “slower” only where the {CONFIDENCE:.0%} interval of Student's paired test over seeds "
    "leaves out 0. Few seeds tell only large differences; of many comparisons some are called by chance.",
}
"""What a reader of the page has to know."""


def loss_table(records: Sequence[LossRecord]) -> Table:
    """Each optimizer's learning rate and loss on each task (Table 3)."""
    finals = {(final.task, final.optimizer): final for final in finals_of(records)}
    tasks = list(dict.fromkeys(task for task, _ in finals))
    marks: dict[tuple[str, str], str] = {}
    for task in tasks:
        means = {name: final.mean for (of, name), final in finals.items() if of == task and final.mean is not None}
        marks |= {(name, f"{task}: loss"): "best" for name, mean in means.items() if mean == min(means.values())}
    rows = []
    for optimizer in dict.fromkeys(optimizer for _, optimizer in finals):
        row = [optimizer]
        for task in tasks:
            row += _rate_and_loss(finals.get((task, optimizer)))
        rows.append(tuple(row))
    headers = ("optimizer", *(title for task in tasks for title in (f"{task}: rate", f"{task}: loss")))
    note = (
        "Loss after the last step, means over seeds ± standard deviation, each optimizer at the best learning rate of "
        "its own search. * A better rate may lie beyond those tried. ↓ It diverged on a seed and was lowered."
    )
    return Table("Learning rates and losses", headers, tuple(rows), note, "losses", marks=marks)


def _rate_and_loss(final: Final | None) -> tuple[str, str]:
    if final is None:
        return NOTHING, NOTHING
    rate = f"{final.lr:.3g}{'' if final.bracketed else '*'}{'↓' * final.retreats}"
    if final.mean is None:
        return rate, "diverged"
    return rate, f"{final.mean:.3f}" + ("" if final.spread is None else f" ± {final.spread:.3f}")


def verdict_table(records: Sequence[LossRecord]) -> Table:
    """What the losses of each variant minus its original's say."""
    headers = ("variant", "task", f"difference [{CONFIDENCE:.0%}]", "p", "steps needed", "verdict")
    note = (
        "Loss of the variant minus that of its original after the last step, paired by seed, with the interval of "
        "Student's paired test. Steps needed: the part of the steps after which the variant's loss was down to the "
        "original's last one."
    )
    rows = tuple(_verdict(pair) for pair in pairs_of(finals_of(records)))
    return Table("Variants against their originals", headers, rows, note, "verdicts")


def _verdict(pair: Pair) -> tuple[str, ...]:
    difference, needed = pair.difference, pair.steps_needed
    cells = [pair.title, pair.variant.task, NOTHING, NOTHING]
    if difference is not None:
        told = f"{difference.mean:+.3f}"
        if math.isfinite(difference.low):  # of a single seed there is no interval
            told, cells[3] = f"{told} [{difference.low:+.3f}, {difference.high:+.3f}]", f"{difference.p:.3f}"
        cells[2] = told.replace("-", "−")
    return (*cells, NOTHING if needed is None else f"{needed:.0%}", pair.verdict)


def loss_numbers(records: Sequence[LossRecord]) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """The losses as numbers, one training a row."""
    headers = ("task", "optimizer", "original", "learning_rate", "bracketed", "seed", "loss")
    return headers, [
        (final.task, final.optimizer, final.original, final.lr, int(final.bracketed), seed, loss)
        for final in finals_of(records)
        for seed, loss in final.losses.items()
    ]


def loss_figures(records: Sequence[LossRecord]) -> list[Figure]:
    """The figures of each task."""
    titles: dict[Callable[..., Any], str] = {
        differences: "variants against their originals",
        losses_over_steps: "losses while training",
        losses_over_rates: "losses against learning rates",
    }
    return distinct(
        Figure(file_name(task, title), f"{title}, {task}", partial(draw, records, task))
        for task in dict.fromkeys(final.task for final in finals_of(records))
        for draw, title in titles.items()
    )
