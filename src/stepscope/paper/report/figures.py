"""What a paper shows of a run: its figures and its tables, each under the name of its file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from stepscope.errors import MissingExtraError, UsageError
from stepscope.paper.claims.losses import finals_of
from stepscope.paper.report.evidence import TABLES
from stepscope.paper.report.evidence_charts import (
    bound_margins,
    correlations,
    curvature_against_gradient,
    smoothness_over_steps,
)
from stepscope.paper.report.loss_charts import differences, losses_over_rates, losses_over_steps
from stepscope.paper.report.loss_tables import loss_table, verdict_table
from stepscope.report import (
    BASELINE,
    Cell,
    Table,
    concentration,
    concentration_over_steps,
    concentration_tables,
    decrease_against_sharpness,
    decrease_tables,
    directions_of,
    family,
    landscapes,
    magnitudes,
    points_of,
    sharpness_over_steps,
    sharpness_rows,
    sharpness_tables,
    trajectories_of,
)
from stepscope.runs import Record, number


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn.

    Attributes:
        name: of its file, without the suffix.
        title: what a link to it says.
        draw: makes the chart; raises a `UsageError` where nothing was measured.
        on_page: whether a page shows it, or only links to its file.
    """

    name: str
    title: str
    draw: Callable[[], Any]
    on_page: bool = True

    def chart(self) -> Any:
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


def file_name(*parts: object) -> str:
    """A name for a file, from words that may hold anything.

    Example:
        >>> file_name("trajectory-code", "sgd", "step", 60), file_name("../../up"), file_name("é")
        ('trajectory-code-sgd-step-60', 'up', 'unnamed')
    """
    words = (re.sub(r"[^A-Za-z0-9.]+", "-", str(part)).strip("-.") for part in parts)
    name = "-".join(word for word in words if word) or "unnamed"
    if len(name) > 150:  # what is cut off may be all that tells it from others
        name = f"{name[:140]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def figures_of(experiment: str, records: Sequence[Record]) -> list[Figure]:
    """The figures of a run, whether or not everything that they show was measured.

    Args:
        experiment: its kind, as in its configuration.
        records: its measurements.

    Returns:
        Figures; their names differ.
    """
    if experiment == "convergence":
        figures = _of_trainings(records)
    elif experiment == "robustness":
        figures = [
            Figure(file_name(name, "robust smoothness"), f"robust smoothness, {name} trajectory", draw)
            for name in trajectories_of(records)
            for draw in [partial(smoothness_over_steps, records, name)]
        ]
    elif experiment == "theory":
        figures = _of_theory(records)
    elif experiment == "agreement":
        figures = []  # its table says it all
    else:
        figures = _of_directions(records)
    return _with_names_that_differ(figures)


def _of_directions(records: Sequence[Record]) -> list[Figure]:
    """A page shows the last step of each trajectory: with every step's landscapes it would be too large."""
    names = directions_of(records)
    without = [name for name in names if family(name) == "adafactor"]
    seeds = [record["seed"] for record in records if type(record.get("seed")) is int]
    seed = min(seeds, default=None)
    places = list(dict.fromkeys((trajectory, step) for trajectory, step, _ in points_of(records)))
    figures = []
    for trajectory in trajectories_of(records):
        steps = sorted(step for name, step in places if name == trajectory)

        def add(what: str, draw: Any, *given: Any, on: str = trajectory, on_page: bool = True, **more: Any) -> None:
            drawn = partial(draw, records, on, *given, **more)
            figures.append(Figure(file_name(on, what), f"{what}, {on} trajectory", drawn, on_page))

        for step in steps:
            add(f"landscape at step {step:g}", landscapes, step, seed=seed, on_page=step == steps[-1])
            if without:
                what = f"landscape without Adafactor at step {step:g}"
                add(what, landscapes, step, without, seed=seed, on_page=False)
            what = f"landscape around the minimum of {BASELINE} at step {step:g}"
            add(what, landscapes, step, around=BASELINE, seed=seed, on_page=False)
        add("sharpness", sharpness_over_steps)
        add("decrease against sharpness", decrease_against_sharpness)
        for step in steps:
            add(f"magnitudes at step {step:g}", magnitudes, step, on_page=step == steps[-1])
        if steps:
            add(f"concentration of the sharpness at step {steps[-1]:g}", concentration, steps[-1])
            add(f"concentration of the norm at step {steps[-1]:g}", concentration, steps[-1], "norm", on_page=False)
        add("concentration of the sharpness over steps", concentration_over_steps, on_page=False)
    return figures


