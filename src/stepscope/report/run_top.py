"""What stands first on the page of a training: what was trained, how far, and what measuring it cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stepscope.report.facts import title_of
from stepscope.report.run_summary import facts_of_training, in_words
from stepscope.runs import DirectionRecord, StepRecord, Training
from stepscope.shown import format_number

VERSIONS = ("stepscope", "torch", "python")
"""Those that stand first; all of them are at the end of the page."""


def title_of_training(training: Training) -> str:
    """What was trained by what; of a run without a probe, what was measured on which data."""
    facts = facts_of_training(training)
    if not training.is_probed or not facts["model"]:
        return title_of(training.head)
    return f"{facts['model']}, trained by {' and '.join(facts['optimizers'])}"


def top_of(training: Training) -> list[tuple[str, str]]:
    """Names and values, as far as the records say them; of a run without a probe there are none.

    Args:
        training: its records.

    Example:
        >>> place = {"trajectory": "SGD", "seed": 0, "steps": 100, "batch_slope": -1.0, "batch_change": -0.9}
        >>> steps = [StepRecord(**place, step=n, lr=(0.1 / n,)) for n in (5, 10, 20)]
        >>> head = {"configuration": {"model": "Net", "parameters": 1200}, "context": {"overhead": 0.0312}}
        >>> for name, value in top_of(Training(head, [], steps)): print(f"{name}: {value}")
        Model: Net, 1,200 parameters
        Optimizer: SGD
        Learning rate: 0.02 at step 5, the largest; 0.005 at step 20
        Measured: 3 steps on the batches that made them
        Last measured: step 20 of 100
        Cost of measuring: 3.1% of the training's time
    """
    if not training.is_probed:
        return []
    facts, context = facts_of_training(training), training.head["context"]
    versions = context.get("versions")
    versions = versions if isinstance(versions, dict) else {}
    named = {
        "Model": _listed(facts["model"], _parameters(facts["parameters"]), context.get("device")),
        "Optimizer": " and ".join(facts["optimizers"]),
        "Learning rate": schedule_of([*training.steps, *training.directions]),
        "Batch": _batch(facts["batch_sizes"]),
        "Measured": _measured(training, facts),
        "Last measured": _last_step(facts),
        "Cost of measuring": _cost(context.get("overhead"), facts["seconds_measuring"]),
        "Versions": _listed(*(f"{name} {versions[name]}" for name in VERSIONS if name in versions)),
    }
    return [(name, value) for name, value in named.items() if value]


def self_check_of(training: Training) -> str:
    r"""What a probe's self-check found, in sentences; empty where there was none.

    Example:
        >>> found = {"loss_difference": 0.0, "second_derivative": "agrees", "by_autograd": 2.0, "by_difference": 2.0,
        ...          "numerical_error": 1e-6, "gradient_agrees": True, "suspicions": []}
        >>> print(self_check_of(Training({"context": {"self_check": found}}, [], [])).replace(". ", ".\n"))
        Two evaluations of the loss differ by 0.00.
        uᵀHu along the gradient: 2.00 by double backward, 2.00 ± 1.00×10⁻⁶ by differences of gradients: agrees.
        The gradient is that of the loss, by differences of losses.
    """
    found = training.head["context"].get("self_check")
    if not isinstance(found, dict):
        return ""
    known = found.get("by_autograd")
    exact = "none" if known is None else format_number(known)
    parts = [
        f"Two evaluations of the loss differ by {format_number(found.get('loss_difference'))}.",
        f"uᵀHu along the gradient: {exact} by double backward, {format_number(found.get('by_difference'))} ± "
        f"{format_number(found.get('numerical_error'))} by differences of gradients: {found.get('second_derivative')}.",
        f"The gradient is {'' if found.get('gradient_agrees') else 'not '}that of the loss, by differences of losses.",
        *map(str, found.get("suspicions") or ()),
    ]
    return " ".join(parts)


def schedule_of(records: Sequence[StepRecord | DirectionRecord]) -> str:
    """The learning rate along a training, in words: of several parameter groups, the largest.

    Args:
        records: where it is known; empty text where it is nowhere.
    """
    rates = dict(sorted((record.step, rate) for record in records if (rate := rate_of(record)) is not None))
    if not rates:
        return ""
    last, peak = max(rates), max(rates, key=lambda step: rates[step])
    if rates[peak] == min(rates.values()):
        return f"{_shown(rates[last])}, constant"
    first, now = min(rates), f"{_shown(rates[last])} at step {last:,}"
    if peak == last:
        return f"{_shown(rates[first])} at step {first:,}, {now}, the largest so far"
    return f"{_shown(rates[peak])} at step {peak:,}, the largest; {now}"


def _shown(rate: float) -> str:
    """As it is given to an optimizer, or as a power of ten, which no line's end breaks."""
    text = f"{rate:.3g}"
    return format_number(rate) if "e" in text else text


def rate_of(record: StepRecord | DirectionRecord) -> float | None:
    """The learning rate of a step, the largest of all parameter groups."""
    return max((rate for rate in record.lr or () if rate is not None), default=None)


def _listed(*parts: Any) -> str:
    return ", ".join(str(part) for part in parts if part)


def _parameters(count: Any) -> str:
    return f"{count:,} parameters" if isinstance(count, int) else ""


def _last_step(facts: dict[str, Any]) -> str:
    if facts["step"] is None:
        return ""
    return f"step {facts['step']:,}" + (f" of {facts['length']:,}" if facts["length"] else "")


def _batch(sizes: list[int]) -> str:
    return f"{in_words(sizes)} example{'s' * (sizes[-1] != 1)}" if sizes else ""


def _measured(training: Training, facts: dict[str, Any]) -> str:
    own = sum(step.batch_slope is not None for step in training.steps)
    parts = [f"{own:,} step{'s' * (own != 1)} on the batch{'es' * (own != 1)} that made {'them' if own != 1 else 'it'}"]
    if full := facts["full_measurements"]:
        on = f" on {facts['measured_on']}" if facts["measured_on"] else ""
        parts.append(f"{full:,} in full{on}")
    return "; ".join(parts)


def _cost(overhead: Any, seconds: float) -> str:
    if isinstance(overhead, float):
        return f"{overhead:.1%} of the training's time"
    return f"{seconds:.3g} s" if seconds else ""
