"""The claims on whole trainings: clipped variants are faster (C7), and local decreases predict final losses (C8)."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from stepscope.paper.claims.losses import Final, finals_of, pairs_of
from stepscope.paper.claims.trajectory_claims import Point, label, points_by_seed
from stepscope.paper.claims.verdicts import CONFIDENCE, Part, Threshold, Unmeasured, by_seed, needed, unfinished
from stepscope.paper.runs import Run
from stepscope.paper.statistics import rank_correlation, ranks

FEWEST = 3
"""Optimizers that a ranking needs."""


def clipped_is_faster(runs: Sequence[Run]) -> list[Part]:
    """C7: each coordinate-wise clipped variant ends with a lower loss than its original, at the best rate of each.

    Verdicts are those of `pairs_of`: the same differences, the same interval.
    """
    return [part for run in _convergence(runs) for task in _tasks(run) for part in _variants(run, task)]


def _variants(run: Run, task: str) -> list[Part]:
    pairs = {pair.variant.optimizer: pair for pair in pairs_of(_finals(run), CONFIDENCE) if pair.variant.task == task}
    asked = run.head["configuration"]
    parts = []
    for name in asked.get("optimizers") or ():
        if not _is_clipped(str(name)):
            continue
        pair = pairs.get(name)
        values, remarks = {}, ["it or its original is not finished"]
        if pair is not None:
            ours, theirs = pair.variant.losses, pair.original.losses
            both = {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}
            remarks = [pair.remark, *unfinished([seed for seed in asked.get("seeds") or () if seed not in both])]
            if pair.difference is not None:
                # pairs_of gives no difference where a training diverged.
                values = {s: a - b for s, (a, b) in both.items() if a is not None and b is not None}
        what = "difference of the final loss from the original's"
        parts.append(Part(f"{task}, {name}", what, Threshold("<", 0.0), (run,), values, tuple(remarks)))
    return parts


def local_predicts_global(runs: Sequence[Run]) -> list[Part]:
    """C8: optimizers with larger best decreases along a trajectory end with lower losses (Spearman's ρ)."""
    return [
        _ranking(local, trained)
        for local in runs
        for trained in _convergence(runs)
        if local.experiment == "trajectory" and local.task in _tasks(trained)
    ]


def _ranking(local: Run, trained: Run) -> Part:
    points, remarks = points_by_seed(local)
    finals = {final.optimizer: final for final in _finals(trained) if final.task == local.task}
    asked = trained.head["configuration"].get("optimizers") or ()
    wanted = [name for name in local.head["configuration"].get("directions") or () if name in asked]
    seeds = {seed: found for seed, found in points.items() if all(seed in _losses(finals, name) for name in wanted)}
    absent = [seed for seed in points if seed not in seeds]
    diverged = [name for name in wanted if any(finals[name].losses[seed] is None for seed in seeds)]
    names = [name for name in wanted if name not in diverged]

    local_ranks: dict[Any, list[float]] = {}

    def rho(seed: Any) -> float:
        if len(names) < FEWEST:
            raise Unmeasured(f"{len(names)} optimizers have both, {FEWEST} are needed for a ranking")
        local_ranks[seed] = _mean_ranks(seeds[seed], names)
        return _spearman(local_ranks[seed], _lowness(finals, names, [seed]))

    values, lost = by_seed({seed: seed for seed in seeds}, rho)
    remarks = (*remarks, *(f"trainings: {each}" for each in unfinished(absent)), *lost)
    if diverged:
        remarks = (*remarks, f"left out, since it diverged: {', '.join(diverged)}")
    if values:
        means = [statistics.fmean(each) for each in zip(*(local_ranks[seed] for seed in values), strict=True)]
        found = rank_correlation(means, _lowness(finals, names, list(values)), confidence=CONFIDENCE)
        if not math.isnan(found.rho):
            over = f"{len(names)} optimizers"
            told = f"ρ of the seeds' means {found.rho:.2f}, bootstrap over {over} [{found.low:.2f}, {found.high:.2f}]"
            remarks = (*remarks, told)
    begun, begins = (_initialisation(run, local.task) for run in (local, trained))
    same = begun.partition(":")[0] == begins.partition(":")[0]
    if not same:
        remarks = (*remarks, f"not of the same start: measured from {begun}, trained from {begins}")
    if other := _unlike(local, trained):
        same, remarks = False, (*remarks, f"measured and trained with another {' and '.join(other)}")
    what = "Spearman's ρ between the mean rank of the best decrease and the rank of the final loss, lowest first"
    return Part(label(local), what, Threshold(">", 0.0), (local, trained), values, remarks, same)


def _unlike(local: Run, trained: Run) -> list[str]:
    """In what two runs on a task differ that must not, in words."""
    theirs = (trained.context.get("tasks") or {}).get(local.task) or {}

    def of(context: Any, part: str, name: str) -> Any:
        return (context.get(part) or {}).get(name)

    compared = {
        "scale": (local.scale, trained.scale),
        "attention mask": tuple(run.head["configuration"].get("masked") is not False for run in (local, trained)),
        "model": (of(local.context, "model", "parameters"), of(theirs, "model", "parameters")),
        "data set": (of(local.context, "source", "sha256"), of(theirs, "source", "sha256")),
    }
    return [name for name, (one, other) in compared.items() if one != other]


def _mean_ranks(points: Sequence[Point], names: Sequence[str]) -> list[float]:
    """Of each optimizer, the mean over points of its best decrease's rank among these."""
    found = [
        ranks(torch.tensor([needed(p.get(name, {}), "best_decrease", name) for name in names], dtype=torch.float64))
        for p in points
    ]
    return [float(mean) for mean in torch.stack(found).mean(0)]


def _lowness(finals: Mapping[str, Final], names: Sequence[str], seeds: Sequence[Any]) -> list[float]:
    """Minus the mean final loss of each optimizer."""
    return [
        -statistics.fmean(loss for seed in seeds if (loss := finals[name].losses[seed]) is not None) for name in names
    ]


def _spearman(x: Sequence[float], y: Sequence[float]) -> float:
    rho = rank_correlation(x, y, resamples=1).rho
    if math.isnan(rho):
        raise Unmeasured("all optimizers are equal")
    return rho


def _losses(finals: Mapping[str, Final], name: str) -> Mapping[int, float | None]:
    return finals[name].losses if name in finals else {}


def _is_clipped(name: str) -> bool:
    """Whether it clips coordinates: by a fraction, not by norm."""
    return " clip " in name and "%" in name


def _convergence(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.experiment == "convergence"]


def _tasks(run: Run) -> list[str]:
    return list(run.head["configuration"].get("tasks") or ())


def _finals(run: Run) -> list[Final]:
    """Of trainings to the end that was asked for; `finals_of` takes the last step that there is for it."""
    last = run.head["configuration"].get("steps")
    ended = any(record.get("phase") == "final" and record.get("step") == last for record in run.records)
    return finals_of(run.records) if ended else []


def _initialisation(run: Run, task: str) -> str:
    """How the model of a task began."""
    context = (run.context.get("tasks") or {}).get(task) or {} if run.experiment == "convergence" else run.context
    model = context.get("model")
    return str(model.get("initialisation")) if isinstance(model, Mapping) else "an unknown start"
