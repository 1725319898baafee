"""What decides the claims about directions: one factor at a time, all else as the pretrained trajectories have it.

Each factor is a run along trajectories of its own, with few points. What they are compared with isn't measured again:
it is the trajectories of the same reproduction, at the same points. So the table (`stepscope.paper.claims.factors`)
stands on the page of the reproduction, and not on that of a run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from stepscope.errors import UsageError
from stepscope.paper.claims.papers_lists import compares
from stepscope.paper.experiments.as_released import concerning
from stepscope.paper.experiments.command_lines import EQUAL_WEIGHTS, FACTORS, PADDING_LABELS, SHORT_TEXTS
from stepscope.paper.experiments.compared_optimizers import papers_directions
from stepscope.paper.experiments.experiment import Asked
from stepscope.paper.experiments.trajectory import TrajectoryAsReleased, TrajectoryExperiment, trajectory_experiment
from stepscope.report import Figure
from stepscope.runs import DirectionRecord

FACTOR_TASKS = ("translation", "code")

SEEDS = 3
"""Most seeds of a factor: few points, and intervals nevertheless."""

_STEPS = {"smoke": (6,), "cpu": (45, 195), "desk": (90, 390), "gpu": (45, 195)}
"""Of those that the trajectories have, the second and the last; at the smallest size the last alone."""

_HOT = 1.0
"""SGD's learning rate of the first version, which learns something from random weights."""

Change = Callable[[TrajectoryExperiment], Mapping[str, Any]]


def _of_task(**settings: Callable[[Any], Any]) -> Change:
    """Settings of the task, each from its value so far; those that it doesn't have are left out."""

    def change(base: TrajectoryExperiment) -> Mapping[str, Any]:
        known = {name: to(old) for name, to in settings.items() if (old := getattr(base.task, name, None)) is not None}
        return {"task": replace(base.task, **known)}

    return change


def _released(*names: str) -> Change:
    """As the published code has it. What padding and weights do is seen where texts differ in length."""
    return lambda base: {"released": concerning(names, base.kind)}


def _twice(value: int) -> int:
    return 2 * value


FACTORS_BY_NAME: Mapping[str, Change] = {
    "random-start": _of_task(start=lambda _: "random"),
    "hot-sgd": lambda base: {"training_lr": {**base.training_lr, "sgd": _HOT}},
    "twice-as-wide": _of_task(d_model=_twice, d_ff=_twice, d_kv=_twice, hidden=_twice),
    "vocabulary": _of_task(vocabulary=lambda tokens: 4 * tokens),
    "batch": _of_task(batch_size=lambda size: 4 * size),
    SHORT_TEXTS: _released(SHORT_TEXTS),
    PADDING_LABELS: _released(SHORT_TEXTS, PADDING_LABELS),
    EQUAL_WEIGHTS: _released(SHORT_TEXTS, EQUAL_WEIGHTS),
}
"""What each changes of the trajectories from pretrained weights at the paper's rates."""

_OF_CODE = (SHORT_TEXTS, PADDING_LABELS)


@dataclass(frozen=True)
class FactorExperiment(TrajectoryAsReleased):
    """A trajectory experiment that differs from the reproduction's by one factor.

    Attributes:
        factor: a name in `FACTORS_BY_NAME`.
    """

    entry = FACTORS

    factor: str = ""

    @property
    @override
    def run_name(self) -> str:
        return f"{self.entry.name}-{self.kind}-{self.factor}"

    @staticmethod
    @override
    def figures(records: Sequence[DirectionRecord]) -> list[Figure]:
        """None: of so many runs a page would hold too many."""
        return []

    @classmethod
    @override
    def from_options(cls, options: argparse.Namespace) -> FactorExperiment:
        return factor_experiment(
            options.scale, options.task, options.factor, source=options.source, seeds=tuple(options.seeds)
        )

    @classmethod
    @override
    def of_reproduction(cls, asked: Asked) -> list[FactorExperiment]:  # type: ignore[override]
        return [
            factor_experiment(asked.scale, kind, factor, source=asked.sources[kind], seeds=asked.seeds[:SEEDS])
            # To see that it works, one task is enough.
            for kind in (FACTOR_TASKS if asked.scale != "smoke" else ("code",))
            if kind in asked.tasks
            for factor in FACTORS_BY_NAME
            if kind == "code" or factor not in _OF_CODE
        ]


def factor_experiment(
    scale: str, kind: str, factor: str, *, source: str = "auto", seeds: tuple[int, ...] = (0,)
) -> FactorExperiment:
    """The experiment on one task and factor.

    Args:
        scale: ``"smoke"``, ``"cpu"``, ``"desk"`` or ``"gpu"``: a published model has the size that it has.
        kind: the task, ``"translation"`` or ``"code"``.
        factor: a name in `FACTORS_BY_NAME`.
        source: where its data come from.
        seeds: one run of each trajectory a seed.

    Raises:
        UsageError: an unknown name, or seeds that can't be used.

    Example:
        >>> factor_experiment("cpu", "code", "vocabulary").task.vocabulary
        8192
    """
    if scale not in _STEPS:
        raise UsageError(f"factors have no scale {scale!r}: choose {', '.join(_STEPS)}")
    if factor not in FACTORS_BY_NAME or kind not in FACTOR_TASKS or (factor in _OF_CODE and kind != "code"):
        known = f"tasks {', '.join(FACTOR_TASKS)}; factors {', '.join(FACTORS_BY_NAME)} ({', '.join(_OF_CODE)} of code)"
        raise UsageError(f"no factor {factor!r} of the task {kind!r}: choose of the {known}")
    base = trajectory_experiment(scale, kind, source=source, seeds=seeds)
    names = tuple(name for name in papers_directions() if compares(kind, name) and not name.endswith("(gradient)"))
    settings = {**vars(base), "steps": _STEPS[scale], "directions": names, **FACTORS_BY_NAME[factor](base)}
    return FactorExperiment(**settings, factor=factor)
