"""How an optimizer's direction looks, in every chart, legend, tooltip and table: the one place that knows.

Directions of one family (`sgd` and `sgd clip 10%`) share a color. The family's own optimizer has a solid line and a
circle; its variants have dashes and other marks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.errors import require
from stepscope.report.vega import alt, tooltips
from stepscope.runs import family

# Mid tones that stand out on white and on near-black, told apart by lightness as well as by hue.
_COLORS = {
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
_OWN = "#8a3ffc"
"""Of the step that the training optimizer makes: far from the others for all kinds of color vision."""
_OTHER_COLORS = ("#9a6b3f", "#6f8f1f", "#c2527f", "#4f7d8c", "#a0782c", "#7d62c4", "#5b8c5a", "#b8604a")
_DASHES = ((1, 0), (6, 3), (2, 2), (8, 3, 2, 3), (4, 2), (1, 3), (10, 4))
_MARKS = {  # Vega's symbols, with the same as SVG around (0, 0)
    "circle": '<circle r="4"/>',
    "square": '<rect x="-3.5" y="-3.5" width="7" height="7"/>',
    "triangle-up": '<path d="M0-4.5 4.5 3.5H-4.5Z"/>',
    "diamond": '<path d="M0-5 4.5 0 0 5-4.5 0Z"/>',
    "cross": '<path d="M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z"/>',
    "triangle-down": '<path d="M0 4.5 4.5-3.5H-4.5Z"/>',
    "triangle-right": '<path d="M4.5 0-3.5 4.5V-4.5Z"/>',
}
_PICK = "pick"
_CATEGORIES = ("#2a6fbb", "#d98a1f", "#12966b", "#b25fb8", "#d1495b", "#5f63c9", "#9a6b3f", "#31a9d6")


@dataclass(frozen=True)
class Look:
    """How one direction is drawn: a CSS color, a dash pattern and the name of a Vega symbol."""

    color: str
    dash: tuple[int, ...]
    mark: str


class Looks(dict[str, Look]):
    """The looks of directions by name, and what charts and tables draw them with.

    Rows of a chart name their direction in the field `direction`. A click on a legend picks directions: the others
    fade, in every chart of a page.

    Args:
        directions: all that are measured, also where a chart shows only some: they decide who looks how.
        noun: what the directions are called in legends and tooltips.

    Example:
        >>> looks = Looks(["adam", "adam clip 50% (update)"])
        >>> looks["adam"].color == looks["adam clip 50% (update)"].color, looks["adam"].dash
        (True, (1, 0))
    """

    def __init__(self, directions: Iterable[str], noun: str = "direction") -> None:
        super().__init__()
        self.noun = noun
        others, colors, variants = itertools.cycle(_OTHER_COLORS), dict(_COLORS), dict[str, int]()
        for name in directions:
            kind, variant = family(name), 0
            if kind not in colors:
                is_own = kind.startswith("own ") and _OWN not in colors.values()
                colors[kind] = _OWN if is_own else next(others)
            if name != kind:
                variants[kind] = variants.get(kind, 0) + 1
                variant = 1 + (variants[kind] - 1) % (len(_DASHES) - 1)
            self[name] = Look(colors[kind], _DASHES[variant], tuple(_MARKS)[variant])

    def line(self, shown: Iterable[str] = ()) -> dict[str, Any]:
        """Channels of a line, with a legend of pieces of line; it has all directions unless some are named."""
        legend = alt.Legend(
            title=self.noun, symbolType="stroke", symbolSize=420, symbolStrokeWidth=2, rowPadding=0,
            values=tuple(shown) or tuple(self),
        )  # fmt: skip
        dashes = [look.dash for look in self.values()]
        return {"strokeDash": alt.StrokeDash("direction:N", scale=self._scale(dashes), legend=legend)} | self._in(
            legend
        )

    def point(self) -> dict[str, Any]:
        """Channels of a point, with a legend of symbols."""
        legend = alt.Legend(title=self.noun, symbolSize=90)
        marks = self._scale([look.mark for look in self.values()])
        return {"shape": alt.Shape("direction:N", scale=marks, legend=legend)} | self._in(legend)

    def beside(self, marked: bool = True) -> dict[str, Any]:
        """Channels of what stands beside lines or points that have the legend: drawn from [`rows`].

        Vega-Lite would merge a second scale into the first one's legend.
        """
        shape = {"shape": alt.Shape("mark:N", scale=None)} if marked else {}
        return shape | {"color": alt.Color("color:N", scale=None), "opacity": self._opacity()}

    def rows(self, rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Rows with their direction's color and mark in them."""
        return [{**row, "color": self[row["direction"]].color, "mark": self[row["direction"]].mark} for row in rows]

    @property
    def pick(self) -> alt.Parameter:
        """The selection that a click on the legend makes; one layer of a chart has it."""
        return alt.selection_point(name=_PICK, fields=["direction"], bind="legend")

    def tooltip(self, *others: str | alt.Tooltip, **numbers: str) -> list[alt.Tooltip]:
        """A tooltip that begins with the direction; see [`stepscope.report.vega.tooltips`]."""
        return [alt.Tooltip("direction:N", title=self.noun), *tooltips(**numbers), *tooltips(*others)]

    def swatches(self) -> dict[str, Any]:
        """A sample of each look, as markup for a table or a button; its values are ours, never the user's."""
        markup = require("markupsafe", "report").Markup
        return {name: markup(_swatch(look)) for name, look in self.items()}

    def _in(self, legend: alt.Legend) -> dict[str, Any]:
        colors = self._scale([look.color for look in self.values()])
        return {"color": alt.Color("direction:N", scale=colors, legend=legend), "opacity": self._opacity()}

    def _scale(self, values: Sequence[Any]) -> alt.Scale:
        return alt.Scale(domain=tuple(self), range=tuple(values))

    def _opacity(self) -> Any:
        return alt.OpacityValue(0.08, condition=[{"param": _PICK, "value": 0.95}])


def categories(field: str, names: Sequence[str], title: str, **given: Any) -> alt.Color:
    """A color for each of other things than directions, in the order of their names; `given` is of `altair.Color`."""
    colors = [color for color, _ in zip(itertools.cycle(_CATEGORIES), names, strict=False)]
    return alt.Color(field, scale=alt.Scale(domain=list(names), range=colors), title=title, **given)


def symbols(field: str, names: Sequence[str], title: str, **given: Any) -> alt.Shape:
    """A mark for each of other things than directions, in the order of their names; `given` is of `altair.Shape`."""
    marks = [mark for mark, _ in zip(itertools.cycle(_MARKS), names, strict=False)]
    return alt.Shape(field, scale=alt.Scale(domain=list(names), range=marks), title=title, **given)


def _swatch(look: Look) -> str:
    dash = " ".join(map(str, look.dash)) if look.dash[1] else "none"
    return (
        '<svg class="swatch" width="34" height="12" viewBox="0 0 34 12" aria-hidden="true">'
        f'<path d="M1 6H33" stroke="{look.color}" stroke-width="2" stroke-dasharray="{dash}"/>'
        f'<g transform="translate(17 6)" fill="{look.color}">{_MARKS[look.mark]}</g></svg>'
    )
