"""What the adapters pass on to `Probe`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from stepscope.errors import UsageError
from stepscope.probe import Probe

_ADAPTERS_OWN = {"model", "optimizer", "loss_fn", "eval_batches", "step"}


def checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, which `Probe` gets only when the training begins.

    Raises:
        UsageError: `Probe` doesn't know one.

    Example:
        >>> checked({"every": 50})
        {'every': 50}
    """
    known = set(inspect.signature(Probe).parameters) - _ADAPTERS_OWN
    if unknown := set(settings) - known:
        raise UsageError(f"Probe has no setting {min(unknown)!r}: choose from {', '.join(sorted(known))}")
    return dict(settings)
