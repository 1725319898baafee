"""What was run, for people: a title and lists of names and values, from the content of `run.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Facts = list[tuple[str, list[tuple[str, str]]]]
"""Titled lists of names and values."""


def title_of(run: Mapping[str, Any]) -> str:
    """What was measured on which data, from the content of `run.json`."""
    context = run.get("context") or {}
    if tasks := context.get("tasks"):
        kind = str((run.get("configuration") or {}).get("experiment") or "convergence").capitalize()
        return f"{kind}: " + " and ".join(_name_of(task.get("model")) or name for name, task in tasks.items())
    named = [_name_of(context.get("model")), _name_of(context.get("source"))]
    return " on ".join(name for name in named if name) or "Directions of optimizers"


def _name_of(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("title") or value.get("name")
    return str(value) if value else ""


def facts_of(run: Mapping[str, Any]) -> Facts:
    """What was run, from the content of `run.json`."""
    context = dict(run.get("context") or {})
    tasks = context.pop("tasks", None) or {}
    groups = {"Data": context.pop("source", None), "Model": context.pop("model", None)}
    groups |= {f"Task {name}": value for name, value in tasks.items()}
    groups |= {"Configuration": run.get("configuration"), "Versions": context.pop("versions", None)}
    groups["Also recorded"] = context
    listed = [(title, _flat(value)) for title, value in groups.items() if value]
    if run.get("created"):
        listed.append(("Run", [("started", str(run["created"]))]))
    return listed


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}" if name else str(key))]
    if isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value):
        return [(name, ", ".join(map(_shown, value)) or "none")]
    return [(name, _shown(value))]


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and abs(value) >= 10_000:
        return f"{value:,}".replace(",", "\u202f")
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else str(value)
