"""A probe for the time of one training after another, as callbacks have it: attached, taken off, summed up."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError
from stepscope.integrations.conclusion import conclude
from stepscope.objective import LossFunction
from stepscope.probe import Probe

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_ADAPTERS_OWN = {"model", "optimizer", "loss_fn", "eval_batches", "step", "process_group"}


class Attachment:
    """What an adapter holds of a probe.

    Where ranks train together, all hold one, and each measures on its share of the evaluation batches.

    Args:
        settings: what the user gave for `Probe`, which gets it only when a training begins.

    Attributes:
        probe: of the newest training; ``None`` before the first.
        is_on: whether the training goes on.
        during: what is entered for the time of the training.

    Raises:
        UsageError: `Probe` doesn't know a setting.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        known = set(inspect.signature(Probe).parameters) - _ADAPTERS_OWN
        if unknown := set(settings) - known:
            raise UsageError(f"Probe has no setting {min(unknown)!r}: choose from {', '.join(sorted(known))}")
        self.probe: Probe | None = None
        self._settings = dict(settings)
        self._group: ProcessGroup | None = None
        self.is_on = False
        self.during = ExitStack()

    def begin(
        self, model: nn.Module, optimizer: Any, loss_fn: LossFunction | None, batches: Iterable[Any], **defaults: Any
    ) -> Probe:
        """Attaches a probe; `defaults` are settings that give way to the user's. All ranks have the same batches."""
        self.remove()  # of a training that was interrupted
        self._group = _ranks_together()
        if self._group is not None:
            batches = _share(batches, self._group.rank(), self._group.size())
        settings = defaults | self._settings
        if self.probe is not None:
            # Another start: a trial of a search, or after the trainer ran out of memory. It replaces no records.
            settings["overwrite"] = False
        self.probe = Probe(model, optimizer, loss_fn, batches, process_group=self._group, **settings)
        self.is_on = True
        return self.probe

    def end(self) -> None:
        """Takes the probe off after a training that came to its end, and sums up what it measured."""
        if self.is_on and self.probe is not None:
            self.remove()
            if self._group is None or self._group.rank() == 0:
                conclude(self.probe, quiet=bool(self._settings.get("quiet")))

    def remove(self) -> None:
        """Takes the probe off; its records stay."""
        self.is_on = False
        self.during.close()
        if self.probe is not None:
            self.probe.close()


def _ranks_together() -> ProcessGroup | None:
    """All processes, where there are several."""
    distributed = torch.distributed
    there = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return distributed.group.WORLD if there else None


def _share(batches: Any, rank: int, size: int) -> Any:
    """One of so many shares of some batches; what isn't a list of batches is refused later."""
    if isinstance(batches, Mapping | Tensor | str | tuple) or not isinstance(batches, Iterable):
        return batches
    if isinstance(batches, list):
        return batches[rank::size]
    return (batch for number, batch in enumerate(batches) if number % size == rank)  # it may have no end
