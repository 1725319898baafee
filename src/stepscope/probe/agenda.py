"""What is measured at the steps that come, alike on all ranks that measure together.

What a measurement may cost depends on a clock, and ``every`` may be any function: ranks that decided by themselves
would soon wait for one another. So the first one decides, some steps ahead, and tells the others. Between two such
messages all know what comes, and exchange nothing. What is foretold ends with a step that is measured, since what
comes after depends on what that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stepscope.objective import Ranks
from stepscope.probe.schedule import Plan

AHEAD = 16
"""How many steps are foretold, at most."""

_PLANS: dict[str, Plan] = {"p": "pass", "f": "follow", "m": "measure"}

_NOTHING = "p--"
"""What is said of a step: its plan; whether it is measured on its own batch (``o``); and its edge (``e``)."""


class Agenda:
    """Which steps are measured. A process alone decides when a step comes.

    Args:
        ranks: those that measure together.
        own: whether a step is to be measured on its own batch, by this rank's clock.
        edge: ``edge(step, own)``: whether its edge is, where it is measured on its own batch or not.
        plans: ``plans(step, count)``: as `Schedule.ahead`, by this rank's clock.

    Example:
        >>> import torch
        >>> alone = Ranks(None, torch.device("cpu"))
        >>> agenda = Agenda(alone, lambda step: step == 2, lambda step, own: own, lambda step, count: [])
        >>> agenda.has_own(1), agenda.has_own(2), agenda.plan(2)
        (False, True, None)
    """

    def __init__(
        self,
        ranks: Ranks,
        own: Callable[[int], bool],
        edge: Callable[[int, bool], bool],
        plans: Callable[[int, int], Sequence[Plan]],
    ) -> None:
        self._ranks, self._own, self._edge, self._plans = ranks, own, edge, plans
        self._foretold: dict[int, str] = {}

    def has_own(self, step: int) -> bool:
        """Whether a step that begins is to be measured on its own batch; all ranks ask this of each step, in order."""
        if self._ranks.alone:
            return self._own(step)
        if step not in self._foretold:
            self._foretell(step)
        return "o" in self._foretold[step]

    def has_edge(self, step: int, own: bool) -> bool:
        """Whether the edge of a step that has begun is to be measured, which is measured on its own batch or not."""
        return self._edge(step, own) if self._ranks.alone else "e" in self._foretold.get(step, _NOTHING)

    def plan(self, step: int) -> Plan | None:
        """What is planned for a step that has begun; ``None`` where that is decided when it comes."""
        return None if self._ranks.alone else _PLANS[self._foretold.get(step, _NOTHING)[0]]

    def agree(self, plan: Plan) -> Plan:
        """The first rank's plan for the step that is being made, which is known better now."""
        return _PLANS[self._ranks.broadcast(plan, 0)[0]] if not self._ranks.alone else plan

    def drop(self, step: int) -> None:
        """What was foretold of the steps after this one doesn't hold."""
        self._foretold = {known: said for known, said in self._foretold.items() if known <= step}

    def _foretell(self, step: int) -> None:
        with self._ranks.agreed("when to measure"):
            decided = self._decided(step) if self._ranks.rank == 0 else []
        self._foretold = dict(enumerate(self._ranks.broadcast(" ".join(decided), 0).split(), step))

    def _decided(self, step: int) -> list[str]:
        decided = []
        for number, plan in enumerate(self._plans(step, AHEAD), step):
            own = self._own(number)
            edge = plan != "measure" and self._edge(number, own)
            decided.append(plan[0] + ("o" if own else "-") + ("e" if edge else "-"))
            if own or edge:
                break
        return decided
