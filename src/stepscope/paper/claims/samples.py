"""What claims are tested on: from the runs of a reproduction to what their statistics take, seed by seed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from stepscope.paper.claims.losses import Final, finals_of, pairs_of
from stepscope.paper.claims.papers_lists import MORE_COMPARED, NOT_COMPARED, NOT_MEASURED, compares, measures
from stepscope.paper.claims.seed_statistics import NAMED, Point, Points
from stepscope.paper.claims.verdicts import PRETRAINED, RANDOM, STARTS, Key, Sample, unfinished, whole_seeds
from stepscope.paper.records import BoundRecord, CorrelationRecord, LossRecord, SmoothnessRecord
from stepscope.paper.reproduction_runs import Run, section
from stepscope.runs import DirectionRecord, Record
from stepscope.runs.records import AnyRecord

TRANSFORMERS = ("translation", "code", "sentiment")

CUT = 4.0
"""The paper removes coordinates whose row norm is at least so many times the mean."""


def directions(*tasks: str, of_several: bool = False) -> Callable[[Sequence[Run[Record]]], Iterator[Sample]]:
    """Runs along trajectories of these tasks: the points of each seed.

    Statistics of several optimizers take those that the paper compares on the task; `of_several` lists the same points
    once more with all optimizers that were measured, where those are more.

    Where one of the tasks was measured from a start, those without a run from it are samples too: their silence is no
    agreement.
    """

    def samples(runs: Sequence[Run[Record]]) -> Iterator[Sample]:
        chosen = [run for run in _of("trajectory", runs) if run.task in tasks]
        for run in sorted(chosen, key=lambda run: (tasks.index(run.task), run.name)):
            seeds, remarks = _points(run)
            beyond = "" if measures(run.task) else NOT_MEASURED
            points, start = _counting(seeds, run.task), _start(run.context)
            sample = Sample(_label(run), (run,), points, remarks, start=start, task=run.task, beyond=beyond)
            yield sample
            if of_several and any(not compares(run.task, name) for name in NAMED):
                yield replace(sample, name=f"{sample.name}, all", seeds=_counting(seeds), beyond=MORE_COMPARED)
        measured = {(run.task, _start(run.context)) for run in chosen}
        for start in STARTS:
            own = [task for task in tasks if (task, start) in measured]
            yield from (Sample(task, start=start) for task in tasks if own and task not in own and measures(task))

    return samples


def clipped_trainings(runs: Sequence[Run[Record]]) -> Iterator[Sample]:
    """Coordinate-wise clipped variants, each with its original: both final losses, as in `pairs_of`."""
    for run in _of("convergence", runs):
        asked = run.head["configuration"]
        pairs = {(pair.variant.task, pair.variant.optimizer): pair for pair in pairs_of(_finals(run))}
        for task, name in itertools.product(_tasks(run), asked.get("optimizers") or ()):
            # By a fraction, not by norm.
            if " clip " not in name or "%" not in name:
                continue
            pair, beyond = pairs.get((task, name)), "" if compares(task, name) else NOT_COMPARED
            start = _start(section(section(run.context, "tasks"), task))
            sample = Sample(f"{task}, {name}", (run,), start=start, beyond=beyond)
            if pair is None:
                yield replace(sample, remarks=("it or its original is not finished",))
                continue
            ours, theirs = pair.variant.losses, pair.original.losses
            both = {seed: (ours[seed], theirs[seed]) for seed in ours if seed in theirs}
            remarks = (pair.remark, *unfinished([seed for seed in asked.get("seeds") or () if seed not in both]))
            # There is no difference where a training diverged.
            yield replace(sample, seeds=both if pair.difference else {}, remarks=remarks)


def rankings(runs: Sequence[Run[Record]]) -> Iterator[Sample]:
    """Tasks that were both measured along a trajectory and trained: the points and the final loss of each optimizer."""
    for local, trained in itertools.product(_of("trajectory", runs), _of("convergence", runs)):
        if local.task in _tasks(trained):
            names = _names(local, trained)
            own = [name for name in names if compares(local.task, name)]
            yield _ranking(local, trained, own)
            if own != names:
                sample = _ranking(local, trained, names)
                yield replace(sample, name=f"{sample.name}, all", beyond=MORE_COMPARED)


def _names(local: Run[Record], trained: Run[Record]) -> list[str]:
    """The optimizers that were both measured and trained."""
    asked = trained.head["configuration"].get("optimizers") or ()
    return [name for name in local.head["configuration"].get("directions") or () if name in asked]


def _ranking(local: Run[Record], trained: Run[Record], names: Sequence[str]) -> Sample:
    points, remarks = _points(local)
    losses = {final.optimizer: final.losses for final in _finals(trained) if final.task == local.task}
    seeds = [seed for seed in points if all(seed in losses.get(name, {}) for name in names)]
    remarks += tuple(f"trainings: {remark}" for remark in unfinished([seed for seed in points if seed not in seeds]))
    diverged = [name for name in names if any(losses[name][seed] is None for seed in seeds)]
    if diverged:
        remarks += (f"left out, since it diverged: {', '.join(diverged)}",)
    kept = [name for name in names if name not in diverged]
    counted = frozenset(kept)
    ranked = {seed: (Points(points[seed], counted), {name: losses[name][seed] for name in kept}) for seed in seeds}
    unlike = _unlike(local, trained)
    beyond = "" if measures(local.task) else NOT_MEASURED
    return Sample(
        _label(local), (local, trained), ranked, (*remarks, *unlike), not unlike, _start(local.context), beyond=beyond
    )


def _unlike(local: Run[Record], trained: Run[Record]) -> list[str]:
    """In what two runs on a task differ that must not, in words."""
    own, others = local.context, section(section(trained.context, "tasks"), local.task)
    remarks = []
    if (begun := _start(own)) != (begins := _start(others)):
        remarks.append(f"not of the same start: measured from {begun}, trained from {begins} weights")
    compared = {
        "scale": (local.scale, trained.scale),
        "attention mask": tuple(run.head["configuration"].get("masked") is not False for run in (local, trained)),
        "model": tuple(section(context, "model").get("parameters") for context in (own, others)),
        "data set": tuple(section(context, "source").get("sha256") for context in (own, others)),
    }
    if other := [name for name, (one, two) in compared.items() if one != two]:
        remarks.append(f"measured and trained with another {' and '.join(other)}")
    return remarks


def smoothed_groups(runs: Sequence[Run[Record]]) -> Iterator[Sample]:
    """Groups of parameters of which the few largest coordinates were removed: all steps and batches of a seed."""
    for run in _of("robustness", runs):
        batches = range(run.head["configuration"].get("batches") or 0)
        for group in ("attention", "feed-forward"):
            chosen = [r for r in _records(run, SmoothnessRecord) if r.group == group and r.cut == CUT]
            wanted = itertools.product(*_trajectories(run.head["configuration"]), batches)
            fields = ("trajectory", "step", "batch")
            sample = _sample(group, run, fields, wanted, chosen)
            yield replace(sample, deciding=group == "attention", start=_start(run.context))


def correlated_scopes(runs: Sequence[Run[Record]]) -> Iterator[Sample]:
    """Models whose coordinates were correlated, the translation model's parts too: all steps of a seed."""
    for run in _of("theory", runs):
        for task, settings in section(run.head["configuration"], "correlated").items():
            for scope in settings.get("scopes") or ():
                if scope and task != "translation":
                    continue
                chosen = [r for r in _records(run, CorrelationRecord) if (r.task, r.scope) == (task, scope)]
                wanted = itertools.product(*_trajectories(settings))
                sample = _sample(f"{task}, {scope or 'all'}", run, ("trajectory", "step"), wanted, chosen)
                yield replace(sample, start=_start(run.context if task == "translation" else {}))


