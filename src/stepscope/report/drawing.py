"""What the charts share: how a direction looks, axes for many magnitudes, how Vega gets into a page."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.errors import require
from stepscope.report.comparison import directions_of, family
from stepscope.runs import Record

# Mid tones that stand out on white and on near-black, told apart by lightness as well as by hue.
_FAMILY_COLOURS = {
    "sgd": "#d1495b",
    "normalized sgd": "#d98a1f",
    "signsgd": "#8a8d93",
    "adam": "#2a6fbb",
    "adamw": "#5f63c9",
    "adafactor": "#12966b",
    "lion": "#b25fb8",
    "muon": "#31a9d6",
    "adagrad": "#a85a32",
    "amsgrad": "#3d8f8f",
    "acclip": "#e07b9c",
}
_OTHER_COLOURS = ("#9a6b3f", "#6f8f1f", "#c2527f", "#4f7d8c", "#a0782c", "#7d62c4", "#5b8c5a", "#b8604a")
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (4, 2), (1, 3), (10, 4))
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")


@dataclass(frozen=True)
class Style:
    """How one direction is drawn: a CSS colour, a dash pattern and the name of a Vega symbol."""

    colour: str
    dash: tuple[int, ...]
    shape: str


def styles(directions: Sequence[str]) -> dict[str, Style]:
    """One look for each direction, the same for the same names in the same order.

    Example:
        >>> looks = styles(["adam", "adam clip 50% (update)"])
        >>> looks["adam"].colour == looks["adam clip 50% (update)"].colour, looks["adam"].dash
        (True, (1, 0))
    """
    others = itertools.cycle(_OTHER_COLOURS)
    colours = dict(_FAMILY_COLOURS)
    variants: dict[str, int] = {}
    looks: dict[str, Style] = {}
    for name in directions:
        kind = family(name)
        if kind not in colours:
            colours[kind] = next(others)
        variant = 0
        if name != kind:
            variants[kind] = variants.get(kind, 0) + 1
            variant = 1 + (variants[kind] - 1) % (len(_DASHES) - 1)
        looks[name] = Style(colours[kind], _DASHES[variant], _SHAPES[variant])
    return looks


def line_look(alt: Any, records: Sequence[Record], shown: Sequence[str] | None = None) -> dict[str, Any]:
    """The channels that draw a line in its direction's look, with a legend of pieces of line.

    Args:
        alt: the module altair.
        records: all records of a run, which decide how directions look.
        shown: the directions in the legend; all if None.
    """
    looks = styles(directions_of(records))
    legend = alt.Legend(title="direction", symbolType="stroke", symbolSize=420, symbolStrokeWidth=2, rowPadding=0)
    if shown is not None:
        legend.values = list(shown)

    def scale(values: list[Any]) -> Any:
        return alt.Scale(domain=list(looks), range=values)

    return {
        "color": alt.Color("direction:N", scale=scale([look.colour for look in looks.values()]), legend=legend),
        "strokeDash": alt.StrokeDash(
            "direction:N", scale=scale([list(look.dash) for look in looks.values()]), legend=legend
        ),
    }


def point_look(alt: Any, records: Sequence[Record]) -> dict[str, Any]:
    """The channels that draw a point in its direction's look, with a legend of symbols."""
    looks = styles(directions_of(records))

    def scale(values: list[Any]) -> Any:
        return alt.Scale(domain=list(looks), range=values)

    legend = alt.Legend(title="direction", symbolSize=90)
    return {
        "color": alt.Color("direction:N", scale=scale([look.colour for look in looks.values()]), legend=legend),
        "shape": alt.Shape("direction:N", scale=scale([look.shape for look in looks.values()]), legend=legend),
    }


