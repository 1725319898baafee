"""The command line of each experiment: its name, help and options.

The class that measures is imported when the experiment runs. So help and wrong arguments need no torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from stepscope.errors import UsageError

if TYPE_CHECKING:
    from stepscope.paper.experiments.experiment import Experiment


@dataclass(frozen=True)
class Entry:
    """An experiment on the command line.

    Attributes:
        name: in the records and on the command line.
        letter: of the part of `stepscope reproduce` that it belongs to.
        summary: one line for the lists of experiments.
        description: its help on the command line.
        add_options: adds the options of `stepscope run` that only this experiment has.
        experiment: where its class is, as ``"module:class"``.
        parallel: whether its units, and not only whole runs, are measured side by side by default.
        asked_for: whether `stepscope reproduce` leaves it out unless its letter is given.
        scales: what ``--scale`` may be, in words.
    """

    name: str
    letter: str
    summary: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    experiment: str
    parallel: bool = False
    asked_for: bool = False
    scales: str = "smoke, cpu (the default), desk, gpu or paper"

    def load(self) -> type[Experiment[Any]]:
        """The experiment's class.

        Example:
            >>> THEORY.load().__name__
            'TheoryExperiment'
        """
        kind: type[Experiment[Any]] = resolve_name(self.experiment)
        return kind


def add_source(command: argparse.ArgumentParser, text: str = "where the data come from") -> None:
    """``--source`` of an experiment with one task."""
    command.add_argument("--source", default="auto", metavar="NAME|FILE", help=text)


def add_sources(command: argparse.ArgumentParser) -> None:
    """``--source``, once a task; see `sources_of`."""
    command.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="TASK=NAME|FILE",
        help="where a task's data come from, such as translation=my_pairs.tsv; may be given once a task",
    )


def sources_of(given: Sequence[str]) -> dict[str, str]:
    """The values of ``--source`` by task.

    Raises:
        UsageError: one that isn't ``task=source``, or a task twice.

    Example:
        >>> sources_of(["code=my.py"])
        {'code': 'my.py'}
    """
    sources: dict[str, str] = {}
    for argument in given:
        task, separator, source = argument.partition("=")
        if not separator or not source or task in sources:
            raise UsageError(f"--source {argument}: give TASK=NAME or TASK=FILE, once a task")
        sources[task] = source
    return sources


def add_seeds(command: argparse.ArgumentParser, *default: int) -> None:
    """``--seeds``, a list of them."""
    shown = " ".join(map(str, default))
    command.add_argument(
        "--seeds", type=int, nargs="+", default=list(default), metavar="N", help=f"one run a seed (default: {shown})"
    )


NO_MASKS, PADDING_LABELS, EQUAL_WEIGHTS = "no-masks", "padding-labels", "equal-weights"
WIDE_HEAD, SMALL_NORM_BATCHES, PLAIN_STEPS = "wide-head", "small-norm-batches", "plain-steps"
SHORT_TEXTS = "short-texts"
RELEASED = (SHORT_TEXTS, NO_MASKS, PADDING_LABELS, EQUAL_WEIGHTS, WIDE_HEAD, SMALL_NORM_BATCHES, PLAIN_STEPS)
"""In what the published code differs from the text, see `stepscope.paper.experiments.as_released`."""


def add_settings(command: argparse.ArgumentParser) -> None:
    """``--as``: whose settings; and ``--with``."""
    text = f"text, code (with all of {', '.join(RELEASED)}) or ours (the default)"
    command.add_argument("--as", dest="settings", default="ours", metavar="SETTINGS", help=text)
    add_released(command)


def add_released(command: argparse.ArgumentParser) -> None:
    """``--with``: single departures of the published code."""
    text = f"as the published code has it, one by one: {', '.join(RELEASED)}"
    command.add_argument("--with", dest="released", nargs="+", default=[], metavar="NAME", help=text)


def add_start(command: argparse.ArgumentParser) -> None:
    """``--start``: where the weights begin."""
    text = "pretrained (the default) or random weights"
    command.add_argument("--start", default="pretrained", metavar="START", help=text)


def add_optimizers(command: argparse.ArgumentParser) -> None:
    """``--optimizer``: others beside those that are compared."""
    text = (
        "others too: FUNCTION(parameters, lr=RATE) makes one, such as torch.optim:NAdam@2e-3, or one of a module in "
        "this directory"
    )
    command.add_argument(
        "--optimizer", dest="optimizers", nargs="+", default=[], metavar="MODULE:FUNCTION[@RATE]", help=text
    )


def _trajectory_options(command: argparse.ArgumentParser) -> None:
    add_source(command)
    add_seeds(command, 0)
    command.add_argument(
        "--task", default="translation", metavar="TASK", help="translation (the default), code, sentiment or images"
    )
    add_start(command)
    add_released(command)
    add_optimizers(command)


def _agreement_options(command: argparse.ArgumentParser) -> None:
    add_sources(command)


def _convergence_options(command: argparse.ArgumentParser) -> None:
    add_sources(command)
    add_seeds(command, 0, 1, 2)
    add_settings(command)
    add_start(command)
    default = ("translation", "code")
    command.add_argument(
        "--tasks", nargs="+", default=list(default), metavar="TASK", help=f"default: {' '.join(default)}"
    )
    add_optimizers(command)


def _robustness_options(command: argparse.ArgumentParser) -> None:
    add_source(command)
    add_seeds(command, 0)
    command.add_argument("--pretrained", action="store_true", help="begin with pretrained weights")


def _theory_options(command: argparse.ArgumentParser) -> None:
    add_source(command)
    add_seeds(command, 0)


TRAJECTORY = Entry(
    name="trajectory",
    letter="A",
    summary="many optimizers' directions along a training of one task",
    description="""\
