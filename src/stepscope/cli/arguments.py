"""What can be asked for, and the help that says so.

With argparse: a mistake is to be one line, which takes a small subclass there; tyro and click print several.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from stepscope import __version__
from stepscope.cli import commands
from stepscope.cli.folding import HelpFormatter
from stepscope.paper.experiments.command_lines import (
    EXPERIMENTS,
    MEASURED_TASKS,
    TRAJECTORY,
    add_optimizers,
    add_seeds,
    add_settings,
    add_source,
    add_sources,
    letters,
)

DEMO = """\
Measures how sharp each optimizer's update direction is, how well it descends and how far one could go along it,
on a small T5 that learns English-French sentences. Two trajectories are followed, one trained by SGD with momentum
and one by Adam; at two steps of each, 14 optimizers say which update they would make of the same gradients.

  stepscope demo                          about a minute and a half
  stepscope demo --scale smoke            seconds, to see that it works
  stepscope demo --seeds 0 1 2            three runs; the table shows mean and spread
  stepscope demo --source my_pairs.tsv    your own sentences, one "english<TAB>french" a line
  stepscope demo --optimizer torch.optim:NAdam my_module:my_optimizer   others beside them, also your own

A run that was interrupted goes on when the same command is given again. The run directory holds run.json,
measurements.jsonl (one measurement a line) and report.html.
"""

REPRODUCE = """\
Makes every table and figure of the paper, and says of each of its claims whether it holds.

{experiments}

  stepscope reproduce                                by its plan within 100 minutes on two idle cores, five seeds
  stepscope reproduce --scale smoke                  within 3 minutes, to see that it works: claims cannot be told
  stepscope reproduce --only A C --seeds 3           some of the experiments
  stepscope reproduce --only A E                     also what decides: one factor at a time
  stepscope reproduce --scale desk --only A          models ten times as large: meant for an afternoon on two cores
  stepscope reproduce --scale paper --dry-run        the plan, with minutes and memory where they were measured
  stepscope reproduce --tasks code sentiment         A on these; of sentiment the paper measures no directions
  stepscope reproduce --as code                      as the published code has it, where it differs from the text
  stepscope reproduce --with padding-labels          in this alone

  stepscope reproduce --list | xargs -P 2 -I{{}} sh -c {{}}   the same by any scheduler: a line is a job, and leaves at
                                                     once if it is done or another process is at it; again, until
                                                     nothing is listed: trainings wait for those before them

A plan is printed first. What was interrupted goes on when the same command is given again. The directory holds a run
directory for each run, claims.json, report.html, tables/ (CSV and LaTeX) and figures/ (PDF).
"""

CONTINUED = """
A run that was interrupted goes on when the same command is given again. The run directory holds run.json,
measurements.jsonl (one record a line) and report.html.
"""

REPORT = """\
Writes the page of a run again from its records; of a reproduction also claims and tables, and with --figures all
figures as PDF, which take ten times as long. Without it figures that were drawn before stay, unless they are older than
their records.

  stepscope report runs/demo-cpu
  stepscope report runs/demo-cpu --out page.html
  stepscope report runs/probe --watch
  stepscope report runs/reproduce-cpu --figures
  stepscope report runs/reproduce-cpu --beside runs/other-seeds runs/reproduce-gpu

With --watch nothing is written: a browser of this machine shows the page, and shows it again as records come. From
another machine, forward the port: ssh -L 8000:127.0.0.1:PORT machine, then http://127.0.0.1:8000.

The verdicts of other reproductions can stand beside those of one, and are kept in its folder beside/. One with other
seeds on the same settings says which verdicts are unstable; any other has columns of its own.
"""


CALIBRATION = """\
Says how far the verdict on a learning rate can be believed: it runs small trainings whose best rate is known, because
each is done at nine rates, with the probe attached, and counts how often the verdict was right. Ten tasks (language
models, translation, classification, pictures, regression, fine-tunings) x SGD, AdamW, Lion, Muon x three schedules x
two batch sizes x three seeds, and again with dropout and in bfloat16.

  stepscope run calibration --curves 1     nine trainings of a few seconds each, to see that it works
  stepscope run calibration --curves 100   900 trainings, most of an hour on one core
  stepscope run calibration                the whole study: 1,200 curves, 10,800 trainings
  stepscope run calibration --tasks fresh  twelve other tasks: a Llama, a variational autoencoder, noisy clicks,
                                           distillation, ratings, and others
  stepscope run calibration --tasks long   six tasks of thousands of steps

