"""What a run measured, as tables, a sentence, figures and a page: pure functions of its records."""

from stepscope.report.comparison import Row, sharpness_table
from stepscope.report.evidence import GRIDS, Grid
from stepscope.report.losses import conclusion, finals_of, pairs_of
from stepscope.report.page import render_report, write_figures, write_report
from stepscope.report.summary import summary_sentence
from stepscope.report.terminal import print_grids, print_losses, print_tables

__all__ = [
    "GRIDS",
    "Grid",
    "Row",
    "conclusion",
    "finals_of",
    "pairs_of",
    "print_grids",
    "print_losses",
    "print_tables",
    "render_report",
    "sharpness_table",
    "summary_sentence",
    "write_figures",
    "write_report",
]
