"""A figure: a chart with its name, or nothing where it shows what wasn't measured; and the figures of a page.

A new chart is a function with one of the decorators below, `@of_trajectory`, `@of_step` or `@of_last_step`: it is then
on the page of a run, and among the figures of a reproduction.

The function takes all records of a run, since the others decide how directions look, and the name of a trajectory: the
optimizer that moved the weights. It returns an Altair chart, and raises a `UsageError` where what it shows was not
measured there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from stepscope.errors import MissingExtraError, UsageError, require
from stepscope.report.names import file_name
from stepscope.runs import DirectionRecord

if TYPE_CHECKING:
    import altair as alt

_Draw = TypeVar("_Draw", bound="Callable[..., alt.Chart | alt.LayerChart]")


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn.

    Attributes:
        name: of its file, without the suffix, and of its place on a page.
        title: what a link to it says.
        draw: makes the chart; raises a `UsageError` where nothing was measured.
        on_page: whether a page shows it, or only links to its file.
        slides: whether it shows one of several steps.
    """

    name: str
    title: str
    draw: Callable[[], alt.Chart | alt.LayerChart]
    on_page: bool = True
    slides: bool = False

    def specification(self) -> dict[str, Any] | None:
        """The chart as Vega-Lite; None where it shows something that wasn't measured.

        Our own charts are valid, which a test says once: Altair would check each part of each of them many times.

        Raises:
            MissingExtraError: altair is not installed.
        """
        try:
            with require("altair.utils.schemapi", "report").debug_mode(False):
                return dict(self.draw().to_dict(validate=False))
        except MissingExtraError:
            raise
        except UsageError:
            return None


@dataclass(frozen=True)
class _Chart:
    """A function that draws a chart, what the chart is called, and of what there is one."""

    title: str
    draw: Callable[..., alt.Chart | alt.LayerChart]
    of: str
    on_page: bool
    slides: bool = False


CHARTS: list[_Chart] = []
"""In the order in which they are defined."""


def of_trajectory(title: str, *, on_page: bool = True, **settings: Any) -> Callable[[_Draw], _Draw]:
    """Shows a chart for each trajectory: a function of the records and the trajectory's name.

    Args:
        title: what it shows.
        on_page: whether a page shows it, or only a file does.
        settings: further arguments of the function. One function can have several decorators; the lowest comes first.
    """
    return partial(_registered, title, "trajectory", on_page, settings)


def of_step(title: str, *, on_page: bool = True, slides: bool = False, **settings: Any) -> Callable[[_Draw], _Draw]:
    """Shows a chart for each measured step of a trajectory: a function of records, trajectory and step.

    Args:
        title: what it shows.
        on_page: whether a page shows it, of the last step.
        slides: whether the function takes several steps: the page of a run shows them all in one chart.
        settings: further arguments of the function.
    """
    return partial(_registered, title, "step", on_page, settings, slides=slides)


def of_last_step(title: str, *, on_page: bool = True, **settings: Any) -> Callable[[_Draw], _Draw]:
    """Shows a chart for the last measured step of a trajectory: a function of records, trajectory and step."""
    return partial(_registered, title, "last step", on_page, settings)


def _registered(
    title: str, of: str, on_page: bool, settings: dict[str, Any], draw: _Draw, slides: bool = False
) -> _Draw:
    CHARTS.append(_Chart(title, partial(draw, **settings), of, on_page, slides))
    return draw


def figures_of(records: Sequence[DirectionRecord], trajectory: str, *, sliding: bool = False) -> list[Figure]:
    """The figures of one trajectory, in the order in which their charts are defined.

    A page shows those of the last step.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.
        sliding: whether a chart that can show several steps is one figure of all, and not one of each.
    """
    steps = sorted({record.step for record in records if record.trajectory == trajectory})
    places: dict[str, list[tuple[int, ...]]] = {"trajectory": [()], "step": [(step,) for step in steps]}
    places["last step"] = last = places["step"][-1:]
    figures = []
    for of, charts in itertools.groupby(CHARTS, key=lambda chart: (chart.of, sliding and chart.slides)):
        shown = [tuple(steps)] if of[1] else places[of[0]]
        for place, chart in itertools.product(shown, list(charts)):
            title = chart.title if of[1] else " at step ".join(map(str, (chart.title, *place)))
            draw = partial(chart.draw, records, trajectory, *place)
            on_page = chart.on_page and (of[0] == "trajectory" or of[1] or [place] == last)
            name = file_name(trajectory, title)
            figures.append(Figure(name, f"{title}, {trajectory} trajectory", draw, on_page, slides=of[1]))
    return figures


def chart_of(
    records: Sequence[DirectionRecord], title: str, trajectory: str, step: int | None = None
) -> alt.Chart | alt.LayerChart:
    """One of the charts of a page.

    Args:
        records: all records of a run.
        title: of the chart, as the decorator gives it: ``"landscape"``, say.
        trajectory: the optimizer that moved the weights.
        step: a measured one, of a chart that shows one step; ``None`` is the last.

    Raises:
        MissingExtraError: altair is not installed.
        UsageError: there is no such chart, or what it shows was not measured there.
    """
    charts = {chart.title: chart for chart in CHARTS}
    if title not in charts:
        raise UsageError(f"no chart {title!r}: choose of {', '.join(charts)}")
    steps = sorted({record.step for record in records if record.trajectory == trajectory})
    if not steps:
        raise UsageError("nothing has been measured yet")
    if charts[title].of == "trajectory":
        return charts[title].draw(records, trajectory)
    return charts[title].draw(records, trajectory, steps[-1] if step is None else step)


def drawn(charts: dict[str, Any], figures: Iterable[Figure]) -> list[str]:
    """Adds the charts that a page shows to its others, and gives their places: none where nothing was measured."""
    before = len(charts)
    for figure in figures:
        if figure.on_page and (specification := figure.specification()) is not None:
            charts[f"chart-{len(charts)}-{figure.name}"] = {**specification, "width": "container"}
    return list(charts)[before:]
