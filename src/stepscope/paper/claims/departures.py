"""In what a run differs from the paper's: read off its head."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepscope.paper.runs import Run

EVALUATION = 1024
"""Examples of the paper's evaluation batch (B.3)."""

EPOCHS = (2, 5, 10, 20)
"""Epochs in whose middle the paper measures."""


@dataclass(frozen=True)
class Original:
    """What the paper uses for a task.

    Attributes:
        data: its data.
        model: its model.
        tokens: whether its loss is a mean over the tokens of each example.
        padded: whether examples are padded.
        batch: examples of a training batch; None where the paper doesn't say.
        rates: learning rates of the training optimizers along the trajectories, as far as it says.
    """

    data: str
    model: str
    tokens: bool
    padded: bool = True
    batch: int | None = None
    rates: Mapping[str, float] = field(default_factory=lambda: {"adam": 2e-4})


ORIGINALS: Mapping[str, Original] = {
    "translation": Original("opus_books", "t5-small", tokens=True, batch=1024, rates={"sgd": 1e-3, "adam": 2e-4}),
    "code": Original("the-stack-smol", "gpt-neo-125M-code-clippy", tokens=True, rates={"sgd": 3e-5, "adam": 2e-4}),
    "images": Original("CIFAR-10", "ResNet-152", tokens=False, padded=False, batch=1000),
    "sentiment": Original("IMDb", "BERT-base", tokens=False),
}
"""By task."""


def departures(runs: Iterable[Run], tasks: Sequence[str] | None = None) -> tuple[str, ...]:
    """In what these runs differ from the paper's, in words, each departure once with the runs that have it.

    Args:
        runs: the runs.
        tasks: of a run of several tasks, those that count; None for all.

    Example:
        >>> head = {"configuration": {"experiment": "theory", "families": ["quadratic"]}}
        >>> departures([Run("theory", head, [])])
        ()
    """
    found: dict[str, list[str]] = {}
    for run in runs:
        for name, told in _of_run(run, tasks):
            found.setdefault(told, [])
            if name not in found[told]:
                found[told].append(name)
    return tuple(f"{', '.join(names)}: {told}" for told, names in found.items())


def _of_run(run: Run, tasks: Sequence[str] | None) -> list[tuple[str, str]]:
    """Pairs of whose departure it is, and what it is."""
    asked = run.head["configuration"]
    if run.experiment == "trajectory":
        task, settings = run.task, asked.get("task")
        told = [
            *_start(run.context, task),
            *_batches(run.context, task, asked, settings),
            *_rates(task, asked),
            *_measured_at(run.context, settings, asked),
        ]
        if task == "sentiment":
            told.append("the paper measures no directions on this task")
        return [(run.name, each) for each in told]
    if run.experiment == "convergence":
        contexts = _mapping(run.context.get("tasks"))
        return [
            (f"{run.name} ({task})", each)
            for task, settings in _mapping(asked.get("tasks")).items()
            if tasks is None or task in tasks
            for context in (_mapping(contexts.get(task)),)
            for each in [
                *_start(context, task),
                *_batches(context, task, asked, settings),
                *_trained(context, settings, asked),
            ]
        ]
    if run.experiment == "robustness":
        steps = _epochs(run.context, asked.get("task"), asked.get("steps"))
        told = [*_start(run.context, "sentiment"), *_mask("sentiment", asked), f"measured at {steps}"]
        return [(run.name, each) for each in told]
    if run.experiment == "theory":
        told = _start(run.context, "translation") if run.context.get("model") else []
        small = ", ".join(_mapping(run.context.get("small")))
        told += [f"{small}: small models and made-up data of our own"] if small else []
        return [(run.name, each) for each in told]
    return []


def _rates(task: str, asked: Mapping[str, Any]) -> list[str]:
    wanted = ORIGINALS[task].rates if task in ORIGINALS else {}
    given = _mapping(asked.get("training_lr"))
    return [
        f"{name} trains at a learning rate of {given[name]:g}, not {rate:g}"
        for name, rate in wanted.items()
        if isinstance(given.get(name), int | float) and given[name] != rate
    ]


