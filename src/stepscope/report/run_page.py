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
from stepscope.report.comparison import (
    baseline_scale,
    directions_of,
    points_of,
    sharpness_rows,
    trajectories_of,
)
from stepscope.report.direction_tables import step_tables
from stepscope.report.escaping import script_json
from stepscope.report.facts import Facts, facts_of
from stepscope.report.figures import Figure, drawn, figures_of
from stepscope.report.looks import Looks
from stepscope.report.names import distinct
from stepscope.report.own_step_charts import LANDING, own_step_figures
from stepscope.report.own_update_charts import own_update_figures
from stepscope.report.run_top import self_check_of, title_of_training, top_of
from stepscope.report.summary import summary_sentence
from stepscope.report.tables import Table, latex
from stepscope.report.vega import vega_script
from stepscope.runs import DirectionRecord, StepRecord, Training, family, is_own, read_training, write_atomically

_ALONG = (
    "loss",
    "sharpness",
    "layers over steps",
    "interaction of layers",
    "slope against sharpness",
    "decrease against sharpness",
    "clip sweep",
    "magnitudes",
)
"""The charts along a training, by how their titles begin."""


def render(
    template: str,
    title: str,
    summary: str,
    sections: Sequence[Any],
    *,
    facts: Facts,
    names: Sequence[str],
    charts: Mapping[str, Any],
    panels: Sequence[Any] = (),
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
        panels: of each part where a step can be chosen, what is shown of every step.
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
            panels=markup(script_json([{"steps": steps} for steps in panels])),
            **values,
        )
    )


@functools.cache
def _resource(name: str) -> str:
    return (importlib.resources.files("stepscope.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """What the page's content security policy admits: these scripts and no other, whatever a name contains."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _section(training: Training, trajectory: str, charts: dict[str, Any]) -> dict[str, Any]:
    """One trajectory's part of the page; its charts are added to `charts` under the names of their places."""
    records = training.directions
    rows = sharpness_rows(records, trajectory)
    tables = step_tables(records, trajectory)
    measured = {row.direction for row in rows}
    names = [name for name in directions_of(records) if name in measured]
    own = own_step_figures(training, trajectory)
    figures, updates = figures_of(records, trajectory, sliding=True), own_update_figures(records, trajectory)
    still = [figure for figure in figures if not figure.slides]
    return {
        "name": trajectory,
        "landing": drawn(charts, own[:LANDING]),
        "landscapes": drawn(charts, (figure for figure in figures if figure.slides)),
        "along": drawn(charts, sorted([*own[LANDING:], *still, *updates], key=_place_along)),
        "names": names,
        "table": next(reversed(tables.values()), None),
        "steps": [
            _step_of(step, label, table, names)
            for step, (label, table) in zip(sorted({row.step for row in rows}), tables.items(), strict=True)
        ],
        "seeds": max((row.seeds for row in rows), default=0),
    }


def _place_along(figure: Figure) -> int:
    """What is asked first stands first; charts that aren't named come last, in the order in which they are defined."""
    return next((place for place, title in enumerate(_ALONG) if figure.title.startswith(title)), len(_ALONG))


def training_figures(training: Training) -> list[Figure]:
    """The charts of a run's page, each step's by itself, and those that are for files alone.

    Args:
        training: its records.
    """
    records = training.directions
    return distinct(
        figure
        for trajectory in trajectories_of([*records, *training.steps])
        for figure in (
            *own_step_figures(training, trajectory),
            *figures_of(records, trajectory),
            *own_update_figures(records, trajectory),
        )
    )


def _step_of(step: int, label: str, table: Table, names: Sequence[str]) -> dict[str, Any]:
    """What the page shows where one step is chosen: a row for each of the names, or none."""
    cells = {row[0]: row[1:] for row in table.rows}
    places = {name: place for place, name in enumerate(names)}
    columns = {header: place for place, header in enumerate(table.headers[1:])}
    return {
        "step": step,
        "label": label,
        "headers": table.headers,
        "rows": [cells.get(name) for name in names],
        "marks": {f"{places[name]},{columns[header]}": classes for (name, header), classes in table.marks.items()},
        "note": table.note,
        "latex": latex(table),
    }


def _words(training: Training) -> set[str]:
    """What the run has of all that has to be explained."""
    records, steps = training.directions, training.steps
    baselines = {baseline_scale(there.values())[1] for there in points_of(records).values()}
    has = {
        "own": any(step.batch_slope is not None for step in steps),
        "edge": any(step.edges for step in steps),
        "directions": records,
        "others": any(not record.direction.startswith("own ") for record in records),
        "relative": baselines - {"none"},
        "robust": "robust" in baselines,
        "clipping": any(family(record.direction) != record.direction for record in records),
        "layers": any(is_own(record) and len(record.layers or ()) > 1 for record in records),
        "interaction": any(record.within_layer is not None for record in records),
        "negative": any((record.sharpness or 0) < 0 for record in records),
    }
    return {word for word, present in has.items() if present}


def render_report(run: Mapping[str, Any], records: Sequence[DirectionRecord], steps: Sequence[StepRecord] = ()) -> str:
    """The page of a run that measured directions, as HTML that fetches nothing.

    A probe's run opens with what was trained, and with its findings.

    Args:
        run: the content of `run.json`.
        records: the measurements.
        steps: of a probe's run, the steps that were made.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    require("altair", "report")
    training = Training({"configuration": {}, "context": {}, **run}, list(records), list(steps))
    charts: dict[str, Any] = {}
    parts = [_section(training, trajectory, charts) for trajectory in trajectories_of([*records, *steps])]
    probed = training.is_probed
    return render(
        "directions.html", title_of_training(training), "" if probed else summary_sentence(records), parts,
        facts=facts_of(run), names=directions_of(records), charts=charts, top=top_of(training), words=_words(training),
        findings=findings([*records, *steps]) if probed else (), panels=[part["steps"] for part in parts],
        is_kept="created" in run,
        self_check=self_check_of(training),
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
    training = read_training(run_path)
    page = render_report(training.head, training.directions, training.steps)
    write_atomically(out_path, page.encode(errors="replace"))
    return Path(out_path)
