"""What can be asked for, and the help that says so.

With argparse: a mistake is to be one line, which takes a small subclass there; tyro and click print several.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from stepscope.cli import commands

DEMO = """\
Measures how sharp each optimizer's update direction is, how well it descends and how far one could go along it,
on a small T5 that learns English-French sentences. Two trajectories are followed, one trained by SGD with momentum
and one by Adam; at two steps of each, 14 optimizers say which update they would make of the same gradients.

  stepscope demo                          about 2 minutes on two cores
  stepscope demo --scale smoke            seconds, to see that it works
  stepscope demo --seeds 0 1 2            three runs; the table shows mean and spread
  stepscope demo --source my_pairs.tsv    your own sentences, one "english<TAB>french" a line

A run that was interrupted goes on when the same command is given again. The run directory holds run.json,
measurements.jsonl (one measurement a line) and report.html.
"""

RUN = """\
Runs one of the paper's experiments.

  stepscope run trajectory       how sharp are the optimizers' directions, and how far could one go along them?
  stepscope run convergence      does clipping make training faster?
  stepscope run robustness       is the loss smooth but for a few coordinates?
  stepscope run theory           does the bound of appendix A hold, and do curvature and gradient go together?
"""

TRAJECTORY = """\
Measures the directions of 17 optimizers along two trainings of one task, by SGD with momentum and by Adam, after as
many updates as the paper (Tables 1, 4-7 and 9, Figures 1-4).

  stepscope run trajectory --task code               about 4 minutes a seed
  stepscope run trajectory --task images --pretrained --seeds 0 1 2
  stepscope run trajectory --scale smoke             seconds, to see that it works
"""

REPRODUCE = """\
Makes every table and figure of the paper anew, and says of each of its claims whether it holds.

  A  directions along trajectories: translation, code, sentiment, images (random and pretrained)
  B  convergence: every optimizer and its clipped variant, each at its own learning rate
  C  robust smoothness of a classifier
  D  theory: the bound of appendix A, curvature against gradient

  stepscope reproduce                                within 100 minutes on two cores, three seeds
  stepscope reproduce --scale smoke                  within 3 minutes, to see that it works: claims cannot be told
  stepscope reproduce --only A C --seeds 5           some of the experiments
  stepscope reproduce --scale paper --dry-run        what it would take: the plan, minutes and memory
  stepscope reproduce --as code                      as the published code has it, where it differs from the text

