"""Whether the step that an optimizer makes is the one that was measured.

The comparison costs one copy of the weights during the step, and notices what no inspection would: hooks of others,
rounding, random rules. A measurement is withdrawn if another step is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stepscope.objective import Direction, vectors


@dataclass(frozen=True)
class MadeStep:
    """How far the step that was made is from the one that was expected.

    Attributes:
        error: ``‖(x' − x) − d‖ / ‖d‖``.
        rounding: how much of it one rounding of ``x'`` to its dtype can be, at most.
        dtype: the coarsest of the parameters.
    """

    error: float
    rounding: float
    dtype: torch.dtype

    @property
    def is_another(self) -> bool:
        """Whether something beside rounding has changed it.

        A rule writes to its weights once to three times (weight decay, update, a projection), and each time rounds
        them. Its own arithmetic was the same, to a few units of the sixth digit: kernels in float32 of which the
        direction has the exact result.
        """
        return self.error > 1e-5 + 3 * self.rounding

    def remark(self, optimizer: str) -> str | None:
        """What a person should know of it; ``None`` if it is the step that was expected."""
        percent = f"{100 * self.error:.3g}%"
        if self.is_another:
            return (
                f"the step that {optimizer} makes differs by {percent} from the one measured, which is left out of the "
                "records, now and whenever it does: something changes gradients or weights in between, such as a hook "
                "on its step, or the rule draws random numbers of its own or works in ways that can't be seen"
            )
        if self.error > 0.1:
            dtype = str(self.dtype).removeprefix("torch.")
            return (
                f"rounding to {dtype} changes the step by {percent} (step_error in the records): "
                "what is measured is the step before it"
            )
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
        sizes, steps = vectors.norms(self._before), vectors.norms({name: self._update[name] for name in self._before})
        roundings = (_half_a_unit(x, sizes[name] + steps[name]) for name, x in self._before.items())
        rounding = math.hypot(*roundings) / length
        dtype = max((x.dtype for x in self._before.values()), key=lambda d: torch.finfo(d).eps)
        return MadeStep(vectors.norm(missed) / length, rounding, dtype)


def _half_a_unit(x: Tensor, size: float) -> float:
    """How far rounding can move a tensor of a norm of at most this size, at most."""
    limits = torch.finfo(x.dtype)
    return 0.5 * limits.eps * (size + limits.tiny * math.sqrt(x.numel()))
