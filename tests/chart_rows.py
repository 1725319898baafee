"""The rows that a chart draws: what many share is written once in its data, beside lists of what differs."""

from __future__ import annotations


def unfolded(rows, fields):
    """Rows as Vega flattens them: one for each place of the lists in these fields."""
    return [
        {**row, **{field: row[field][place] for field in fields}}
        for row in rows
        for place in range(len(row[fields[0]]) if fields else 1)
    ]


def all_rows(chart):
    """The rows of all layers of a chart, those of one dataset once."""
    found = []

    def look(part, data=None):
        data = part.get("data", data)
        for layer in part.get("layer", []):
            look(layer, data)
        rows = datasets[data["name"]] if "mark" in part else []
        for transform in part.get("transform", []):
            rows = unfolded(rows, transform.get("flatten", []))
        found.extend(row for row in rows if row not in found)

    spec = chart.to_dict()
    datasets = spec["datasets"]
    look(spec)
    return found
