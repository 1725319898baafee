"""One run: its tables, charts, summary and page, as pure functions of its records."""

from stepscope.report.charts import decrease_against_sharpness, landscapes, save, sharpness_over_steps
from stepscope.report.comparison import (
    BASELINE,
    baseline_scale,
    directions_of,
    family,
    points_of,
    sharpness_rows,
    trajectories_of,
)
from stepscope.report.coordinate_charts import concentration, concentration_over_steps, magnitudes
from stepscope.report.direction_tables import NOTHING, concentration_tables, decrease_tables, sharpness_tables
from stepscope.report.drawing import dressed, finish, line_look, pick_directions, powers_of_ten, tooltips
from stepscope.report.page import drawn, facts_of, render, render_report, swatches_of, title_of, write_report
from stepscope.report.summary import summary_sentence
from stepscope.report.tables import Cell, Table, write_csv, write_tables
from stepscope.report.terminal import plain_table, print_directions, print_tables, printable, text_and_console

__all__ = [
    "BASELINE",
    "NOTHING",
    "Cell",
    "Table",
    "baseline_scale",
    "concentration",
    "concentration_over_steps",
    "concentration_tables",
    "decrease_against_sharpness",
    "decrease_tables",
    "directions_of",
    "drawn",
    "dressed",
    "facts_of",
    "family",
    "finish",
    "landscapes",
    "line_look",
    "magnitudes",
    "pick_directions",
    "plain_table",
    "points_of",
    "powers_of_ten",
    "print_directions",
    "print_tables",
    "printable",
    "render",
    "render_report",
    "save",
    "sharpness_over_steps",
    "sharpness_rows",
    "sharpness_tables",
    "summary_sentence",
    "swatches_of",
    "text_and_console",
    "title_of",
    "tooltips",
    "trajectories_of",
    "write_csv",
    "write_report",
    "write_tables",
]  # fmt: skip
