"""Writes the figures of the stored results into docs/cost.md, between the marks that are there.

    python benchmarks/tables.py

A test keeps the page as this prints it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "cost.md"
WAYS = {
    "this threshold": "`fraction_threshold`",
    "the clamp after it": "the clamp after it",
    "one fused Adam step": "one fused Adam step",
    "concatenate and numpy partition": "concatenate, numpy's partition",
    "concatenate and kthvalue": "concatenate, `kthvalue`",
    "concatenate and topk": "concatenate, `topk`",
    "concatenate and sort": "concatenate, sort (the paper's way)",
}


def overhead(stored: dict[str, Any]) -> str:
    """A row for each scale and limit."""
    rows = ["| scale | steps | limit | measured overhead | measurements |", "| --- | --- | --- | --- | --- |"]
    for found in stored.values():
        limit, measured = f"{100 * found['max_overhead']:g}%", f"{100 * found['overhead']:.2f}%"
        rows.append(f"| {found['scale']} | {found['steps']:,} | {limit} | {measured} | {len(found['measured_at'])} |")
    return "\n".join(rows)


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
    return "\n".join(rows)


def filled(text: str) -> str:
    """The page with the tables of the stored results."""
    for name, table in (("overhead", overhead), ("clipping", clipping)):
        made = table(json.loads((HERE / f"{name}.json").read_text()))
        mark, end = f"<!-- {name}.json -->", "<!-- end -->"
        text = re.sub(f"{mark}.*?{end}", lambda _, m=mark, t=made, e=end: f"{m}\n{t}\n{e}", text, flags=re.DOTALL)
    return text


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text()))
