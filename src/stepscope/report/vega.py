"""Altair and Vega: a chart's frame, and how it gets into a file or a page.

Altair is an optional extra. Chart modules take it from here: ``from stepscope.report.vega import alt``.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stepscope.cache import cache_directory
from stepscope.errors import UsageError, require
from stepscope.report.escaping import script_json, xml_text
from stepscope.runs import write_atomically
from stepscope.shown import NOTHING

__all__ = [
    "alt",
    "finish",
    "layered",
    "plot",
    "plot_folded",
    "rule",
    "save",
    "short",
    "tooltips",
    "vega_lite_version",
    "vega_script",
]  # fmt: skip

if TYPE_CHECKING:
    import altair as alt
else:

    class _Altair:
        """The module altair, imported where it is first used: without it a report still has its tables."""

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return getattr(require("altair", "report"), name)

    alt = _Altair()

_Drawn = TypeVar("_Drawn", "alt.Chart", "alt.LayerChart")


def plot(rows: Iterable[Mapping[str, Any]]) -> alt.Chart:
    """A chart of rows that has no marks yet."""
    # Altair copies lists, and a layered chart is copied again and again; what is in a tuple it takes as it is.
    return alt.Chart(alt.InlineData(values=tuple({name: short(value) for name, value in row.items()} for row in rows)))


def plot_folded(rows: Iterable[Mapping[str, Any]], *lists: str) -> alt.Chart:
    """The same, written compactly: what many rows share is written once, beside lists of what differs.

    Args:
        rows: they may lack a field that is listed. It then holds a word, which no axis takes for a number, and from
            which the page knows that a tooltip has nothing to say of it: a null would be told as 0.
        lists: the fields that differ.
    """
    given = list(rows)
    present = [name for name in lists if any(name in row for row in given)]
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in given:
        rest = {name: value for name, value in row.items() if name not in present}
        group = groups.setdefault(tuple(rest.items()), {**rest, **{name: [] for name in present}})
        for name in present:
            group[name].append(row.get(name, NOTHING))
    chart = plot(groups.values())
    return chart.transform_flatten(list[Any](present)) if present else chart


def short(value: Any, digits: int = 5) -> Any:
    """Five digits are more than a screen shows, and a third of the space."""
    if isinstance(value, float):
        return float(f"{value:.{digits}g}")
    return [short(item, digits) for item in value] if isinstance(value, list) else value


def rule(axis: alt.X | alt.Y, **at: float) -> alt.Chart:
    """A gray line across a chart, at a field's value."""
    line: alt.Chart = plot([at]).mark_rule(color="#888", opacity=0.6).encode(axis)
    return line


def layered(*charts: alt.Chart | alt.LayerChart) -> alt.LayerChart:
    """Charts on top of one another, the first below."""
    return alt.LayerChart(layer=list(charts))


def tooltips(*names: str | alt.Tooltip, **numbers: str) -> list[alt.Tooltip]:
    """Tooltip entries: fields that are names, and numbers as field = title."""
    named = [alt.Tooltip(f"{name}:N") if isinstance(name, str) else name for name in names]
    return named + [
        alt.Tooltip(field=field, type="quantitative", title=title, format=".4~g") for field, title in numbers.items()
    ]


def finish(chart: _Drawn, title: str, *notes: str) -> _Drawn:
    """Gives a chart its title, its size and the plain look of all charts; in place, since Altair copies all of it."""
    lines = [note for note in notes if note]  # a line each: what is wider than the chart would be cut off
    text = alt.TitleParams(title, subtitle=lines) if lines else title
    for name, value in {"title": text, "width": 560, "height": 330, "config": _plain_look()}.items():
        chart[name] = value
    return chart


def _plain_look() -> alt.Config:
    return alt.Config(
        font="sans-serif",
        background="#ffffff",
        view=alt.ViewConfig(stroke=None),
        title=alt.TitleConfig(anchor="start", fontSize=14, fontWeight=600, subtitleColor="#666", offset=12),
        axis=alt.AxisConfig(
            gridColor="#e7e7ea", domainColor="#b5b5bb", tickColor="#b5b5bb", labelColor="#55555c",
            titleColor="#333338", titleFontWeight="normal", titleFontSize=12, titlePadding=8,
        ),
        legend=alt.LegendConfig(labelLimit=300, labelColor="#333338", titleColor="#333338"),
    )  # fmt: skip


