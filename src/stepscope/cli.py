"""The command line: ``stepscope demo`` and ``stepscope report``.

A mistake of the user's is one line on standard error and exit status 2; an interruption is 130 and loses nothing.
"""

from __future__ import annotations

import argparse
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
    try:
        asked.run(asked)
    except UsageError as error:
        print(f"stepscope {asked.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = None
    except OSError as error:
        about = f" ({str(error.filename)[:60]})" if error.filename else ""
        print(f"stepscope {asked.command}: error: {error.strerror or error}{about}", file=sys.stderr)
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
    for module, extra in (("rich", "cli"), ("altair", "report"), ("jinja2", "report"), ("vl_convert", "report")):
        require(module, extra)  # before minutes are spent, not after
    from stepscope.experiments.trajectory import run_trajectory, trajectory_experiment
    from stepscope.records import read_run
    from stepscope.report import print_tables, summary_sentence, write_report

    if asked.scale == "smoke":
        # A model this small loses more to threads that wait for one another than it gains.
        require("torch", "all").set_num_threads(1)
    experiment = trajectory_experiment(asked.scale, source=asked.source, seeds=tuple(asked.seeds))
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
