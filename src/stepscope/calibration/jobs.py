"""Which trainings there are, and in which order they are drawn.

A *curve* is a training at each of nine rates, everything else the same: its best rate is the truth that verdicts are
held against. Curves come in an order that is random, with a fixed seed, and in which the tasks take turns: whatever
part of the study has been run stands for the whole.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from stepscope.calibration.fresh_tasks import FRESH
from stepscope.calibration.long_tasks import LONG
from stepscope.calibration.tasks import TASKS, CalibrationTask

SETS = {"study": TASKS, "fresh": FRESH, "long": LONG}
"""Of tasks, each with a plan of its own."""

ALL_TASKS = {name: task for tasks in SETS.values() for name, task in tasks.items()}

OPTIMIZERS = {"sgd": 0.1, "adamw": 3e-3, "lion": 3e-4, "muon": 3e-2}
"""In the middle of the rates that each is tried at."""

NAMES = {"sgd": "SGD", "adamw": "AdamW", "lion": "Lion", "muon": "Muon + AdamW"}
"""As a probe names them."""

SCHEDULES = ("constant", "cosine", "wsd")
VARIANTS = ("plain", "dropout", "bfloat16")
SEEDS = (0, 1, 2)
RATES = tuple(10 ** (power / 2) for power in range(-4, 5))
"""As parts of the middle one."""


@dataclass(frozen=True)
class Curve:
    """Trainings that differ in the rate alone.

    Attributes:
        task: a name in `ALL_TASKS`.
        optimizer: a name in `OPTIMIZERS`.
        schedule: ``"constant"``; ``"cosine"``, with a warm-up of a tenth; ``"wsd"``, with that warm-up, and the last
            fifth falling to zero in a line.
        batch_size: of the training.
        variant: ``"plain"``, ``"dropout"`` of a tenth, or ``"bfloat16"`` under autocast.
        seed: of weights and batches.
    """

    task: str
    optimizer: str
    schedule: str
    batch_size: int
    variant: str
    seed: int

    @property
    def name(self) -> str:
        """As a part of a file's name."""
        where = (self.task.replace(" ", "-"), self.optimizer, self.schedule, self.batch_size, self.variant, self.seed)
        return "_".join(map(str, where))

    def jobs(self) -> list[Job]:
        """A training at each rate, ascending."""
        return [Job(self, float(f"{OPTIMIZERS[self.optimizer] * part:.3g}")) for part in RATES]


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        curve: what it shares with the trainings at other rates.
        rate: the peak of its learning rate.
    """

    curve: Curve
    rate: float

    @property
    def name(self) -> str:
        """As a part of a file's name."""
        return f"{self.curve.name}_{self.rate:g}"


def curves(tasks: str = "study") -> list[Curve]:
    """All curves, in the order in which they are drawn.

    Of each task, optimizer, schedule and batch size three curves are plain, one has dropout, and one bfloat16.

    Args:
        tasks: a name in `SETS`.
    """
    drawn = random.Random(0)
    by_task = [list(_of_task(task)) for task in SETS[tasks].values()]
    for of_task in by_task:
        drawn.shuffle(of_task)
    return [curve for turn in zip(*by_task, strict=True) for curve in turn]


def _of_task(task: CalibrationTask) -> Iterator[Curve]:
    for optimizer, schedule, size in itertools.product(OPTIMIZERS, SCHEDULES, task.sizes):
        yield from (Curve(task.name, optimizer, schedule, size, "plain", seed) for seed in SEEDS)
        yield from (Curve(task.name, optimizer, schedule, size, variant, SEEDS[0]) for variant in VARIANTS[1:])
