"""What the records of a training come to, for a terminal and for programs: a page takes longer to open."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.judging import Findings, findings
from stepscope.report.comparison import trajectories_of
from stepscope.report.direction_tables import step_tables
from stepscope.report.facts import title_of
from stepscope.report.summary import summary_sentence
from stepscope.report.tables import Table
from stepscope.runs import DirectionRecord, StepRecord, Training, plain
from stepscope.shown import format_number, shortened

MOST_STEPS = 8
"""So many of the measured steps are in the table, from the first to the last."""


@dataclass(frozen=True)
class RunSummary:
    """A training in a screenful.

    Attributes:
        facts: what was trained and measured, for programs.
        lines: the same for people.
        findings: what it shows; of a run without a probe there are none.
        tables: the optimizer's own steps, and the directions at the last measurement of each trajectory.
        directions: the numbers of those directions.
        steps: the steps of the table.
    """

    facts: dict[str, Any]
    lines: tuple[str, ...]
    findings: Findings
    tables: tuple[Table, ...]
    directions: tuple[DirectionRecord, ...]
    steps: tuple[StepRecord, ...]

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON holds it; what wasn't measured, and long lists, are left out."""
        return {
            "trained": plain(self.facts),
            "findings": self.findings.as_json(),
            "directions": [_scalars(record) for record in self.directions],
            "steps": [_scalars(record) for record in self.steps],
        }


def run_summary(training: Training) -> RunSummary:
    r"""Sums a training up, which may still be going on.

    Args:
        training: see `stepscope.runs.read_training`.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "steps": 100, "lr": (0.1,), "batch_slope": -1.0}
        >>> steps = [StepRecord(**place, step=n, batch_loss=2.0, batch_change=-0.9) for n in range(5, 25)]
        >>> head = {"configuration": {"model": "Net", "parameters": 12, "optimizer": "SGD"}, "context": {}}
        >>> print(*run_summary(Training(head, [], steps)).lines, sep="\n")
        Net of 12 parameters, trained by SGD at a learning rate of 0.1
        last measured at step 24 of 100, its batch's loss 2.00; 20 steps measured on their own batch, none beside others
    """
    facts = facts_of_training(training)
    shown = _spread(training.steps, MOST_STEPS)
    tables = [table for name in trajectories_of(training.directions) for table in _last(training.directions, name)]
    if shown:
        tables.insert(0, steps_table(shown, len(training.steps)))
    probed = training.is_probed
    lines = [_what(training, facts), _how_far(training, facts)]
    if not probed:
        lines.append(summary_sentence(training.directions))
    return RunSummary(
        facts,
        tuple(lines),
        findings([*training.directions, *training.steps]) if probed else Findings(),
        tuple(tables),
        tuple(_last_directions(training.directions)),
        tuple(shown),
    )


def facts_of_training(training: Training) -> dict[str, Any]:
    """What was trained, how far, and what was measured of it; ``None`` where the records don't say.

    Args:
        training: its records.
    """
    configuration, source = training.head["configuration"], training.head["context"].get("source") or {}
    records: list[DirectionRecord | StepRecord] = [*training.directions, *training.steps]
    last = max(records, key=lambda record: record.step, default=None)
    rates = [rate for rate in (last.lr if last else None) or () if rate is not None]
    peaks = [rate for step in training.steps[-1:] for rate in step.peak_lr or () if rate is not None]
    sizes = [step.batch_size for step in training.steps if step.batch_size is not None]
    losses = [step.batch_loss for step in training.steps if step.batch_loss is not None]
    return {
        "model": configuration.get("model"),
        "parameters": configuration.get("parameters"),
        "optimizers": list(dict.fromkeys(record.trajectory for record in records)),
        "learning_rates": list(dict.fromkeys(rates)),
        "peak_learning_rates": list(dict.fromkeys(peaks)),
        "batch_sizes": list(dict.fromkeys((min(sizes), max(sizes)))) if sizes else [],
        "step": last and last.step,
        "length": next((step.steps for step in reversed(training.steps) if step.steps is not None), None),
        "batch_loss": losses[-1] if losses else None,
        "steps_measured": sum(step.batch_loss is not None for step in training.steps),
        "full_measurements": len({record.key[:3] for record in training.directions}),
        "measured_on": source.get("title") or source.get("name") if isinstance(source, dict) else str(source),
        "seconds_measuring": math.fsum(record.seconds or 0.0 for record in records),
    }


