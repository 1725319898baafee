"""Trainings beside one another, before and after a change: what differs, and what was measured at the same steps."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stepscope.errors import UsageError
from stepscope.judging import RateVerdict, judge_rate
from stepscope.report.facts import facts_of
from stepscope.report.run_summary import facts_of_training, in_words
from stepscope.report.tables import Table
from stepscope.runs import DirectionRecord, StepRecord, Training, is_own, plain
from stepscope.shown import NOTHING, format_number, shortened

Place = tuple[str, int, int]
"""Trajectory, seed, step."""

LONGEST = 60
"""Characters of a value that differs."""

_VERDICTS = {
    "step_too_short": "too small", "step_too_long": "too large", "healthy": "no sign of an error",
    "cannot_tell": "can't tell",
}  # fmt: skip
"""Of a learning rate, for people; programs get the kind."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Something that is compared at the steps that were measured in all trainings.

    Attributes:
        name: what it is.
        of: its values in a training. What lies beyond all that was tried is infinite.
        reduced: one of several values, in the order of the steps: the last, or the median.
        how: that in words.
        of_examples: whether it is one of the evaluation examples.
        of_model: whether another model has it in another unit.
    """

    name: str
    of: Callable[[Training], Iterator[tuple[Place, float | None]]]
    reduced: Callable[[Sequence[float]], float] = statistics.median_low
    how: str = "median"
    of_examples: bool = False
    of_model: bool = False


@dataclass(frozen=True)
class Compared:
    """A quantity of several trainings.

    Attributes:
        quantity: what it is.
        places: where all of them have it, in order.
        values: of each training, at those places.
    """

    quantity: Quantity
    places: tuple[Place, ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def reduced(self) -> list[float]:
        """Of each training, one value."""
        return [self.quantity.reduced(values) for values in self.values]

    @property
    def lower(self) -> list[int]:
        """At how many places each training has a lower value than the first."""
        return [sum(here < first for here, first in zip(values, self.values[0], strict=True)) for values in self.values]

    @property
    def at(self) -> str:
        """What of the steps the value is, in words."""
        last = self.places[-1][-1]
        return f"step {last:,}" if self.quantity.how == "last" or len(self.places) == 1 else self.quantity.how

    @property
    def steps(self) -> str:
        """The first and the last of the steps."""
        return "–".join(f"{step:,}" for step in dict.fromkeys(self.places[end][-1] for end in (0, -1)))


@dataclass(frozen=True)
class Comparison:
    """Trainings beside one another.

    Attributes:
        names: of the trainings.
        facts: what was trained, of each.
        verdicts: on the learning rate of each; ``None`` without steps that were measured on their own batches.
        differences: by name, what is not the same in all of them.
        refusals: what is not compared, and why.
        compared: quantities that all of them have at the same steps.
    """

    names: tuple[str, ...]
    facts: tuple[dict[str, Any], ...]
    verdicts: tuple[RateVerdict | None, ...]
    differences: Mapping[str, tuple[str, ...]]
    refusals: tuple[str, ...]
    compared: tuple[Compared, ...]

    def tables(self) -> list[Table]:
        """What differs, and what was measured."""
        head = ("what", *self.names)
        tables = []
        if self.differences:
            rows = tuple((name, *values) for name, values in self.differences.items())
            tables.append(Table("What differs", head, rows, ""))
        rows = tuple((each.quantity.name, *_cells(each), each.at, each.steps) for each in self.compared)
        note = (
            "Of steps that were measured in all of them. A lower value is counted against the first. The loss of a "
            "batch is noisy: at the same step it is that of the same examples only if the data comes in the same "
            "order. The trust ratio is of the steps that its verdict counts."
        )
        if any(self.verdicts):
            verdicts = (_VERDICTS[verdict.kind] if verdict else NOTHING for verdict in self.verdicts)
            rows += (("learning rate", *verdicts, "", ""),)
            rows += (("trust ratio", *map(_trust, self.verdicts), "", ""),)
        rows += (("seconds measuring", *(format_number(facts["seconds_measuring"]) for facts in self.facts), "", ""),)
        return [*tables, Table("What was measured", (*head, "at", "of steps"), rows, note if self.compared else "")]

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON holds it; what isn't finite is ``None``."""
        told: dict[str, Any] = plain(
            {
                "runs": [
                    {"run": name, "trained": facts, "learning_rate": verdict.kind if verdict else None}
                    | ({"trust_ratio": vars(verdict.evidence.trust)} if verdict else {})
                    for name, facts, verdict in zip(self.names, self.facts, self.verdicts, strict=True)
                ],
                "differences": dict(self.differences),
                "not_compared": list(self.refusals),
                "compared": [
                    {
                        "what": each.quantity.name,
                        "reduced_by": each.quantity.how,
                        "reduced": each.reduced,
                        "lower_than_the_first": each.lower,
                        "places": [{"trajectory": t, "seed": seed, "step": step} for t, seed, step in each.places],
                        "values": each.values,
                    }
                    for each in self.compared
                ],
            }
        )
        return told