def vega_lite_version() -> str | None:
    """The Vega-Lite that draws what the installed Altair writes; None is the newest that vl-convert has."""
    wanted = str(alt.SCHEMA_VERSION).lstrip("v")
    known: list[str] = require("vl_convert", "report").get_vegalite_versions()
    return next((version for version in known if wanted.startswith(f"{version}.")), None)


@functools.cache
def vega_script() -> str:
    """The JavaScript that defines `vegaEmbed`, whole: nothing is fetched when it runs.

    It takes longer to make than a page, so it is kept in the cache directory, after its digest: what is damaged is made
    again.
    """
    converter = require("vl_convert", "report")
    version, kept = vega_lite_version(), None
    with contextlib.suppress(OSError, UsageError):
        kept = cache_directory() / f"vega-lite-{version}-of-vl-convert-{converter.__version__}.js"
        digest, _, script = kept.read_bytes().partition(b"\n")
        if digest == _digest(script):
            return script.decode()
    script = converter.javascript_bundle(vl_version=version).encode()
    with contextlib.suppress(UsageError):
        if kept is not None:
            write_atomically(kept, _digest(script) + b"\n" + script)
    return str(script.decode())


def _digest(script: bytes) -> bytes:
    return hashlib.sha256(script).hexdigest().encode()


def save(chart: alt.Chart | alt.LayerChart | Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Writes a chart to a file, in the format that the file's name says.

    Args:
        chart: what one of the functions that draw returned, or its specification.
        path: a name that ends in `.pdf` or `.svg` (vector), `.png` (twice the screen's resolution) or `.html`
            (interactive, needs no network).

    Returns:
        The path.

    Raises:
        UsageError: the suffix is another one, or the file cannot be written.
        MissingExtraError: vl-convert is not installed.
    """
    target = Path(path)
    converter = require("vl_convert", "report")
    version = vega_lite_version()
    suffix = target.suffix.lower()
    spec: dict[str, Any] = dict(chart) if isinstance(chart, Mapping) else chart.to_dict()
    if suffix == ".pdf":
        content = converter.vegalite_to_pdf(_printed(spec), vl_version=version)
    elif suffix == ".svg":
        content = converter.vegalite_to_svg(xml_text(spec), vl_version=version).encode()
    elif suffix == ".png":
        content = converter.vegalite_to_png(_printed(spec), vl_version=version, scale=2)
    elif suffix == ".html":
        content = _standalone_page(spec).encode(errors="replace")
    else:
        raise UsageError(f"cannot save a chart as {target.name!r}: end the name in .pdf, .svg, .png or .html")
    write_atomically(target, content)
    return target


def _printed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A specification without what paper doesn't show, and what half of the time would go into.

    That is tooltips, ARIA, and the widest that a label may be: each is then measured again, and paper has the room.
    """
    text: dict[str, Any] = xml_text(_without_tooltips({**spec, "datasets": {}}))
    config = {**text.get("config", {}), "aria": False}
    for guide in ("axis", "legend"):
        config[guide] = {**config.get(guide, {}), "labelLimit": 0}
    return {**text, "datasets": xml_text(spec.get("datasets", {})), "config": config}


def _without_tooltips(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_tooltips(item) for key, item in value.items() if key != "tooltip"}
    return [_without_tooltips(item) for item in value] if isinstance(value, list) else value


def _standalone_page(spec: dict[str, Any]) -> str:
    """One interactive chart as a page that fetches nothing."""
    options = script_json({"actions": {"export": True, "source": False, "compiled": False, "editor": False}})
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>stepscope</title><div id="chart"></div>'
        f"<script>{vega_script()}</script>"
        f"<script>vegaEmbed('#chart', {script_json(spec)}, {options})</script></html>\n"
    )
