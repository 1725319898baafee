"""Experiment B: every optimizer and its clipped variant from the same start (Pan and Li, §5 and appendix B.4).

Each looks for its own learning rate within the same budget (`Search`), on weights and an order of batches of their own.
Then it trains once a seed: a seed draws the same weights and the same batches for all. A rate that diverges on a seed
is given up for the next lower one, on all seeds: the best rate of one search may lie at the edge of what is stable. The
loss is that of the fixed evaluation batch, which is drawn from the training data, as in the paper.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import partial
from typing import Any

from stepscope.errors import UsageError
from stepscope.objective import Objective
from stepscope.paper.experiments.compared import RULES, contenders
from stepscope.paper.experiments.running import (
    Progress,
    accumulate,
    at_home,
    check_data,
    check_settings,
    model_of,
    part_size,
    source_of,
    unmasked,
)
from stepscope.paper.experiments.search import Search
from stepscope.paper.experiments.workers import Tell, check_processes, run_jobs
from stepscope.paper.tasks import Task
from stepscope.paper.tasks.catalogue import TASKS
from stepscope.runs import Record, RunDirectory, number, read_run

SEARCH_SEED = 2**31 - 1
"""Weights and order that learning rates are looked for on: none of the seeds that are compared."""

DIVERGED = 10.0
"""A training is given up where the loss is so many times that at the start."""

RETREATS = 3
"""How often a rate that diverged on a seed may be lowered."""

_QUICK = Search(rates=3, extensions=1, rungs=((Fraction(1, 2), 1), (Fraction(1), 1)), climbs=1)


@dataclass(frozen=True)
class _Size:
    """Steps of a training, steps between evaluations, the search, and what is changed of the tasks."""

    steps: int
    every: int
    search: Search
    task: Mapping[str, int]


_SIZES = {
    "smoke": _Size(12, 3, _QUICK, {}),
    # More steps of smaller batches, and an evaluation batch that is large enough to tell losses apart.
    "cpu": _Size(150, 10, Search(), {"batch_size": 32, "eval_size": 128, "micro_batch_size": 64}),
    # Half an hour of one GPU is not enough for the whole search.
    "gpu": _Size(200, 10, _QUICK, {"batch_size": 64, "eval_size": 128, "micro_batch_size": 64}),
    # As many updates as the paper's 20 epochs of ten batches.
    "paper": _Size(200, 10, Search(), {}),
}


@dataclass(frozen=True)
class ConvergenceExperiment:
    """What is run: everything that determines the losses.

    Attributes:
        scale: name of the size.
        settings: whose optimizers are compared, see `stepscope.paper.experiments.compared.SETTINGS`.
        tasks: ``{name: configuration}``.
        sources: ``{name: where its data come from}``.
        optimizers: names in `stepscope.paper.experiments.compared.RULES`.
        steps: of a training.
        every: steps from one evaluation to the next.
        search: how learning rates are looked for.
        seeds: one training of each optimizer a seed.
        masked: whether the models get an attention mask. The published code gives none.
    """

    scale: str
    settings: str
    tasks: Mapping[str, Any]
    sources: Mapping[str, str]
    optimizers: tuple[str, ...]
    steps: int
    every: int
    search: Search = field(default_factory=Search)
    seeds: tuple[int, ...] = (0, 1, 2)
    masked: bool = True

    def configuration(self) -> dict[str, Any]:
        """As JSON keeps it; a run directory is continued only by the same one."""
        settings = asdict(self)
        settings["search"]["rungs"] = [[str(part), kept] for part, kept in self.search.rungs]
        return {"experiment": "convergence", **settings}


def convergence_experiment(
    scale: str = "cpu",
    *,
    settings: str = "ours",
    tasks: Sequence[str] = ("translation", "code"),
    sources: Mapping[str, str] | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
) -> ConvergenceExperiment:
    """The experiment at one of its sizes.

    Args:
        scale: ``"smoke"`` (to see that it works), ``"cpu"`` (within an hour on two cores), ``"gpu"`` or ``"paper"``.
        settings: ``"text"``, ``"code"`` or ``"ours"``.
        tasks: names in `stepscope.paper.tasks.catalogue.TASKS`.
        sources: ``{task: where its data come from}``; ``"auto"`` for those not named.
        seeds: see `ConvergenceExperiment`.

    Raises:
        UsageError: an unknown name, or seeds that can't be used.

    Example:
        >>> experiment = convergence_experiment("smoke")
        >>> list(experiment.tasks), "sgd clip 10%" in experiment.optimizers
        (['translation', 'code'], True)
    """
    check_settings(scale, _SIZES, seeds)
    if SEARCH_SEED in seeds:
        raise UsageError(f"seed {SEARCH_SEED} is the one that learning rates are looked for with: choose another")
    if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= set(TASKS):
        raise UsageError(f"tasks are {', '.join(tasks) or 'none'}: choose of {', '.join(TASKS)}, each once")
    if unused := set(sources or {}) - set(tasks):
        raise UsageError(f"a source is given for {', '.join(sorted(unused))}, which isn't among the tasks")
    size = _SIZES[scale]
    return ConvergenceExperiment(
        scale=scale,
        settings=settings,
        tasks={name: replace(TASKS[name].scales[scale], **size.task) for name in tasks},
        sources={name: (sources or {}).get(name, "auto") for name in tasks},
        optimizers=contenders(settings),
        steps=size.steps,
        every=size.every,
        search=size.search,
        seeds=seeds,
        masked=settings != "code",
    )


def run_convergence(
    experiment: ConvergenceExperiment,
    out: str | os.PathLike[str],
    progress: Progress = lambda part, what: None,  # noqa: ARG005
    *,
    processes: int = 1,
) -> int:
    """Runs the experiment into a run directory, or continues one.

    What is recorded isn't trained again, but for those trainings of an unfinished search that go on.

    Args:
        experiment: what to run.
        out: the run directory; created if missing.
        progress: told how far it is.
        processes: how many trainings at a time.

    Returns:
        How many losses were recorded; 0 if the run was complete already.

    Raises:
        UsageError: the directory can't be used (see `RunDirectory`), there are no data or they have changed since, or
            a process died.
    """
    check_processes(processes)
    configuration = experiment.configuration()
    begun = RunDirectory.check(out, configuration)
    known = read_run(out)[1] if begun is not None else []
    wanted = [_Job(experiment, task, optimizer) for task in experiment.tasks for optimizer in experiment.optimizers]
    if all(job.is_complete(known) for job in wanted):
        return 0
    progress(0.0, "preparing the data")
    experiment = _with_sources(experiment, begun)
    context = {"tasks": {name: _context(experiment, name) for name in experiment.tasks}}
    for name in experiment.tasks:
        check_data((begun or {}).get("tasks", {}).get(name), context["tasks"][name], out)
    # What could be had here is what all processes take.
    experiment = _with_sources(experiment, context)
    with RunDirectory.open(out, configuration, context=context) as run:
        known = run.records()
        jobs = [
            replace(
                job,
                experiment=experiment,
                known=tuple(job.own(known)),
                sha256=context["tasks"][job.task]["source"]["sha256"],
            )
            for job in wanted
            if not job.is_complete(known)
        ]
        parts = [0.0] * len(jobs)

        def receive(which: int, message: tuple[str, Any]) -> None:
            kind, content = message
            if kind == "records":
                run.append(content)
            else:
                parts[which] = content
                done = (len(wanted) - len(jobs) + sum(parts)) / len(wanted)
                progress(done, f"{jobs[which].task}: {jobs[which].optimizer}")

        run_jobs(_carry_out, jobs, processes, receive)
        return len(run.records()) - len(known)


@dataclass(frozen=True)
class _Job:
    """The search and the trainings of one optimizer on one task."""

    experiment: ConvergenceExperiment
    task: str
    optimizer: str
    known: tuple[Record, ...] = ()
    sha256: str = ""

    def own(self, records: Iterable[Record]) -> Iterator[Record]:
        return (r for r in records if (r.get("task"), r.get("optimizer")) == (self.task, self.optimizer))

    def is_complete(self, records: Iterable[Record]) -> bool:
        finals = self.finals(records)
        if not finals:
            return False
        ends = finals[min(finals)]
        whole = set(ends) >= set(self.experiment.seeds)
        return whole and (not any(ends.values()) or len(finals) > RETREATS)

    def finals(self, records: Iterable[Record]) -> dict[float, dict[int, bool]]:
        """By learning rate and seed, whether the final training diverged; only of those that came to their end."""
        found: dict[float, dict[int, bool]] = {}
        for r in self.own(records):
            if r["phase"] == "final" and (r["diverged"] or r["step"] == self.experiment.steps):
                found.setdefault(r["lr"], {})[r["seed"]] = bool(r["diverged"])
        return found


def _carry_out(job: _Job, tell: Tell) -> None:
    """Looks for the learning rate, then trains with it; tells the records, and what part is done."""
    experiment, rule = job.experiment, RULES[job.optimizer]
    task = _task(experiment, job.task)
    if task.source.sha256 != job.sha256:
        raise UsageError(f"the data of {job.task} have changed while it ran ({task.source.title})")
    begin = partial(_Training, job, task)
    losses: dict[float, dict[int, float]] = {}
    for record in job.known:
        if record["phase"] == "search":
            losses.setdefault(record["lr"], {})[record["step"]] = _ranked(record)
    recorded = {_identity(record) for record in job.known}
    whole = float(experiment.search.budget() + len(experiment.seeds)) * experiment.steps
    done = 0

    def train(training: _Training, end: int) -> None:
        nonlocal done

        def stepped() -> None:
            nonlocal done
            done += 1
            tell(("progress", min(1.0, done / whole)))

        # One that diverged before stays so, also where it is repeated.
        training.diverged |= training.phase == "search" and math.inf in losses.get(training.lr, {}).values()
        records = training.advance(end, stepped)
        # Of a training that is repeated to go on, what is new.
        tell(("records", [record for record in records if _identity(record) not in recorded]))
        recorded.update(map(_identity, records))
        if training.phase == "search":
            losses.setdefault(training.lr, {}).update({r["step"]: _ranked(r) for r in records})

    live: dict[float, _Training] = {}
    while todo := experiment.search.next_trainings(rule.first_lr, experiment.steps, losses):
        # A rate that isn't asked for now hardly ever is again; it is trained anew then.
        live = {lr: live.get(lr) or begin("search", lr, SEARCH_SEED) for lr, _ in todo}
        for lr, end in todo:
            train(live[lr], end)
    live.clear()
    lr, bracketed = experiment.search.best(experiment.steps, losses)
    finals = job.finals(job.known)
    for retreats in range(RETREATS + 1):
        ends = finals.get(lr, {})
        for seed in experiment.seeds:
            # One that diverged is enough, but for the last rate, of which all is told.
            if seed not in ends and (retreats == RETREATS or not any(ends.values())):
                training = begin("final", lr, seed, bracketed=bracketed)
                train(training, experiment.steps)
                ends[seed] = training.diverged
        if not any(ends.values()):
            break
        lr = experiment.search.lower(lr)
    tell(("progress", 1.0))


class _Training:
    """One training, which can be carried on."""

    def __init__(
        self, job: _Job, task: Task, phase: str, lr: float, seed: int, *, bracketed: bool | None = None
    ) -> None:
        self.phase, self.lr = phase, lr
        self._part = part_size(job.experiment.tasks[job.task], job.experiment.scale)
        self._job, self._seed, self._bracketed = job, seed, bracketed
        task = task.seeded(seed)
        self._model, self._batches = task.model, task.training_batches()
        self._objective = Objective(task.model, None, task.eval_batches)
        self._optimizer = RULES[job.optimizer].build(list(self._objective.parameters.values()), lr)
        self._step = 0
        self._start: float | None = None
        self.diverged = False

    def advance(self, end: int, stepped: Callable[[], None]) -> list[Record]:
        """Trains up to a step, and gives the losses on the way; of one that diverged, the end alone."""
        records = []
        if self._start is None:
            self._start = self._objective.loss()
            records.append(self._record(0, self._start))
        while self._step < end and not self.diverged:
            loss = accumulate(self._model, next(self._batches), self._part)
            self._optimizer.step()
            self._step += 1
            stepped()
            if self._step % self._job.experiment.every == 0 or self._step == end:
                found = self._objective.loss() if math.isfinite(loss) else math.inf
                self.diverged = not found <= DIVERGED * self._start
                if not self.diverged:
                    records.append(self._record(self._step, found))
        return [*records, self._record(end, None)] if self.diverged else records

    def _record(self, step: int, loss: float | None) -> Record:
        job = self._job
        return {
            "run": f"{job.task}, {job.optimizer}, lr {self.lr!r}, {self.phase}, seed {self._seed}",
            "task": job.task,
            "optimizer": job.optimizer,
            "original": RULES[job.optimizer].original,
            "phase": self.phase,
            "lr": self.lr,
            "bracketed": self._bracketed,
            "seed": self._seed,
            "step": step,
            "loss": loss,
            "diverged": loss is None,
        }


def _identity(record: Record) -> tuple[Any, ...]:
    return record["run"], record["step"]


def _ranked(record: Record) -> float:
    loss = number(record, "loss")
    return math.inf if loss is None else loss


_tasks: dict[tuple[Any, str, bool], Task] = {}
"""Of this process, so that reading and encoding the data is done once for all optimizers."""


def _task(experiment: ConvergenceExperiment, name: str) -> Task:
    key = (experiment.tasks[name], experiment.sources[name], experiment.masked)
    if key not in _tasks:
        task = TASKS[name].make(key[0], seed=SEARCH_SEED, source=key[1])
        _tasks[key] = at_home(task if experiment.masked else unmasked(task), experiment.scale)
    return _tasks[key]


def _with_sources(experiment: ConvergenceExperiment, begun: Mapping[str, Any] | None) -> ConvergenceExperiment:
    """Names the sources that `auto` found when the run began."""
    found = (begun or {}).get("tasks", {})
    sources = {name: source_of(found.get(name), asked) for name, asked in experiment.sources.items()}
    return replace(experiment, sources=sources)


def _context(experiment: ConvergenceExperiment, name: str) -> dict[str, Any]:
    """What a reader of the records has to know of a task beside the configuration."""
    task = _task(experiment, name)
    return {
        "source": asdict(task.source),
        "model": model_of(task, TASKS[name].title),
        "evaluation": {"examples": sum(len(batch["labels"]) for batch in task.eval_batches)},
    }
