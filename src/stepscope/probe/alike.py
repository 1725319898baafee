"""What ranks that measure together must have alike of a step: the same gradients, moved the same way.

What is measured of gradients that lie in parts on several ranks is exchanged, tensor by tensor, so ranks that have
other tensors are refused before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from stepscope.errors import UsageError
from stepscope.objective import Ranks
from stepscope.objective.process_group import number_of

_ALIKE = 1e-3
"""How far numbers of ranks may be from one another, relatively, that do the same: their sums round otherwise."""

_SAME_STEP = (
    "gradients are averaged over them before the step, and whatever changes gradients or weights does so on all alike"
)


def check_gradients(ranks: Ranks, gradients: Mapping[str, Tensor]) -> None:
    """Refuses gradients where ranks have them of different parameters.

    Raises:
        UsageError: on all ranks.
    """
    own = number_of([(name, gradient.is_sparse) for name, gradient in gradients.items()])
    ranks.check_same("the gradients of a step", [own], _SAME_STEP)


def check_alike(what: str, numbers: Sequence[float]) -> None:
    """Refuses what differs between ranks by more than rounding: the number of each, which all know.

    Raises:
        UsageError: it does, on all ranks.
    """
    first = numbers[0]
    if not all(math.isclose(n, first, rel_tol=_ALIKE) or (math.isnan(n) and math.isnan(first)) for n in numbers):
        raise UsageError(f"the ranks of the process group differ in {what}: {_SAME_STEP}")
