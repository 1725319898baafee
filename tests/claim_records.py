"""Runs of a reproduction, made up so that all claims hold unless a test changes a record."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from stepscope.paper.claims.claims import judge
from stepscope.paper.records import BoundRecord, CorrelationRecord, LossRecord, Margins, Rank, SmoothnessRecord
from stepscope.paper.reproduction_runs import Run
from stepscope.runs import DirectionRecord, RecordedMagnitudes, RecordedShare

SHARPNESS = {  # and the best decrease
    "sgd": (8.0, 1.0), "sgd clip 10%": (2.0, 2.0), "normalized sgd": (6.0, 1.5), "normalized sgd clip 10%": (1.5, 1.6),
    "signsgd": (2.0, 3.0), "adam": (2.5, 4.0), "adam clip 50% (first moment)": (1.0, 5.0),
    "adam clip 50% (gradient)": (1.25, 5.0), "adafactor": (0.5, 2.5), "adafactor clip 50% (numerator)": (0.25, 2.6),
    "lion": (3.0, 3.5),
}  # fmt: skip
SEEDS = (0, 1, 2)
TASKS = ("translation", "code", "sentiment")

Change = Callable[[Any], dict[str, Any]]
"""The fields of a record that are to be others."""


def nothing(record):
    return {}


def head(configuration, **context):
    return {"configuration": configuration, "context": context}


def trajectory(kind="code", change: Change = nothing, *, seeds=SEEDS, steps=(10, 60), name=None, start="random"):
    """Two trajectories of two steps; SGD's largest coordinates carry three quarters, magnitudes span five decades."""
    configuration = {
        "experiment": "trajectory", "scale": "cpu", "kind": kind, "seeds": list(seeds), "steps": list(steps),
        "training_lr": {"sgd": 1.0, "adam": 2e-4}, "directions": list(SHARPNESS), "task": {"batch_size": 32},
    }  # fmt: skip
    records = []
    for place, seed, step, direction in itertools.product(("sgd", "adam"), seeds, steps, SHARPNESS):
        sharpness, decrease = SHARPNESS[direction]
        # Seeds differ a little in the decreases' spread, not in their order.
        record = DirectionRecord(
            trajectory=place, seed=seed, step=step, direction=direction, sharpness=sharpness,
            best_decrease=decrease * (1 + seed / 100),
            top={"0.1": RecordedShare(norm=0.9, sharpness=0.75 * sharpness)},
            magnitudes=RecordedMagnitudes(zeros=3, lowest=-16, per_decade=4, counts=(10,) * 20),
        )  # fmt: skip
        records.append(replace(record, **change(record)))
    context = {
        "source": {"name": "made", "title": f"Made {kind}", "examples": 320},
        "model": {"title": f"A model for {kind}", "initialisation": start, "parameters": 9},
        "evaluation": {"examples": 64},
        "task": kind,
    }
    return Run(name or f"trajectory-{kind}", head(configuration, **context), records)


def images(change: Change = lambda r: {} if r.direction == "sgd" else {"sharpness": 9.0}, **given):
    """The contrast is reversed: SGD is the least sharp."""
    return trajectory("images", change, start="pretrained: made", name="trajectory-images-pretrained", **given)


ORIGINALS = {
    "sgd": None, "sgd clip 10%": "sgd", "sgd clip by norm": "sgd", "normalized sgd": None,
    "normalized sgd clip 10%": "normalized sgd", "adam": None, "adam clip 50% (first moment)": "adam", "lion": None,
}  # fmt: skip


def convergence(change: Change = nothing, *, seeds=SEEDS, tasks=("code",), optimizers=tuple(ORIGINALS)):
    """Final losses fall as the best decreases of `SHARPNESS` rise."""
    configuration = {
        "experiment": "convergence", "scale": "cpu", "seeds": list(seeds), "steps": 20, "optimizers": list(optimizers),
        "tasks": {task: {"batch_size": 32} for task in tasks}, "masked": True,
    }  # fmt: skip
    records = []
    for task, optimizer, seed, step in itertools.product(tasks, optimizers, seeds, (0, 20)):
        loss = 9.0 if step == 0 else 8.0 - SHARPNESS.get(optimizer, (0, 0.5))[1] * (1 + seed / 50)
        record = LossRecord(
            run=f"{task}, {optimizer}, {seed}", task=task, optimizer=optimizer, original=ORIGINALS.get(optimizer),
            phase="final", lr=0.5, bracketed=True, seed=seed, step=step, loss=loss,
        )  # fmt: skip
        records.append(replace(record, **change(record)))
    contexts = {task: {"model": {"title": "A model", "initialisation": "random", "parameters": 9}} for task in tasks}
    return Run("convergence", head(configuration, tasks=contexts), records)


