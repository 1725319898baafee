"""Writes the figures of the stored results into the pages of docs/ that show them, between the marks there.

    python benchmarks/tables.py

A test keeps the pages as this prints them.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from calibrated import CONFIDENCE, confidence, of_calibration
from performance import performance
from reproduced import of_reproduction
from scale import gathered, of_gradients

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
PAGES = tuple(
    DOCS / f"{name}.md"
    for name in ("performance", "convergence", "smoothness", "theory", "reproduction", "calibration", "scale")
)
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
    return {
        "clipping.json": clipping(_stored("clipping")),
        "spikes.json": spikes(_stored("spikes")),
        "multipliers.json": multipliers(_stored("multipliers")),
        "scale.json": counted_bytes(_stored("scale")),
        "scale plan": plan_of_scale(),
        "threshold.json": sharded_threshold(_stored("threshold")),
        "pages.json": pages(_stored("pages")),
        "kills.json": kills(_stored("kills")),
        **performance(_stored("performance")),
        **of_reproduction(_stored("again")),
        **of_calibration(),
    }


def _stored(name: str) -> dict[str, Any]:
    return dict(json.loads((HERE / f"{name}.json").read_text()))


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    CONFIDENCE.write_text(confidence())
