"""What a reproduction is expected to take: minutes and memory, before it is begun.

At the sizes for two cores they are the processor's time, and the peak memory, of the run whose results are stored in
docs/reproduction; a test compares them with the seconds in its records, which hold the waiting too. For a GPU they are
computed from the sizes of the models, and say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stepscope.paper.experiments.agreement import AgreementExperiment
from stepscope.paper.experiments.convergence import ConvergenceExperiment
from stepscope.paper.experiments.reproduction import Planned
from stepscope.paper.experiments.robustness import RobustnessExperiment
from stepscope.paper.experiments.trajectory import TrajectoryExperiment


@dataclass(frozen=True)
class Cost:
    """What one run takes.

    Attributes:
        minutes: on one core, or on one GPU.
        memory: GiB, of the process that makes it.
        basis: ``"measured"`` or ``"computed"``.
    """

    minutes: float
    memory: float
    basis: str


_MEASURED = {
    ("smoke", "trajectory-translation"): (0.0, 0.2, 0.9),
    ("smoke", "trajectory-code"): (0.0, 0.15, 0.9),
    ("smoke", "trajectory-sentiment"): (0.0, 0.1, 0.9),
    ("smoke", "trajectory-images"): (0.0, 0.1, 0.9),
    ("smoke", "trajectory-images-pretrained"): (0.0, 0.1, 0.9),
    ("smoke", "agreement"): (0.2, 0.0, 0.9),
    ("smoke", "convergence"): (0.4, 0.1, 0.9),
    ("smoke", "robustness"): (0.0, 0.03, 0.9),
    ("smoke", "theory"): (0.0, 0.07, 0.9),
    ("cpu", "trajectory-translation"): (0.1, 5.5, 1.0),
    ("cpu", "trajectory-code"): (0.1, 4.0, 1.0),
    ("cpu", "trajectory-sentiment"): (0.1, 6.8, 1.0),
    ("cpu", "trajectory-images"): (0.1, 2.1, 1.0),
    ("cpu", "trajectory-images-pretrained"): (0.4, 2.1, 1.0),
    ("cpu", "agreement"): (2.0, 0.0, 1.0),
    ("cpu", "convergence"): (36.0, 4.7, 1.0),
    ("cpu", "robustness"): (0.1, 1.0, 1.0),
    ("cpu", "theory"): (0.1, 1.5, 1.0),
}
"""Minutes once and minutes a seed, on one core of those that the stored run was made on; peak memory in GiB."""

_SPEED = 2e13
"""Operations a second that one GPU is taken to sustain in float32."""

_FORWARDS_PER_DIRECTION = 30
"""Passes over the evaluation batch, for curvature, the finite step and 10 to 25 points of the landscape."""


@dataclass(frozen=True)
class _Model:
    """The size of a task's model.

    Attributes:
        parameters: how many.
        operations: of a forward pass of one example, at most.
        activations: numbers kept for the backward pass of one example, at most.
    """

    parameters: float
    operations: float
    activations: float


def _transformer(
    parameters: float, usual: int, most: int, *, width: int, heads: int, layers: int, vocabulary: int = 0
) -> _Model:
    """Of a text of the usual length the operations, of the longest what is kept.

    That is about 34 numbers a token and width in a layer, 3 for each pair of tokens and head, 4 for each logit.
    """
    attention = 4 * layers * width * usual**2
    kept = layers * (34 * width * most + 3 * heads * most**2) + 4 * vocabulary * most
    return _Model(parameters, 2 * parameters * usual + attention, kept)


_MODELS = {
    ("gpu", "translation"): _transformer(28e6, 64, 256, width=384, heads=6, layers=12, vocabulary=8_192),
    ("gpu", "code"): _transformer(23e6, 256, 256, width=512, heads=8, layers=6, vocabulary=8_192),
    ("gpu", "sentiment"): _transformer(14e6, 240, 256, width=384, heads=6, layers=6),
    ("gpu", "images"): _Model(11e6, 6e7, 5e5),
    ("paper", "translation"): _transformer(60e6, 96, 1_024, width=512, heads=8, layers=12, vocabulary=32_128),
    ("paper", "code"): _transformer(125e6, 1_500, 2_048, width=768, heads=12, layers=12, vocabulary=50_257),
    ("paper", "sentiment"): _transformer(67e6, 300, 512, width=768, heads=12, layers=6),
    ("paper", "images"): _Model(58e6, 5e8, 6e6),
}
"""The models of the sizes for a GPU, with both sides of a pair as one text."""


def cost_of(planned: Planned) -> Cost:
    """What one run is expected to take.

    Example:
        >>> from stepscope.paper.experiments.reproduction import reproduction
        >>> [cost_of(run).basis for run in reproduction("cpu", only="C")]
        ['measured']
    """
    scale, seeds = planned.experiment.scale, len(planned.experiment.seeds)
    if (scale, planned.name) in _MEASURED:
        once, each, memory = _MEASURED[scale, planned.name]
        return Cost(once + each * seeds, memory, "measured")
    return _computed(planned)


def _computed(planned: Planned) -> Cost:
    experiment, scale, seeds = planned.experiment, planned.experiment.scale, len(planned.experiment.seeds)
    if isinstance(experiment, TrajectoryExperiment):
        model, task = _MODELS[scale, experiment.kind], experiment.task
        trajectories, directions = len(experiment.training_lr) * seeds, len(experiment.directions)
        measured = len(experiment.steps) * directions * _FORWARDS_PER_DIRECTION * task.eval_size
        examples = trajectories * (3 * max(experiment.steps) * task.batch_size + measured)
        return _cost(model, examples, _part(task, experiment.kind), copies=4 + 4 * directions)
    if isinstance(experiment, AgreementExperiment):
        costs = [
            _cost(
                _MODELS[scale, point.kind],
                3 * point.steps[0] * point.task.batch_size + 18 * len(experiment.directions) * point.task.eval_size,
                _part(point.task, point.kind),
                copies=8 + 4 * len(experiment.directions),
            )
            for point in experiment.points.values()
        ]
        return Cost(sum(cost.minutes for cost in costs), max(cost.memory for cost in costs), "computed")
    if isinstance(experiment, ConvergenceExperiment):
        trainings = (float(experiment.search.budget()) + seeds) * len(experiment.optimizers)
        evaluations = experiment.steps / experiment.every
        costs = [
            _cost(
                _MODELS[scale, kind],
                trainings * (3 * experiment.steps * task.batch_size + evaluations * task.eval_size),
                _part(task, kind),
                copies=6,
            )
            for kind, task in experiment.tasks.items()
        ]
        return Cost(sum(cost.minutes for cost in costs), max(cost.memory for cost in costs), "computed")
    if isinstance(experiment, RobustnessExperiment):
        model, task = _MODELS[scale, "sentiment"], experiment.task
        rows = task.eval_size // experiment.batches
        places = len(experiment.training_lr) * len(experiment.steps) * seeds
        examples = places * 4 * task.eval_size + len(experiment.training_lr) * seeds * 3 * max(experiment.steps) * 32
        return _cost(model, examples, 1, copies=6 + rows)
    # Theory's rows of the Hessian: two backward passes through the evaluation batch for each.
    model, task = _MODELS[scale, "translation"], experiment.task
    settings = experiment.correlated["translation"]
    rows = len(settings.scopes) * (settings.coordinates or 0) * len(settings.steps) * len(settings.training_lr) * seeds
    return _cost(model, rows * 5 * task.eval_size, task.micro_batch_size, copies=8)


def _part(task: object, kind: str) -> int:
    """Examples that are in memory at a time."""
    return int(getattr(task, "batch_size" if kind == "images" else "micro_batch_size"))


def _cost(model: _Model, examples: float, part: int, *, copies: int) -> Cost:
    """Of so many forward passes of an example, so many of them in memory at a time beside copies of the parameters."""
    # A second derivative keeps the backward pass too.
    numbers = copies * model.parameters + 2 * part * model.activations
    return Cost(examples * model.operations / _SPEED / 60, 4 * numbers / 2**30, "computed")


def wall_minutes(plan: Sequence[Planned], processes: int) -> float:
    """How long a plan takes from beginning to end, so many runs at a time.

    Args:
        plan: what is to be run.
        processes: how many at a time; one run isn't divided, but for the trainings of the convergence experiment.
    """
    free = [0.0] * processes
    divided = 0.0
    for minutes, planned in sorted(((cost_of(each).minutes, each) for each in plan), key=lambda pair: -pair[0]):
        if isinstance(planned.experiment, ConvergenceExperiment):
            divided += minutes / processes
        else:
            free[free.index(min(free))] += minutes
    return max(free) + divided