def robustness(change: Change = nothing, *, seeds=SEEDS):
    """Ratios 2.5 to 4 in attention, less in the rest."""
    configuration = {
        "experiment": "robustness", "scale": "cpu", "seeds": list(seeds), "steps": [1, 30], "batches": 2,
        "training_lr": {"sgd": 0.3, "adam": 1e-3}, "task": {"batch_size": 32},
    }  # fmt: skip
    records = []
    places = itertools.product(
        ("sgd", "adam"), seeds, (1, 30), range(2), ("attention", "feed-forward", "all"), (4.0, 2.0)
    )
    for place, seed, step, batch, group, cut in places:
        ratio = (2.5 + batch + seed / 10 if group == "attention" else 1.5) * (1 if cut == 4 else 3)
        record = SmoothnessRecord(
            trajectory=place, seed=seed, step=step, batch=batch, group=group, cut=cut,
            ratio=ratio, fraction=0.03 + batch / 100, random_ratio=1.05,
        )  # fmt: skip
        records.append(replace(record, **change(record)))
    return Run("robustness", head(configuration), records)


def theory(change: Change = nothing, *, seeds=SEEDS):
    """Two families of losses, and two models of which one is looked at by parts."""
    scopes = {"classifier": ["", "inside"], "translation": ["", "shared"]}
    correlated = {
        task: {"training_lr": {"sgd": 0.5}, "steps": [1, 30], "scopes": some, "coordinates": None}
        for task, some in scopes.items()
    }
    configuration = {
        "experiment": "theory", "scale": "cpu", "seeds": list(seeds), "families": ["quadratic", "network"],
        "fractions": [0.1, 1.0], "correlated": correlated,
    }  # fmt: skip
    records = []
    for seed, family, fraction in itertools.product(seeds, ("quadratic", "network"), (0.1, 1.0)):
        margins = Margins(violations=0, least_margin=fraction)
        record = BoundRecord(
            seed=seed, group=f"{family}, {fraction}", family=family, fraction=fraction, draws=100,
            clipped=margins, plain=margins, block=margins if family == "quadratic" else None,
            guarantees_more=0, decreases_more=0, disagreements=0,
        )  # fmt: skip
        records.append(replace(record, **change(record)))
    for seed, task, step in itertools.product(seeds, scopes, (1, 30)):
        for scope in scopes[task]:
            rank = Rank(rho=0.4 + seed / 10 + step / 100, low=0.1, high=0.9)
            record = CorrelationRecord(
                trajectory="sgd", seed=seed, step=step, task=task, scope=scope, group=f"{task}, {scope or 'all'}",
                diagonal=rank, row_norm=rank,
            )  # fmt: skip
            records.append(replace(record, **change(record)))
    return Run("theory", head(configuration), records)


def everything(**given):
    """All runs of a reproduction."""
    return [
        *(trajectory(task, **given) for task in TASKS), images(**given), convergence(**given), robustness(**given),
        theory(**given),
    ]  # fmt: skip


def claim(name, *runs):
    """The claim of this name, by the tasks that there are: those without a run keep it open (a test of its own)."""
    judged = next(judged for judged in judge(runs) if judged.id == name)
    return replace(judged, parts=tuple(part for part in judged.parts if part.sample.runs))


def at(direction, *, place=(), seed=None, **values):
    """Changes the records of one direction: all, or those of one trajectory and step, or of one seed.

    A value that is a tuple is one a seed.
    """

    def change(r):
        here = not place or (r.trajectory, r.step) == place
        if r.direction != direction or not here or seed not in (None, r.seed):
            return {}
        return {name: value[r.seed] if isinstance(value, tuple) else value for name, value in values.items()}

    return change


def all_of(*changes):
    """Changes one after another."""
    return lambda r: {name: value for change in changes for name, value in change(r).items()}


def losses(**by_optimizer):
    """Sets final losses by seed."""

    def change(r):
        name = r.optimizer.replace(" ", "_").replace("%", "")
        return {"loss": by_optimizer[name][r.seed]} if r.step == 20 and name in by_optimizer else {}

    return change


def agree(ours, frozen, path=""):
    """Compares trees: the same keys, lengths and texts, and numbers up to rounding."""
    if isinstance(frozen, dict):
        assert list(ours) == list(frozen), path
        frozen = list(frozen.values())
        ours = list(ours.values())
    if isinstance(frozen, list):
        assert len(ours) == len(frozen), path
        for place, pair in enumerate(zip(ours, frozen, strict=True)):
            agree(*pair, f"{path}/{place}")
    elif isinstance(frozen, float):
        assert math.isclose(ours, frozen, rel_tol=1e-9), path
    else:
        assert ours == frozen, path
