"""The reproduction's tables, figures and pages."""

from stepscope.paper.report.evidence import TABLES
from stepscope.paper.report.page import render_run, write_figures, write_page
from stepscope.paper.report.reproduction import write_reproduction
from stepscope.paper.report.terminal import print_losses

__all__ = ["TABLES", "print_losses", "render_run", "write_figures", "write_page", "write_reproduction"]
