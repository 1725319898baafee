"""Everything that can be put in a paper, from a reproduction's records: tables, figures, and one page around them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stepscope.errors import UsageError, require
from stepscope.paper.claims import BESIDE
from stepscope.paper.experiments.command_lines import EXPERIMENTS
from stepscope.paper.experiments.experiment import Experiment
from stepscope.paper.experiments.run_files import experiment_of
from stepscope.paper.reproduction_runs import Run
from stepscope.paper.tasks.catalog import TASKS
from stepscope.report import (
    Figure,
    Looks,
    Table,
    facts_of,
    file_name,
    render,
    save,
    title_of,
    write_csv,
    write_tables,
)
from stepscope.runs import MEASUREMENTS_FILE, write_atomically

Progress = Callable[[float, str], None]

TABLE_FOLDER = "tables"
FIGURE_FOLDER = "figures"
PAGE = "report.html"
WRITTEN = "written.json"
"""The names of the files that were written, so that the next call knows which it may remove."""
_CLAIMS = "claims"
"""What stands at the top of the page, before all runs."""


@dataclass(frozen=True)
class _Part:
    """A run with what will be shown of it."""

    run: Run[Any]
    kind: type[Experiment[Any]]
    tables: Sequence[Table]
    figures: Sequence[Figure]


def write_reproduction(
    path: str | os.PathLike[str],
    runs: Sequence[Run[Any]],
    claims: Sequence[Table] = (),
    progress: Progress = lambda part, what: None,  # noqa: ARG005
    *,
    opening: str = "",
    draw: bool = True,
    figures: Sequence[Figure] = (),
) -> list[Path]:
    """Writes the tables, the figures and the page of a reproduction beside its runs.

    Tables go to ``tables/`` as CSV and LaTeX, figures to ``figures/`` as PDFs of vectors (some 40 a trajectory
    experiment, a fifth of a second each), and `report.html` shows the most important of them, with links to all.

    Args:
        path: the directory of the reproduction.
        runs: those in it (`stepscope.paper.experiments.run_files.read_runs`); some may be unfinished or missing.
        claims: tables for the top of the page.
        progress: told the part that is done, and what is written next.
        opening: what the page begins with, in words.
        draw: whether to draw the figures. Without it those that were drawn before stay, unless their records are newer.
        figures: of the claims, below their first table.

    Returns:
        The files, the page last.

    Raises:
        UsageError: two runs would write the same files, or a file can't be written.
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    require("altair", "report")
    out = Path(path)
    parts = [_part(run) for run in sorted(_checked(runs), key=_place)]
    progress(0.0, "tables")
    claimed = {file_name("claims", number if number > 1 else ""): table for number, table in enumerate(claims, start=1)}
    written = write_tables(claimed, out / TABLE_FOLDER)
    for part in parts:
        written += _write_tables(part, out)
    charts: dict[str, Any] = {}
    each = {_CLAIMS: figures, **{part.run.name: part.figures for part in parts}}
    total = sum(draw or figure.on_page for own in each.values() for figure in own) or 1
    done = 0
    shown: dict[str, dict[str, Any]] = {name: {} for name in each}
    drawn: dict[str, dict[str, str]] = {name: {} for name in each}
    undrawn: list[Figure] = []
    for owner, figure in ((owner, figure) for owner, own in each.items() for figure in own):
        file = _file(FIGURE_FOLDER, owner, figure.name, ".pdf")
        if draw or figure.on_page:
            progress(done / total, f"{owner}: {figure.title}")
            done += 1
            chart = figure.specification()
            if chart is None:
                continue
            if figure.on_page:
                shown[owner][figure.name] = chart
            if draw:
                save(chart, out / file)
        if draw or _is_current(out / file, _records(out, owner, parts)):
            drawn[owner][figure.name] = quote(file)
            written.append(out / file)
        else:
            undrawn.append(figure)
    top = [_placed(charts, shown[_CLAIMS][name], drawn[_CLAIMS].get(name)) for name in shown[_CLAIMS]]
    sections = [_section(part, shown[part.run.name], drawn[part.run.name], charts) for part in parts]
    progress(1.0, PAGE)
    tops = [_shown(f"{TABLE_FOLDER}/{name}", table) for name, table in claimed.items()]
    names = list(dict.fromkeys(name for part in parts for name in part.kind.highlighted(part.run.records)))
    scales = sorted({part.run.scale for part in parts})
    summary = f"{len(parts)} run{'s' if len(parts) > 1 else ''} at scale {' and '.join(scales)}."
    page = render(
        "reproduction.html", "Reproduction", summary, sections, facts=[], names=names, charts=charts, claims=tops,
        undrawn=any(figure.specification() is not None for figure in undrawn), opening=opening, top=top,
        templates="stepscope.paper.report",
    )  # fmt: skip
    write_atomically(out / PAGE, page.encode(errors="replace"))
    written.append(out / PAGE)
    _remove_stale(out, written)
    return written


def _file(folder: str, owner: str, name: str, suffix: str) -> str:
    """A file of a run, or of the claims, relative to the reproduction."""
    return f"{folder}/{file_name(owner, name)}{suffix}"


