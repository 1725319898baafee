"""The tables of the stored reproduction of the paper, by the mark where each stands in docs/."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median
from typing import Any

from performance import markdown, with_note
from stepscope.paper.claims import (
    ALONG_TRAJECTORIES,
    claims_json,
    claims_table,
    climbed,
    conclusion,
    departures_table,
    factor_tables,
    finals_of,
    judge,
    ladder_table,
    later_rules_table,
    learned,
    pairs_of,
    read_others,
)
from stepscope.paper.experiments.command_lines import EXPERIMENTS
from stepscope.paper.experiments.run_files import read, read_runs
from stepscope.paper.records import LossRecord
from stepscope.paper.report.loss_tables import loss_table, verdict_table
from stepscope.paper.reproduction_runs import Run
from stepscope.report import Table
from stepscope.report.comparison import points_of

RESULTS = Path(__file__).parent.parent / "docs" / "reproduction"


def of_reproduction(once_more: dict[str, Any]) -> dict[str, str]:
    """Each table by its mark.

    Args:
        once_more: what `again.json` holds.
    """
    made = {table.__name__: table(read(RESULTS / "convergence")[1]) for table in (losses, verdicts)}
    runs = read_runs(RESULTS)
    claims, others = judge(runs), read_others(RESULTS)
    made |= {"claims": markdown(claims_table(claims, others)), "departures": markdown(departures_table(claims))}
    made |= {"later rules": markdown(later_rules_table()), "learned": learned(claims, others)}
    made["again"] = again(claims_json(claims), once_more)
    if ladder := ladder_table(climbed(claims, others)):
        made["ladder"] = with_note(ladder)
    factors = factor_tables(runs, ALONG_TRAJECTORIES)
    made["factors"] = "\n\n".join(f"{table.title}\n\n{with_note(table)}" for table in factors) or "Not measured yet."
    made |= {"sharpness": sharpness(runs), "decreases": decreases(runs), "parts of sharpness": parts_of_sharpness(runs)}
    made["vocabularies"] = of_vocabularies(runs)
    for name in ("agreement", "robustness", "theory"):
        made[name] = "\n\n".join(map(markdown, EXPERIMENTS[name].load().tables(read(RESULTS / name)[1])))
    return made


def again(claims: list[dict[str, Any]], stored: dict[str, Any]) -> str:
    """Verdicts of the reproduction beside those of one more, which parts differ, and what it took."""
    rows: list[tuple[str, ...]] = []
    changed, counts, about = [], Counter[bool](), stored["environment"]
    for claim, other in zip(claims, stored["claims"], strict=True):
        for here, there in zip(claim["judgments"], other["judgments"], strict=True):
            name = claim["id"] + (f", {here['reading']}" if here["reading"] else "")
            cells = (one[key] for one in (here, there) for key in ("verdict", "statistic"))
            rows.append((name, here["start"] or "any", *cells))
        for part, its in zip(claim["parts"], other["parts"], strict=True):
            counts[part["deciding"]] += 1
            if part["verdict"] != its["verdict"]:
                kind = "decides" if part["deciding"] else "doesn't decide"
                changed.append(f"{claim['id']}, {part['name']} ({kind}): {part['verdict']}, then {its['verdict']}")
    table = Table("", ("claim", "start", "stored", "statistic", "once more", "its statistic"), tuple(rows), "")
    return (
        f"{markdown(table)}\n\nAnother verdict, of {counts[True]} parts that decide and {counts[False]} that don't: "
        f"{'; '.join(changed) or 'none'}.\n\nIt took {stored['seconds']:,} s, and {stored['processor_seconds']:,} s of "
        f"processor time. Measured {about['measured'][:10]} at commit {stored['commit']} on {about['processor']}, "
        f"{about['cores']} cores; torch {about['versions']['torch']}."
    )


def losses(records: list[LossRecord]) -> str:
    """A row for each optimizer, columns for each task."""
    return with_note(loss_table(records))


def verdicts(records: list[LossRecord]) -> str:
    """A row for each variant, with what its losses minus its original's say."""
    return "\n".join([markdown(verdict_table(records)), "", conclusion(pairs_of(finals_of(records)))])


