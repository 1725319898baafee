"""The page and the figures of one run of an experiment."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepscope.errors import require
from stepscope.paper.claims.losses import Final, conclusion, finals_of, pairs_of
from stepscope.paper.report.evidence import TABLES
from stepscope.paper.report.figures import figures_of
from stepscope.paper.report.loss_charts import differences, losses_over_rates, losses_over_steps
from stepscope.paper.statistics import CONFIDENCE
from stepscope.report import drawn, facts_of, render, render_report, save, title_of
from stepscope.runs import Record, read_run, write_atomically


def _losses_section(records: Sequence[Record], finals: Sequence[Final], charts: dict[str, Any]) -> dict[str, Any]:
    """One task's part of the page of a convergence experiment."""
    task = finals[0].task
    figures = [
        name
        for draw in (differences, losses_over_steps, losses_over_rates)
        for name in drawn(charts, f"chart-{len(charts)}", functools.partial(draw, records, task))
    ]
    means = [final.mean for final in finals if final.mean is not None]
    return {
        "name": task,
        "finals": finals,
        "pairs": pairs_of(finals),
        "best": min(means, default=None),
        "charts": figures,
    }


def render_run(run: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The page of a run of any of the experiments, as HTML that fetches nothing.

    Args:
        run: the content of `run.json`.
        records: the measurements.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    require("altair", "report")
    charts: dict[str, Any] = {}
    experiment = (run.get("configuration") or {}).get("experiment")
    page = functools.partial(render, title=title_of(run), facts=facts_of(run), charts=charts, templates=__package__)
    if isinstance(experiment, str) and experiment in TABLES:
        tables = TABLES[experiment](records)
        summary = ". ".join(table.title for table in tables)
        shown = [figure for figure in figures_of(experiment, records) if figure.on_page]
        places = [place for figure in shown for place in drawn(charts, f"chart-{len(charts)}", figure.draw)]
        return page("tables.html", summary=summary, sections=tables, names=[], figures=places)
    if experiment == "convergence":
        finals = finals_of(records)
        names = list(dict.fromkeys(final.optimizer for final in finals))
        tasks = list(dict.fromkeys(final.task for final in finals))
        parts = [_losses_section(records, [final for final in finals if final.task == task], charts) for task in tasks]
        summary = conclusion(pairs_of(finals))
        return page("losses.html", summary=summary, sections=parts, names=names, confidence=f"{CONFIDENCE:.0%}")
    return render_report(run, records)


def write_page(run_path: str | os.PathLike[str], out_path: str | os.PathLike[str]) -> Path:
    """Writes the page of a run directory: one self-contained file, whole or not at all.

    Args:
        run_path: the run directory; it is only read, and may be one that is still written to.
        out_path: the HTML file; missing directories are created.

    Returns:
        `out_path`.

    Raises:
        UsageError: `run_path` is no run directory, or the page cannot be written.
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    run, records = read_run(run_path)
    write_atomically(out_path, render_run(run, records).encode(errors="replace"))
    return Path(out_path)


def write_figures(run_path: str | os.PathLike[str]) -> list[Path]:
    """Writes the figures of a run beside its records, each as a PDF of vectors.

    Args:
        run_path: the run directory.

    Returns:
        The files; none where nothing is finished yet.

    Raises:
        UsageError: it is no run directory, or a file cannot be written.
        MissingExtraError: altair or vl-convert is not installed.
    """
    run, records = read_run(run_path)
    experiment = str((run.get("configuration") or {}).get("experiment"))
    charts = {figure.name: figure.chart() for figure in figures_of(experiment, records)}
    return [save(chart, Path(run_path) / f"{name}.pdf") for name, chart in charts.items() if chart is not None]
