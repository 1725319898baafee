"""What one process measures of one source: times, peak memory, a probe in a training.

`measure.py` starts it, says what is measured and how, and sends it one case after another.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from importlib import metadata
from itertools import islice
from typing import Any

import torch

from environment import environment
from measure import DEMO, MARK, Case, Row
from models import Direction, Workload, batch, loss, workload
from products import DISTRIBUTIONS, WAYS, differentiable, negative_directions, reference
from stepscope import Objective, Probe, measure
from stepscope.judging import judge_rate
from stepscope.paper.experiments.trajectory import demonstration
from stepscope.paper.tasks.translation import translation
from stepscope.runs import StepRecord

NEVER = 10**9
Work = Callable[[], Any]


# Time


def clock() -> float:
    """Seconds of this process on a CPU; of finished work on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def seconds(work: Work) -> float:
    """How long it takes."""
    started = clock()
    work()
    return clock() - started


def spread(values: list[float]) -> dict[str, float]:
    """The median of what was timed, with the least and the greatest."""
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


def timed(case: Case) -> list[Row]:
    """A row for each way: forwards a direction, and its error where it computes values."""
    work = workload(case.model, case.width, case.length, case.examples, max(map(case.count, case.ways)))
    ready, rows = {}, []
    for way in case.ways:
        row = asdict(case) | {"way": way, "directions": case.count(way), "parameters": work.size}
        rows.append(row)
        try:
            directions = directions_of(way, work, case.count(way))
            values = prepared(way, work, directions)
            first = values()  # a package that can't run the model says so here, and the others are warm
        except Exception as error:
            row["reason"] = reason(error)
        else:
            ready[way] = values
            if case.section == "models":
                exact = reference(work, list(directions.values()))
                row["error"] = max(abs(v / e - 1) for v, e in zip(first, exact, strict=True))
                row["negative"] = sum(e < 0 for e in exact)
    ratios = in_turn(ready, forward(work), case.rounds)
    for row in rows:
        if row["way"] in ratios:
            row |= spread([ratio / row["directions"] for ratio in ratios[row["way"]]])
    return rows


def directions_of(way: str, work: Workload, count: int) -> dict[str, Direction]:
    """Those that a way is given."""
    if way == "measure, uᵀHu < 0":
        return negative_directions(work, count)
    return dict(list(work.directions.items())[:count])


def in_turn(ways: dict[str, Work], unit: Work, rounds: int) -> dict[str, list[float]]:
    """The time of each way over that of `unit`, in each round."""
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        took = {}
        units = [seconds(unit) for _ in range(3)]
        for way, work in ways.items():
            took[way] = seconds(work)
            units += [seconds(unit) for _ in range(3)]
        for way, value in took.items():
            ratios[way].append(value / statistics.median(units))
    return ratios


def forward(work: Any) -> Work:
    """F: all evaluation batches, once, without gradients."""

    def run() -> None:
        with torch.no_grad():
            for micro_batch in work.batches:
                loss(work.model, micro_batch)

    return run


def forward_and_backward(work: Any) -> Work:
    """What a training step does of them: the gradient of each micro-batch, added up."""

    def run() -> None:
        for micro_batch in work.batches:
            loss(work.model, micro_batch).backward()
        work.model.zero_grad()

    return run


def prepared(way: str, work: Workload, directions: dict[str, Direction]) -> Callable[[], list[float]]:
    """A function that computes ``dᵀHd`` of all directions in this way; a measurement computes more."""
    if way in WAYS:
        with differentiable():
            values = WAYS[way](work, list(directions.values()))
        return _within_differentiable(values)
    objective = Objective(work.model, loss, work.batches)
    full = way == "full"

    def measured() -> list[float]:
        measurements = measure(objective, directions, landscape=full, breakdown=full)
        return [m.sharpness * m.norm**2 for m in measurements.values()]

    return measured


def _within_differentiable(values: Callable[[], list[float]]) -> Callable[[], list[float]]:
    def run() -> list[float]:
        with differentiable():
            return values()

    return run


def reason(error: Exception) -> str:
    """Why a way has no figure, in a line."""
    if isinstance(error, ModuleNotFoundError):
        return f"not installed ({error.name})"
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"


# Memory


