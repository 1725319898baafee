"""What each command does, with what it prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepscope.cli.progress import shown_progress
from stepscope.errors import UsageError, require

if TYPE_CHECKING:
    from stepscope.paper.experiments.reproduction import Planned
    from stepscope.paper.experiments.trajectory import TrajectoryExperiment
    from stepscope.report import Table


def demo(asked: argparse.Namespace) -> None:
    """``stepscope demo``."""
    _require_all()
    from stepscope.paper.experiments.trajectory import demonstration

    _directions("demo", asked, demonstration(asked.scale, source=asked.source, seeds=tuple(asked.seeds)))


def trajectory(asked: argparse.Namespace) -> None:
    """``stepscope run trajectory``."""
    _require_all()
    from stepscope.paper.experiments.trajectory import trajectory_experiment

    experiment = trajectory_experiment(
        asked.scale, asked.task, source=asked.source, seeds=tuple(asked.seeds), pretrained=asked.pretrained
    )
    _directions(f"trajectory-{asked.task}{'-pretrained' * asked.pretrained}", asked, experiment)


def _directions(name: str, asked: argparse.Namespace, experiment: TrajectoryExperiment) -> None:
    """Runs an experiment along trajectories, and shows the directions."""
    from stepscope.paper.experiments.trajectory import run_trajectory
    from stepscope.report import print_directions, summary_sentence, write_report
    from stepscope.runs import read_run

    if asked.scale == "smoke":
        # A model this small loses more to threads that wait for one another than it gains.
        require("torch", "all").set_num_threads(1)
    out = Path(asked.out or f"runs/{name}-{asked.scale}")
    started = time.perf_counter()
    with shown_progress() as progress:
        measured = run_trajectory(experiment, out, progress)
    seconds = time.perf_counter() - started
    page = write_report(out, out / "report.html")  # before the tables: nobody may be reading those
    run, records = read_run(out)
    source, model = (run["context"].get(key) or {} for key in ("source", "model"))
    print(f"Data: {source.get('title')} ({source.get('license')}), {source.get('examples')} examples")
    print(f"Model: {model.get('title')}, {model.get('initialisation')} start")
    print_directions(records)
    print(summary_sentence(records))
    print(f"\n{measured} new measurements in {seconds:.0f} s." if measured else "\nThe run was complete already.")
    print(f"Records: {out / 'measurements.jsonl'}\nPage:    {page}")


def convergence(asked: argparse.Namespace) -> None:
    """``stepscope run convergence``."""
    _require_all()
    from stepscope.paper.claims import conclusion, finals_of, pairs_of
    from stepscope.paper.experiments.convergence import convergence_experiment, run_convergence
    from stepscope.paper.report import print_losses, write_figures, write_page
    from stepscope.runs import read_run

    require("torch", "all").set_num_threads(1)  # models this small lose more to waiting threads than they gain
    experiment = convergence_experiment(
        asked.scale,
        settings=asked.settings,
        tasks=tuple(asked.tasks),
        sources=_sources(asked.source),
        seeds=tuple(asked.seeds),
    )
    jobs = asked.jobs if asked.jobs is not None else 1 if asked.scale == "smoke" else os.cpu_count() or 1
    out = Path(asked.out or f"runs/convergence-{asked.scale}")
    started = time.perf_counter()
    with shown_progress() as progress:
        recorded = run_convergence(experiment, out, progress, processes=jobs)
    seconds = time.perf_counter() - started
    page = write_page(out, out / "report.html")
    figures = write_figures(out)
    run, records = read_run(out)
    for name, task in run["context"]["tasks"].items():
        source, model = task["source"], task["model"]
        print(f"{name}: {model['title']}, {model['initialisation']} start; {source['title']} ({source['license']})")
    print_losses(records)
    print(conclusion(pairs_of(finals_of(records))))
    print(f"\n{recorded} new losses in {seconds:.0f} s." if recorded else "\nThe run was complete already.")
    print(f"Records: {out / 'measurements.jsonl'}\nPage:    {page}\nFigures: {', '.join(map(str, figures))}")


def robustness(asked: argparse.Namespace) -> None:
    """``stepscope run robustness``."""
    _require_all()
    from stepscope.paper.experiments.robustness import robustness_experiment, run_robustness

    require("torch", "all").set_num_threads(1)
    seeds, pretrained = tuple(asked.seeds), asked.pretrained
    experiment = robustness_experiment(asked.scale, source=asked.source, seeds=seeds, pretrained=pretrained)
    _measured("robustness", asked, lambda out, progress: run_robustness(experiment, out, progress))


def theory(asked: argparse.Namespace) -> None:
    """``stepscope run theory``."""
    _require_all()
    from stepscope.paper.experiments.theory import run_theory, theory_experiment

    require("torch", "all").set_num_threads(1)
    experiment = theory_experiment(asked.scale, source=asked.source, seeds=tuple(asked.seeds))
    _measured("theory", asked, lambda out, progress: run_theory(experiment, out, progress))


def _measured(name: str, asked: argparse.Namespace, run: Callable[[Path, Callable[[float, str], None]], int]) -> None:
    """Runs an experiment whose results are tables of text, and shows them."""
    from stepscope.paper.report import TABLES, write_page
    from stepscope.report import print_tables
    from stepscope.runs import read_run

    out = Path(asked.out or f"runs/{name}-{asked.scale}")
    started = time.perf_counter()
    with shown_progress() as progress:
        measured = run(out, progress)
    seconds = time.perf_counter() - started
    page = write_page(out, out / "report.html")
    head, records = read_run(out)
    source, model = (head["context"].get(key) or {} for key in ("source", "model"))
    print(f"{model.get('title')}, {model.get('initialisation')} start; {source.get('title')} ({source.get('license')})")
    print_tables(TABLES[name](records))
    print(f"\n{measured} new records in {seconds:.0f} s." if measured else "\nThe run was complete already.")
    print(f"Records: {out / 'measurements.jsonl'}\nPage:    {page}")


def _sources(given: Sequence[str]) -> dict[str, str]:
    """``task=source`` arguments by task."""
    found: dict[str, str] = {}
    for argument in given:
        task, separator, source = argument.partition("=")
        if not separator or not source or task in found:
            raise UsageError(f"--source {argument}: give TASK=NAME or TASK=FILE, once a task")
        found[task] = source
    return found


def _require_all() -> None:
    """Before minutes are spent, not after."""
    for module, extra in (("rich", "cli"), ("altair", "report"), ("jinja2", "report"), ("vl_convert", "report")):
        require(module, extra)


def reproduce(asked: argparse.Namespace) -> None:
    """``stepscope reproduce``."""
    _require_all()
    from stepscope.paper.experiments.costs import cost_of, wall_minutes
    from stepscope.paper.experiments.reproduction import prepare_directory, reproduction, run_reproduction
    from stepscope.paper.experiments.workers import check_processes
    from stepscope.report import print_tables

    if asked.seeds is not None and asked.seeds < 1:
        raise UsageError(f"--seeds {asked.seeds}: it is how many, at least 1")
    plan = reproduction(
        asked.scale,
        only=asked.only,
        seeds=tuple(range(asked.seeds if asked.seeds is not None else 1 if asked.scale == "smoke" else 3)),
        settings=asked.settings,
        sources=_sources(asked.source),
    )
    on_cores = asked.scale in ("smoke", "cpu")
    jobs = asked.jobs if asked.jobs is not None else (os.cpu_count() or 1) if on_cores else 1
    check_processes(jobs)
    table = _plan_table(plan, wall_minutes(plan, jobs), jobs)
    if asked.dry_run:
        print_tables([table])
        return
    out = Path(asked.out or f"runs/reproduce-{asked.scale}")
    prepare_directory(plan, out)
    # Like the progress: whoever reads the results may stop reading, and the runs are to go on.
    print_tables([table], require("rich.console", "cli").Console(stderr=True))
    if on_cores:
        require("torch", "all").set_num_threads(1)
    started = time.perf_counter()
    with shown_progress() as progress:
        weights = {planned.name: cost_of(planned).minutes for planned in plan}
        failures = run_reproduction(plan, out, progress, processes=jobs, weights=weights)
    seconds = time.perf_counter() - started
    for failure in failures:
        print(f"{failure.name} failed: {failure.reason}", file=sys.stderr)
    if any(out.glob("*/run.json")):
        _reproduced(out)
    print(f"\nThe runs took {seconds:.0f} s this time.")
    if failures:
        raise UsageError(f"{len(failures)} of {len(plan)} runs failed (above); the same command tries them again")


def _plan_table(plan: Sequence[Planned], wall: float, jobs: int) -> Table:
    from stepscope.paper.experiments.costs import cost_of
    from stepscope.report import Table

    costs = [cost_of(planned) for planned in plan]
    rows = [
        (f"{planned.part} {planned.name}", f"{cost.minutes:.1f}", f"{cost.memory:.1f}", cost.basis, planned.what)
        for planned, cost in zip(plan, costs, strict=True)
    ]
    most = sum(sorted((cost.memory for cost in costs), reverse=True)[:jobs])
    time = f"{wall:.0f} minutes" if wall < 180 else f"{wall / 60:.0f} hours"
    measured = all(cost.basis == "measured" for cost in costs)
    basis = (
        "Measured on two cores of a server: yours may differ."
        if measured
        else "Computed from the models' sizes for a GPU that does 2e13 operations a second, and never measured."
    )
    note = (
        f"Minutes are those of one {'core' if measured else 'GPU'}, memory is in GiB. Together about {time} and at "
        f"most {most:.1f} GiB with {jobs} at a time. {basis}"
    )
    return Table("Plan", ("run", "minutes", "memory", "basis", "what"), tuple(rows), note)


def _reproduced(out: Path) -> None:
    """Writes all that is made of a reproduction's records, and shows the claims."""
    from stepscope.paper.claims import claims_json, claims_table, departures_table, judge, parts_table
    from stepscope.paper.report import write_reproduction
    from stepscope.paper.runs import read_runs
    from stepscope.report import print_tables
    from stepscope.runs import write_atomically

    claims = judge(read_runs(out))
    table = claims_table(claims)
    with shown_progress() as progress:
        write_reproduction(out, [table, parts_table(claims), departures_table(claims)], progress)
    text = json.dumps(claims_json(claims), indent=1, ensure_ascii=False) + "\n"
    write_atomically(out / "claims.json", text.encode(errors="replace"))
    print_tables([table])
    for title, name in (
        ("Claims", "claims.json"),
        ("Page", "report.html"),
        ("Tables", "tables"),
        ("Figures", "figures"),
    ):
        print(f"{title + ':':9}{out / name}")


def report(asked: argparse.Namespace) -> None:
    """``stepscope report``."""
    from stepscope.paper.report import write_page

    run = Path(asked.run_directory)
    if not (run / "run.json").exists() and any(run.glob("*/run.json")):
        if asked.out:
            raise UsageError(f"{run} is a reproduction, whose page stands beside its figures: leave out --out")
        _reproduced(run)
        return
    print(write_page(run, Path(asked.out) if asked.out else run / "report.html"))
