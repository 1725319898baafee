"""The tables of docs/performance.md, from what `measure.py` stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stepscope.report import Table

Row = dict[str, Any]


def performance(stored: dict[str, Any]) -> dict[str, str]:
    """The content of each mark of the page: one for each section that is stored, and one for the errors."""
    tables = {
        "models": lambda rows: by_way(rows, lambda row: f"{row['model']}, {millions(row)}", forwards),
        "sequence": lambda rows: by_way(rows, lambda row: row["model"], forwards),
        "directions": lambda rows: by_way(rows, lambda row: f"K = {row['directions']}", forwards, with_count=False),
        "parameters": lambda rows: by_way(rows, millions, forwards),
        "memory": lambda rows: by_way(rows, lambda row: f"K = {row['directions']}", times, with_count=False),
        "probe": probe,
        "overhead": overhead,
        "own steps": own_steps,
    }
    made = {name: f"Not measured: `python benchmarks/measure.py --sections {name}`." for name in tables}
    for name, section in stored.items():
        made[name] = "\n\n".join([tables[name](labeled(section)), *reasons(section["rows"]), provenance(section)])
    made["errors"] = by_way(stored["models"]["rows"], lambda row: row["model"], error)
    return {f"performance {name}": content for name, content in made.items()}


def labeled(section: dict[str, Any]) -> list[Row]:
    """The rows of a section, and those of the other source with its name."""
    label = f", at {section['against']}"
    before = [row | {"label": label} for row in section["before"]]
    return [*section["rows"], *before]


def by_way(
    rows: list[Row], column: Callable[[Row], str], cell: Callable[[Row], str], *, with_count: bool = True
) -> str:
    """A line for each way, a column for each case."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        count = f", K = {row['directions']}" if with_count else ""
        cells.setdefault(f"{title(row['way'])}{count}{row.get('label', '')}", {})[column(row)] = cell(row)
    columns = list(dict.fromkeys(column(row) for row in rows))
    lines = [[way, *(by_column.get(name, "") for name in columns)] for way, by_column in cells.items()]
    return _rows(["", *columns], lines)


def title(way: str) -> str:
    """A way's name in the tables."""
    return {
        "measure": "**`measure`**",
        "measure, uᵀHu < 0": "**`measure`**, every `uᵀHu` < 0",
        "full": "**`measure`**, landscape and breakdown",
        "vhp loop": "`vhp` loop (the paper's way)",
    }.get(way, way)


def forwards(row: Row) -> str:
    """Forwards a direction: the median, and the range of the rounds."""
    if "median" not in row:
        return "–"
    if row["least"] == row["greatest"]:
        return f"{row['median']:.1f}"
    return f"{row['median']:.1f} ({row['least']:.1f}–{row['greatest']:.1f})"


def error(row: Row) -> str:
    """The relative error of the values."""
    return f"{row['error']:.0e}" if "error" in row else "–"


def times(row: Row) -> str:
    """Peak memory over that of forward and backward."""
    return f"{row['times']:.1f} ×" if "times" in row else "–"


def probe(rows: list[Row]) -> str:
    """A line for each model, in training steps."""
    lines = [
        [
            f"{row['model']}, {millions(row)}{row.get('label', '')}",
            *(
                f"{row[name]['median']:.0f} ({row[name]['least']:.0f}–{row[name]['greatest']:.0f})"
                for name in ("attach", "measure")
            ),
            str(row["directions"]),
            f"{row['idle']['median']:.2f} ({row['idle']['least']:.2f}–{row['idle']['greatest']:.2f})",
        ]
        for row in rows
    ]
    return _rows(["in training steps", "attaching", "a measurement", "its directions", "an idle step"], lines)


def overhead(rows: list[Row]) -> str:
    """A line for each training."""
    lines = [
        [
            f"{row['model']}, {millions(row)}{row.get('label', '')}",
            f"{row['steps']:,}",
            f"{row['limit']:.0%}",
            f"{row['overhead']:.2%}",
            str(len(row["measured_at"])),
            "yes" if row["same_last_loss"] else "**no**",
        ]
        for row in rows
    ]
    heads = ["training", "steps", "limit", "measured overhead", "in full", "same as without a probe"]
    return _rows(heads, lines)


def own_steps(rows: list[Row]) -> str:
    """A line for each length."""
    lines = [
        [
            f"{row['model']}, {millions(row)}{row.get('label', '')}",
            f"{row['steps']:,}",
            f"{row['limit']:.1%}",
            str(row["on_own_batches"]),
            str(row["judged"]),
            str(row["edges"]),
            f"{row['overhead']:.2%}",
            "yes" if row["same_last_loss"] else "**no**",
        ]
        for row in rows
    ]
    heads = ["training", "steps", "limit", "on their own batches", "for the verdict", "edges", "measured overhead"]
    heads += ["same as without a probe"]
    return _rows(heads, lines)


def reasons(rows: list[Row]) -> list[str]:
    """A line for each way that has no figure, with its models."""
    models: dict[str, list[str]] = {}
    for row in rows:
        if "reason" in row:
            models.setdefault(f"{row['way']}: {row['reason']}", []).append(row["model"])
    return [f"- {reason} ({', '.join(dict.fromkeys(names))})." for reason, names in models.items()]


def provenance(section: dict[str, Any]) -> str:
    """When, on what, and with which versions it was measured."""
    where = section["environment"]
    versions = {name: where["versions"][name] for name in ("torch", "transformers")} | where["packages"]
    machine = where["accelerator"] or f"{where['processor']}, {where['threads']} thread"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"Measured {where['measured'][:10]} at commit {section['commit']} on {machine}; {packages}."


def millions(row: Row) -> str:
    """How many parameters."""
    return f"{row['parameters'] / 1e6:.2g}M parameters"


def markdown(table: Table) -> str:
    """A table of text."""
    rows = [table.headers, ("---",) * len(table.headers), *table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def with_note(table: Table) -> str:
    """A table of text, and what is to be said of it."""
    return f"{markdown(table)}\n\n{table.note}"


def _rows(heads: list[str], lines: list[list[str]]) -> str:
    return markdown(Table("", tuple(heads), tuple(map(tuple, lines)), ""))