def peak_bytes(work: Work) -> int:
    """The most that is allocated at once while it runs, above what was before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def memory(case: Case) -> list[Row]:
    """A row for each way: its peak over that of forward and backward."""
    work = workload(case.model, case.width, case.length, case.examples, case.count(case.ways[0]))
    rows = [asdict(case) | {"way": way, "parameters": work.size, "directions": case.directions} for way in case.ways]
    run = forward_and_backward(work)
    run()
    unit = peak_bytes(run)
    for row in rows:
        try:
            values = prepared(row["way"], work, work.directions)
            row["times"] = peak_bytes(values) / unit
        except Exception as error:
            row["reason"] = reason(error)
        row["unit_bytes"] = unit
    return rows


# A probe in a training


def training(case: Case) -> tuple[Any, Any, Work]:
    """A workload, its optimizer, and a function that makes one step on a random batch and gives the loss."""
    if case.model == DEMO:
        task = translation(demonstration().task)
        work, batches = Workload(task.model, list(task.eval_batches), {}), list(islice(task.training_batches(), 50))
    else:
        work = workload(case.model, case.width, case.length, case.examples)
        device = next(work.model.parameters()).device.type
        batches = [batch(case.model, 2 * case.examples, case.length, device) for _ in range(50)]
    optimizer = torch.optim.AdamW(work.model.parameters(), lr=1e-3)
    made = 0

    def step() -> float:
        nonlocal made
        optimizer.zero_grad()
        value = loss(work.model, batches[made % len(batches)])
        made += 1
        value.backward()
        optimizer.step()
        return float(value.detach())

    return work, optimizer, step


def probe(case: Case) -> list[Row]:
    """A row: attaching and measuring in training steps, and a step with an idle probe over one without."""
    work, optimizer, step = training(case)

    def attached() -> Probe:
        return Probe(work.model, optimizer, loss, work.batches, every=NEVER, max_overhead=None, quiet=True)

    ratios: dict[str, list[float]] = {"attach": [], "measure": [], "idle": []}
    for number in range(case.rounds + 1):
        plain = statistics.median(seconds(step) for _ in range(20))
        started = clock()
        with attached() as watching:
            ratios["attach"].append((clock() - started) / plain)
            idle = statistics.median(seconds(step) for _ in range(20))
            loss(work.model, work.batches[0]).backward()
            ratios["measure"].append(seconds(partial(watching.measure, gradients="training")) / plain)
            directions = len(watching.records)
        after = statistics.median(seconds(step) for _ in range(20))
        ratios["idle"].append(idle / statistics.mean((plain, after)))
        if number == 0:  # the first is slower
            ratios = {name: [] for name in ratios}
    return [
        asdict(case)
        | {"parameters": work.size, "directions": directions}
        | {name: spread(values) for name, values in ratios.items()}
    ]


def overhead(case: Case) -> list[Row]:
    """A row: the time that a probe with a limit, and defaults otherwise, added to a training.

    Of the section "own steps", one that makes no full measurements and knows how long the training is.
    """
    alone = {"every": NEVER, "steps": case.steps} if case.section == "own steps" else {}
    _, _, plain_step = training(case)
    work, optimizer, probed_step = training(case)
    for _ in range(10):  # the first ones are slower
        plain_step(), probed_step()
    started = clock()
    watching = Probe(work.model, optimizer, loss, work.batches, max_overhead=case.limit, quiet=True, **alone)
    probed, plain = clock() - started, 0.0
    for number in range(case.steps):
        for with_probe in (number % 2 == 0, number % 2 != 0):
            started = clock()
            if with_probe:
                probed_loss = probed_step()
                probed += clock() - started
            else:
                with watching.paused():
                    plain_loss = plain_step()
                    plain += clock() - started
    return [
        asdict(case)
        | {
            "parameters": work.size,
            "overhead": probed / plain - 1,
            "measured_at": sorted({record["step"] for record in watching.records}),
            "directions": len(watching.records),
            "on_own_batches": sum(record["batch_loss"] is not None for record in watching.step_records),
            "judged": judge_rate([StepRecord.from_json(r) for r in watching.step_records]).evidence.trust.probes,
            "edges": sum(record["edges"] is not None for record in watching.step_records),
            "same_last_loss": plain_loss == probed_loss,
        }
    ]


SECTIONS: dict[str, Callable[[Case], list[Row]]] = {
    "models": timed,
    "sequence": timed,
    "directions": timed,
    "parameters": timed,
    "memory": memory,
    "probe": probe,
    "overhead": overhead,
    "own steps": overhead,
}


def serve() -> None:
    """What a `Worker` runs: reads cases, writes results."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        result = measured(Case(**json.loads(line)))
        print(f"{MARK}{json.dumps(result)}", flush=True)


def measured(case: Case) -> dict[str, Any]:
    """The rows of a case, and their environment."""
    versions = {}
    for name in DISTRIBUTIONS.values():
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"rows": SECTIONS[case.section](case), "environment": environment() | {"packages": versions}}


if __name__ == "__main__":
    serve()
