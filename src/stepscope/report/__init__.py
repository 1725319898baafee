"""One run: its tables, charts, summary and page, as pure functions of its records."""

from stepscope.report.axes import log_axis, powers_of_ten
from stepscope.report.beside import Comparison, compare
from stepscope.report.comparison import (
    BASELINE,
    baseline_scale,
    directions_of,
    sharpness_rows,
    trajectories_of,
)
from stepscope.report.direction_tables import concentration_tables, decrease_tables, sharpness_tables
from stepscope.report.facts import facts_of, title_of
from stepscope.report.figures import Figure, chart_of, drawn, figures_of
from stepscope.report.looks import Looks, categories, symbols
from stepscope.report.magnitude_charts import concentration, concentration_over_steps, magnitudes
from stepscope.report.names import distinct, file_name
from stepscope.report.run_page import render, render_report, training_figures, write_report
from stepscope.report.run_summary import RunSummary, run_summary
from stepscope.report.step_charts import decrease_against_sharpness, landscapes, sharpness_over_steps
from stepscope.report.summary import summary_sentence
from stepscope.report.tables import Cell, Table, write_csv, write_tables
from stepscope.report.terminal import print_directions, print_tables
from stepscope.report.vega import alt, finish, layered, plot, rule, save, tooltips
from stepscope.shown import NOTHING

__all__ = [
    "BASELINE",
    "NOTHING",
    "Cell",
    "Comparison",
    "Figure",
    "Looks",
    "RunSummary",
    "Table",
    "alt",
    "baseline_scale",
    "categories",
    "chart_of",
    "compare",
    "concentration",
    "concentration_over_steps",
    "concentration_tables",
    "decrease_against_sharpness",
    "decrease_tables",
    "directions_of",
    "distinct",
    "drawn",
    "facts_of",
    "figures_of",
    "file_name",
    "finish",
    "landscapes",
    "layered",
    "log_axis",
    "magnitudes",
    "plot",
    "powers_of_ten",
    "print_directions",
    "print_tables",
    "render",
    "render_report",
    "rule",
    "run_summary",
    "save",
    "sharpness_over_steps",
    "sharpness_rows",
    "sharpness_tables",
    "summary_sentence",
    "symbols",
    "title_of",
    "tooltips",
    "training_figures",
    "trajectories_of",
    "write_csv",
    "write_report",
    "write_tables",
]  # fmt: skip
