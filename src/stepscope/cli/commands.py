"""What each command does, with what it prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepscope.cli.folding import folded_to_terminal
from stepscope.cli.progress import shown_progress
from stepscope.errors import UsageError, require

if TYPE_CHECKING:
    from stepscope.paper.claims.verdicts import JudgedClaim
    from stepscope.paper.experiments.experiment import Experiment
    from stepscope.paper.experiments.jobs import Execute, Job
    from stepscope.paper.reproduction.costs import Cost
    from stepscope.report import Table
    from stepscope.runs import Training


_ON_CORES = ("smoke", "cpu", "desk")
"""The scales that are made for two cores."""


def demo(options: argparse.Namespace) -> None:
    """``stepscope demo``."""
    _require_all()
    from stepscope.paper.experiments.compared_optimizers import users_own
    from stepscope.paper.experiments.trajectory import demonstration

    experiment = demonstration(
        options.scale, source=options.source, seeds=tuple(options.seeds), optimizers=options.optimizers
    )
    name = "-".join(("demo", *users_own(options.optimizers), options.scale))
    _run(experiment, Path(options.out or f"runs/{name}"), 1)


def run(options: argparse.Namespace) -> None:
    """``stepscope run``."""
    _require_all()
    from stepscope.paper.experiments.command_lines import EXPERIMENTS

    experiment = EXPERIMENTS[options.experiment].load().from_options(options)
    jobs = 1
    if experiment.entry.parallel:
        jobs = options.jobs if options.jobs is not None else 1 if options.scale == "smoke" else os.cpu_count() or 1
    _run(experiment, Path(options.out or f"runs/{experiment.run_name}-{options.scale}"), jobs)


def calibration(options: argparse.Namespace) -> None:
    """``stepscope run calibration``."""
    for module in ("rich", "filelock"):
        require(module, "cli")
    from stepscope.calibration.analysis import calibrated, cases_of
    from stepscope.calibration.study import RECORDS_FILE, run_study
    from stepscope.calibration.tables import tables_of
    from stepscope.report import print_tables
    from stepscope.runs import write_atomically

    require("torch", "all").set_num_threads(1)
    out = Path(options.out or f"runs/calibration{'' if options.tasks == 'study' else f'-{options.tasks}'}")
    with shown_progress() as progress:
        records, count = run_study(out, options.curves, progress, tasks=options.tasks)
    write_atomically(out / "confidence.json", json.dumps(asdict(calibrated(cases_of(records))), indent=1).encode())
    print_tables(tables_of(records))
    print(f"{count} new trainings.\nRecords: {out / RECORDS_FILE}")


def _run(experiment: Experiment[Any], out: Path, jobs: int) -> None:
    """Runs an experiment, or continues one, and shows what was measured."""
    from stepscope.paper.experiments import jobs as of_experiments
    from stepscope.paper.experiments.run_files import read, write_figures, write_page

    if experiment.one_thread or experiment.scale in _ON_CORES:
        # A model this small gains little by threads, and where another process has a core, they wait for one another:
        # ten times the processor's time, and more.
        require("torch", "all").set_num_threads(1)
    started = time.perf_counter()
    with shown_progress() as progress:
        count = of_experiments.run(experiment, out, progress, jobs)
    seconds = time.perf_counter() - started
    page = write_page(out, out / "report.html")  # before the tables: nobody may be reading those
    figures = write_figures(out) if experiment.writes_figures else []
    experiment.show(*read(out))
    new = f"{count} new {experiment.counted} in {seconds:.0f} s." if count else "The run was complete already."
    print(f"\n{new}\nRecords: {out / 'measurements.jsonl'}\nOpen this page: {page}")
    if figures:
        print(f"Figures: {', '.join(map(str, figures))}")


def _require_all() -> None:
    """Before minutes are spent, not after; one extra has all of it."""
    for module in ("rich", "filelock", "altair", "jinja2", "vl_convert", "tokenizers"):
        require(module, "paper")


def reproduce(options: argparse.Namespace) -> None:
    """``stepscope reproduce``."""
    _require_all()
    from stepscope.paper.experiments.jobs import in_processes
    from stepscope.paper.experiments.run_files import run_directories
    from stepscope.paper.reproduction.costs import measured_cost
    from stepscope.paper.reproduction.plan import prepare_directory, run_reproduction
    from stepscope.report import print_tables

    plan, seeds, out = _plan(options), _seeds(options), _out(options)
    on_cores = options.scale in _ON_CORES
    if options.job or options.list:
        _jobs(options, plan, out)
        return
    jobs = options.jobs if options.jobs is not None else (os.cpu_count() or 1) if on_cores else 1
    execute = in_processes(jobs) if options.executor == "here" else _by_scheduler(options, out)
    costs = {experiment.run_name: measured_cost(experiment, seeds) for experiment in plan}
    table = _plan_table(plan, costs, jobs)
    if options.dry_run:
        print_tables([table])
        return
    prepare_directory(plan, out)
    # Like the progress: whoever reads the results may stop reading, and the runs are to go on.
    print_tables([table], require("rich.console", "cli").Console(stderr=True))
    if on_cores:
        require("torch", "all").set_num_threads(1)
    started = time.perf_counter()
    with shown_progress() as progress:
        weights = {name: cost.minutes for name, cost in costs.items() if cost}
        apart = options.executor != "here"
        failures = run_reproduction(plan, out, progress, execute=execute, weights=weights, apart=apart)
    seconds = time.perf_counter() - started
    for failure in failures:
        print(f"{failure.name} failed: {failure.reason}", file=sys.stderr)
    if run_directories(out):
        _reproduced(out)
    print(f"\nThe runs took {seconds:.0f} s this time.")
    if failed := len({failure.name for failure in failures}):
        raise UsageError(f"{failed} of {len(plan)} runs failed (above); the same command tries them again")


def _plan(options: argparse.Namespace) -> list[Experiment[Any]]:
    from stepscope.paper.experiments.command_lines import sources_of
    from stepscope.paper.reproduction.plan import reproduction

    return reproduction(
        options.scale,
        only=options.only,
        seeds=tuple(range(_seeds(options))),
        settings=options.settings,
        sources=sources_of(options.source),
        tasks=options.tasks,
        released=options.released,
    )


def _seeds(options: argparse.Namespace) -> int:
    if options.seeds is not None and options.seeds < 1:
        raise UsageError(f"--seeds {options.seeds}: it is how many, at least 1")
    return options.seeds if options.seeds is not None else 1 if options.scale == "smoke" else 5


def _out(options: argparse.Namespace) -> Path:
    return Path(options.out or f"runs/reproduce-{options.scale}")


def _jobs(options: argparse.Namespace, plan: Sequence[Experiment[Any]], out: Path) -> None:
    """Does one job of a reproduction, or prints the commands of those that are left."""
    from stepscope.paper.experiments.jobs import perform
    from stepscope.paper.reproduction.plan import check_directory, job_named, jobs_left
    from stepscope.runs import DirectoryInUseError

    if options.list:
        for left in jobs_left(plan, out):
            print(_command_of(options, left))
        return
    job = job_named(plan, out, options.job)
    check_directory(plan, out)
    if options.scale in _ON_CORES:
        require("torch", "all").set_num_threads(1)
    try:
        with shown_progress() as progress:
            perform(job, progress)
    except DirectoryInUseError:
        print(f"{job.name}: another process is at it", file=sys.stderr)


def _by_scheduler(options: argparse.Namespace, out: Path) -> Execute:
    from stepscope.paper.experiments.schedulers import by_ray, by_submitit
    from stepscope.paper.experiments.workers import check_processes

    parameters: dict[str, str | int | float] = {}
    for given in options.parameters:
        name, separator, value = given.partition("=")
        if not separator or not name or not value:
            raise UsageError(f"--parameters {given}: give NAME=VALUE, such as timeout_min=60")
        number = float(value) if value.replace(".", "", 1).isdecimal() else None
        parameters[name] = value if number is None else int(value) if value.isdecimal() else number
    if options.jobs is not None:
        check_processes(options.jobs)
    command = partial(_command_of, options)
    if options.executor == "ray":
        return by_ray(command, options.jobs, parameters)
    return by_submitit(command, out / "submitit", options.jobs, parameters)


def _command_of(options: argparse.Namespace, job: Job) -> str:
    """The command that does one job of a reproduction, with all that was asked for."""
    lists = {"--only": options.only, "--tasks": options.tasks, "--with": options.released}
    words = [sys.executable, "-m", "stepscope", "reproduce", "--scale", options.scale, "--seeds", str(_seeds(options))]
    words += ["--as", options.settings]
    words += [word for name, given in lists.items() if given for word in (name, *given)]
    words += [word for source in options.source for word in ("--source", source)]
    return shlex.join([*words, "--out", str(_out(options)), "--job", job.name])


def _plan_table(plan: Sequence[Experiment[Any]], costs: Mapping[str, Cost | None], jobs: int) -> Table:
    from stepscope.report import NOTHING, Table

    rows = []
    for experiment in plan:
        cost = costs[experiment.run_name]
        measured = (f"{cost.minutes:.1f}", f"{cost.memory:.1f}") if cost else (NOTHING, NOTHING)
        rows.append((f"{experiment.entry.letter} {experiment.run_name}", *measured, experiment.extent))
    known = [cost for cost in costs.values() if cost]
    if len(known) == len(plan):
        most = sum(sorted((cost.memory for cost in known), reverse=True)[:jobs])
        note = (
            f"Minutes of one core and GiB of memory, measured on two cores of a server: yours may differ. Together "
            f"{sum(cost.minutes for cost in known):.0f} minutes, and at most {most:.1f} GiB with {jobs} at a time."
        )
    else:
        missing = "Of the others they" if known else "Minutes and memory of this size"
        note = f"{'Minutes of one core and GiB of memory. ' if known else ''}{missing} were not measured."
    return Table("Plan", ("run", "minutes", "memory", "what"), tuple(rows), note)


def _reproduced(out: Path, *, draw: bool = True) -> None:
    """Writes what is made of a reproduction's records, its figures if they are to be drawn, and shows the claims."""
    from stepscope.paper import claims as about
    from stepscope.paper.experiments.run_files import read_runs
    from stepscope.paper.report.ladder_charts import ladder_figure
    from stepscope.paper.reproduction.reproduction_page import write_reproduction
    from stepscope.report import print_tables

    runs, others = read_runs(out), about.read_others(out)
    claims = about.judge(runs)
    table, opening = about.claims_table(claims, others), about.learned(claims, others)
    rungs = about.climbed(claims, others)
    tables = [table, about.parts_table(claims), about.later_rules_table(), about.departures_table(claims)]
    tables += [ladder] if (ladder := about.ladder_table(rungs)) else []
    tables += about.factor_tables(runs, about.ALONG_TRAJECTORIES)
    with shown_progress() as progress:
        write_reproduction(out, runs, tables, progress, opening=opening, draw=draw, figures=[ladder_figure(rungs)])
    _write_claims(out / "claims.json", claims)
    print_tables([table])
    print(opening)
    for title, name in (
        ("Claims", "claims.json"),
        ("Page", "report.html"),
        ("Tables", "tables"),
    ):
        print(f"{title + ':':9}{out / name}")
    print(f"Figures: {out / 'figures' if draw else 'not drawn this time; --figures draws all of them as PDF'}")


