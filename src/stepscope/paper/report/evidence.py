"""What the experiments on robust smoothness and on theory found, as tables of text: for the terminal and the page."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from stepscope.report import Table
from stepscope.runs import Record, number


def robustness_tables(records: Sequence[Record]) -> list[Table]:
    """Robust smoothness by group of coordinates and cut, over trajectories, steps, batches and seeds (Table 8).

    Example:
        >>> one = {"group": "attention", "cut": 4.0, "seed": 0, "ratio": 3.0, "fraction": 0.05, "random_ratio": 1.01}
        >>> robustness_tables([one])[0].rows
        (('attention, cut 4', '1', '3', '3…3', '1/1', '5.0%', '1.01'),)
    """
    rows = []
    for (group, cut), found in _by(records, "group", "cut").items():
        ratios = _numbers(found, "ratio")
        if ratios:
            random = _numbers(found, "random_ratio")
            rows.append((
                f"{group}, cut {cut:g}" if isinstance(cut, int | float) else f"{group}, {cut}",
                str(len(found)),
                f"{statistics.median(ratios):.3g}",
                f"{min(ratios):.3g}…{max(ratios):.3g}",
                f"{sum(ratio >= 2 for ratio in ratios)}/{len(ratios)}",
                f"{statistics.median(_numbers(found, 'fraction')):.1%}",
                f"{max(random):.2f}" if random else "-",
            ))  # fmt: skip
    headers = ("coordinates", "measured", "times smoother", "from…to", "at least 2", "removed", "at random")
    note = (
        "Spectral norm of the Gauss-Newton matrix divided by that without the coordinates whose column norm is at "
        "least so many times (cut) the mean. Medians; 'at random': the largest ratio where as many go at random."
    )
    return (
        [Table(f"Robust smoothness, {_seeds(records)}", headers, tuple(rows), note, "robust-smoothness")]
        if rows
        else []
    )


def theory_tables(records: Sequence[Record]) -> list[Table]:
    """The bound of appendix A on drawn losses, and curvature against gradient by coordinates (§4.2)."""
    return [table for table in (_bounds(records), _correlations(records)) if table.rows]


def _bounds(records: Sequence[Record]) -> Table:
    rows = []
    for (family, fraction), found in _by(records, "family", "fraction").items():
        if family is None:
            continue
        draws = sum(int(record["draws"]) for record in found)
        parts = [record[name] for record in found for name in ("clipped", "plain", "block") if record.get(name)]
        rows.append((
            f"{family}, clip {float(fraction):.0%}",
            f"{draws:,}",
            str(sum(part["violations"] for part in parts)),
            f"{min(part['least_margin'] for part in parts):.2g}",
            *(f"{sum(record[name] for record in found) / draws:.1%}" for name in ("guarantees_more", "decreases_more")),
            str(sum(record["disagreements"] for record in found)),
        ))  # fmt: skip
    headers = ("loss", "draws", "violations", "least margin", "bound larger", "decrease larger", "disagreements")
    note = (
        "Measured decrease against the guaranteed one, with clipping, without, and by blocks; the margin is relative. "
        "'Larger': with clipping than without. 'Disagreements': draws in which the derived condition says otherwise."
    )
    return Table(f"The bound of appendix A, {_seeds(records)}", headers, tuple(rows), note, "the-bound-of-appendix-a")


def _correlations(records: Sequence[Record]) -> Table:
    rows = []
    for (group,), found in _by([record for record in records if "diagonal" in record], "group").items():
        cells = [str(group), str(len(found))]
        for name in ("diagonal", "row_norm"):
            parts = [record[name] for record in found if number(record[name], "rho") is not None]
            rhos = [part["rho"] for part in parts]
            above = sum(part["low"] > 0 for part in parts)
            cells += [f"{min(rhos):.2f}…{max(rhos):.2f}" if rhos else "-", f"{above}/{len(parts)}"]
        rows.append(tuple(cells))
    headers = ("coordinates", "measured", "with |diagonal|", "above 0", "with row norm", "above 0")
    note = (
        "Spearman's rank correlation of |gradient| with the Hessian's diagonal and with the norm of its row, "
        "coordinate by coordinate. 'Above 0': 95% intervals that lie wholly above 0; they cover the sampling of "
        "coordinates alone."
    )
    return Table(
        f"Curvature against gradient, {_seeds(records)}", headers, tuple(rows), note, "curvature-against-gradient"
    )


def agreement_tables(records: Sequence[Record]) -> list[Table]:
    """Sharpness by two independent paths, at one point of each task.

    Example:
        >>> one = {"task": "code", "direction": "sgd", "step": 15, "sharpness": 2.0, "independent": 2.0}
        >>> agreement_tables([one])[0].rows
        (('code', '15', '1', '0e+00', 'sgd', '2'),)
    """
    rows = []
    for (task, step), found in _by(records, "task", "step").items():
        pairs = [
            (abs(measured - independent), record)
            for record in found
            if (measured := number(record, "sharpness")) is not None
            and (independent := number(record, "independent")) is not None
        ]
        largest = max((abs(record["independent"]) for _, record in pairs), default=0.0)
        if pairs and largest:
            worst, record = max(pairs, key=lambda pair: pair[0])
            rows.append((
                str(task),
                str(step),
                str(len(pairs)),
                f"{worst / largest:.0e}",
                str(record.get("direction")),
                f"{largest:.3g}",
            ))  # fmt: skip
    headers = ("task", "step", "directions", "largest difference", "of direction", "largest sharpness")
    note = (
        "Sharpness as recorded (float32, double backward) against differences of float64 gradients that share no code "
        "with it. The difference is relative to the largest sharpness among the directions."
    )
    title = "The measured sharpness, by another path"
    return [Table(title, headers, tuple(rows), note, "the-measured-sharpness")] if rows else []


def _by(records: Iterable[Record], *keys: str) -> dict[tuple[Any, ...], list[Record]]:
    found: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        found.setdefault(tuple(record.get(key) for key in keys), []).append(record)
    return found


def _seeds(records: Iterable[Record]) -> str:
    count = len({record.get("seed") for record in records})
    return f"{count} seeds" if count > 1 else "one seed"


def _numbers(records: Iterable[Record], name: str) -> list[float]:
    return [value for record in records if (value := number(record, name)) is not None]