A plan is printed first. What was interrupted goes on when the same command is given again. The directory holds a run
directory for each run, claims.json, report.html, tables/ (CSV and LaTeX) and figures/ (PDF).
"""

ROBUSTNESS = """\
Removes the few coordinates with the largest columns of the Gauss-Newton matrix of a BERT that learns to classify film
reviews, and says how much smoother the loss is without them (the paper's appendix D, Table 8), with as many removed at
random as a control.

  stepscope run robustness --seeds 0 1 2     about 4 minutes
  stepscope run robustness --pretrained      the same from pretrained weights (a download of 84 MB)
  stepscope run robustness --scale smoke     seconds, to see that it works
"""

THEORY = """\
Tries the bound of appendix A on thousands of drawn losses, with clipping and without, and correlates the coordinates of
the gradient with those of the Hessian (the paper's section 4.2), exactly on small models and by samples on a T5.

  stepscope run theory --seeds 0 1 2         about 5 minutes
  stepscope run theory --scale smoke         seconds, to see that it works
"""

CONVERGENCE = """\
Trains with every optimizer and with its clipped variant from the same start, each at a learning rate of its own, and
says for each pair whether the variant is faster, slower, or whether that cannot be told from the seeds.

Learning rates are looked for within the same budget for all: a grid of 5 rates, a factor of 4 apart, trains for a
quarter of the steps (and grows while its best lies at the edge), the best 3 for a half, the best 2 to the end, and
then the neighbours of the best, a factor of 2 apart. Then each optimizer trains once a seed.

  stepscope run convergence                          within an hour on two cores
  stepscope run convergence --scale smoke            within a minute, to see that it works
  stepscope run convergence --tasks code --seeds 0 1 2 3 4
  stepscope run convergence --as text                clip the gradient before everything else, as the paper's text says;
                                                     code: as its published classes do, and no attention masks

A run that was interrupted goes on when the same command is given again. The run directory holds run.json,
measurements.jsonl (one loss a line), report.html, and each figure as a PDF.
"""

REPORT = """\
Writes the page of a run anew from its records.

  stepscope report runs/demo-cpu
  stepscope report runs/demo-cpu --out page.html
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``run`` of what it gives is the function that does the command."""
    from stepscope import __version__

    whole = _Parser(
        prog="stepscope",
        description="See why an optimizer's step is good or bad, on your own model, while it trains.",
    )
    whole.add_argument("--version", action="version", version=f"stepscope {__version__}")
    chosen = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(chosen)
    _add_experiments(chosen)
    _add_reproduce(chosen)
    report = _command(chosen, "report", "write the page of a run anew", REPORT, commands.report)
    report.add_argument("run_directory", metavar="RUN", help="the run directory, or that of a reproduction")
    report.add_argument("--out", metavar="FILE", help="the page of a run directory (default: RUN/report.html)")
    return whole


def _add_demo(chosen: Any) -> None:
    demo = _command(chosen, "demo", "measure 14 optimizers' directions along a real training run", DEMO, commands.demo)
    _add_scale(demo, "demo")
    demo.add_argument(
        "--source",
        default="auto",
        metavar="NAME|FILE",
        help="where the sentence pairs come from: auto (the default; the first that can be had), opus_books, "
        "homeassistant, or a file of tab-separated pairs",
    )
    _add_seeds(demo, 0)


def _add_experiments(chosen: Any) -> None:
    names = "trajectory, convergence, robustness, theory"
    run = _command(chosen, "run", f"run one of the paper's experiments: {names}", RUN)
    experiments = run.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    summaries = {
        "trajectory": ("many optimizers' directions along a training of one task", TRAJECTORY, commands.trajectory),
        "convergence": (
            "every optimizer and its clipped variant from the same start",
            CONVERGENCE,
            commands.convergence,
        ),
        "robustness": ("is the loss smooth but for a few coordinates?", ROBUSTNESS, commands.robustness),
        "theory": ("the bound of appendix A; curvature against gradient", THEORY, commands.theory),
    }
    made = {name: _command(experiments, name, *summary) for name, summary in summaries.items()}
    for name, each in made.items():
        _add_scale(each, name)
        if name == "convergence":
            _add_sources(each)
            _add_seeds(each, 0, 1, 2)
            _add_settings(each)
            _add_jobs(each, "trainings")
        else:
            each.add_argument("--source", default="auto", metavar="NAME|FILE", help="where the data come from")
            _add_seeds(each, 0)
    made["convergence"].add_argument(
        "--tasks", nargs="+", default=["translation", "code"], metavar="TASK", help="default: translation code"
    )
    made["trajectory"].add_argument(
        "--task", default="translation", metavar="TASK", help="translation (the default), code, sentiment or images"
    )
    made["trajectory"].add_argument(
        "--pretrained", action="store_true", help="of images: begin with pretrained weights"
    )
    made["robustness"].add_argument("--pretrained", action="store_true", help="begin with pretrained weights")


def _add_reproduce(chosen: Any) -> None:
    summary = "every table, figure and claim of the paper, by one command"
    reproduce = _command(chosen, "reproduce", summary, REPRODUCE, commands.reproduce)
    reproduce.add_argument("--only", nargs="+", default=["A", "B", "C", "D"], metavar="LETTER", help="default: A B C D")
    _add_scale(reproduce, "reproduce", "smoke, cpu (the default), gpu or paper")
    reproduce.add_argument(
        "--seeds", type=int, metavar="N", help="how many seeds, 0 to N-1 (default: 3; 1 at the smoke scale)"
    )
    _add_settings(reproduce)
    _add_sources(reproduce)
    _add_jobs(reproduce, "runs")
    reproduce.add_argument("--dry-run", action="store_true", help="print the plan and stop")


def _add_scale(command: argparse.ArgumentParser, name: str, scales: str = "smoke or cpu (the default)") -> None:
    command.add_argument("--scale", default="cpu", metavar="SCALE", help=scales)
    command.add_argument("--out", metavar="DIR", help=f"where the results go (default: runs/{name}-SCALE)")


def _add_seeds(command: argparse.ArgumentParser, *default: int) -> None:
    shown = " ".join(map(str, default))
    command.add_argument(
        "--seeds", type=int, nargs="+", default=list(default), metavar="N", help=f"one run a seed (default: {shown})"
    )


def _add_sources(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="TASK=NAME|FILE",
        help="where a task's data come from, such as translation=my_pairs.tsv; may be given once a task",
    )


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--as", dest="settings", default="ours", metavar="SETTINGS", help="text, code or ours (the default)"
    )


def _add_jobs(command: argparse.ArgumentParser, what: str) -> None:
    rest = "one at the smoke scale" if what == "trainings" else "one on a GPU"
    command.add_argument("--jobs", type=int, metavar="J", help=f"{what} at a time (default: one a core, {rest})")


def _command(
    chosen: Any, name: str, summary: str, text: str, does: Callable[[argparse.Namespace], None] | None = None
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = chosen.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if does is not None:
        command.set_defaults(run=does)
    return command
