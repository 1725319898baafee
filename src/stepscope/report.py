"""What a run measured, as a table, a sentence and a page: pure functions of its records."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepscope._page import render_page
from stepscope.charts import BASELINE, baseline_scale, directions_of, family
from stepscope.errors import require
from stepscope.records import Record, number, read_run, write_atomically

__all__ = ["Row", "print_table", "render_report", "sharpness_table", "summary_sentence", "write_report"]


@dataclass(frozen=True)
class Row:
    """One direction at one step of one trajectory; means over seeds, None where nothing was measured.

    Attributes:
        step: the training step.
        direction: the direction's name.
        seeds: how many seeds the sharpness is a mean over.
        sharpness: `uᵀHu`, divided by |SGD's| if `relative`; sign kept.
        sharpness_spread: standard deviation over seeds; None for one seed.
        relative: whether the sharpness is a ratio.
        baseline: what it was divided by; see [`stepscope.charts.baseline_scale`]. `"robust"` are the steps that the
            paper marks (its eq. 4); with several seeds, if it holds for one of them.
        correlation: `gᵀd / (‖g‖‖d‖)`; negative if the direction descends.
        best_step: the step length along the unit direction with the lowest measured loss.
        best_decrease: how far the loss falls there.
        best_decrease_spread: standard deviation over seeds; None for one seed.
    """

    step: int | float
    direction: str
    seeds: int
    sharpness: float | None
    sharpness_spread: float | None
    relative: bool
    baseline: str
    correlation: float | None
    best_step: float | None
    best_decrease: float | None
    best_decrease_spread: float | None


_Point = tuple[str, int | float, Any]  # trajectory, step, seed


def trajectories_of(records: Iterable[Record]) -> list[str]:
    """The names of the trajectories, in the order in which they were first measured."""
    return list(dict.fromkeys(str(record.get("trajectory")) for record in records))


def _points(records: Iterable[Record]) -> dict[_Point, dict[str, Record]]:
    """Records by point of the run, then by direction; of two measurements of the same, the later counts."""
    points: dict[_Point, dict[str, Record]] = {}
    for record in records:
        if number(record, "step") is not None:
            point = (str(record.get("trajectory")), record["step"], record.get("seed"))
            points.setdefault(point, {})[str(record.get("direction"))] = record
    return points


def sharpness_table(records: Sequence[Record], trajectory: str, seed: int | None = None) -> list[Row]:
    """Directional sharpness as a ratio to |SGD's|, with what goes with it, for each step and direction.

    Where SGD's own sharpness is negative, its robust sharpness (the paper's eq. 4) is the divisor and the rows are
    marked. Signs are those that were measured: SGD's own ratio is then negative. Without SGD, sharpness is absolute.

    Args:
        records: all records of a run.
        trajectory: the optimizer that moved the weights.
        seed: one seed; None takes the mean over all.

    Returns:
        Rows by step, then in the order in which directions were first measured.

    Example:
        >>> at = {"trajectory": "sgd", "seed": 0, "step": 20}
        >>> rows = sharpness_table(
        ...     [{**at, "direction": "sgd", "sharpness": 8.0}, {**at, "direction": "adam", "sharpness": -2.0}], "sgd"
        ... )
        >>> [(row.direction, row.sharpness) for row in rows]
        [('sgd', 1.0), ('adam', -0.25)]
    """
    chosen = [record for record in records if str(record.get("trajectory")) == trajectory]
    points = {point: found for point, found in _points(chosen).items() if seed is None or point[2] == seed}
    rows = []
    for step in sorted({point[1] for point in points}):
        seeds = [found for point, found in points.items() if point[1] == step]
        names = [name for name in directions_of(chosen) if any(name in found for found in seeds)]
        rows += [_row(step, name, seeds) for name in names]
    return rows


def _row(step: int | float, direction: str, seeds: Sequence[dict[str, Record]]) -> Row:
    scales = [baseline_scale(found.values()) for found in seeds]
    relative = any(scale is not None for scale, _ in scales)
    ratios = []
    for found, (scale, _) in zip(seeds, scales, strict=True):
        sharpness = number(found.get(direction, {}), "sharpness")
        # Seeds without a divisor are left out of a mean of ratios: they have another unit.
        if sharpness is not None and (scale is not None or not relative):
            ratios.append(sharpness / (scale or 1.0))
    origins = {origin for _, origin in scales}
    origin = next(name for name in ("robust", "negative", "sharpness", "none") if name in origins)

    def values(name: str) -> list[float]:
        found_values = (number(found.get(direction, {}), name) for found in seeds)
        return [value for value in found_values if value is not None]

    decreases = values("best_decrease")
    return Row(
        step, direction, len(ratios), _mean(ratios), _spread(ratios), relative, origin,
        _mean(values("correlation")), _mean(values("best_step")), _mean(decreases), _spread(decreases),
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def summary_sentence(records: Sequence[Record]) -> str:
    """One sentence that says what these records show, and nothing that they don't.

    Args:
        records: all records of a run.

    Returns:
        At how many points SGD's sharpness is the largest among unclipped directions, by what median factor Adam's
        is lower, and which direction had the best local decrease most often; as far as these were measured.
    """
    points = _points(records)
    if not points:
        return "Nothing has been measured yet."
    seeds = {point[2] for point in points}
    clauses = [_sharpest_clause(points, len(seeds)), _adam_clause(points), _decrease_clause(points)]
    said = [clause for clause in clauses if clause]
    joined = said[0] if len(said) == 1 else ", ".join(said[:-1]) + f", and {said[-1]}"
    return ("With one seed, " if len(seeds) == 1 else f"Over {len(seeds)} seeds, ") + joined + "."


def _share(count: int, total: int) -> str:
    """So many of several points, in words."""
    if count == total:
        return f"at all {total}"
    return f"at {count} of {total}" if count else f"at none of the {total}"


def _sharpest_clause(points: dict[_Point, dict[str, Record]], seeds: int) -> str:
    what = "(trajectory and step)" if seeds == 1 else "(trajectory, step and seed)"
    compared, largest = 0, 0
    for found in points.values():
        others = [
            sharpness
            for name, record in found.items()
            if name != BASELINE and family(name) == name and (sharpness := number(record, "sharpness")) is not None
        ]
        own = number(found.get(BASELINE, {}), "sharpness")
        if own is not None and others:
            compared += 1
            largest += own > max(others)
    if not compared:
        names = {name for found in points.values() for name in found}
        directions = "1 direction was" if len(names) == 1 else f"{len(names)} directions were"
        return f"{directions} measured at {len(points)} point{'s' * (len(points) > 1)} {what}"
    largest_of = "the largest directional sharpness of all unclipped directions"
    where = "" if compared == len(points) else " where it was compared"
    if compared == 1:
        return f"SGD {'had' if largest else 'did not have'} {largest_of} at the only measured point{where} {what}"
    return f"SGD had {largest_of} {_share(largest, compared)} measured points{where} {what}"


def _adam_clause(points: dict[_Point, dict[str, Record]]) -> str:
    factors = []
    both = 0
    for found in points.values():
        sgd = number(found.get(BASELINE, {}), "sharpness")
        adam = number(found.get("adam", {}), "sharpness")
        if sgd is not None and adam is not None:
            both += 1
            if sgd > 0 and adam > 0:
                factors.append(sgd / adam)
    if not factors:
        return ""
    factor = statistics.median(factors)
    where = "" if len(factors) == both else f" over the {len(factors)} of {both} points where both were positive"
    by = "a factor" if len(factors) == 1 else "a median factor"
    if factor == 1:
        return f"Adam's was as large as SGD's{where}"
    return (
        f"Adam's was {'lower' if factor > 1 else 'higher'} than SGD's by {by} of {max(factor, 1 / factor):.3g}{where}"
    )


def _decrease_clause(points: dict[_Point, dict[str, Record]]) -> str:
    wins: dict[str, int] = {}
    compared = 0
    for found in points.values():
        decreases = {
            name: decrease
            for name, record in found.items()
            if (decrease := number(record, "best_decrease")) is not None
        }
        if len(decreases) > 1:
            compared += 1
            best = max(decreases.values())
            for name, decrease in decreases.items():
                if decrease == best and best > 0:
                    wins[name] = wins.get(name, 0) + 1
    if not compared:
        return ""
    if not wins:
        return "no direction lowered the loss"
    most = max(wins.values())
    winners = [_printable(name) for name, count in wins.items() if count == most]
    named = winners[0] if len(winners) == 1 else ", ".join(winners[:-1]) + f" and {winners[-1]}"
    if compared == 1:
        return f"{named} had the best local decrease"
    if len(winners) > 1:
        return f"{named} had the best local decrease equally often (at {most} of {compared} points each)"
    if most == compared:
        return f"{named} had the best local decrease at all {compared} points"
    return f"{named} had the best local decrease most often ({_share(most, compared)} points)"


def print_table(records: Sequence[Record], console: Any = None) -> None:
    """Prints a table per trajectory, and the sentence that sums the run up.

    Args:
        records: all records of a run.
        console: a `rich.console.Console`; None makes one.

    Raises:
        MissingExtraError: rich is not installed.
    """
    text = require("rich.text", "cli").Text
    target = console if console is not None else require("rich.console", "cli").Console()
    for trajectory in trajectories_of(records):
        rows = sharpness_table(records, trajectory)
        if rows:
            target.print(_terminal_table(rows, trajectory, text))
    if any(
        row.baseline in ("robust", "negative") for t in trajectories_of(records) for row in sharpness_table(records, t)
    ):
        target.print(text("† SGD's sharpness is negative there: the ratio is to its robust value (eq. 4) if measured."))
    target.print(text(summary_sentence(records)))


def _terminal_table(rows: Sequence[Row], trajectory: str, text: Callable[[str], Any]) -> Any:
    """Directions down, steps across. Names go in as `Text`: in a string, rich would read `[...]` as markup."""
    module = require("rich.table", "cli")
    steps = sorted({row.step for row in rows})
    marked = {row.step for row in rows if row.baseline in ("robust", "negative")}
    relative = all(row.relative for row in rows)
    measure = "sharpness / |SGD's|" if relative else "sharpness"
    title = text(f"{_printable(trajectory)} trajectory: {measure} and best local decrease by step")
    table = module.Table(
        title=title, title_justify="left", box=require("rich.box", "cli").SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    table.add_column("direction", overflow="fold", min_width=min(31, max(len(row.direction) for row in rows)))
    for step in steps:
        table.add_column(text(f"sharp.\n{step}{'†' * (step in marked)}"), justify="right")
    for step in steps:
        table.add_column(text(f"decr.\n{step}"), justify="right")
    cells = {(row.direction, row.step): row for row in rows}
    for direction in dict.fromkeys(row.direction for row in rows):
        found = [cells.get((direction, step)) for step in steps]
        sharpness = [_cell(row.sharpness, row.sharpness_spread) if row else "" for row in found]
        decrease = [_cell(row.best_decrease, row.best_decrease_spread) if row else "" for row in found]
        table.add_row(text(_printable(direction)), *map(text, sharpness), *map(text, decrease))
    return table


def _cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if spread is None else f"{value:.2g} ±{spread:.1g}"


def _printable(name: str) -> str:
    """A user's name without what a terminal would act on."""
    return "".join(character if character.isprintable() else "�" for character in name)


def render_report(run: dict[str, Any], records: Sequence[Record]) -> str:
    """The page of a run, as HTML that fetches nothing.

    Args:
        run: the content of `run.json`.
        records: the measurements.

    Raises:
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    tables = {trajectory: sharpness_table(records, trajectory) for trajectory in trajectories_of(records)}
    return render_page(run, records, tables, summary_sentence(records))


def write_report(run_path: str | os.PathLike[str], out_path: str | os.PathLike[str]) -> Path:
    """Writes the page of a run directory: one self-contained file, whole or not at all.

    Args:
        run_path: the run directory; it is only read, and may be one that is still written to.
        out_path: the HTML file; missing directories are created.

    Returns:
        `out_path`.

    Raises:
        UsageError: `run_path` is no run directory, or the page cannot be written.
        MissingExtraError: altair, vl-convert or jinja2 is not installed.
    """
    run, records = read_run(run_path)
    write_atomically(out_path, render_report(run, records).encode(errors="replace"))
    return Path(out_path)
