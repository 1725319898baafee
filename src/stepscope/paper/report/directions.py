"""The figures, tables and numbers of directions along trajectories, each under the name of its file."""

from __future__ import annotations

from collections.abc import Sequence

from stepscope.report import (
    Cell,
    Figure,
    Table,
    concentration_tables,
    decrease_tables,
    distinct,
    figures_of,
    sharpness_rows,
    sharpness_tables,
    trajectories_of,
)
from stepscope.runs import DirectionRecord


def direction_figures(records: Sequence[DirectionRecord]) -> list[Figure]:
    """All charts of directions.

    A page shows the last step of each trajectory: with every step's landscapes it would be too large.
    """
    names = trajectories_of(records)
    return distinct(figure for name in names for figure in figures_of(records, name))


def direction_tables(records: Sequence[DirectionRecord]) -> list[Table]:
    """All tables of directions."""
    return distinct([*sharpness_tables(records), *decrease_tables(records), *concentration_tables(records)])


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
