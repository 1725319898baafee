"""What a reproduction takes where that was measured: minutes of the processor, and memory.

Of A at the scale for two cores: the processor's time of whole seeds on translation; elsewhere of two points, of twenty
steps between them and of a pretraining, for a whole seed, on cores that had other work to do, which adds a third. Of A
at the desk: the processor's time of the jobs of one seed, of translation and code. The rest is of the first version's
run on two cores. No other size was measured.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from stepscope.paper.experiments.experiment import Experiment


class Cost(NamedTuple):
    """What one run takes.

    Attributes:
        minutes: on one core.
        memory: GiB, of the process that makes it.
    """

    minutes: float
    memory: float


_MEASURED = {
    ("smoke", "trajectory-translation-pretrained"): (0.0, 0.2, 0.9),
    ("smoke", "trajectory-translation-random"): (0.0, 0.2, 0.9),
    ("smoke", "trajectory-code-pretrained"): (0.0, 0.15, 0.9),
    ("smoke", "trajectory-code-random"): (0.0, 0.15, 0.9),
    ("smoke", "trajectory-sentiment-pretrained"): (0.0, 0.1, 0.9),
    ("smoke", "trajectory-sentiment-random"): (0.0, 0.1, 0.9),
    ("smoke", "trajectory-images-pretrained"): (0.0, 0.1, 0.9),
    ("smoke", "trajectory-images-random"): (0.0, 0.1, 0.9),
    ("smoke", "agreement"): (0.2, 0.0, 0.9),
    ("smoke", "convergence"): (0.4, 0.1, 0.9),
    ("smoke", "robustness"): (0.0, 0.03, 0.9),
    ("smoke", "theory"): (0.0, 0.07, 0.9),
    ("cpu", "trajectory-translation-pretrained"): (0.1, 4.9, 1.0),
    ("cpu", "trajectory-translation-random"): (0.1, 3.5, 1.0),
    ("cpu", "trajectory-code-pretrained"): (0.1, 5.2, 1.0),
    ("cpu", "trajectory-code-random"): (0.1, 3.7, 1.0),
    ("cpu", "trajectory-sentiment-pretrained"): (0.1, 4.6, 1.0),
    ("cpu", "trajectory-sentiment-random"): (0.1, 3.2, 1.0),
    ("cpu", "trajectory-images-pretrained"): (0.1, 3.3, 1.0),
    ("cpu", "trajectory-images-random"): (0.1, 1.8, 1.0),
    ("cpu", "agreement"): (2.0, 0.0, 1.0),
    ("cpu", "convergence"): (39.0, 4.7, 1.0),
    ("cpu", "robustness"): (0.1, 1.0, 1.0),
    ("cpu", "theory"): (0.1, 1.5, 1.0),
    ("desk", "trajectory-translation-pretrained"): (0.1, 27.7, 1.6),
    ("desk", "trajectory-translation-random"): (0.1, 19.6, 1.6),
    ("desk", "trajectory-code-pretrained"): (0.1, 40.1, 1.7),
    ("desk", "trajectory-code-random"): (0.1, 24.6, 1.7),
}
"""Minutes once and minutes a seed on one core, and peak memory in GiB, by size and name of the run."""


def measured_cost(experiment: Experiment[Any], seeds: int) -> Cost | None:
    """What one run took; None at a size that was never measured.

    Args:
        experiment: what is run.
        seeds: how many.

    Example:
        >>> from stepscope.paper.reproduction.plan import reproduction
        >>> [measured_cost(experiment, seeds=3) for experiment in reproduction("cpu", only="C")]
        [Cost(minutes=3.1, memory=1.0)]
    """
    if (experiment.scale, experiment.run_name) not in _MEASURED:
        return None
    once, more, memory = _MEASURED[experiment.scale, experiment.run_name]
    return Cost(once + more * seeds, memory)