def _records(out: Path, owner: str, parts: Sequence[_Part]) -> list[Path]:
    """What a figure is drawn from: the records of its run; of the claims all, and what stands beside."""
    owners = [part.run.name for part in parts] if owner == _CLAIMS else [owner]
    beside = (out / BESIDE).glob("*.json") if owner == _CLAIMS else ()
    return [*(out / name / MEASUREMENTS_FILE for name in owners), *beside]


def _is_current(pdf: Path, records: Sequence[Path]) -> bool:
    """Whether a figure was drawn after the last of its records was written."""
    try:
        return pdf.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in records)
    except (OSError, ValueError):
        return False


def _remove_stale(out: Path, written: Sequence[Path]) -> None:
    """Removes what an earlier call wrote and this one didn't, as the tables of a run that is gone, and nothing else."""
    manifest, names = out / WRITTEN, sorted(str(path.relative_to(out).as_posix()) for path in written)
    try:
        before = json.loads(manifest.read_text())
    except (OSError, ValueError):
        before = []
    for name in before if isinstance(before, list) else []:
        path = out / str(name)
        if name not in names and path.parent in (out / TABLE_FOLDER, out / FIGURE_FOLDER):
            path.unlink(missing_ok=True)
    write_atomically(manifest, (json.dumps(names, indent=0) + "\n").encode())


def _part(run: Run[Any]) -> _Part:
    kind = experiment_of(run.head)
    return _Part(run, kind, kind.tables(run.records), kind.figures(run.records))


def _place(run: Run[Any]) -> tuple[int, int, str]:
    """In the order of the experiments, then of the tasks; others come after them."""

    def place(order: Sequence[str], name: str) -> int:
        return order.index(name) if name in order else len(order)

    return place(list(EXPERIMENTS), run.experiment), place(list(TASKS), run.task), run.name


def _checked(runs: Sequence[Run[Any]]) -> list[Run[Any]]:
    """Refuses runs whose files would get the same names."""
    found: dict[str, Run[Any]] = {}
    for run in runs:
        name = file_name(run.name).lower()
        if name == _CLAIMS:
            raise UsageError(f"the run {run.name!r} would write the files of the claims: rename it")
        if name in found:
            raise UsageError(
                f"the runs {found[name].name!r} and {run.name!r} would write the same files: rename one of them"
            )
        found[name] = run
    return list(found.values())


def _write_tables(part: _Part, out: Path) -> list[Path]:
    written = write_tables({file_name(part.run.name, each.name): each for each in part.tables}, out / TABLE_FOLDER)
    headers, rows = part.kind.numbers(part.run.records)
    if rows:
        written.append(write_csv(out / _file(TABLE_FOLDER, part.run.name, "numbers", ".csv"), headers, rows))
    return written


def _placed(charts: dict[str, Any], chart: Mapping[str, Any], pdf: str | None) -> dict[str, Any]:
    """A chart's place on the page; it is added to `charts` under the place's name."""
    place = f"chart-{len(charts)}"
    charts[place] = {**chart, "width": "container"}
    return {"place": place, "pdf": pdf}


def _section(part: _Part, shown: Mapping[str, Any], drawn: Mapping[str, str], charts: dict[str, Any]) -> dict[str, Any]:
    """A run's part of the page.

    Args:
        part: the run.
        shown: ``{name of a figure: its chart}``, of those that the page shows.
        drawn: ``{name of a figure: its file}``, of those that have one.
        charts: of the page.
    """
    places = [_placed(charts, chart, drawn.get(name)) for name, chart in shown.items()]
    links = [
        {"title": f"{figure.title} (PDF)", "path": drawn[figure.name]}
        for figure in part.figures
        if figure.name in drawn and figure.name not in shown
    ]
    tables = [(_file(TABLE_FOLDER, part.run.name, table.name, ""), table) for table in part.tables]
    links += [
        {"title": f"{table.title} ({kind})", "path": quote(f"{name}.{suffix}")}
        for name, table in tables
        if not table.on_page
        for kind, suffix in (("CSV", "csv"), ("LaTeX", "tex"))
    ]
    if part.kind.numbers(part.run.records)[1]:
        links.append(
            {"title": "all numbers (CSV)", "path": quote(_file(TABLE_FOLDER, part.run.name, "numbers", ".csv"))}
        )
    return {
        "place": f"run-{file_name(part.run.name)}",
        "name": part.run.name,
        "title": _title(part.run),
        "summary": _summary(part),
        "tables": [_shown(name, table) for name, table in tables if table.on_page],
        "swatches": Looks(part.kind.highlighted(part.run.records)).swatches(),
        "charts": places,
        "links": links,
        "facts": facts_of(part.run.head),
    }


def _shown(name: str, table: Table) -> dict[str, Any]:
    return {"table": table, "csv": quote(f"{name}.csv"), "tex": quote(f"{name}.tex")}


def _title(run: Run[Any]) -> str:
    title = title_of(run.head)
    kind = run.experiment.capitalize()
    if not title.startswith(kind):
        title = f"{kind}: {title}"
    model = run.context.get("model")
    start = model.get("initialisation") if isinstance(model, Mapping) else None
    return f"{title} ({start} start)" if start == "random" else f"{title} ({start})" if start else title


def _summary(part: _Part) -> str:
    return part.kind.conclusion(part.run.records) if part.run.records else "Nothing has been measured yet."
