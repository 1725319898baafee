"""Builds the page of a run: values and charts for the templates, which say how they look."""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.resources
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepscope.errors import require
from stepscope.judging import findings
from stepscope.report.comparison import directions_of, sharpness_rows, trajectories_of
from stepscope.report.direction_tables import step_tables
from stepscope.report.escaping import script_json
from stepscope.report.figures import drawn, figures_of
from stepscope.report.looks import Looks
from stepscope.report.summary import summary_sentence
from stepscope.report.vega import vega_script
from stepscope.runs import DirectionRecord, StepRecord, is_own, read_run, read_steps, write_atomically

Facts = list[tuple[str, list[tuple[str, str]]]]
"""Titled lists of names and values."""


def render(
    template: str,
    title: str,
    summary: str,
    sections: Sequence[Any],
    *,
    facts: Facts,
    names: Sequence[str],
    charts: Mapping[str, Any],
    templates: str = __package__,
    **values: Any,
) -> str:
    """A page as HTML: what all pages have, around what one of the templates shows of the sections.

    Args:
        template: its file in the folder `templates`.
        title: of the page.
        summary: a sentence below it.
        sections: what the template goes through; without any the page says that nothing was measured.
        facts: what was run.
        names: of the directions that can be highlighted.
        charts: ``{place: specification}``.
        templates: the package that has the folder; what isn't there is this package's.
        values: what else the template uses.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    jinja2, markup = require("jinja2", "report"), require("markupsafe", "report").Markup
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package) for package in (templates, __package__)]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    swatches = Looks(names).swatches()
    scripts = [vega_script(), _resource("report.js")] if charts else []
    return str(
        environment.get_template(template).render(
            title=title,
            summary=summary,
            facts=facts,
            directions=[{"name": name, "swatch": swatch} for name, swatch in swatches.items()],
            swatches=swatches,
            sections=sections,
            style=markup(_resource("report.css")),
            scripts=[markup(text) for text in scripts],
            script_hashes=[_hash(text) for text in scripts],
            charts=markup(script_json(charts)),
            directions_json=markup(script_json(list(swatches))),
            **values,
        )
    )


@functools.cache
def _resource(name: str) -> str:
    return (importlib.resources.files("stepscope.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """What the page's content security policy admits: these scripts and no other, whatever a name contains."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def title_of(run: Mapping[str, Any]) -> str:
    """What was measured on which data, from the content of `run.json`."""
    context = run.get("context") or {}
    if tasks := context.get("tasks"):
        kind = str((run.get("configuration") or {}).get("experiment") or "convergence").capitalize()
        return f"{kind}: " + " and ".join(_name_of(task.get("model")) or name for name, task in tasks.items())
    named = [_name_of(context.get("model")), _name_of(context.get("source"))]
    return " on ".join(name for name in named if name) or "Directions of optimizers"


def _name_of(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("title") or value.get("name")
    return str(value) if value else ""


def facts_of(run: Mapping[str, Any]) -> Facts:
    """What was run, from the content of `run.json`."""
    context = dict(run.get("context") or {})
    tasks = context.pop("tasks", None) or {}
    groups = {"Data": context.pop("source", None), "Model": context.pop("model", None)}
    groups |= {f"Task {name}": value for name, value in tasks.items()}
    groups |= {"Configuration": run.get("configuration"), "Versions": context.pop("versions", None)}
    groups["Also recorded"] = context
    listed = [(title, _flat(value)) for title, value in groups.items() if value]
    if run.get("created"):
        listed.append(("Run", [("started", str(run["created"]))]))
    return listed


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return [(name, ", ".join(map(_shown, value)) or "none")]
    return [(name, _shown(value))]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}".replace(",", "\u202f")
    return "none" if value is None else str(value)


def _section(records: Sequence[DirectionRecord], trajectory: str, charts: dict[str, Any]) -> dict[str, Any]:
    """One trajectory's part of the page; its charts are added to `charts` under the names of their places."""
    rows = sharpness_rows(records, trajectory)
    tables = step_tables(records, trajectory)
    measured = {row.direction for row in rows}
    return {
        "name": trajectory,
        "tables": {step: (table, {row[0]: row for row in table.rows}) for step, table in tables.items()},
        "names": [name for name in directions_of(records) if name in measured],
        "notes": dict.fromkeys(table.note for table in tables.values()),
        "charts": drawn(charts, figures_of(records, trajectory)),
        "seeds": max(row.seeds for row in rows),
    }


def render_report(run: Mapping[str, Any], records: Sequence[DirectionRecord], steps: Sequence[StepRecord] = ()) -> str:
    """The page of a run that measured directions, as HTML that fetches nothing.

    A probe's run opens with its findings.

    Args:
        run: the content of `run.json`.
        records: the measurements.
        steps: of a probe's run, the steps that were made.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    require("altair", "report")
    charts: dict[str, Any] = {}
    names = directions_of(records)
    parts = [_section(records, trajectory, charts) for trajectory in trajectories_of(records)]
    probed = bool(steps) or any(map(is_own, records))
    return render(
        "directions.html", title_of(run), summary_sentence(records) if records or not steps else "", parts,
        facts=facts_of(run), names=names, charts=charts, findings=findings([*records, *steps]) if probed else (),
    )  # fmt: skip


def write_report(run_path: str | os.PathLike[str], out_path: str | os.PathLike[str]) -> Path:
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
    run, records = read_run(run_path, DirectionRecord)
    page = render_report(run, records, read_steps(run_path))
    write_atomically(out_path, page.encode(errors="replace"))
    return Path(out_path)
