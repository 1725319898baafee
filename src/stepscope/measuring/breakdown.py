"""Where a direction's sharpness comes from: which layers, and how much of it from the largest coordinates.

Almost all of it needs only ``u`` and the product ``Hu``, which is computed for ``uᵀHu`` anyway. The split within layers
costs more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stepscope.clipping import count_of, fraction_threshold
from stepscope.errors import UsageError
from stepscope.measuring.curvature import Method, curvature
from stepscope.objective import Direction, Objective, vectors

Grouping = Callable[[str], str]
"""From the name of a parameter to the name of its layer."""

TOP_FRACTIONS = (0.001, 0.01, 0.1)
BINS_PER_DECADE = 4
_PIECE = 2**18
"""Coordinates that are counted at a time."""


@dataclass(frozen=True)
class Magnitudes:
    """A histogram of the coordinates ``|dᵢ|`` by their size, relative to the root mean square, on a logarithmic axis.

    Attributes:
        zeros: coordinates that are zero.
        lowest: number of the first bin. Bin ``k`` holds magnitudes from ``10^(k/per_decade)`` to
            ``10^((k+1)/per_decade)`` times the root mean square.
        per_decade: bins to a power of ten.
        counts: coordinates in each bin.
    """

    zeros: int
    lowest: int
    per_decade: int
    counts: list[int]


@dataclass(frozen=True)
class Breakdown:
    """The parts of ``uᵀHu``, in its own unit, and the coordinates of ``u`` by their size.

    Attributes:
        layers: ``u_ℓᵀ(Hu)_ℓ`` of each layer ``ℓ``; they add up to ``uᵀHu``. Some can be negative.
        top: for each fraction ``p``, the ``⌊pn⌋`` coordinates of largest ``|uᵢ|``: ``"norm"`` is ``Σ uᵢ²`` over them,
            ``"sharpness"`` is ``Σ uᵢ(Hu)ᵢ``. Coordinates of equal magnitude at the boundary have equal weights.
        magnitudes: the histogram of the coordinates (arXiv 2306.00204, figure 1).
    """

    layers: dict[str, float]
    top: dict[float, dict[str, float]]
    magnitudes: Magnitudes


def layer_of(parameter: str) -> str:
    """The module that owns a parameter: its name without the last part.

    Example:
        >>> layer_of("encoder.0.attention.weight"), layer_of("scale")
        ('encoder.0.attention', 'scale')
    """
    module, _, _ = parameter.rpartition(".")
    return module or parameter


def magnitudes(direction: Mapping[str, Tensor]) -> Magnitudes:
    """The histogram of a direction's coordinates by magnitude.

    Args:
        direction: ``d``, finite, any length but zero.

    Example:
        >>> magnitudes({"w": torch.tensor([0.0, 1.0, -1.0, 1.0])})  # the root mean square is 0.866
        Magnitudes(zeros=1, lowest=0, per_decade=4, counts=[3])
    """
    count = sum(tensor.numel() for tensor in direction.values())
    scale = vectors.norm(direction) / math.sqrt(count)
    zeros, counts = 0, Counter[int]()
    for tensor in direction.values():
        # In pieces: temporary copies take several times the memory of the piece.
        for piece in torch.split(tensor.detach().flatten(), _PIECE):
            relative = piece.to(vectors.accumulator(piece)).abs()
            relative = relative[relative > 0] / scale
            zeros += piece.numel() - relative.numel()
            if relative.numel():
                # A millionth of a bin is added: magnitudes that are 1 up to rounding, as after a sign, share a bin.
                bins = (BINS_PER_DECADE * relative.log10() + 1e-6).floor().long()
                least = int(bins.min())
                counts.update({least + k: count for k, count in enumerate(torch.bincount(bins - least).tolist())})
    lowest = min(counts)
    return Magnitudes(zeros, lowest, BINS_PER_DECADE, [counts[k] for k in range(lowest, max(counts) + 1)])


class BreakdownObserver:
    """Adds up the breakdown of each direction from the products ``Hu`` of a curvature method; an `Observer`.

    Args:
        labels: of the directions.
        layer: the layer of a parameter, a function of its name.
    """

    def __init__(self, labels: Iterable[str], layer: Grouping = layer_of) -> None:
        self._layer = layer
        self._labels = list(labels)
        self.clear()
        self._norms: dict[str, dict[float, float]] = {}
        self._largest: dict[str, dict[float, _Largest]] = {}
        self._magnitudes: dict[str, Magnitudes] = {}

    def __call__(self, label: str, weight: float, u: Direction, product: Direction) -> None:
        """Adds the product of one micro-batch."""
        if label not in self._largest:
            self._largest[label] = {p: _Largest.of(u, p) for p in TOP_FRACTIONS}
            self._norms[label] = {p: vectors.dot(largest.restrict(u), u) for p, largest in self._largest[label].items()}
            self._magnitudes[label] = magnitudes(u)
        layers = self._layers[label]
        for name, tensor in u.items():
            value = vectors.dot({name: tensor}, product) if name in product else 0.0
            layers[self._layer(name)] = layers.get(self._layer(name), 0.0) + weight * value
        for fraction, largest in self._largest[label].items():
            self._top[label][fraction] += weight * vectors.dot(largest.restrict(u), product)

    def clear(self) -> None:
        """Starts again from zero."""
        self._layers: dict[str, dict[str, float]] = {label: {} for label in self._labels}
        self._top: dict[str, dict[float, float]] = {label: dict.fromkeys(TOP_FRACTIONS, 0.0) for label in self._labels}

    def result(self, label: str) -> Breakdown:
        """The breakdown of one direction."""
        top = {
            fraction: {"norm": self._norms[label][fraction], "sharpness": self._top[label][fraction]}
            for fraction in TOP_FRACTIONS
        }
        return Breakdown(self._layers[label], top, self._magnitudes[label])


def within_layers(
    objective: Objective, direction: Mapping[str, Tensor], layer: Grouping = layer_of, method: Method = "auto"
) -> dict[str, float]:
    """``u_ℓᵀH_ℓℓu_ℓ`` of each layer: the sharpness that is left when layers don't interact.

    Their sum differs from ``uᵀHu`` by the interaction of layers. Cost: one more direction for each layer.

    Args:
        objective: the loss.
        direction: ``d``, any length but zero.
        layer: the layer of a parameter, a function of its name.
        method: see `stepscope.measuring.curvature.curvature`.

    Returns:
        ``{layer: sharpness}``, in the unit of ``uᵀHu``.

    Raises:
        UsageError: the direction doesn't fit the model.

    Example:
        >>> import torch
        >>> w = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.ones(1)), "b": torch.nn.Parameter(torch.ones(1))})
        >>> f = Objective(w, lambda m, _: (2 * m["a"] ** 2 + m["a"] * m["b"]).sum(), [0], lambda _: 1)
        >>> layers = within_layers(f, {"a": torch.ones(1), "b": torch.ones(1)})
        >>> {name: round(sharpness, 4) for name, sharpness in layers.items()}
        {'a': 2.0, 'b': 0.0}
    """
    objective.check_direction("direction", direction)
    restricted: dict[str, Direction] = {}
    for name, tensor in direction.items():
        restricted.setdefault(layer(name), {})[name] = tensor
    with objective.measuring():
        units = {
            label: vectors.UnitDirection.of(own, objective.parameters)
            for label, own in restricted.items()
            if any(bool(tensor.any()) for tensor in own.values())
        }
        terms = curvature(objective, {label: unit.u for label, unit in units.items()}, method)
    squared_norm = math.fsum(unit.norm**2 for unit in units.values())
    sharpness = {label: objective.mean(values) for label, values in terms.sharpness.items()}
    return {
        label: sharpness[label] * units[label].norm ** 2 / squared_norm if label in units else 0.0
        for label in restricted
    }


def grouping(layer: Grouping | Mapping[str, str] | None, names: Iterable[str]) -> Grouping:
    """The user's choice of layers as a function, checked on all parameters.

    Args:
        layer: a function of a parameter's name, a mapping from prefixes of names (the longest that fits counts), or
            ``None`` for the module that owns the parameter.
        names: the names of all trainable parameters.

    Raises:
        UsageError: a name has no layer.

    Example:
        >>> grouping({"encoder": "front", "encoder.9": "last"}, ["encoder.9.w"])("encoder.9.w")
        'last'
    """
    if layer is None:
        return layer_of
    chosen = layer
    if isinstance(chosen, Mapping):
        table = sorted(chosen.items(), key=lambda item: -len(item[0]))

        def by_prefix(name: str) -> str:
            return next((group for prefix, group in table if name.startswith(prefix)), "")

        chosen = by_prefix
    for name in names:
        if not isinstance(chosen(name), str) or not chosen(name):
            raise UsageError(f"parameter {name} belongs to no layer: give one for it")
    return chosen


@dataclass(frozen=True)
class _Largest:
    """The ``⌊pn⌋`` coordinates of largest ``|uᵢ|``.

    Attributes:
        threshold: coordinates above it have weight 1.
        tied: the weight of coordinates that equal it.
    """

    threshold: float
    tied: float

    @classmethod
    def of(cls, u: Mapping[str, Tensor], fraction: float) -> _Largest:
        threshold = fraction_threshold(list(u.values()), fraction)
        if math.isinf(threshold):
            return cls(threshold, 0.0)
        count = count_of(fraction, sum(tensor.numel() for tensor in u.values()))
        above = sum(int((tensor.abs() > threshold).sum()) for tensor in u.values())
        equal = sum(int((tensor.abs() == threshold).sum()) for tensor in u.values())
        # Where only zeros are left below, the threshold is the smallest magnitude that isn't zero.
        return cls(threshold, min(1.0, (count - above) / equal) if equal else 0.0)

    def restrict(self, u: Mapping[str, Tensor]) -> Direction:
        """``u`` in the largest coordinates, zero elsewhere."""
        if math.isinf(self.threshold):
            return {}
        return {
            name: x * ((x.abs() > self.threshold) + (x.abs() == self.threshold) * self.tied) for name, x in u.items()
        }