def bounded_losses(runs: Sequence[Run[Record]]) -> Iterator[Sample]:
    """The losses on which the bound of appendix A was tried: all of a seed."""
    for run in _of("theory", runs):
        asked = run.head["configuration"]
        wanted = itertools.product(asked.get("families") or (), asked.get("fractions") or ())
        yield _sample("all losses", run, ("family", "fraction"), wanted, _records(run, BoundRecord))


def _sample(
    name: str, run: Run[Record], fields: Sequence[str], wanted: Iterator[Key], chosen: Sequence[Record]
) -> Sample:
    """A sample whose statistic takes all records of a seed."""
    seeds, remarks = whole_seeds(run, fields, wanted, chosen)
    return Sample(name, (run,), {seed: list(own.values()) for seed, own in seeds.items()}, remarks)


def _points(run: Run[Record]) -> tuple[dict[int, list[Point]], tuple[str, ...]]:
    """The points of the seeds that are measured to the end; and which aren't, in words."""
    asked = run.head["configuration"]
    places = list(itertools.product(*_trajectories(asked)))
    names = asked.get("directions") or ()
    wanted = [(*place, name) for place in places for name in names]
    seeds, remarks = whole_seeds(run, ("trajectory", "step", "direction"), wanted, _records(run, DirectionRecord))
    return {
        seed: [{name: own[*place, name] for name in names} for place in places] for seed, own in seeds.items()
    }, remarks


def _counting(seeds: Mapping[int, list[Point]], task: str = "") -> dict[int, Points]:
    """The points, with the optimizers that count: those that the paper compares on a task, or all."""
    counted = frozenset(name for name in NAMED if not task or compares(task, name))
    return {seed: Points(points, counted) for seed, points in seeds.items()}


def _trajectories(asked: Mapping[str, Any]) -> tuple[Sequence[Any], Sequence[Any]]:
    """The optimizers that train, and the measured steps."""
    return tuple(asked.get("training_lr") or ()), tuple(asked.get("steps") or ())


def _finals(run: Run[Record]) -> list[Final]:
    """Of trainings to the end that was asked for; `finals_of` takes the last step that there is for it."""
    last = run.head["configuration"].get("steps")
    records = _records(run, LossRecord)
    ended = any(record.phase == "final" and record.step == last for record in records)
    return finals_of(records) if ended else []


def _records(run: Run[Record], kind: type[AnyRecord]) -> list[AnyRecord]:
    """Those of one kind."""
    return [record for record in run.records if isinstance(record, kind)]


def _of(experiment: str, runs: Sequence[Run[Record]]) -> list[Run[Record]]:
    return [run for run in runs if run.experiment == experiment]


def _tasks(run: Run[Record]) -> list[str]:
    return list(run.head["configuration"].get("tasks") or ())


def _label(run: Run[Record]) -> str:
    """What tells it apart beside its start."""
    return run.name.removeprefix("trajectory-").removesuffix(f"-{_start(run.context)}")


def _start(context: Mapping[str, Any]) -> str:
    """Where a task's model began; one that says nothing of it was never pretrained."""
    began = str(section(context, "model").get("initialisation", RANDOM))
    return PRETRAINED if began.startswith(PRETRAINED) else RANDOM