def _what(training: Training, facts: dict[str, Any]) -> str:
    if not training.is_probed:
        return title_of(training.head)
    size = f" of {facts['parameters']:,} parameters" if isinstance(facts["parameters"], int) else ""
    rates = facts["peak_learning_rates"] or facts["learning_rates"]
    at = f" at a learning rate of {' and '.join(f'{rate:.3g}' for rate in rates)}" if rates else ""
    now = facts["learning_rates"]
    on = f", batches of {sizes}" if (sizes := in_words(facts["batch_sizes"])) else ""
    decayed = f" (now {' and '.join(f'{rate:.3g}' for rate in now)})" if now and now != rates else ""
    model, optimizers = shortened(facts["model"] or "A model"), " and ".join(map(shortened, facts["optimizers"]))
    return f"{model}{size}, trained by {optimizers}{at}{decayed}{on}"


def in_words(sizes: Sequence[int]) -> str:
    """The sizes of batches, which can differ.

    Args:
        sizes: the smallest and the largest, or the one that all have.
    """
    return " to ".join(f"{size:,}" for size in sizes)


def _how_far(training: Training, facts: dict[str, Any]) -> str:
    if facts["step"] is None:
        return "nothing was measured yet"
    count, full = facts["steps_measured"], facts["full_measurements"]
    if not training.is_probed:
        return f"directions measured {full} times, at the latest at step {facts['step']:,}"
    on = f" on {shortened(facts['measured_on'])}" if full and facts["measured_on"] else ""
    of = f" of {facts['length']:,}" if facts["length"] else ""
    loss = f", its batch's loss {format_number(facts['batch_loss'])}" if facts["batch_loss"] is not None else ""
    own = f"{count} step{'s' * (count != 1)} measured on {'their' if count != 1 else 'its'} own batch"
    return f"last measured at step {facts['step']:,}{of}{loss}; {own}, {full or 'none'} beside others{on}"


def steps_table(steps: Sequence[StepRecord], measured: int) -> Table:
    """The optimizer's own steps, each on the batch that made it.

    Args:
        steps: those that are shown.
        measured: how many there are.
    """
    columns: dict[str, list[str]] = {
        "step": [f"{step.step:,}" for step in steps],
        "learning rate": [
            " ".join(f"{rate:.3g}" for rate in dict.fromkeys(step.lr or ()) if rate is not None) for step in steps
        ],
        "loss": [format_number(step.batch_loss) for step in steps],
        "change": [format_number(step.batch_change) for step in steps],
        "predicted": [format_number(step.batch_slope) for step in steps],
        "actual / predicted": [format_number(_part(step)) for step in steps],
    }
    note = "What each step changed the loss of its own batch by, and what its gradient predicts."
    if any(step.edges for step in steps):
        columns["critical multiple"] = [format_number(critical_multiple(step)) for step in steps]
        note += " The critical multiple is of the evaluation examples."
    which = f"{len(steps)} of {measured} measured" if len(steps) < measured else f"all {measured} measured"
    return Table(
        f"The optimizer's own steps ({which})", tuple(columns), tuple(zip(*columns.values(), strict=True)), note
    )


def critical_multiple(step: StepRecord) -> float | None:
    """That of the evaluation examples, where it was found."""
    edge = (step.edges or {}).get("evaluation")
    return edge.critical_multiple if edge else None


def _part(step: StepRecord) -> float | None:
    if step.batch_change is None or not step.batch_slope:
        return None
    return step.batch_change / step.batch_slope


def _spread(steps: Sequence[StepRecord], count: int) -> list[StepRecord]:
    """So many from the first to the last."""
    if len(steps) <= count:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (count - 1))] for place in range(count)]


def _last(records: Sequence[DirectionRecord], trajectory: str) -> list[Table]:
    return list(step_tables(records, trajectory).values())[-1:]


def _last_directions(records: Sequence[DirectionRecord]) -> list[DirectionRecord]:
    last: dict[str, int] = {}
    for record in records:
        last[record.trajectory] = max(record.step, last.get(record.trajectory, 0))
    return [record for record in records if record.step == last[record.trajectory]]


def _scalars(record: DirectionRecord | StepRecord) -> dict[str, Any]:
    critical = critical_multiple(record) if isinstance(record, StepRecord) else None
    values = {**record.flat(), "critical_multiple": critical}
    return {name: value for name, value in values.items() if value is not None}