Measures the directions of 17 optimizers along two trainings of one task, by SGD with momentum and by Adam, after as
many updates as the paper (Tables 1, 4-7 and 9, Figures 1-4).

  stepscope run trajectory --task code               about 6 minutes a seed, a minute and a half of it pretraining
  stepscope run trajectory --task images --start random --seeds 0 1 2
  stepscope run trajectory --optimizer torch.optim:NAdam my_module:my_optimizer   others beside them, also your own
  stepscope run trajectory --scale smoke             seconds, to see that it works
""",
    add_options=_trajectory_options,
    experiment="stepscope.paper.experiments.trajectory:TrajectoryExperiment",
)


AGREEMENT = Entry(
    name="agreement",
    letter="A",
    summary="the measured sharpness, once more by float64 differences",
    description="""\
Computes the sharpness of all directions at one point of each task a second time, by the difference of float64
gradients, which shares no code with what the trajectories record.

  stepscope run agreement                            about 2 minutes
  stepscope run agreement --scale smoke              seconds, to see that it works
""",
    add_options=_agreement_options,
    experiment="stepscope.paper.experiments.agreement:AgreementExperiment",
)


CONVERGENCE = Entry(
    name="convergence",
    letter="B",
    summary="every optimizer and its clipped variant from the same start",
    description="""\
Trains with every optimizer and with its clipped variant from the same start, each at a learning rate of its own, and
says for each pair whether the variant is faster, slower, or neither, as far as the seeds tell.

Learning rates are looked for within the same budget for all: a grid of 5 rates, a factor of 4 apart, trains for a
quarter of the steps (and grows while its best lies at the edge), the best 3 for a half, the best 2 to the end, and
then the neighbors of the best, a factor of 2 apart. Then each optimizer trains once a seed.

  stepscope run convergence                          within an hour on two cores
  stepscope run convergence --scale smoke            within a minute, to see that it works
  stepscope run convergence --tasks code --seeds 0 1 2 3 4
  stepscope run convergence --optimizer torch.optim:NAdam my_module:my_optimizer   others beside them, also your own
  stepscope run convergence --as text                clip the gradient before everything else, as the paper's text says;
                                                     code: as its published classes do, and no attention masks
""",
    add_options=_convergence_options,
    experiment="stepscope.paper.experiments.convergence:ConvergenceExperiment",
    parallel=True,
)


ROBUSTNESS = Entry(
    name="robustness",
    letter="C",
    summary="is the loss smooth without its few sharpest coordinates?",
    description="""\
Removes the few coordinates with the largest columns of the Gauss-Newton matrix of a BERT that learns to classify film
reviews, and says how much smoother the loss is without them (the paper's appendix D, Table 8), with as many removed at
random as a control.

  stepscope run robustness --seeds 0 1 2     about 4 minutes
  stepscope run robustness --pretrained      the same from pretrained weights (a download of 84 MB)
  stepscope run robustness --scale smoke     seconds, to see that it works
""",
    add_options=_robustness_options,
    experiment="stepscope.paper.experiments.robustness:RobustnessExperiment",
)


THEORY = Entry(
    name="theory",
    letter="D",
    summary="the bound of appendix A; curvature against gradient",
    description="""\
Tries the bound of appendix A on thousands of drawn losses, with clipping and without, and correlates the coordinates of
the gradient with those of the Hessian (the paper's section 4.2), exactly on small models and by samples on a T5.

  stepscope run theory --seeds 0 1 2         about 5 minutes
  stepscope run theory --scale smoke         seconds, to see that it works
""",
    add_options=_theory_options,
    experiment="stepscope.paper.experiments.theory:TheoryExperiment",
)


def _factors_options(command: argparse.ArgumentParser) -> None:
    add_source(command)
    add_seeds(command, 0)
    command.add_argument("--task", default="code", metavar="TASK", help="translation or code (the default)")
    command.add_argument("--factor", default="vocabulary", metavar="NAME", help="default: vocabulary")


FACTORS = Entry(
    name="factors",
    letter="E",
    summary="what decides the claims about directions, one factor at a time (only where asked for)",
    description="""\
Measures the paper's optimizers along trajectories that differ by one factor from those of a reproduction: random-start,
hot-sgd, twice-as-wide, vocabulary, batch, short-texts and padding-labels (of code), equal-weights. Their table is on
the page of the reproduction that they are made in.

  stepscope reproduce --only E --out runs/reproduce-cpu     beside the trajectories that are there
  stepscope run factors --task code --factor vocabulary     one of them alone
  stepscope run factors --scale smoke                       seconds, to see that it works
""",
    add_options=_factors_options,
    experiment="stepscope.paper.experiments.factors:FactorExperiment",
    asked_for=True,
    scales="smoke, cpu (the default), desk or gpu",
)


EXPERIMENTS: dict[str, Entry] = {
    entry.name: entry for entry in (TRAJECTORY, AGREEMENT, CONVERGENCE, ROBUSTNESS, THEORY, FACTORS)
}
"""In the paper's order: that of the plan of `stepscope reproduce`, and of its page."""


MEASURED_TASKS = ("translation", "code", "images")
"""Along whose trainings a reproduction measures directions: those of the paper. It measures none on sentiment."""


def letters(*, whole: bool = True) -> list[str]:
    """The parts of a reproduction.

    Args:
        whole: whether also those that have to be asked for.

    Example:
        >>> letters(), letters(whole=False)
        (['A', 'B', 'C', 'D', 'E'], ['A', 'B', 'C', 'D'])
    """
    return list(dict.fromkeys(entry.letter for entry in EXPERIMENTS.values() if whole or not entry.asked_for))
