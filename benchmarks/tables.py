"""Writes the figures of the stored results into the pages of docs/ that show them, between the marks there.

    python benchmarks/tables.py

A test keeps the pages as this prints them.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

from performance import performance
from scale import gathered, of_gradients
from stepscope.calibration.analysis import calibrated, cases_of
from stepscope.calibration.jobs import SETS, curves
from stepscope.calibration.study import read_study
from stepscope.calibration.tables import later, rules, tables_of
from stepscope.calibration.tables import parts as calibration_parts
from stepscope.calibration.tables import verdicts as spoken
from stepscope.calibration.training import TrainingRecord
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

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = tuple(
    DOCS / f"{name}.md"
    for name in ("performance", "convergence", "smoothness", "theory", "reproduction", "calibration", "scale")
)
CALIBRATION = DOCS / "calibration"
FIXED_ON = {"fresh": 90, "long": 24}
"""So many curves of the plan had been seen when the thresholds were fixed, of each set of tasks."""
CONFIDENCE = HERE.parent / "src" / "stepscope" / "judging" / "confidence.json"
RESULTS = DOCS / "reproduction"
WAYS = {
    "this threshold": "`fraction_threshold`",
    "the clamp after it": "the clamp after it",
    "one fused Adam step": "one fused Adam step",
    "concatenate and numpy partition": "concatenate, numpy's partition",
    "concatenate and kthvalue": "concatenate, `kthvalue`",
    "concatenate and topk": "concatenate, `topk`",
    "concatenate and sort": "concatenate, sort (the paper's way)",
}


def clipping(stored: dict[str, Any]) -> str:
    """A column for each size, a row for each way, in reads of the data."""
    sizes = stored["sizes"]
    rows = ["| in reads of the gradient | " + " | ".join(f"N = {float(size):.0e}" for size in sizes) + " |"]
    rows.append("| --- |" + " --- |" * len(sizes))
    for name, title in WAYS.items():
        rows.append(f"| {title} | " + " | ".join(f"{found['reads'][name]:.1f}" for found in sizes.values()) + " |")
    for name, title in (("times faster than concatenate and sort", "times faster than sorting"),):
        rows.append(f"| {title} | " + " | ".join(f"{found[name]:.0f}" for found in sizes.values()) + " |")
    rows.append(
        "| threshold and clamp, in fused Adam steps | "
        + " | ".join(f"{found['fused Adam steps']:.1f}" for found in sizes.values())
        + " |"
    )
    for fraction in ("0.1", "0.5"):
        parts = " | ".join(f"{found['extra memory'][fraction]:.1%}" for found in sizes.values())
        rows.append(f"| extra memory, a fraction of {fraction} clipped | {parts} |")
    step = stored["step"]
    rows.append(
        f"\nIn a training step of a transformer of {step['parameters'] / 1e6:.0f} million parameters with fused AdamW, "
        f"on 1,024 tokens, the clip itself takes {step['fraction']:.1%} of the processor time, `clip_grad_norm_` "
        f"{step['norm']:.1%}; whole steps with and without the clip differ by {step['fraction, of pairs']:.1%} and "
        f"{step['norm, of pairs']:.1%} (medians of few pairs)."
    )
    return "\n".join(rows)


def spikes(stored: dict[str, Any]) -> str:
    """A row for each number and rate of false alarms: spikes foretold, of all of a cause, and the median lead."""
    causes = list(stored["lines"][0]["foretold"])
    rows = [
        "| number | allowed | false alarms | " + " | ".join(causes) + " |",
        "| --- |" + " --- |" * (len(causes) + 2),
    ]
    for line in stored["lines"]:
        found = line["foretold"].values()
        cells = [f"{f['foretold']} of {f['spikes']}" + (f", {f['lead']:g}" if f["foretold"] else "") for f in found]
        alarms = f"1 in {1 / line['allowed']:.0f} | 1 in {1 / line['false_alarms']:.0f}"
        rows.append(f"| {line['number']} | {alarms} | " + " | ".join(cells) + " |")
    rows.append(f"\n{stored['seeds']} seeds a task and cause; spikes in the controls: {stored['spikes_in_controls']}.")
    return "\n".join(rows)


def multipliers(stored: dict[str, Any]) -> str:
    """A row for each optimizer, place of the rate and way to follow the multipliers."""
    rows = [
        "| optimizer | rate | multipliers | ends lower | median change | largest rise | lower than all alike |",
        "| --- |" + " --- |" * 6,
    ]
    for line in stored["lines"]:
        of = f"of {line['trainings']}"
        alike = "" if line["arm"] == "all alike" else f"{line['lower_than_all_alike']} {of}"
        cells = (line["optimizer"], line["rate"], line["arm"], f"{line['lower']} {of}", f"{line['median_change']:+.3f}",
                 f"{max(line['worst'], 0.0):.3f}", alike)  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    rows.append(
        f"\n{stored['seeds']} seeds; losses in nats, held out. Below, best and above: of three rates, √10 apart."
    )
    return "\n".join(rows)


def counted_bytes(stored: dict[str, Any]) -> str:
    """A row for each measurement and number of ranks, with the range over widths of counted by foretold bytes."""
    found: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in stored["rows"]:
        found.setdefault((row["measured"], row["ranks"]), []).append(row)
    lines = [
        "| measured | ranks | bytes, smallest to largest model | counted / foretold | other bytes |",
        "| --- |" + " --- |" * 4,
    ]
    for (measured, ranks), rows in found.items():
        ratios = [row["counted"] / row["foretold"] for row in rows]
        sizes = f"{rows[0]['counted'] / 1e6:.1f} to {rows[-1]['counted'] / 1e6:.1f} MB"
        beside = max(row["beside"] for row in rows)
        lines.append(f"| {measured} | {ranks} | {sizes} | {min(ratios):.3f} to {max(ratios):.3f} | {beside:,} |")
    sizes = sorted({row["parameters"] for row in stored["rows"]})
    lines.append(f"\nModels of {', '.join(f'{size:,}' for size in sizes)} parameters.")
    return "\n".join(lines)


SHARDED = (("sharded", "whole"), ("sharded", "part"), ("exchanges", "whole"))


def sharded_threshold(stored: dict[str, Any]) -> str:
    """A row for each size and number of ranks."""
    heads = ["coordinates", "ranks", "bytes that a rank gives", "exchanges", "time beside one process with the whole"]
    heads += ["beside one with a rank's part", "its exchanges alone, beside the whole", "equal to the bit"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]
    for row in stored["rows"]:
        times = [f"{row[own] / row[other]:.1f} ×" for own, other in SHARDED]
        cells = [f"{row['coordinates']:,}", row["ranks"], f"{row['bytes']:,}", row["calls"], *times]
        lines.append("| " + " | ".join(map(str, [*cells, "yes" if row["equal"] else "no"])) + " |")
    return "\n".join(lines)


def kills(stored: dict[str, Any]) -> str:
    """A row for each engine: what was killed, and what differs from the records of one process."""
    heads = ["jobs by", "jobs", "kills", "of a whole group", "while pretraining", "after a record", "torn files"]
    heads += ["runs of the engine", "records", "lost", "twice", "files that differ"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]
    for row in stored["rows"]:
        counts = [
            sum(count for kind, count in row["kills"].items() if word in kind)
            for word in ("", "group", "pretraining", "recording")
        ]
        cells = [row["jobs"], *counts, row["torn"], row["rounds"], row["records"], row["lost"], row["twice"]]
        lines.append(f"| {row['engine']} | " + " | ".join(map(str, [*cells, len(row["differing"])])) + " |")
    return "\n".join(lines)


def pages(stored: dict[str, Any]) -> str:
    """A row for each page and width, with seconds of what it was used for."""
    heads = {"first_paint": "first paint", "drawn": "all charts drawn", "slider": "a move of the slider"}
    heads |= {"header": "sort", "highlight": "highlight", "dark": "dark"}
    titles = ["page", "bytes", "`stepscope report`", "pixels", "charts", *heads.values()]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " --- |" * (len(titles) - 1)]
    for row in stored["rows"]:
        seconds = ["–" if row[name] is None else f"{row[name]:.2f} s" for name in heads]
        made = f"{row['bytes']:,}", f"{row['cpu']:.1f} s", str(row["width"]), str(row["charts"])
        lines.append("| " + " | ".join([row["page"], *made, *seconds]) + " |")
    about, loads = stored["environment"], [row["load"] for row in stored["rows"]]
    first = max(row["cpu_first"] for row in stored["rows"] if row["page"] != "reproduction")
    lines.append(
        f"\nMeasured {about['measured'][:10]} on {about['processor']}, {about['cores']} cores, Chromium "
        f"{about['chromium']} without a GPU, beside other work: the load was {min(loads):.1f} to {max(loads):.1f}. The "
        f"first page after an installation takes {first:.1f} s of the processor."
    )
    return "\n".join(lines)


def plan_of_scale() -> str:
    """A row for each size of a model, with the ranks that such a model is spread over."""
    heads = ["parameters", "ranks", "a rank's part", "a loss", "an edge", "a gradient", "`uᵀHu` of one direction"]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " --- |" * (len(heads) - 1)]
    for size, ranks in ((1e8, 8), (1e9, 8), (1e10, 64), (1e11, 512), (1e12, 4096)):
        loss, gradient = 2 * gathered(size, ranks, 1), of_gradients(size, ranks, 1, 1) / 2
        cells = (n / 1e9 for n in (2 * size / ranks, loss, 8 * loss, gradient, loss + 5 * gradient))
        lines.append(
            f"| {size:.0e} | {ranks:,} | "
            + " | ".join(f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in cells)
            + " |"
        )
    return "\n".join(lines)


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
    table = loss_table(records)
    return f"{markdown(table)}\n\n{table.note}"


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


def markdown(table: Table) -> str:
    """A table of text."""
    rows = [table.headers, ("---",) * len(table.headers), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def filled(text: str) -> str:
    """The page with the tables of the stored results."""
    end = "<!-- end -->"
    for name, content in stored_tables().items():
        mark = f"<!-- {name} -->"
        text = re.sub(f"{mark}.*?{end}", lambda _, m=mark, t=content, e=end: f"{m}\n{t}\n{e}", text, flags=re.DOTALL)
    return text


@cache
def stored_tables() -> dict[str, str]:
    """Each table by the mark where it stands."""
    made = {
        "clipping.json": clipping(_stored("clipping")),
        "spikes.json": spikes(_stored("spikes")),
        "multipliers.json": multipliers(_stored("multipliers")),
        "scale.json": counted_bytes(_stored("scale")),
        "scale plan": plan_of_scale(),
        "threshold.json": sharded_threshold(_stored("threshold")),
        "pages.json": pages(_stored("pages")),
        "kills.json": kills(_stored("kills")),
        **performance(_stored("performance")),
    }
    made |= {table.__name__: table(read(RESULTS / "convergence")[1]) for table in (losses, verdicts)}
    runs = read_runs(RESULTS)
    claims, others = judge(runs), read_others(RESULTS)
    made |= {"claims": markdown(claims_table(claims, others)), "departures": markdown(departures_table(claims))}
    made |= {"later rules": markdown(later_rules_table()), "learned": learned(claims, others)}
    made["again"] = again(claims_json(claims), _stored("again"))
    if ladder := ladder_table(climbed(claims, others)):
        made["ladder"] = f"{markdown(ladder)}\n\n{ladder.note}"
    factors = factor_tables(runs, ALONG_TRAJECTORIES)
    shown = [f"{table.title}\n\n{markdown(table)}\n\n{table.note}" for table in factors]
    made["factors"] = "\n\n".join(shown) or "Not measured yet."
    made |= {"sharpness": sharpness(runs), "decreases": decreases(runs), "parts of sharpness": parts_of_sharpness(runs)}
    made["vocabularies"] = of_vocabularies(runs)
    for name in ("agreement", "robustness", "theory"):
        made[name] = "\n\n".join(map(markdown, EXPERIMENTS[name].load().tables(read(RESULTS / name)[1])))
    made |= {table.name: _with_note(table) for table in tables_of(trainings("study"))}
    for tasks, seen in FIXED_ON.items():
        records = trainings(tasks)
        made[f"{tasks} calibration-later"] = _with_note(later(records, curves(tasks)[seen:]))
        cases = cases_of(records)
        found = (spoken(records, cases), rules(records), calibration_parts(cases))
        made |= {f"{tasks} {table.name}": _with_note(table) for table in found}
    return made


@cache
def trainings(tasks: str) -> list[TrainingRecord]:
    """The stored trainings of the calibration, of one of its sets of tasks."""
    return read_study(CALIBRATION / ("trainings.jsonl" if tasks == "study" else f"{tasks}.jsonl"))


def confidence() -> str:
    """What a finding takes its confidence from."""
    records = [record for tasks in SETS for record in trainings(tasks)]
    return json.dumps(asdict(calibrated(cases_of(records))), indent=1) + "\n"


def _with_note(table: Table) -> str:
    return f"{markdown(table)}\n\n{table.note}"


def _stored(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / f"{name}.json").read_text()))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    CONFIDENCE.write_text(confidence())
