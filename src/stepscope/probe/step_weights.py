"""The weights between the start of a step and its end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stepscope.objective import dtensors, vectors


class StepWeights:
    """The weights where a step starts, kept as copies, and where they are now.

    Of parameters that lie in parts on several ranks, this rank's parts are kept, and lengths are those of the whole.

    Args:
        parameters: those that the step will move.

    Attributes:
        parameters: the same.

    Example:
        >>> w = nn.Parameter(torch.tensor([1.0, 2.0])); weights = StepWeights({"w": w})
        >>> with torch.no_grad(): _ = w.add_(torch.tensor([3.0, 4.0]))
        >>> weights.moved({"w": torch.tensor([1.0, -1.0])})
        (5.0, -1.0)
        >>> with weights.at(0.5): print(w.tolist())
        [2.5, 4.0]
        >>> w.tolist()
        [4.0, 6.0]
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self._start = {name: dtensors.part(parameter).clone() for name, parameter in parameters.items()}

    @property
    def is_shared(self) -> bool:
        """Whether some lie in memory that other processes can have."""
        return any(map(_is_shared, self.parameters.values()))

    def moved(self, gradient: Mapping[str, Tensor]) -> tuple[float, float]:
        """The length of the step ``d = x' − x``, and its product with this rank's parts of a gradient.

        Args:
            gradient: by the name of the parameter; what isn't in it counts as 0.
        """
        by_shards: dict[int, list[str]] = {}
        for name, parameter in self.parameters.items():
            by_shards.setdefault(dtensors.shards(parameter), []).append(name)
        sums = [self._sums(names, gradient) for names in by_shards.values()]
        owners = [self.parameters[names[0]] for names in by_shards.values()]
        squares = dtensors.summed([square for square, _ in sums], owners)
        products = dtensors.summed([product for _, product in sums], owners)
        return math.sqrt(math.fsum(squares)), math.fsum(products)

    def _sums(self, names: Iterable[str], gradient: Mapping[str, Tensor]) -> tuple[float, float]:
        """Of this rank's parts of some parameters: the step's square, and its product with the gradient."""
        squares, products = [torch.zeros((), device="cpu")], [torch.zeros((), device="cpu")]
        moved = ((self._start[name], dtensors.part(self.parameters[name]), gradient.get(name)) for name in names)
        shaped = ((a, b, torch.zeros_like(a) if g is None else g) for a, b, g in moved)
        for before, after, g in vectors.joined_pieces(shaped):
            wide = vectors.accumulator(before)
            step = after.to(wide) - before.to(wide)
            squares.append(torch.dot(step, step))
            products.append(torch.dot(step, g.to(wide)))
        return math.fsum(vectors.numbers(squares)), math.fsum(vectors.numbers(products))

    @contextmanager
    def at(self, t: float) -> Iterator[None]:
        """Inside, the weights are at ``x + td``; afterwards they are bit for bit, and count as never written to.

        Args:
            t: 0 for the start of the step, 1 for its end.
        """
        parts = [(dtensors.part(parameter), self._start[name]) for name, parameter in self.parameters.items()]
        made = [(part, part._version, part.clone()) for part, _ in parts]
        try:
            for (part, start), (_, _, end) in zip(parts, made, strict=True):
                part.copy_(torch.lerp(start, end, t))
            yield
        finally:
            for part, _, end in made:
                part.copy_(end)
            written, versions = tuple(part for part, *_ in made), tuple(version for _, version, _ in made)
            torch._C._autograd._unsafe_set_version_counter(written, versions)


def _is_shared(parameter: Tensor) -> bool:
    """Whether it lies in memory that other processes can have; on a GPU all memory says so."""
    parameter = dtensors.part(parameter)
    return parameter.device.type == "cpu" and bool(parameter.is_shared())  # type: ignore[no-untyped-call]
