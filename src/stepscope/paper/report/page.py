"""The pages of one run of an experiment: its tables and figures, or its trainings side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stepscope.errors import require
from stepscope.paper.claims.losses import Final, conclusion, finals_of, pairs_of
from stepscope.paper.records import LossRecord
from stepscope.paper.report.loss_charts import differences, losses_over_rates, losses_over_steps
from stepscope.paper.statistics import CONFIDENCE
from stepscope.report import Figure, Table, drawn, facts_of, render, title_of


def tables_page(head: Mapping[str, Any], tables: Sequence[Table], figures: Sequence[Figure]) -> str:
    """A page of tables and figures, as HTML that fetches nothing.

    Args:
        head: the content of `run.json`.
        tables: all of them.
        figures: those that a page shows are drawn, where they show what was measured.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    require("altair", "report")
    charts: dict[str, Any] = {}
    places = drawn(charts, [figure for figure in figures if figure.on_page])
    summary = ". ".join(table.title for table in tables)
    return render(
        "tables.html", title_of(head), summary, tables, facts=facts_of(head), names=[], charts=charts,
        templates=__package__, figures=places,
    )  # fmt: skip


def losses_page(head: Mapping[str, Any], records: Sequence[LossRecord]) -> str:
    """The page of trainings side by side, as HTML that fetches nothing.

    Args:
        head: the content of `run.json`.
        records: those of a convergence experiment.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    require("altair", "report")
    charts: dict[str, Any] = {}
    finals = finals_of(records)
    names = list(dict.fromkeys(final.optimizer for final in finals))
    tasks = list(dict.fromkeys(final.task for final in finals))
    sections = [_losses_section(records, [final for final in finals if final.task == task], charts) for task in tasks]
    return render(
        "losses.html", title_of(head), conclusion(pairs_of(finals)), sections, facts=facts_of(head), names=names,
        charts=charts, templates=__package__, confidence=f"{CONFIDENCE:.0%}",
    )  # fmt: skip


def _losses_section(records: Sequence[LossRecord], finals: Sequence[Final], charts: dict[str, Any]) -> dict[str, Any]:
    """One task's part of the page of a convergence experiment."""
    task = finals[0].task
    draws: dict[str, Callable[..., Any]] = {
        "differences": differences,
        "losses": losses_over_steps,
        "rates": losses_over_rates,
    }
    figures = [Figure(name, name, functools.partial(draw, records, task)) for name, draw in draws.items()]
    means = [final.mean for final in finals if final.mean is not None]
    return {
        "name": task,
        "finals": finals,
        "pairs": pairs_of(finals),
        "best": min(means, default=None),
        "charts": drawn(charts, figures),
    }