def dressed(rows: Iterable[dict[str, Any]], records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rows with their direction's colour and shape in them.

    Points beside lines take their look from here: Vega-Lite would merge their scales into the lines' legend.
    """
    looks = styles(directions_of(records))
    return [{**row, "colour": looks[row["direction"]].colour, "shape": looks[row["direction"]].shape} for row in rows]


def pick_directions(alt: Any) -> Any:
    """The selection that a click on the legend makes: the named directions stay, the others fade."""
    return alt.selection_point(name="pick", fields=["direction"], bind="legend")


def tooltips(alt: Any, **titles: str) -> list[Any]:
    """Tooltip entries for numbers: field name = title."""
    return [
        alt.Tooltip(field=field, type="quantitative", title=title, format=".4~g") for field, title in titles.items()
    ]


def powers_of_ten(low: float, high: float, most: int = 6) -> list[float]:
    """Ticks for a log axis: powers of ten between two positive numbers, at most so many.

    Where there would be only one or two, their 2- and 5-fold join them.

    Example:
        >>> powers_of_ten(0.02, 3000)
        [0.1, 1.0, 10.0, 100.0, 1000.0]
    """
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / most))
    powers = [float(f"1e{power}") for power in range(first, last + 1, stride)]
    if len(powers) > 2:
        return powers
    finer = [float(f"{digit}e{power}") for power in range(first - 1, last + 1) for digit in (1, 2, 5)]
    return [tick for tick in finer if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def magnitude_axis(alt: Any, channel: str, field: str, values: Sequence[float], title: str) -> Any:
    """An axis for numbers of many magnitudes: logarithmic if all are positive, else symmetric around zero."""
    make = getattr(alt, channel)
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return make(field, type="quantitative", title=title)
    biggest = max(sizes)
    if min(values) > 0:
        ticks = powers_of_ten(min(values) / 2, biggest * 2)
        scale = alt.Scale(type="log", domain=[min(values) / 2, biggest * 2], nice=False)
        axis = alt.Axis(values=ticks, format="~g")
        return make(field, type="quantitative", title=f"{title} (log)", scale=scale, axis=axis)
    # Below this the axis is linear: a single number near zero must not take all the room.
    linear = 10.0 ** math.floor(math.log10(max(min(sizes), biggest * 1e-8)))
    ticks = [0.0]
    if max(values) > 0:
        ticks += powers_of_ten(linear, max(values), 5)
    if min(values) < 0:
        ticks += [-tick for tick in powers_of_ten(linear, -min(values), 5)]
    domain = [min(1.6 * min(values), 0), max(1.6 * max(values), 0)]
    scale = alt.Scale(type="symlog", constant=linear, domain=domain, nice=False)
    axis = alt.Axis(values=sorted(ticks), format="~g", labelOverlap=True)
    return make(field, type="quantitative", title=f"{title} (symmetric log)", scale=scale, axis=axis)


def finish(chart: Any, title: str, *notes: str) -> Any:
    """Gives a chart its title, its size and the plain look of all charts."""
    lines = [note for note in notes if note]  # a line each: what is wider than the chart would be cut off
    text = {"text": title, "subtitle": lines} if lines else title
    return (
        chart.properties(title=text, width=560, height=330)
        .configure(font="sans-serif", background="#ffffff")
        .configure_view(stroke=None)
        .configure_title(anchor="start", fontSize=14, fontWeight=600, subtitleColor="#666", offset=12)
        .configure_axis(
            gridColor="#e7e7ea", domainColor="#b5b5bb", tickColor="#b5b5bb", labelColor="#55555c",
            titleColor="#333338", titleFontWeight="normal", titleFontSize=12, titlePadding=8,
        )
        .configure_legend(labelLimit=300, labelColor="#333338", titleColor="#333338")
    )  # fmt: skip


def vega_lite_version() -> str | None:
    """The Vega-Lite that draws what the installed Altair writes; None is the newest that vl-convert has."""
    wanted = str(require("altair", "report").SCHEMA_VERSION).lstrip("v")
    known: list[str] = require("vl_convert", "report").get_vegalite_versions()
    return next((version for version in known if wanted.startswith(f"{version}.")), None)


@functools.cache
def vega_script() -> str:
    """The JavaScript that defines `vegaEmbed`, whole: nothing is fetched when it runs."""
    return str(require("vl_convert", "report").javascript_bundle(vl_version=vega_lite_version()))


def script_json(value: Any) -> str:
    r"""JSON that can stand inside a `<script>` element, whatever is in its strings.

    Example:
        >>> script_json("</script>")
        '"\\u003c/script\\u003e"'
    """
    text = json.dumps(value, allow_nan=False)  # ASCII, so U+2028 and lone surrogates are escapes too
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def xml_text(value: Any) -> Any:
    r"""A specification whose strings hold only what XML can: on anything else the converter ends the whole process.

    Example:
        >>> xml_text({"title": ["a\x1bb", 1]}) == {"title": ["a\ufffdb", 1]}
        True
    """
    if isinstance(value, str):
        return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]", "\ufffd", value)
    if isinstance(value, dict):
        return {key: xml_text(item) for key, item in value.items()}
    return [xml_text(item) for item in value] if isinstance(value, list) else value