def _write_claims(path: Path, claims: Sequence[JudgedClaim]) -> None:
    from stepscope.paper.claims import claims_json
    from stepscope.runs import write_atomically

    text = json.dumps(claims_json(claims), indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode(errors="replace"))


def _put_beside(out: Path, others: Sequence[str]) -> None:
    """Judges other reproductions, and keeps their claims in the directory of one."""
    from stepscope.paper.claims import BESIDE, judge
    from stepscope.paper.experiments.run_files import read_runs

    for other in map(Path, others):
        if other.resolve() == out.resolve():
            raise UsageError(f"--beside {other}: it is the reproduction itself")
        (out / BESIDE).mkdir(exist_ok=True)
        _write_claims(out / BESIDE / f"{other.resolve().name}.json", judge(read_runs(other)))


def report(options: argparse.Namespace) -> None:
    """``stepscope report``."""
    from stepscope.paper.experiments.run_files import run_directories, write_page
    from stepscope.runs import is_run

    run = Path(options.run_directory)
    if options.watch:
        _watch(run, options)
        return
    if not is_run(run) and run_directories(run):
        if options.out:
            raise UsageError(f"{run} is a reproduction, whose page stands beside its figures: leave out --out")
        _put_beside(run, options.beside)
        _reproduced(run, draw=options.figures)
        return
    if options.figures or options.beside:
        option, what = ("--figures", "figures") if options.figures else ("--beside", "others")
        raise UsageError(f"{run} is no reproduction, which alone has {what} beside its page: leave out {option}")
    print(write_page(run, Path(options.out) if options.out else run / "report.html"))


