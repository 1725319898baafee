"""On what a run was measured, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def model_and_data(context: Mapping[str, Any]) -> list[str]:
    """The model of each task, how it starts, and its data, a line for each.

    Args:
        context: that of `run.json`.
    """
    named = {f"{name}: ": task for name, task in context["tasks"].items()} if "tasks" in context else {"": context}
    lines = []
    for name, task in named.items():
        source, model = (task.get(key) or {} for key in ("source", "model"))
        start, data = f"{model.get('initialisation')} start", f"{source.get('title')} ({source.get('license')})"
        lines.append(f"{name}{model.get('title')}, {start}; {data}")
    return lines
