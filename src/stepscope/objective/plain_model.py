"""A model that lies whole in this process: the same methods as `ShardedModel` has for one that ranks hold in parts.

Other processes may have copies of it, each evaluating micro-batches of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stepscope.objective import interrupts
from stepscope.objective.measurable import measured_dtype
from stepscope.objective.process_group import Ranks, checksum
from stepscope.objective.vectors import Direction

AliasesOf = Callable[[nn.Parameter], list[Tensor]]
"""Other tensors that lie in a parameter's memory."""


class PlainModel:
    """How a model is evaluated, moved and differentiated that isn't sharded.

    Args:
        ranks: those that have it.

    Attributes:
        ranks: see there.
    """

    is_data_parallel = True
    """Whether each rank has batches of its own."""

    memories: Callable[[], set[int]] | None = None
    """As of a sharded model: none."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._depth = 0
        self._scratch: list[dict[str, Tensor]] = []

    @contextmanager
    def measuring(self, *, as_trained: bool) -> Iterator[None]:
        """Inside, points are computed into memory that is kept: one model's worth, more where they nest."""
        del as_trained
        try:
            yield
        finally:
            self._depth, self._scratch = 0, []

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation."""
        yield

    def deliver(self) -> None:
        """Ctrl-C takes effect here."""
        interrupts.deliver()

    def check_copies(self, what: str, tensors: Mapping[str, Tensor], remedy: str) -> None:
        """Refuses tensors that aren't the same on all ranks; see `ShardedModel.check_copies`."""
        if not self.ranks.alone:
            self.ranks.check_same(what, checksum(tensors), remedy)

    def of_rounds(self, values: Sequence[float]) -> list[float]:
        """A number of each micro-batch of all ranks, from those of this one's."""
        return self.ranks.concatenated(values)

    def pooled(self, direction: Direction, parameters: Mapping[str, nn.Parameter]) -> Direction:
        """The sum over ranks of what each has summed over its own micro-batches; `direction` is used up."""
        return self.ranks.summed(direction, parameters)

    @contextmanager
    def moved(
        self,
        parameters: Mapping[str, nn.Parameter],
        direction: Mapping[str, Tensor],
        step: float,
        aliases_of: AliasesOf,
    ) -> Iterator[None]:
        """Inside, parameters are ``x + step · direction``, and what shares their memory follows; outside ``x``."""
        if self._depth == len(self._scratch):
            self._scratch.append({})
        scratch = self._scratch[self._depth]
        here = {name: parameters[name].data for name in direction}
        aliases = {name: [(a, a.data) for a in aliases_of(parameters[name])] for name in here}
        self._depth += 1
        try:
            for name, x in here.items():
                if name not in scratch:
                    scratch[name] = torch.empty_like(x)
                wider = measured_dtype(x.dtype, None)  # a step of weights in half precision is rounded at its end
                torch.add(x, direction[name].to(x.device, wider), alpha=step, out=scratch[name])
                parameters[name].data = scratch[name]
                for alias, data in aliases[name]:
                    place = data.storage_offset() - x.storage_offset()
                    alias.data = scratch[name].as_strided(data.size(), data.stride(), place)
            yield
        finally:
            for name, x in here.items():
                parameters[name].data = x
                for alias, data in aliases[name]:
                    alias.data = data
            self._depth -= 1

    def gradient(
        self, loss: Tensor, parameters: Mapping[str, nn.Parameter], *, create_graph: bool = False
    ) -> Direction:
        """The gradient of a loss; a parameter that it doesn't use is left out."""
        with torch.enable_grad():
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), create_graph=create_graph, allow_unused=True
            )
        return {
            name: gradient.to_dense() if gradient.is_sparse else gradient
            for name, gradient in zip(parameters, gradients, strict=True)
            if gradient is not None
        }