The order is random with a fixed seed, and the tasks take turns in it, so that any part of the study stands for the
whole. The same command in several processes shares the trainings out; one that was interrupted goes on when it is given
again. The directory holds trainings.jsonl (one training a line, with its measured steps) and confidence.json.
"""

FINDINGS = """\
Says what the records of a training show, at most three things, each with its evidence, what to try, what that costs,
and what speaks against it. RUN is the run directory of a probe; the training may still be going on.

  stepscope findings runs/probe
  stepscope findings runs/probe --json | jq '.[0].kind'

The first is about the learning rate:
  step_too_short  probably at least three times too small
  step_too_long   probably at least three times too large
  healthy         no sign of a tenfold error, no more
  cannot_tell     and why

It comes from the trust ratio T: how far a step changes the loss of the batch that made it, divided by the change that
the gradient foretells. T is 1 where the loss is straight along the step, and falls as the step nears the edge. And it
comes from how far the loss falls over the training if all comes true that the gradients predict, and how much does.
That needs the batch of a step: Hugging Face models give it by themselves, another loop by
`probe.loss_fn(model, batch)`.
The confidence is how often such a verdict was right in trainings whose best rate is known (docs/calibration.md). Where
the calibration can't vouch for a verdict, as for an optimizer that it hasn't tried, cannot_tell stands in its place.
Other findings describe, without a verdict.
"""

SUMMARY = """\
Prints a training in a screenful: what was trained, what it shows, its own steps, and the directions at the last
measurement. RUN is the run directory of a probe or of a demo; it may still be going on.

  stepscope summary runs/probe
  stepscope summary runs/probe --json | jq .trained
"""

COMPARE = """\
Puts trainings beside one another, before and after a change: what differs in their configuration, and what was measured
at the same steps of all. The first is what the others are compared with. Values are paired by step and seed; what
depends on the evaluation examples, or on the units of a model, is compared only where those are the same.

  stepscope compare runs/probe runs/probe-2
  stepscope compare runs/probe runs/probe-2 --json | jq '.compared[].what'
