"""One run: its tables, charts, summary and page, as pure functions of its records."""

from stepscope.report.charts import decrease_against_sharpness, landscapes, save, sharpness_over_steps
from stepscope.report.comparison import (
    BASELINE,
    baseline_scale,
    directions_of,
    family,
    points_of,
    sharpness_table,
    trajectories_of,
)
from stepscope.report.coordinate_charts import concentration, concentration_over_steps, magnitudes
from stepscope.report.drawing import dressed, finish, line_look, pick_directions, powers_of_ten, tooltips
from stepscope.report.grids import NOTHING, concentration_grids, decrease_grids, sharpness_grids
from stepscope.report.page import drawn, facts_of, render, render_report, swatches_of, title_of, write_report
from stepscope.report.summary import summary_sentence
from stepscope.report.tables import Cell, Grid, write_csv, write_tables
from stepscope.report.terminal import plain_table, print_grids, print_tables, printable, text_and_console

__all__ = [
    "BASELINE", "NOTHING", "Cell", "Grid", "baseline_scale", "concentration", "concentration_grids",
    "concentration_over_steps", "decrease_against_sharpness", "decrease_grids", "directions_of", "drawn", "dressed",
    "facts_of", "family", "finish", "landscapes", "line_look", "magnitudes", "pick_directions", "plain_table",
    "points_of", "powers_of_ten", "print_grids", "print_tables", "printable", "render", "render_report", "save",
    "sharpness_grids", "sharpness_over_steps", "sharpness_table", "summary_sentence", "swatches_of", "text_and_console",
    "title_of", "tooltips", "trajectories_of", "write_csv", "write_report", "write_tables",
]  # fmt: skip
