"""A figure: a chart with its name, or nothing where it shows what wasn't measured; and the figures of a page.

A new chart is a function with one of the decorators below: `@of_trajectory` or `@of_step`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from stepscope.errors import MissingExtraError, UsageError
from stepscope.runs import DirectionRecord

if TYPE_CHECKING:
    import altair as alt

_Draw = TypeVar("_Draw", bound="Callable[..., alt.Chart | alt.LayerChart]")

OF_STEP: dict[str, Callable[..., alt.Chart | alt.LayerChart]] = {}
OF_TRAJECTORY: dict[str, Callable[..., alt.Chart | alt.LayerChart]] = {}


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn.

    Attributes:
        name: of its file, without the suffix, and of its place on a page.
        title: what a link to it says.
        draw: makes the chart; raises a `UsageError` where nothing was measured.
        on_page: whether a page shows it, or only links to its file.
    """

    name: str
    title: str
    draw: Callable[[], alt.Chart | alt.LayerChart]
    on_page: bool = True

    def chart(self) -> alt.Chart | alt.LayerChart | None:
        """The chart; None where it shows something that wasn't measured.

        Raises:
            MissingExtraError: altair is not installed.
        """
        try:
            return self.draw()
        except MissingExtraError:
            raise
        except UsageError:
            return None


def of_trajectory(name: str) -> Callable[[_Draw], _Draw]:
    """Shows a chart on a run's page for each trajectory: a function of the records and the trajectory's name."""
    return partial(_shown, OF_TRAJECTORY, name)


def of_step(name: str) -> Callable[[_Draw], _Draw]:
    """Shows a chart for each measured step of a trajectory: a function of records, trajectory and step."""
    return partial(_shown, OF_STEP, name)


def _shown(figures: dict[str, Any], name: str, draw: _Draw) -> _Draw:
    figures[name] = draw
    return draw


def page_figures(records: Sequence[DirectionRecord], trajectory: str, steps: Iterable[float]) -> list[Figure]:
    """The figures of one trajectory that a run's page shows, in the order in which their charts are defined."""
    by_step = [
        Figure(f"{name}-{step:g}", f"{name} {step:g}", partial(draw, records, trajectory, step))
        for step in steps
        for name, draw in OF_STEP.items()
    ]
    return by_step + [Figure(name, name, partial(draw, records, trajectory)) for name, draw in OF_TRAJECTORY.items()]


def drawn(charts: dict[str, Any], figures: Iterable[Figure]) -> list[str]:
    """Adds the charts of figures to those of a page, and gives their places: none where nothing was measured."""
    before = len(charts)
    for figure in figures:
        if (chart := figure.chart()) is not None:
            charts[f"chart-{len(charts)}-{figure.name}"] = {**chart.to_dict(), "width": "container"}
    return list(charts)[before:]
