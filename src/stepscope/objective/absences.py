"""Which ranks don't come to what all do together, as each says in the store of their process group.

An exchange can't tell: it waits. A note in the store waits for nobody. A rank that leaves for good says so there, so
that the others know it before they wait for it. One that has waited for some seconds says where, so that those that
haven't are the missing ones. Otherwise nothing is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from stepscope.errors import said

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_PATIENCE = 5.0
"""Seconds after which a rank that waits for others says so."""

_APART = 1.0
"""Seconds that ranks begin to wait for the same one apart."""

_COUNTS: WeakKeyDictionary[ProcessGroup, int] = WeakKeyDictionary()
"""How many `Absences` each group has had: its ranks make them together, so their notes have the same names."""


class Absences:
    """What ranks of a group say of where they are.

    Args:
        group: the process group; its ranks make this together.
        patient: whether nothing is said of a long wait: an exchange of a GPU's can't be waited for a while.
    """

    def __init__(self, group: ProcessGroup, *, patient: bool) -> None:
        _COUNTS[group] = number = _COUNTS.get(group, 0) + 1
        self._prefix, self._rank, self._size = f"stepscope/{number}", group.rank(), group.size()
        self._store: Any = group.get_group_store() if hasattr(group, "get_group_store") else None
        self._patient, self._exchange = patient or self._store is None, 0

    def leave(self, why: str) -> None:
        """This rank comes to nothing any more."""
        self._note(f"left/{self._rank}", why)
        self._note("left", "")

    def left(self) -> str:
        """Which rank has left, and why; empty where none has."""
        if not self._has("left"):
            return ""
        rank = next(rank for rank in range(self._size) if self._has(f"left/{rank}"))
        return f"rank {rank} {self._store.get(f'{self._prefix}/left/{rank}').decode()}"

    def wait(self, work: Any, what: str) -> None:
        """Waits for an exchange that has begun; all ranks wait for the same ones, in turn.

        Args:
            work: the exchange.
            what: this rank is at, a sentence.

        Raises:
            RuntimeError: it failed, or a rank has left; where it was waited for, with the ranks that are missing.
        """
        self._exchange += 1
        if self._patient or _arrives(work, _PATIENCE):
            work.wait()
            return
        place = f"at/{self._exchange}"
        self._note(f"{place}/{self._rank}", "")
        missing = ""
        try:
            if not _arrives(work, _APART):
                if left := self.left():
                    raise RuntimeError(left)
                waiting = self._waiting(place)
                missing = self._others(waiting)
                if waiting and waiting[0] == self._rank:
                    logging.getLogger("stepscope").warning("%s: waiting for %s", what, missing)
            work.wait()
        except RuntimeError as error:
            with suppress(RuntimeError):  # the store may be gone
                missing = self._others(self._waiting(place))
            raise RuntimeError(f"{what}, and {missing} didn't come: {said(error)}") from error

    def _waiting(self, place: str) -> list[int]:
        return [rank for rank in range(self._size) if self._has(f"{place}/{rank}")]

    def _others(self, ranks: Iterable[int]) -> str:
        others = sorted(set(range(self._size)) - set(ranks))
        return f"rank{'s' * (len(others) != 1)} {', '.join(map(str, others))}"

    def _note(self, key: str, text: str) -> None:
        with suppress(RuntimeError):  # the store may be gone
            self._store.set(f"{self._prefix}/{key}", text)

    def _has(self, key: str) -> bool:
        return self._store is not None and bool(self._store.check([f"{self._prefix}/{key}"]))


def _arrives(work: Any, seconds: float) -> bool:
    """Whether an exchange is through in some seconds, or has failed."""
    try:
        work.wait(timedelta(seconds=seconds))
    except RuntimeError:
        return bool(work.is_completed())
    return True