def _start(context: Mapping[str, Any], task: str) -> list[str]:
    """Data, model and its first weights."""
    original = ORIGINALS.get(task)
    if original is None:
        return [f"the paper has no task {task}"]
    source, model = _mapping(context.get("source")), _mapping(context.get("model"))
    began = str(model.get("initialisation", "unknown"))
    told = []
    if not _names(original.data, source.get("name"), source.get("title")):
        told.append(f"data are {source.get('title', 'unknown')}, not {original.data}")
    if not _names(original.model, model.get("title"), began):
        told.append(f"the model is {model.get('title', 'unknown')}, not {original.model}")
    if not began.startswith("pretrained"):
        told.append(f"initialisation is {began}, not pretrained")
    elif not _names(original.model, began):
        told.append(f"initialisation is {began}, not {original.model}'s")
    if task != "images":
        told.append("dropout is off; the paper trains with its models' own")
    return told


def _batches(context: Mapping[str, Any], task: str, asked: Mapping[str, Any], settings: Any) -> list[str]:
    """How the loss is taken: training and evaluation batch, mask, weights of tokens."""
    told = []
    size, wanted = _mapping(settings).get("batch_size"), ORIGINALS[task].batch if task in ORIGINALS else None
    if wanted is not None and size != wanted:
        told.append(f"training batches have {size if size is not None else 'unknown'} examples, not {wanted}")
    examples = _mapping(context.get("evaluation")).get("examples")
    if examples != EVALUATION:
        told.append(
            f"the evaluation batch has {examples if examples is not None else 'unknown'} examples, not {EVALUATION}"
        )
    told += _mask(task, asked)
    if task in ORIGINALS and ORIGINALS[task].tokens:
        told.append("all tokens weigh the same; in the published code all examples do, whatever their length")
    return told


def _mask(task: str, asked: Mapping[str, Any]) -> list[str]:
    padded = task in ORIGINALS and ORIGINALS[task].padded
    # Experiments without this setting mask.
    return (
        ["padding is masked; the published code gives no mask"] if padded and asked.get("masked") is not False else []
    )


def _measured_at(context: Mapping[str, Any], settings: Any, asked: Mapping[str, Any]) -> list[str]:
    steps = asked.get("steps")
    if tuple(_epoch_numbers(context, settings, steps)) == EPOCHS:
        return []
    return [f"measured at {_epochs(context, settings, steps)}, not in epochs {', '.join(map(str, EPOCHS))}"]


def _trained(context: Mapping[str, Any], settings: Any, asked: Mapping[str, Any]) -> list[str]:
    steps = asked.get("steps")
    reached = _epoch_numbers(context, settings, [steps])
    if reached and reached[0] >= EPOCHS[-1]:
        return []
    return [f"trained to {_epochs(context, settings, [steps])}; the paper measures up to epoch {EPOCHS[-1]}"]


def _epochs(context: Mapping[str, Any], settings: Any, steps: Any) -> str:
    """Steps in words, with the epochs that they lie in."""
    told = [str(step) for step in steps] if isinstance(steps, list | tuple) else ["unknown"]
    numbers = _epoch_numbers(context, settings, steps)
    lie = f" (epoch{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))})" if numbers else ""
    return f"step{'s' * (len(told) > 1)} {', '.join(told)}{lie}"


def _epoch_numbers(context: Mapping[str, Any], settings: Any, steps: Any) -> list[int]:
    """The epoch of each step, both counted from 1; none where they can't be known."""
    batch, examples = _mapping(settings).get("batch_size"), _mapping(context.get("source")).get("examples")
    whole = (batch, examples, *steps) if isinstance(steps, list | tuple) else ()
    if not whole or not all(type(each) is int and each > 0 for each in whole):
        return []
    # The last examples of an epoch that fill no batch are left out.
    return [1 + (step - 1) // max(1, whole[1] // whole[0]) for step in whole[2:]]


def _names(wanted: str, *texts: Any) -> bool:
    """Whether a text names it by whole words, whatever its punctuation."""
    return any(f" {_words(wanted)} " in f" {_words(str(text))} " for text in texts)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