def compare(trainings: Mapping[str, Training]) -> Comparison:
    """Puts trainings beside one another: the first is what the others are compared with.

    Values are paired by step and seed, and by trajectory where a directory holds several. What depends on the
    evaluation examples, or on the units of a model, is compared where those are the same.

    Args:
        trainings: by name, two or more.

    Raises:
        UsageError: there are fewer than two.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "batch_change": -0.5, "batch_slope": -1.0}
        >>> def trained(loss): return [StepRecord(**place, step=n, batch_loss=loss - n / 10) for n in (5, 10)]
        >>> head = {"configuration": {}, "context": {}}
        >>> runs = {name: Training(head, [], trained(loss)) for name, loss in {"a": 3.0, "b": 2.0}.items()}
        >>> (loss, *_) = compare(runs).compared
        >>> loss.quantity.name, loss.at, loss.steps, loss.reduced, loss.lower
        ('loss of its batch', 'step 10', '5–10', [2.0, 1.0], [0, 2])
    """
    if len(trainings) < 2:
        raise UsageError("one run has nothing to be compared with: give two or more")
    runs = list(trainings.values())
    same_model, same_examples = (_same(runs, part) for part in (_model, _examples))
    refusals, compared = [], []
    for quantity in QUANTITIES:
        if not (values := _paired(quantity, runs)):
            continue
        why = ""
        if quantity.of_examples and not same_examples:
            why = "other evaluation examples"
        elif quantity.of_model and not same_model:
            why = "another model"
        elif not values[0]:
            why = "no step was measured in all of them"
        if why:
            refusals.append(f"{quantity.name}: {why}")
        else:
            places = sorted(values[0], key=lambda place: (place[2], place))
            compared.append(Compared(quantity, tuple(places), tuple(tuple(map(of.get, places)) for of in values)))  # type: ignore[arg-type]
    return Comparison(
        tuple(trainings),
        tuple(map(facts_of_training, runs)),
        tuple(judge_rate(run.steps) if run.steps else None for run in runs),
        _differences(runs),
        tuple(refusals),
        tuple(compared),
    )


def _paired(quantity: Quantity, runs: Sequence[Training]) -> list[dict[Place, float]]:
    """Values of each run at the places that all have; nothing where a run has none at all."""
    several = any(
        len({*(d.trajectory for d in run.directions), *(s.trajectory for s in run.steps)}) > 1 for run in runs
    )
    of_runs = [
        {
            (name if several else "", seed, step): value
            for (name, seed, step), value in quantity.of(run)
            if value is not None
        }
        for run in runs
    ]
    if not all(of_runs):
        return []
    common = set.intersection(*map(set, of_runs))
    return [{place: values[place] for place in common} for values in of_runs]


def _model(run: Training) -> Any:
    """What a model is, wherever it began."""
    named = run.head["context"].get("model")
    parts = ("name", "title", "parameters")
    named = [named.get(name) for name in parts] if isinstance(named, dict) else named
    return [run.head["configuration"].get(name) for name in ("model", "parameters")], named


def _examples(run: Training) -> Any:
    return [run.head["context"].get(name) for name in ("source", "evaluation")]


def _same(runs: Sequence[Training], part: Callable[[Training], Any]) -> bool:
    return all(part(run) == part(runs[0]) for run in runs)


