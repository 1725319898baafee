"""The figures, tables and numbers of directions along trajectories, each under the name of its file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stepscope.paper.report.names import distinct, file_name
from stepscope.report import (
    BASELINE,
    Cell,
    Figure,
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
from stepscope.runs import DirectionRecord


def direction_figures(records: Sequence[DirectionRecord]) -> list[Figure]:
    """The figures of an experiment along trajectories.

    A page shows the last step of each trajectory: with every step's landscapes it would be too large.
    """
    names = directions_of(records)
    without = [name for name in names if family(name) == "adafactor"]
    seed = min((record.seed for record in records), default=None)
    places = list(dict.fromkeys((trajectory, step) for trajectory, step, _ in points_of(records)))
    figures = []
    for trajectory in trajectories_of(records):
        steps = sorted(step for name, step in places if name == trajectory)

        def add(what: str, draw: Any, *given: Any, on: str = trajectory, on_page: bool = True, **more: Any) -> None:
            drawn = partial(draw, records, on, *given, **more)
            figures.append(Figure(file_name(on, what), f"{what}, {on} trajectory", drawn, on_page))

        for step in steps:
            add(f"landscape at step {step}", landscapes, step, seed=seed, on_page=step == steps[-1])
            if without:
                what = f"landscape without Adafactor at step {step}"
                add(what, landscapes, step, without, seed=seed, on_page=False)
            what = f"landscape around the minimum of {BASELINE} at step {step}"
            add(what, landscapes, step, around=BASELINE, seed=seed, on_page=False)
        add("sharpness", sharpness_over_steps)
        add("decrease against sharpness", decrease_against_sharpness)
        for step in steps:
            add(f"magnitudes at step {step}", magnitudes, step, on_page=step == steps[-1])
        if steps:
            add(f"concentration of the sharpness at step {steps[-1]}", concentration, steps[-1])
            add(f"concentration of the norm at step {steps[-1]}", concentration, steps[-1], "norm", on_page=False)
        add("concentration of the sharpness over steps", concentration_over_steps, on_page=False)
    return distinct(figures)


def named_direction_tables(records: Sequence[DirectionRecord]) -> list[Table]:
    """The tables of an experiment along trajectories."""
    kinds = {"sharpness": sharpness_tables(records), "decrease": decrease_tables(records)}
    tables = [
        replace(table, name=file_name(kind, name)) for kind, named in kinds.items() for name, table in named.items()
    ]
    carried = concentration_tables(records)
    last = {name: max(step for other, step in carried if other == name) for name, _ in carried}
    tables += [
        replace(table, name=file_name("concentration", name, f"step {step}"), on_page=step == last[name])
        for (name, step), table in carried.items()
    ]
    return distinct(tables)


def direction_numbers(records: Sequence[DirectionRecord]) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """The numbers of the sharpness tables, one direction at one step a row."""
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