"""

FIGURES = """\
Draws the charts of a run's page into files, for a paper or for slides; of a reproduction: stepscope report --figures.

  stepscope figures runs/probe
  stepscope figures runs/probe --format svg --out figures
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())} (see {self.prog} --help)\n")


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; ``run`` of what it gives is the function that does the command."""
    whole = _Parser(
        prog="stepscope",
        description="See why an optimizer's step is good or bad, on your own model, while it trains. The paper is "
        "Pan and Li, Toward Understanding Why Adam Converges Faster Than SGD for Transformers (arXiv 2306.00204).",
    )
    whole.add_argument("--version", action="version", version=f"stepscope {__version__}")
    chosen = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(chosen)
    _add_run(chosen)
    _add_reproduce(chosen)
    report = _command(chosen, "report", "write the page of a run again", REPORT, commands.report)
    report.add_argument("run_directory", metavar="RUN", help="the run directory, or that of a reproduction")
    report.add_argument("--out", metavar="FILE", help="the page of a run directory (default: RUN/report.html)")
    report.add_argument("--watch", action="store_true", help="serve the page to this machine, also while records come")
    report.add_argument("--figures", action="store_true", help="of a reproduction: draw all figures as PDF")
    report.add_argument(
        "--beside", nargs="+", default=[], metavar="DIR", help="of a reproduction: others whose verdicts stand beside"
    )
    found = _command(chosen, "findings", "what a training's records show, and what to try", FINDINGS, commands.findings)
    found.add_argument("run_directory", metavar="RUN", help="the run directory of a probe")
    found.add_argument("--json", action="store_true", help="a JSON list of the findings")
    summed = _command(chosen, "summary", "a training in a screenful", SUMMARY, commands.summary)
    summed.add_argument("run_directory", metavar="RUN", help="the run directory of a probe or of a demo")
    summed.add_argument("--json", action="store_true", help="the same as a JSON object")
    drawn = _command(chosen, "figures", "the charts of a run as files", FIGURES, commands.figures)
    drawn.add_argument("run_directory", metavar="RUN", help="the run directory")
    drawn.add_argument("--format", choices=("pdf", "svg", "png"), default="pdf", help="pdf (the default), svg or png")
    drawn.add_argument("--out", metavar="DIR", help="where they go (default: RUN/figures)")
    beside = _command(chosen, "compare", "trainings before and after a change", COMPARE, commands.compare)
    beside.add_argument("run_directories", nargs="+", metavar="RUN", help="two or more run directories")
    beside.add_argument("--json", action="store_true", help="the same as a JSON object")
    return whole


def _add_demo(chosen: Any) -> None:
    demo = _command(chosen, "demo", "measure 14 optimizers' directions along a real training run", DEMO, commands.demo)
    _add_scale(demo, "demo", "smoke or cpu (the default)")
    add_source(
        demo,
        "where the sentence pairs come from: auto (the default; the first that is available), opus_books, "
        "homeassistant, or a file of tab-separated pairs",
    )
    add_seeds(demo, 0)
    add_optimizers(demo)


def _add_run(chosen: Any) -> None:
    """A command for each experiment."""
    summary = f"run one of the paper's experiments ({', '.join(EXPERIMENTS)}), or the calibration of findings"
    experiments = _command(
        chosen, "run", summary, "Runs one of the paper's experiments, or the calibration."
    ).add_subparsers(dest="experiment", required=True, metavar="EXPERIMENT")
    for name, entry in EXPERIMENTS.items():
        command = _command(experiments, name, entry.summary, entry.description + CONTINUED, commands.run)
        _add_scale(command, name, entry.scales)
        entry.add_options(command)
        if entry.parallel:
            _add_jobs(command, "trainings", "one at the smoke scale")
    summary = "how often the verdict on a learning rate is right, from small trainings whose best rate is known"
    calibration = _command(experiments, "calibration", summary, CALIBRATION, commands.calibration)
    calibration.add_argument("--curves", type=int, metavar="N", help="how many, of nine trainings each (default: all)")
    calibration.add_argument(
        "--tasks", choices=("study", "fresh", "long"), default="study", help="which tasks (default: study)"
    )
    calibration.add_argument("--out", metavar="DIR", help="where the results go (default: runs/calibration[-TASKS])")


def _add_reproduce(chosen: Any) -> None:
    listed = "\n".join(f"  {entry.letter}  {name}: {entry.summary}" for name, entry in EXPERIMENTS.items())
    text, summary = REPRODUCE.format(experiments=listed), "every table, figure and claim of the paper, by one command"
    reproduce = _command(chosen, "reproduce", summary, text, commands.reproduce)
    default = letters(whole=False)
    reproduce.add_argument("--only", nargs="+", default=default, metavar="LETTER", help=f"default: {' '.join(default)}")
    _add_scale(reproduce, "reproduce", TRAJECTORY.scales)
    reproduce.add_argument(
        "--seeds", type=int, metavar="N", help="how many seeds, 0 to N-1 (default: 5; 1 at the smoke scale)"
    )
    tasks = f"that A measures (default: {' '.join(MEASURED_TASKS)})"
    reproduce.add_argument("--tasks", nargs="+", default=MEASURED_TASKS, metavar="TASK", help=tasks)
    add_settings(reproduce)
    add_sources(reproduce)
    _add_jobs(reproduce, "jobs", "one on a GPU")
    reproduce.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    reproduce.add_argument("--list", action="store_true", help="print the commands of the jobs that are left, and stop")
    text = (
        "here (the default: processes of this machine), submitit (Slurm where there is one, else processes), or ray "
        "(the cluster at RAY_ADDRESS, else this machine)"
    )
    reproduce.add_argument("--executor", choices=("here", "submitit", "ray"), default="here", help=text)
    text = "of submitit, such as timeout_min=60 slurm_partition=gpu; of a Ray task, such as num_gpus=1"
    reproduce.add_argument("--parameters", nargs="+", default=[], metavar="NAME=VALUE", help=text)
    reproduce.add_argument("--job", metavar="NAME", help="do one job alone, as --list names it")


def _add_scale(command: argparse.ArgumentParser, name: str, scales: str) -> None:
    command.add_argument("--scale", default="cpu", metavar="SCALE", help=scales)
    command.add_argument("--out", metavar="DIR", help=f"where the results go (default: runs/{name}-SCALE)")


def _add_jobs(command: argparse.ArgumentParser, jobs: str, otherwise: str) -> None:
    text = f"{jobs} at a time (default: one a core, {otherwise})"
    command.add_argument("--jobs", type=int, metavar="J", help=text)


def _command(
    chosen: Any, name: str, summary: str, text: str, does: Callable[[argparse.Namespace], None] | None = None
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = chosen.add_parser(
        name, help=summary, description=text, formatter_class=HelpFormatter
    )
    if does is not None:
        command.set_defaults(run=does)
    return command
