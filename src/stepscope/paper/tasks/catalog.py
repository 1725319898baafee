"""All tasks, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stepscope.paper.tasks import code, images, sentiment, translation
from stepscope.paper.tasks.task import Task


@dataclass(frozen=True)
class Kind:
    """A kind of task.

    Attributes:
        make: ``(config, seed=, source=) -> Task``.
        scales: its configurations by size.
        title: what the model is called, such as ``"T5"``.
    """

    make: Callable[..., Task]
    scales: Mapping[str, Any]
    title: str


TASKS: dict[str, Kind] = {
    "translation": Kind(translation.translation, translation.SCALES, "T5"),
    "code": Kind(code.code, code.SCALES, "GPT-Neo"),
    "sentiment": Kind(sentiment.sentiment, sentiment.SCALES, "BERT"),
    "images": Kind(images.images, images.SCALES, "ResNet"),
}
