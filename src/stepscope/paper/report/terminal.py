"""What the terminal shows of a run: on what it was measured, and trainings side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepscope.paper.claims.losses import Final, Pair, finals_of, pairs_of
from stepscope.paper.records import LossRecord
from stepscope.paper.statistics import CONFIDENCE
from stepscope.report import plain_table, printable, text_and_console


def model_and_data(context: Mapping[str, Any]) -> list[str]:
    """The model of each task, how it starts, and its data, a line for each.

    Args:
        context: that of `run.json`.
    """
    named = {f"{name}: ": task for name, task in context["tasks"].items()} if "tasks" in context else {"": context}
    lines = []
    for name, task in named.items():
        source, model = (task.get(key) or {} for key in ("source", "model"))
        start, data = f"{model.get('initialisation')} start", f"{source.get('title')} ({source.get('license')})"
        lines.append(f"{name}{model.get('title')}, {start}; {data}")
    return lines


def print_losses(records: Sequence[LossRecord], console: Any = None) -> None:
    """Prints a table for each task of a convergence experiment: every optimizer's loss, and variants against originals.

    Args:
        records: all records of a run.
        console: a `rich.console.Console`; None makes one.

    Raises:
        MissingExtraError: rich is not installed.
    """
    text, target = text_and_console(console)
    finals = finals_of(records)
    for task in dict.fromkeys(final.task for final in finals):
        of_task = [final for final in finals if final.task == task]
        target.print(_losses(of_task, printable(task), text))
        if pairs := pairs_of(of_task):
            target.print(_comparisons(pairs, printable(task), text))


def _losses(finals: Sequence[Final], task: str, text: Callable[[str], Any]) -> Any:
    names = [printable(final.optimizer) for final in finals]
    table = plain_table(text(f"{task}: loss after the last step"), "optimizer", names)
    table.add_column(text("learning\nrate"), justify="right")
    table.add_column(text("loss"), justify="right")
    for name, final in zip(names, finals, strict=True):
        loss = "diverged" if final.mean is None else f"{final.mean:.3f}"
        spread = "" if final.spread is None else f" ±{final.spread:.3f}"
        table.add_row(text(name), text(f"{final.lr:.3g}{'' if final.bracketed else '*'}"), text(loss + spread))
    if not all(final.bracketed for final in finals):
        table.caption = text("* a better rate may lie beyond those tried")
    return table


def _comparisons(pairs: Sequence[Pair], task: str, text: Callable[[str], Any]) -> Any:
    names = [printable(pair.title) for pair in pairs]
    table = plain_table(text(f"{task}: variants against their originals"), "variant", names)
    for header in (f"difference\n[{CONFIDENCE:.0%}]", "steps\nneeded"):
        table.add_column(text(header), justify="right")
    table.add_column(text("verdict"))
    for name, pair in zip(names, pairs, strict=True):
        needed = "-" if pair.steps_needed is None else f"{pair.steps_needed:.0%}"
        table.add_row(text(name), text(_difference(pair)), text(needed), text(pair.verdict))
    return table


def _difference(pair: Pair) -> str:
    if pair.difference is None:
        return "-"
    found = pair.difference
    if not math.isfinite(found.low):
        return f"{found.mean:+.3f}"
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
