"""Whether the step that an optimizer makes is the one that was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stepscope import vectors
from stepscope.vectors import Direction


@dataclass(frozen=True)
class MadeStep:
    """How far the step that was made is from the one that was expected.

    Attributes:
        error: ``‖(x' − x) − d‖ / ‖d‖``.
        rounding: how much of it the rounding of ``x'`` to its dtype can be, at most.
        dtype: the coarsest of the parameters.
    """

    error: float
    rounding: float
    dtype: torch.dtype

    @property
    def is_another(self) -> bool:
        """Whether something beside rounding has changed it."""
        return self.error > 0.01 + 1.5 * self.rounding

    def remark(self, optimizer: str) -> str | None:
        """What a person should know of it; ``None`` if it is the step that was expected."""
        percent, where = f"{100 * self.error:.0f}%", "(step_error in the records)"
        if self.is_another:
            return (
                f"the step that {optimizer} makes differs by {percent} from the one measured {where}: something "
                "changes gradients or weights in between, such as a hook on its step, or the rule draws random numbers"
            )
        if self.error > 0.1:
            dtype = str(self.dtype).removeprefix("torch.")
            return f"rounding to {dtype} changes the step by {percent} {where}: what is measured is the step before it"
        return None


class ExpectedStep:
    """A step before it is made.

    Args:
        parameters: where it starts; copied.
        update: ``d``, what it is expected to add.

    Example:
        >>> w = nn.Parameter(torch.zeros(1)); expected = ExpectedStep({"w": w}, {"w": torch.tensor([2.0])})
        >>> w.data.fill_(3.0); expected.compared_with({"w": w}).error
        tensor([3.])
        0.5
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], update: Direction) -> None:
        self._update = update
        self._before = {name: p.detach().clone() for name, p in parameters.items() if name in update}

    def compared_with(self, parameters: Mapping[str, nn.Parameter]) -> MadeStep:
        """The step that led to where the parameters are now."""
        missed: dict[str, Tensor] = {
            name: (parameters[name].detach().double() - before.double()) - self._update[name].double()
            for name, before in self._before.items()
            if name in parameters
        }
        length = vectors.norm(self._update)
        dtype = max((x.dtype for x in self._before.values()), key=lambda d: torch.finfo(d).eps)
        rounding = 0.5 * torch.finfo(dtype).eps * vectors.norm(self._before) / length
        return MadeStep(vectors.norm(missed) / length, rounding, dtype)
