"""The page of one run of an experiment: its tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stepscope.errors import require
from stepscope.report import Figure, Table, drawn, facts_of, render, title_of


def tables_page(
    head: Mapping[str, Any],
    summary: str,
    tables: Sequence[Table],
    figures: Sequence[Figure],
    names: Sequence[str],
    terms: Mapping[str, str],
) -> str:
    """A page of tables and figures, as HTML that fetches nothing.

    Args:
        head: the content of `run.json`.
        summary: one sentence on what was measured.
        tables: all of them.
        figures: those that a page shows are drawn, where they show what was measured.
        names: of the optimizers that can be highlighted.
        terms: what a reader has to know of the words that are used.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    require("altair", "report")
    charts: dict[str, Any] = {}
    places = drawn(charts, figures)
    return render(
        "tables.html", title_of(head), summary, tables, facts=facts_of(head), names=names, charts=charts,
        templates=__package__, figures=places, terms=terms,
    )  # fmt: skip