def _watch(run: Path, options: argparse.Namespace) -> None:
    """Serves the page of a run until Ctrl-C."""
    from stepscope.paper.experiments.run_files import page_of, run_directories
    from stepscope.report.watch import PageServer, version_of
    from stepscope.runs import is_run

    if options.out or options.figures or options.beside:
        option = "--out" if options.out else "--figures" if options.figures else "--beside"
        raise UsageError(f"--watch writes nothing: leave out {option}")
    if not is_run(run) and run_directories(run):
        raise UsageError(f"{run} is a reproduction, whose page is written: leave out --watch")
    with PageServer(partial(page_of, run), partial(version_of, run)) as server:
        server.page()  # a mistake is said before anything is served
        print(f"{server.address} shows the page, and what is measured from now on. Ctrl-C ends it.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


def figures(options: argparse.Namespace) -> None:
    """``stepscope figures``."""
    from stepscope.paper.experiments.run_files import write_figures

    run = Path(options.run_directory)
    out = Path(options.out) if options.out else run / "figures"
    if not (written := write_figures(run, out, options.format)):
        raise UsageError(f"{run} has nothing to draw yet")
    print(*written, sep="\n")


def findings(options: argparse.Namespace) -> None:
    """``stepscope findings``."""
    from stepscope.judging import findings as findings_of
    from stepscope.shown import printable

    found = findings_of(options.run_directory)
    if options.json:
        print(json.dumps(found.as_json(), indent=1))
    else:
        print(folded_to_terminal("\n".join(printable(line) for line in str(found).splitlines())))


def summary(options: argparse.Namespace) -> None:
    """``stepscope summary``."""
    from stepscope.report import print_tables, run_summary
    from stepscope.shown import printable

    summed = run_summary(_training(options.run_directory))
    if options.json:
        print(json.dumps(summed.as_json(), indent=1))
        return
    paragraphs = filter(None, ("\n".join(summed.lines), str(summed.findings)))
    for line in "\n\n".join(paragraphs).split("\n"):
        print(folded_to_terminal(printable(line)))
    print()
    print_tables(summed.tables)


def compare(options: argparse.Namespace) -> None:
    """``stepscope compare``."""
    from stepscope.report import compare as beside
    from stepscope.report import print_tables
    from stepscope.shown import printable

    paths = options.run_directories
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise UsageError("a run is given twice: there is nothing to compare")
    short = [Path(path).resolve().name for path in paths]
    names = short if len(set(short)) == len(short) else paths
    comparison = beside({name: _training(path) for name, path in zip(names, paths, strict=True)})
    if options.json:
        print(json.dumps(comparison.as_json(), indent=1))
        return
    print_tables(comparison.tables())
    for refusal in comparison.refusals:
        print(folded_to_terminal(printable(f"Not compared: {refusal}")))


def _training(path: str) -> Training:
    """The records of a run directory that holds directions."""
    from stepscope.paper.experiments.command_lines import EXPERIMENTS, TRAJECTORY
    from stepscope.runs import read_head, read_training, show

    experiment = read_head(path)["configuration"].get("experiment")
    if isinstance(experiment, str) and EXPERIMENTS.get(experiment, TRAJECTORY) is not TRAJECTORY:
        raise UsageError(f"{show(path)} is a run of {experiment}, and of no training: stepscope report shows it")
    return read_training(path)
