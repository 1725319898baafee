"""Claims about directions, one factor at a time: a table a task, so that a reader sees what decides."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stepscope.paper.claims.verdicts import MARKS, PRETRAINED, RANDOM, Claim, Part
from stepscope.paper.reproduction_runs import Run, section
from stepscope.report import NOTHING, Table
from stepscope.runs import Record

BASE, BOTH = "(as it is)", "(random-start and hot-sgd)"


def factor_tables(runs: Sequence[Run[Record]], claims: Sequence[Claim]) -> list[Table]:
    """A table a task: a row a factor, a column a deciding part of a claim.

    The first and the last row are the trajectories of the reproduction, at the same points and seeds.

    Args:
        runs: of one reproduction; without factors among them there is no table.
        claims: those that are judged along trajectories.
    """
    tasks = dict.fromkeys(run.task for run in runs if run.experiment == "factors")
    return [table for task in tasks if (table := _table(task, runs, claims))]


def _table(task: str, runs: Sequence[Run[Record]], claims: Sequence[Claim]) -> Table:
    factors = [run for run in runs if run.experiment == "factors" and run.task == task]
    rows = []
    for name, run in _compared(task, runs, factors):
        parts = {_header(claim, part): part for claim in claims for part in _parts(claim, run)}
        model = section(run.context, "model")
        share = f"{model['embedding']:.0%}" if "embedding" in model else NOTHING
        rows.append((name, str(model.get("parameters", NOTHING)), share, parts))
    headers = list(dict.fromkeys(header for *_, parts in rows for header in parts))
    cells = tuple(
        (*facts, *(_cell(parts[header]) if header in parts else NOTHING for header in headers))
        for *facts, parts in rows
    )
    note = (
        "A cell: the mean over seeds, Student's interval, and the verdict on this part of the claim (✓ holds, ✗ does "
        "not hold, ? cannot be told). A row changes one factor; padding and equal weights come with short texts. The "
        "embedding is a share of the parameters."
    )
    title = f"One factor at a time, {task}, scale {', '.join(dict.fromkeys(run.scale for run in factors))}"
    return Table(title, ("factor", "parameters", "embedding", *headers), cells, note)


def _compared(
    task: str, runs: Sequence[Run[Record]], factors: Sequence[Run[Record]]
) -> Iterator[tuple[str, Run[Record]]]:
    """The runs of a table as trajectories with the points and seeds of the factors, with their names."""
    like = factors[0].head["configuration"]
    same = {name: like.get(name) for name in ("steps", "seeds", "directions")}
    ends = {
        _start(run): run for run in runs if run.experiment == "trajectory" and run.task == task and not _released(run)
    }
    if PRETRAINED in ends:
        yield BASE, _as_trajectory(ends[PRETRAINED], **same)
    for run in factors:
        yield str(run.head["configuration"].get("factor")), _as_trajectory(run)
    if RANDOM in ends:
        yield BOTH, _as_trajectory(ends[RANDOM], **same)


def _as_trajectory(run: Run[Record], **settings: object) -> Run[Record]:
    configuration = {**run.head["configuration"], "experiment": "trajectory", **settings}
    return replace(run, head={**run.head, "configuration": configuration})


def _start(run: Run[Record]) -> str:
    began = str(section(run.context, "model").get("initialisation"))
    return PRETRAINED if began.startswith(PRETRAINED) else RANDOM


def _released(run: Run[Record]) -> bool:
    return bool(run.head["configuration"].get("released"))


def _parts(claim: Claim, run: Run[Record]) -> list[Part]:
    return [part for part in claim.judge([run]).parts if part.deciding and part.sample.runs]


def _header(claim: Claim, part: Part) -> str:
    return " ".join(word for word in (claim.id, part.criterion.name, part.criterion.threshold) if word)


def _cell(part: Part) -> str:
    return f"{part.number} {MARKS[part.verdict]}"