def _of_trainings(records: Sequence[Record]) -> list[Figure]:
    titles = {
        differences: "variants against their originals",
        losses_over_steps: "losses while training",
        losses_over_rates: "losses against learning rates",
    }
    return [
        Figure(file_name(task, title), f"{title}, {task}", partial(draw, records, task))
        for task in dict.fromkeys(final.task for final in finals_of(records))
        for draw, title in titles.items()
    ]


def _of_theory(records: Sequence[Record]) -> list[Figure]:
    figures = [
        Figure("bound", "margins of the bound", partial(bound_margins, records)),
        Figure("correlations", "correlations", partial(correlations, records)),
    ]
    last: dict[tuple[str, Any], float] = {}
    whole = set()
    for record in records:
        if isinstance(record.get("points"), dict) and (step := number(record, "step")) is not None:
            place = (str(record.get("group")), record.get("trajectory"))
            last[place] = max(step, last.get(place, step))
            if not record.get("scope"):
                whole.add(place[0])
    for (group, trajectory), step in last.items():
        what = f"curvature against gradient, {group}, {trajectory} trajectory, step {step:g}"
        draw = partial(curvature_against_gradient, records, group, trajectory, step)
        figures.append(Figure(file_name(what), what, draw, group in whole))
    return figures


def tables_of(experiment: str, records: Sequence[Record]) -> list[Table]:
    """The tables of a run that hold anything.

    Args:
        experiment: its kind, as in its configuration.
        records: its measurements.

    Returns:
        Tables; their names differ.
    """
    if experiment in TABLES:
        tables = TABLES[experiment](records)
        tables = [replace(table, name=file_name(table.title.partition(",")[0].lower())) for table in tables]
    elif experiment == "convergence":
        named = {"verdicts": verdict_table(records), "losses": loss_table(records)}
        tables = [replace(table, name=name) for name, table in named.items() if table.rows]
    else:
        kinds = {"sharpness": sharpness_tables(records), "decrease": decrease_tables(records)}
        tables = [
            replace(table, name=file_name(kind, name)) for kind, found in kinds.items() for name, table in found.items()
        ]
        carried = concentration_tables(records)
        last = {name: max(step for other, step in carried if other == name) for name, _ in carried}
        tables += [
            replace(table, name=file_name("concentration", name, f"step {step:g}"), on_page=step == last[name])
            for (name, step), table in carried.items()
        ]
    return _with_names_that_differ(tables)


def numbers_of(experiment: str, records: Sequence[Record]) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """The same as numbers for other programs, one fact a row: headers, and rows; none for tables of counts.

    Args:
        experiment: its kind, as in its configuration.
        records: its measurements.
    """
    if experiment in TABLES:
        return (), []
    if experiment == "convergence":
        headers: tuple[str, ...] = ("task", "optimizer", "original", "learning_rate", "bracketed", "seed", "loss")
        return headers, [
            (final.task, final.optimizer, final.original, final.lr, int(final.bracketed), seed, loss)
            for final in finals_of(records)
            for seed, loss in final.losses.items()
        ]
    headers = (
        "trajectory", "step", "direction", "seeds", "mean", "spread", "divided_by",
        "correlation", "best_step", "best_decrease", "best_decrease_spread",
    )  # fmt: skip
    return headers, [
        (
            name, row.step, row.direction, row.seeds, row.sharpness, row.sharpness_spread, row.baseline,
            row.correlation, row.best_step, row.best_decrease, row.best_decrease_spread,
        )
        for name in trajectories_of(records)
        for row in sharpness_rows(records, name)
    ]  # fmt: skip


_Named = TypeVar("_Named", Figure, Table)


def _with_names_that_differ(things: Sequence[_Named]) -> list[_Named]:
    """Two names can lose what tells them apart when they become file names."""
    found: dict[str, _Named] = {}
    for thing in things:
        name, count = thing.name, 1
        while name.lower() in found:  # not every file system tells capitals
            count += 1
            name = f"{thing.name}-{count}"
        found[name.lower()] = replace(thing, name=name)
    return list(found.values())
