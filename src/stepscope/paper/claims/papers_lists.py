"""What the paper compares on which task. What goes beyond is judged too, and no verdict depends on it."""

from __future__ import annotations

_ON_BOTH = ("sgd", "adam", "adam clip 50%", "adafactor", "adafactor clip 50%", "lion")
_OPTIMIZERS = {
    "translation": (*_ON_BOTH, "sgd clip 10%", "normalized sgd", "normalized sgd clip 10%", "signsgd"),
    "code": _ON_BOTH,
}
"""By task, as in the lists of the published code. Of images nothing is known."""

_UNMEASURED = ("sentiment",)
"""Tasks along whose trainings the paper measures no directions."""

NOT_COMPARED = "beyond the paper, which doesn't compare this optimizer here"
MORE_COMPARED = "beyond the paper, which compares fewer optimizers here"
NOT_MEASURED = "beyond the paper, which measures no directions on this task"


def compares(task: str, optimizer: str) -> bool:
    """Whether the paper compares an optimizer on a task, in whichever of its ways it clips.

    Clipping an update is none of them: of that the paper says that it doesn't improve the result significantly.

    Example:
        >>> compares("code", "adam clip 50% (first moment)"), compares("code", "adam clip 50% (update)")
        (True, False)
    """
    name, _, way = optimizer.partition(" (")
    return task not in _OPTIMIZERS or (name in _OPTIMIZERS[task] and way != "update)")


def measures(task: str) -> bool:
    """Whether the paper measures directions on a task."""
    return task not in _UNMEASURED
