"""What a run measured, as tables, a sentence, figures and a page: pure functions of its records."""

from stepscope.report.claims import claims_grid, claims_json, departures_grid, judge, parts_grid
from stepscope.report.comparison import Row, sharpness_table
from stepscope.report.evidence import GRIDS, Grid
from stepscope.report.grids import concentration_grids, decrease_grids, loss_grid, sharpness_grids, verdict_grid
from stepscope.report.losses import conclusion, finals_of, pairs_of
from stepscope.report.page import render_report, write_figures, write_report
from stepscope.report.reproduction import write_reproduction
from stepscope.report.runs import Run, read_runs
from stepscope.report.summary import summary_sentence
from stepscope.report.tables import write_tables
from stepscope.report.terminal import print_grids, print_losses, print_tables

__all__ = [
    "GRIDS",
    "Grid",
    "Row",
    "Run",
    "claims_grid",
    "claims_json",
    "concentration_grids",
    "conclusion",
    "decrease_grids",
    "departures_grid",
    "finals_of",
    "judge",
    "loss_grid",
    "pairs_of",
    "parts_grid",
    "print_grids",
    "print_losses",
    "print_tables",
    "read_runs",
    "render_report",
    "sharpness_grids",
    "sharpness_table",
    "summary_sentence",
    "verdict_grid",
    "write_figures",
    "write_report",
    "write_reproduction",
    "write_tables",
]