def _differences(runs: Sequence[Training]) -> dict[str, tuple[str, ...]]:
    """By name, what is not the same in all runs: of what was asked for, of the data, of versions."""
    told = [_told(run) for run in runs]
    names = dict.fromkeys(name for each in told for name in each)
    values = {name: tuple(each.get(name, NOTHING) for each in told) for name in names}
    return {name: _alone(each) for name, each in values.items() if len(set(each)) > 1}


def _alone(values: tuple[str, ...]) -> tuple[str, ...]:
    """Of long lists, what isn't in all of them."""
    if max(map(len, values)) <= LONGEST:
        return values
    lists = [value.split(", ") for value in values]
    common = set.intersection(*map(set, lists))
    alone = (", ".join(item for item in items if item not in common) or NOTHING for items in lists)
    return tuple(shortened(text, LONGEST) for text in alone)


def _told(run: Training) -> dict[str, str]:
    facts = facts_of_training(run)
    rates = facts["peak_learning_rates"] or facts["learning_rates"]
    told = {
        "peak learning rate": " ".join(f"{rate:.3g}" for rate in rates) or NOTHING,
        "batch size": in_words(facts["batch_sizes"]) or NOTHING,
        "steps of the training": NOTHING if facts["length"] is None else f"{facts['length']:,}",
    }
    for title, pairs in facts_of(run.head):
        if title in ("Run", "Also recorded"):
            continue  # when it began, and what was measured
        prefix = "" if title == "Configuration" else f"{title.lower()} "
        told |= {f"{prefix}{name}".strip(): value.replace("\u202f", ",") for name, value in pairs}
    return told


def _cells(compared: Compared) -> Iterable[str]:
    count = len(compared.places)
    first, *others = map(_shown, compared.reduced)
    yield first
    for value, lower in zip(others, compared.lower[1:], strict=True):
        yield f"{value}, lower at {lower} of {count}"


def _shown(value: float) -> str:
    return format_number(value) if math.isfinite(value) else "beyond the last" if value > 0 else "no descent"


def _trust(verdict: RateVerdict | None) -> str:
    trust = verdict.evidence.trust if verdict else None
    if trust is None or trust.ratio is None:
        return NOTHING
    return f"{trust.ratio:.3f} ({trust.low:.3f} to {trust.high:.3f})"


def _of_steps(
    value: Callable[[StepRecord], float | None],
) -> Callable[[Training], Iterator[tuple[Place, float | None]]]:
    return lambda run: (((step.trajectory, step.seed, step.step), value(step)) for step in run.steps)


def _of_own(name: str) -> Callable[[Training], Iterator[tuple[Place, float | None]]]:
    """A number of the direction that the training itself took."""
    return lambda run: (
        ((record.trajectory, record.seed, record.step), getattr(record, name))
        for record in run.directions
        if _took(record)
    )


def _took(record: DirectionRecord) -> bool:
    return is_own(record) or record.direction == record.trajectory


def _edge(step: StepRecord) -> float | None:
    """The critical multiple of the evaluation examples: without end where it lies beyond all that was tried."""
    edge = (step.edges or {}).get("evaluation")
    if edge is None:
        return None
    return edge.critical_multiple if edge.critical_multiple is not None else _BEYOND.get(edge.status)


_BEYOND = {"beyond the last": math.inf, "no descent": -math.inf}


def _last(values: Sequence[float]) -> float:
    return values[-1]


QUANTITIES = (
    Quantity(
        name="loss of its batch", of=_of_steps(lambda step: step.batch_loss), reduced=_last, how="last", of_model=True
    ),
    Quantity(
        name="loss of the evaluation examples", of=_of_own("loss"), reduced=_last, how="last", of_examples=True,
        of_model=True,
    ),
    Quantity(name="critical multiple", of=_of_steps(_edge), of_examples=True),
    Quantity(name="sharpness along its step", of=_of_own("sharpness"), of_examples=True, of_model=True),
    Quantity(name="best decrease along its step", of=_of_own("best_decrease"), of_examples=True, of_model=True),
    Quantity(name="length of its step", of=_of_steps(lambda step: step.norm), of_model=True),
)  # fmt: skip
"""What is compared, in this order."""
