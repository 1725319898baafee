"""The command line: ``stepscope demo``, ``stepscope run`` and ``stepscope report``.

A mistake of the user's is one line on standard error and exit status 2; an interruption is 130 and loses nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from stepscope.errors import UsageError, require

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

  stepscope run convergence      does clipping make training faster?
  stepscope run robustness       is the loss smooth but for a few coordinates?
  stepscope run theory           does the bound of appendix A hold, and do curvature and gradient go together?
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


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line and exits.

    Args:
        arguments: without the program's name; ``None`` takes them from the process.

    Raises:
        SystemExit: always. Status 0 when done, 2 for a mistake in what was given, 130 when interrupted.
    """
    asked = _parser().parse_args(arguments)
    program = " ".join(["stepscope", asked.command, *filter(None, [getattr(asked, "experiment", None)])])
    try:
        asked.run(asked)
    except UsageError as error:
        print(f"{program}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = None
    except OSError as error:
        about = f" ({str(error.filename)[:60]})" if error.filename else ""
        print(f"{program}: error: {error.strerror or error}{about}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted: give the same command again to go on", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    from stepscope import __version__

    parser = _Parser(
        prog="stepscope",
        description="See why an optimizer's step is good or bad, on your own model, while it trains.",
    )
    parser.add_argument("--version", action="version", version=f"stepscope {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = _command(commands, "demo", "measure 14 optimizers' directions along a real training run", DEMO)
    demo.add_argument("--scale", default="cpu", metavar="SCALE", help="smoke (seconds) or cpu (minutes; the default)")
    demo.add_argument("--out", metavar="DIR", help="run directory (default: runs/demo-SCALE)")
    demo.add_argument(
        "--source",
        default="auto",
        metavar="NAME|FILE",
        help="where the sentence pairs come from: auto (the default; the first that can be had), opus_books, "
        "homeassistant, libreoffice, django, or a file of tab-separated pairs",
    )
    demo.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="one run a seed (default: 0)")
    demo.set_defaults(run=_demo)
    run = _command(commands, "run", "run one of the paper's experiments: convergence, robustness, theory", RUN)
    experiments = run.add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    convergence = _command(
        experiments, "convergence", "every optimizer and its clipped variant from the same start", CONVERGENCE
    )
    convergence.add_argument("--scale", default="cpu", metavar="SCALE", help="smoke or cpu (the default)")
    convergence.add_argument("--out", metavar="DIR", help="run directory (default: runs/convergence-SCALE)")
    convergence.add_argument(
        "--tasks", nargs="+", default=["translation", "code"], metavar="TASK", help="default: translation code"
    )
    convergence.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="TASK=NAME|FILE",
        help="where a task's data come from, such as translation=my_pairs.tsv; may be given once a task",
    )
    convergence.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    convergence.add_argument(
        "--as", dest="settings", default="ours", metavar="SETTINGS", help="text, code or ours (the default)"
    )
    convergence.add_argument(
        "--jobs", type=int, metavar="J", help="trainings at a time (default: one a core, one at the smoke scale)"
    )
    convergence.set_defaults(run=_convergence)
    for name, summary, text, does in (
        ("robustness", "is the loss smooth but for a few coordinates?", ROBUSTNESS, _robustness),
        ("theory", "the bound of appendix A; curvature against gradient", THEORY, _theory),
    ):
        other = _command(experiments, name, summary, text)
        other.add_argument("--scale", default="cpu", metavar="SCALE", help="smoke or cpu (the default)")
        other.add_argument("--out", metavar="DIR", help=f"run directory (default: runs/{name}-SCALE)")
        other.add_argument("--source", default="auto", metavar="NAME|FILE", help="where the data come from")
        other.add_argument("--seeds", type=int, nargs="+", default=[0], metavar="N", help="default: 0")
        if name == "robustness":
            other.add_argument("--pretrained", action="store_true", help="begin with pretrained weights")
        other.set_defaults(run=does)
    report = _command(commands, "report", "write the page of a run anew", REPORT)
    report.add_argument("run_directory", metavar="RUN", help="the run directory")
    report.add_argument("--out", metavar="FILE", help="the page (default: RUN/report.html)")
    report.set_defaults(run=_report)
    return parser


def _command(commands: Any, name: str, summary: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=summary, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return command


def _demo(asked: argparse.Namespace) -> None:
    _require_all()
    from stepscope.experiments.trajectory import demonstration, run_trajectory
    from stepscope.records import read_run
    from stepscope.report import print_tables, summary_sentence, write_report

    if asked.scale == "smoke":
        # A model this small loses more to threads that wait for one another than it gains.
        require("torch", "all").set_num_threads(1)
    experiment = demonstration(asked.scale, source=asked.source, seeds=tuple(asked.seeds))
    out = Path(asked.out or f"runs/demo-{asked.scale}")
    started = time.perf_counter()
    with _progress() as progress:
        measured = run_trajectory(experiment, out, progress)
    seconds = time.perf_counter() - started
    page = write_report(out, out / "report.html")  # before the tables: nobody may be reading those
    run, records = read_run(out)
    source = run["context"].get("source", {})
    print(f"Data: {source.get('title')} ({source.get('license')}), {source.get('examples')} pairs")
    print_tables(records)
    print(summary_sentence(records))
    print(f"\n{measured} new measurements in {seconds:.0f} s." if measured else "\nThe run was complete already.")
    print(f"Records: {out / 'measurements.jsonl'}\nPage:    {page}")


def _convergence(asked: argparse.Namespace) -> None:
    _require_all()
    from stepscope.experiments.convergence import convergence_experiment, run_convergence
    from stepscope.records import read_run
    from stepscope.report import conclusion, finals_of, pairs_of, print_losses, write_figures, write_report

    require("torch", "all").set_num_threads(1)  # models this small lose more to waiting threads than they gain
    experiment = convergence_experiment(
        asked.scale,
        settings=asked.settings,
        tasks=tuple(asked.tasks),
        sources=_sources(asked.source),
        seeds=tuple(asked.seeds),
    )
    jobs = asked.jobs if asked.jobs is not None else 1 if asked.scale == "smoke" else os.cpu_count() or 1
    out = Path(asked.out or f"runs/convergence-{asked.scale}")
    started = time.perf_counter()
    with _progress() as progress:
        recorded = run_convergence(experiment, out, progress, processes=jobs)
    seconds = time.perf_counter() - started
    page = write_report(out, out / "report.html")
    figures = write_figures(out)
    run, records = read_run(out)
    for name, task in run["context"]["tasks"].items():
        source, model = task["source"], task["model"]
        print(f"{name}: {model['title']}, {model['initialisation']} start; {source['title']} ({source['license']})")
    print_losses(records)
    print(conclusion(pairs_of(finals_of(records))))
    print(f"\n{recorded} new losses in {seconds:.0f} s." if recorded else "\nThe run was complete already.")
    print(f"Records: {out / 'measurements.jsonl'}\nPage:    {page}\nFigures: {', '.join(map(str, figures))}")


def _robustness(asked: argparse.Namespace) -> None:
    _require_all()
    from stepscope.experiments.robustness import robustness_experiment, run_robustness

    require("torch", "all").set_num_threads(1)
    seeds, pretrained = tuple(asked.seeds), asked.pretrained
    experiment = robustness_experiment(asked.scale, source=asked.source, seeds=seeds, pretrained=pretrained)
    _measured("robustness", asked, lambda out, progress: run_robustness(experiment, out, progress))


def _theory(asked: argparse.Namespace) -> None:
    _require_all()
    from stepscope.experiments.theory import run_theory, theory_experiment

    require("torch", "all").set_num_threads(1)
    experiment = theory_experiment(asked.scale, source=asked.source, seeds=tuple(asked.seeds))
    _measured("theory", asked, lambda out, progress: run_theory(experiment, out, progress))


def _measured(name: str, asked: argparse.Namespace, run: Callable[[Path, Callable[[float, str], None]], int]) -> None:
    """Runs an experiment whose results are tables of text, and shows them."""
    from stepscope.records import read_run
    from stepscope.report import GRIDS, print_grids, write_report

    out = Path(asked.out or f"runs/{name}-{asked.scale}")
    started = time.perf_counter()
    with _progress() as progress:
        measured = run(out, progress)
    seconds = time.perf_counter() - started
    page = write_report(out, out / "report.html")
    head, records = read_run(out)
    source, model = (head["context"].get(key) or {} for key in ("source", "model"))
    print(f"{model.get('title')}, {model.get('initialisation')} start; {source.get('title')} ({source.get('license')})")
    print_grids(GRIDS[name](records))
    print(f"\n{measured} new records in {seconds:.0f} s." if measured else "\nThe run was complete already.")
    print(f"Records: {out / 'measurements.jsonl'}\nPage:    {page}")


def _sources(given: Sequence[str]) -> dict[str, str]:
    """``task=source`` arguments by task."""
    found: dict[str, str] = {}
    for argument in given:
        task, separator, source = argument.partition("=")
        if not separator or not source or task in found:
            raise UsageError(f"--source {argument}: give TASK=NAME or TASK=FILE, once a task")
        found[task] = source
    return found


def _require_all() -> None:
    """Before minutes are spent, not after."""
    for module, extra in (("rich", "cli"), ("altair", "report"), ("jinja2", "report"), ("vl_convert", "report")):
        require(module, extra)


def _report(asked: argparse.Namespace) -> None:
    from stepscope.report import write_report

    run = Path(asked.run_directory)
    print(write_report(run, Path(asked.out) if asked.out else run / "report.html"))


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A progress bar on standard error; a line now and then where that is no terminal."""
    console = require("rich.console", "cli").Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    bars = require("rich.progress", "cli")
    text = bars.TextColumn("{task.description}", markup=False)
    columns = (bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeRemainingColumn(), text)
    with bars.Progress(*columns, console=console, transient=True) as shown:
        task = shown.add_task("", total=1.0)
        yield lambda part, what: shown.update(task, completed=part, description=what)


def _lines() -> Callable[[float, str], None]:
    last = 0

    def told(part: float, what: str) -> None:
        nonlocal last
        if int(10 * part) > last:
            last = int(10 * part)
            print(f"{part:4.0%}  {what}", file=sys.stderr, flush=True)

    return told
