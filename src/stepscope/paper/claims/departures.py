"""In what a run differs from the paper's: its settings, read off its head, against the paper's own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stepscope.paper.reproduction_runs import Run, section
from stepscope.runs import Record

EQUAL_WEIGHTS, PADDING_LABELS = "equal-weights", "padding-labels"
WIDE_HEAD, SMALL_NORM_BATCHES = "wide-head", "small-norm-batches"
"""What a run may have as the published code does, by the names in its configuration (``released``)."""

Settings = Mapping[str, Any]
"""``{field: value}``; a field that one side lacks is not compared."""

EPOCHS = (2, 5, 10, 20)
"""Epochs in whose middle the paper measures."""

_ALL: Settings = {
    "start": "pretrained",
    "evaluation": 1024,  # B.3
    "measured": f"epochs {', '.join(map(str, EPOCHS))}",
    "trained": f"epoch {EPOCHS[-1]}",
    "adam": 2e-4,
    "robust": "steps that it doesn't name",
    "small": "no such models",
}
_TEXT: Settings = {"dropout": "on", "masked": False}
_TOKENS: Settings = {"weights": "examples"}

PAPER: Mapping[str, Settings] = {
    "translation": {**_ALL, **_TEXT, **_TOKENS, "data": "opus_books", "model": "t5-small", "batch": 1024, "sgd": 1e-3},
    "code": {
        **_ALL,
        **_TEXT,
        **_TOKENS,
        "data": "the-stack-smol",
        "model": "gpt-neo-125M-code-clippy",
        "padding": "a label",
        "sgd": 3e-5,
    },
    "images": {**_ALL, "data": "CIFAR-10", "model": "ResNet-152", "batch": 1000, "head": "kept", "norm": "8 images"},
    "sentiment": {**_ALL, **_TEXT, "data": "IMDb", "model": "BERT-base", "directions": "none"},
}
"""What the paper uses, by task, as far as it says."""

TEMPLATES: Mapping[str, str] = {
    "data": "data are {ours}, not {paper}",
    "model": "the model is {ours}, not {paper}",
    "start": "initialization is {ours}, not {paper}",
    "pretraining": "initialization is {ours}, not {paper}'s",
    "dropout": "dropout is off; the paper trains with its models' own",
    "batch": "training batches have {ours} examples, not {paper}",
    "evaluation": "the evaluation batch has {ours} examples, not {paper}",
    "masked": "padding is masked; the published code gives no mask",
    "padding": "padding is {ours}; in the published code it is {paper}",
    "head": "the head is {ours}; the published code keeps its 1,000 classes",
    "norm": "batch norm sees {ours} at a time; in the published code {paper}",
    "weights": "all tokens weigh the same; in the published code all examples do, whatever their length",
    "sgd": "sgd trains at a learning rate of {ours:g}, not {paper:g}",
    "adam": "adam trains at a learning rate of {ours:g}, not {paper:g}",
    "measured": "measured at {ours}, not in {paper}",
    "trained": "trained to {ours}; the paper measures up to {paper}",
    "robust": "measured at {ours}",
    "small": "{ours}: small models and made-up data of our own",
    "directions": "the paper measures no directions on this task",
}
"""What is said of a field that differs, in this order."""


def departures(runs: Sequence[Run[Record]]) -> tuple[str, ...]:
    """In what these runs differ from the paper's, in words, each departure once with the runs that have it.

    Beside runs along trajectories, trainings count only on the tasks of those.

    Example:
        >>> departures([Run("theory", {"configuration": {"experiment": "theory"}}, [])])
        ()
    """
    tasks = [run.task for run in runs if run.experiment == "trajectory"]
    names: dict[str, dict[str, None]] = {}
    for name, task, ours in (settings for run in runs for settings in _settings(run, tasks)):
        for departure in _differences(task, ours):
            names.setdefault(departure, {})[name] = None
    return tuple(f"{', '.join(own)}: {departure}" for departure, own in names.items())


def _differences(task: str, ours: Settings) -> list[str]:
    if task not in PAPER:
        return [f"the paper has no task {task}"]
    paper = {**PAPER[task], "pretraining": PAPER[task]["model"]}
    return [
        template.format(ours=ours[field], paper=paper[field])
        for field, template in TEMPLATES.items()
        if field in ours and field in paper and ours[field] != paper[field]
    ]


def _settings(run: Run[Record], tasks: Sequence[str]) -> Iterator[tuple[str, str, Settings]]:
    """Of each task of a run: the name that it goes by, the task, and the settings."""
    asked, context = run.head["configuration"], run.context
    steps = asked.get("steps")
    if run.experiment == "trajectory":
        rates = {name: rate for name, rate in section(asked, "training_lr").items() if isinstance(rate, int | float)}
        own = section(asked, "task")
        measured = _as(_ALL["measured"], _epochs(context, own, steps) == list(EPOCHS), _steps(context, own, steps))
        settings = {**rates, **_start(run.task, context), **_loss(context, own, asked)}
        yield run.name, run.task, {**settings, "measured": measured, "directions": "all"}
    if run.experiment == "convergence":
        for task in section(asked, "tasks"):
            if tasks and task not in tasks:
                continue
            own = section(section(asked, "tasks"), task)
            there = section(section(context, "tasks"), task)
            reached = max(_epochs(there, own, [steps]), default=0) >= EPOCHS[-1]
            trained = _as(_ALL["trained"], reached, _steps(there, own, [steps]))
            yield f"{run.name} ({task})", task, {**_start(task, there), **_loss(there, own, asked), "trained": trained}
    if run.experiment == "robustness":
        robust = _steps(context, section(asked, "task"), steps)
        yield run.name, "sentiment", {**_start("sentiment", context), "masked": _masks(asked), "robust": robust}
    if run.experiment == "theory":
        if context.get("model"):
            yield run.name, "translation", _start("translation", context)
        if small := ", ".join(section(context, "small")):
            yield run.name, "translation", {"small": small}


def _start(task: str, context: Settings) -> Settings:
    """Data, model and its first weights, as the paper names them where they are the same."""
    paper = PAPER.get(task, {"data": "", "model": ""})
    source, model = section(context, "source"), section(context, "model")
    began, title = str(model.get("initialisation", "unknown")), source.get("title", "unknown")
    pretrained = began.startswith("pretrained")
    settings = {
        "data": _as(paper["data"], _names(paper["data"], source.get("name"), title), title),
        "model": _as(paper["model"], _names(paper["model"], model.get("title"), began), model.get("title", "unknown")),
        "start": _as("pretrained", pretrained, began),
        "dropout": "off",
    }
    return settings | ({"pretraining": _as(paper["model"], _names(paper["model"], began), began)} if pretrained else {})


def _loss(context: Settings, own: Settings, asked: Settings) -> Settings:
    """How the loss is taken."""
    released = asked.get("released") or ()
    return {
        "batch": own.get("batch_size") or "unknown",
        "evaluation": section(context, "evaluation").get("examples") or "unknown",
        "masked": _masks(asked),
        "weights": "examples" if EQUAL_WEIGHTS in released else "tokens",
        "padding": _as("a label", PADDING_LABELS in released, "no label"),
        "head": f"new, with {'1,000' if WIDE_HEAD in released else 'its own'} classes",
        "norm": _as("8 images", SMALL_NORM_BATCHES in released, "the whole batch"),
    }


def _masks(asked: Settings) -> bool:
    # Experiments without this setting mask.
    return asked.get("masked") is not False


def _steps(context: Settings, own: Settings, steps: Any) -> str:
    """Steps in words, with the epochs that they lie in."""
    names = [str(step) for step in steps] if isinstance(steps, list | tuple) else ["unknown"]
    epochs = _epochs(context, own, steps)
    lie = f" (epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))})" if epochs else ""
    return f"step{'s' * (len(names) > 1)} {', '.join(names)}{lie}"


def _epochs(context: Settings, own: Settings, steps: Any) -> list[int]:
    """The epoch of each step, both counted from 1; none where they can't be known."""
    batch, examples = own.get("batch_size"), section(context, "source").get("examples")
    whole = (batch, examples, *steps) if isinstance(steps, list | tuple) else ()
    if not whole or not all(type(number) is int and number > 0 for number in whole):
        return []
    # The last examples of an epoch that fill no batch are left out.
    return [1 + (step - 1) // max(1, whole[1] // whole[0]) for step in whole[2:]]


def _as(papers: str, same: bool, ours: Any) -> str:
    """A setting in the paper's words where it is the paper's."""
    return papers if same else str(ours)


def _names(wanted: str, *texts: Any) -> bool:
    """Whether a text names it by whole words, whatever its punctuation."""
    return any(f" {_words(wanted)} " in f" {_words(str(text))} " for text in texts)


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
