"""Directions along a training as `Table`s: for the page, for LaTeX and for the documentation."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stepscope.report.comparison import NO_DESCENT, Row, directions_of, points_of, sharpness_rows, trajectories_of
from stepscope.report.names import file_name
from stepscope.report.tables import Table
from stepscope.runs import DirectionRecord
from stepscope.shown import NOTHING, format_number

_FOOTNOTES = {
    "robust": "† SGD's sharpness is negative there: the ratios are to its robust sharpness (eq. 4).",
    "negative": "‡ SGD's sharpness is negative there: the ratios are to its absolute value.",
}
"""What steps are marked with, by `Row.baseline`."""


def step_tables(records: Sequence[DirectionRecord], trajectory: str) -> dict[str, Table]:
    """All that is compared of each direction, a table a step: for the terminal, and side by side for the page of a run.

    Example:
        >>> at = {"trajectory": "sgd", "seed": 0, "step": 20}
        >>> (table,) = step_tables([DirectionRecord(**at, direction="sgd", sharpness=-8.0)], "sgd").values()
        >>> table.title, table.rows, table.marks
        ('sgd trajectory, step 20‡', (('sgd', '−1.00', '–', '–', '–'),), {('sgd', 'sharpness / |SGD|'): 'negative'})
    """
    tables = {}
    for number, of_step in itertools.groupby(sharpness_rows(records, trajectory), key=lambda row: row.step):
        rows = list(of_step)
        sharpness, decrease = "sharpness / |SGD|" if rows[0].relative else "sharpness", "best decrease"
        cells = tuple(
            (
                row.direction,
                _spread(row.sharpness, row.sharpness_spread),
                format_number(row.correlation),
                NOTHING if row.no_descent else format_number(row.best_step),
                NO_DESCENT if row.no_descent else _spread(row.best_decrease, row.best_decrease_spread),
            )
            for row in rows
        )
        sharpnesses = {row.direction: row.sharpness for row in rows if row.sharpness is not None}
        decreases = {row.direction: row.best_decrease for row in rows if row.best_decrease is not None}
        marks = {(name, sharpness): "negative" for name, value in sharpnesses.items() if value < 0}
        marks |= {(name, sharpness): "largest" for name in _most(sharpnesses)}
        marks |= {(name, decrease): "best" for name in _most(decreases) if decreases[name] > 0}
        note = _FOOTNOTES.get(rows[0].baseline, "")
        step = f"step {number:g}{note[:1]}"
        headers = ("direction", sharpness, "correlation", "best step", decrease)
        tables[step] = Table(f"{trajectory} trajectory, {step}", headers, cells, note, marks=marks)
    return tables


def _most(values: Mapping[str, float]) -> list[str]:
    """Whose value is the largest of several."""
    return [name for name, value in values.items() if value == max(values.values()) and len(values) > 1]


def sharpness_tables(records: Sequence[DirectionRecord]) -> list[Table]:
    """Directional sharpness as a ratio to |SGD's|, by trajectory, a column a step (Tables 1, 4–7, 9).

    Example:
        >>> at = {"trajectory": "sgd", "seed": 0, "step": 20}
        >>> sharpness = {"sgd": 8.0, "adam": -2.0}
        >>> (table,) = sharpness_tables([DirectionRecord(**at, direction=d, sharpness=s) for d, s in sharpness.items()])
        >>> table.headers, table.rows
        (('direction', 'step 20'), (('sgd', '1.00'), ('adam', '−0.250')))
    """
    note = "Means over seeds ± standard deviation. Signs are kept: where it is negative, the loss curves downwards."
    return _over_steps(records, "sharpness", "sharpness", "Directional sharpness", note)


def decrease_tables(records: Sequence[DirectionRecord]) -> list[Table]:
    """How far the loss falls at the best step along each direction, by trajectory, a column a step."""
    note = "Loss at the start minus loss at the first minimum along the direction, means over seeds ± deviation."
    return _over_steps(records, "decrease", "best_decrease", "Best local decrease", note)


def concentration_tables(records: Sequence[DirectionRecord]) -> list[Table]:
    """What the largest coordinates carry of a direction's squared norm and sharpness, by trajectory and step.

    A page shows those of the last step of each trajectory.
    """
    measured: dict[tuple[str, int], list[DirectionRecord]] = {}
    for (trajectory, step, _), by_direction in points_of(records).items():
        measured.setdefault((trajectory, step), []).extend(by_direction.values())
    tables = {}
    for (trajectory, step), there in measured.items():
        fractions = sorted({fraction for record in there for fraction in top_shares(record, "norm")})
        cells = []
        for direction in directions_of(there):
            own = [record for record in there if record.direction == direction]
            row = [direction]
            for whole in ("norm", "sharpness"):
                for fraction in fractions:
                    shares = [share for record in own if (share := top_shares(record, whole).get(fraction)) is not None]
                    row.append(f"{statistics.median(shares):.1%}".replace("-", "−") if shares else NOTHING)
            cells.append(tuple(row))
        if fractions:
            wholes = ("squared norm", "sharpness")
            headers = ("direction", *(f"{whole} in {fraction:g}%" for whole in wholes for fraction in fractions))
            note = (
                "What the largest so many per cent of the coordinates carry, medians over seeds. Parts of a sharpness "
                "have either sign, so that a share can be above 100%; where it is negative itself there are no shares."
            )
            title = f"Carried by the largest coordinates: weights moved by {trajectory}, step {step:g}"
            name = file_name("concentration", trajectory, f"step {step}")
            tables[trajectory, step] = Table(title, headers, tuple(cells), note, name)
    last = dict(sorted(tables))
    return [replace(table, on_page=step == last[trajectory]) for (trajectory, step), table in tables.items()]


def top_shares(record: DirectionRecord, part: str) -> dict[float, float]:
    """Shares that the largest coordinates of a direction carry, by how many per cent of all they are.

    Args:
        record: a measurement with a breakdown; without one there are none.
        part: ``"norm"`` (of the squared norm) or ``"sharpness"``; a sharpness that isn't positive has no shares.

    Example:
        >>> from stepscope.runs import RecordedShare
        >>> place = {"trajectory": "sgd", "seed": 0, "step": 1, "direction": "sgd"}
        >>> top = {"0.01": RecordedShare(norm=0.5, sharpness=6.0)}
        >>> top_shares(DirectionRecord(**place, sharpness=8.0, top=top), "sharpness")
        {1.0: 0.75}
    """
    whole = 1.0 if part == "norm" else record.sharpness
    if record.top is None or whole is None or whole <= 0:
        return {}
    shares = {}
    for name, share in record.top.items():
        fraction, value = _fraction(name), getattr(share, part)
        if fraction is not None and value is not None:
            shares[fraction] = value / whole
    return shares


def _fraction(name: str) -> float | None:
    """A positive part of 1 as per cent."""
    try:
        fraction = float(name)
    except ValueError:
        return None
    return float(f"{100 * fraction:.6g}") if 0 < fraction <= 1 else None


def _over_steps(records: Sequence[DirectionRecord], name: str, field: str, title: str, note: str) -> list[Table]:
    """Tables of a field of `Row`, by trajectory, with a row a direction and a column a step."""
    tables = []
    for trajectory in trajectories_of(records):
        rows = [row for row in sharpness_rows(records, trajectory) if getattr(row, field) is not None]
        ratios = [row for row in rows if field == "sharpness" and row.relative]
        footnotes = {row.step: _FOOTNOTES.get(row.baseline, "") for row in ratios}
        steps = sorted({row.step for row in rows})
        headers = (
            "direction",
            *(f"step {step:g}{footnotes.get(step, '')[:1]}{_of_seeds(rows, step)}" for step in steps),
        )
        cells = {
            (row.direction, row.step): _spread(getattr(row, field), getattr(row, f"{field}_spread")) for row in rows
        }
        measured = {direction for direction, _ in cells}
        names = [direction for direction in directions_of(records) if direction in measured]
        body = tuple((direction, *(cells.get((direction, step), NOTHING) for step in steps)) for direction in names)
        shown = title + " / |SGD's|" * bool(ratios)
        notes = " ".join((note, *(text for text in _FOOTNOTES.values() if text in footnotes.values())))
        if rows:
            file = file_name(name, trajectory)
            tables.append(Table(f"{shown}: weights moved by {trajectory}", headers, body, notes, file))
    return tables


def _of_seeds(rows: Sequence[Row], step: int) -> str:
    """How many seeds a column has, where it isn't as many as the others."""
    counts = {row.step: max(other.seeds for other in rows if other.step == row.step) for row in rows}
    most = max(counts.values(), default=0)
    return f" ({counts[step]} of {most} seeds)" if counts[step] < most else ""


def _spread(value: float | None, spread: float | None) -> str:
    return format_number(value) + ("" if spread is None else f" ± {format_number(spread)}")