def sharpness(runs: list[Run[Any]]) -> str:
    """A row for each direction, a column for each trajectory: its sharpness by SGD's, where that is positive."""

    def cell(own: list[tuple[Any, Any]]) -> str:
        ratios = [one.sharpness / sgd.sharpness for one, sgd in own if sgd.sharpness > 0]
        return f"{median(ratios):.2g} ({min(ratios):.2g} to {max(ratios):.2g})"

    return _beside_sgd(runs, cell)


def decreases(runs: list[Run[Any]]) -> str:
    """A row for each direction, a column for each trajectory: where its best step gains more than SGD's."""
    return _beside_sgd(
        runs, lambda own: f"{sum(one.best_decrease > sgd.best_decrease for one, sgd in own)} of {len(own)}"
    )


def _beside_sgd(runs: list[Run[Any]], cell: Callable[[list[tuple[Any, Any]]], str]) -> str:
    along = [run for run in runs if run.experiment == "trajectory"]
    pairs: dict[str, dict[str, list[tuple[Any, Any]]]] = {}
    for run in along:
        for there in points_of(run.records).values():
            for direction, record in there.items():
                if direction != "sgd":
                    pairs.setdefault(direction, {}).setdefault(run.name, []).append((record, there["sgd"]))
    rows = tuple(
        (direction, *(cell(by[run.name]) if run.name in by else "–" for run in along))
        for direction, by in pairs.items()
    )
    headers = ("direction", *(run.name.removeprefix("trajectory-") for run in along))
    return markdown(Table("", headers, rows, ""))


PARTS = {
    "embedding": ("shared", "wte", "wpe", "embed"),
    "attention": ("attention",),
    "feed-forward": ("mlp", "densereludense"),
}
"""Parts of a transformer, by what stands in a layer's name."""


def parts_of_sharpness(runs: list[Run[Any]]) -> str:
    """A row for each start, trajectory and step: SGD's sharpness, and which part of it lies where. Means over seeds."""
    rows = []
    for run in runs:
        points: dict[tuple[str, int], list[Any]] = {}
        if run.experiment != "trajectory" or not re.match("trajectory-(translation|code)", run.name):
            continue
        for record in run.records:
            if record.direction == "sgd":
                points.setdefault((record.trajectory, record.step), []).append(record)
        for (trajectory, step), records in points.items():
            shares = [fmean(_share(record, part) for record in records) for part in PARTS]
            cells = [f"{share:.0%}" for share in (*shares, 1 - sum(shares))]
            mean = f"{fmean(record.sharpness for record in records):.3g}"
            rows.append((run.name.removeprefix("trajectory-"), trajectory, str(step), mean, *cells))
    headers = ("task", "trajectory", "step", "SGD's sharpness", *PARTS, "norms and others")
    return markdown(Table("", headers, tuple(rows), ""))


def _share(record: Any, part: str) -> float:
    words = PARTS[part]
    inside = [value for name, value in record.layers.items() if any(word in name.lower() for word in words)]
    return float(sum(inside) / record.sharpness)


def of_vocabularies(runs: list[Run[Any]]) -> str:
    """A row for each task and direction: its sharpness with the task's vocabulary and with a larger one. Medians.

    Beside it stands the embedding's part of it, and in the first row of a task its part of the parameters.
    """
    named, rows = {run.name: run for run in runs}, []
    for run in runs:
        configuration = run.head["configuration"]
        if configuration.get("factor") != "vocabulary":
            continue
        plain, places = named[f"trajectory-{configuration['kind']}-pretrained"], {_place(r) for r in run.records}
        both = [[r for r in plain.records if _place(r) in places], run.records]
        shares = [f"{each.head['context']['model']['embedding']:.0%}" for each in (plain, run)]
        rows.append((configuration["kind"], "(parameters)", "", shares[0], "", shares[1]))
        for direction in dict.fromkeys(r.direction for r in run.records):
            found = [[r for r in records if r.direction == direction] for records in both]
            cells = [
                text
                for records in found
                for text in (
                    f"{median(r.sharpness for r in records):.3g}",
                    f"{median(_share(r, 'embedding') for r in records):.0%}",
                )
            ]
            rows.append((configuration["kind"], direction, *cells))
    headers = ("task", "direction", "sharpness", "in the embedding", "four times the vocabulary", "in the embedding")
    return markdown(Table("", headers, tuple(rows), ""))


def _place(record: Any) -> tuple[str, int, int, str]:
    return record.trajectory, record.seed, record.step, record.direction
