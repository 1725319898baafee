"""Where a direction's sharpness comes from: which layers, and how much of it from the largest coordinates.

Everything but the split within layers is read off ``u`` and the product ``Hu``, which is computed for ``uᵀHu`` anyway.
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
    """How many coordinates are how large: a histogram of ``|dᵢ|`` over its root mean square, on a logarithmic axis.

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
        layers: ``u_ℓᵀ(Hu)_ℓ`` of each layer ``ℓ``; they add up to ``uᵀHu``. A part can be negative.
        top: for each fraction ``p``, the ``⌊pn⌋`` coordinates of largest ``|uᵢ|``: ``"norm"`` is their part ``Σ uᵢ²``
            of the squared norm, ``"sharpness"`` their part ``Σ uᵢ(Hu)ᵢ`` of ``uᵀHu``. Of equal magnitudes that would
            have to be cut, each counts by the same part.
        magnitudes: the histogram of the coordinates (Pan and Li, figure 1).
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
    count = sum(part.numel() for part in direction.values())
    scale = vectors.norm(direction) / math.sqrt(count)
    zeros, found = 0, Counter[int]()
    for part in direction.values():
        # In pieces: the temporary copies are several times as large as what they are of.
        for piece in torch.split(part.detach().flatten(), _PIECE):
            relative = piece.to(vectors.accumulator(piece)).abs()
            relative = relative[relative > 0] / scale
            zeros += piece.numel() - relative.numel()
            if relative.numel():
                # A millionth of a bin, so that what is 1 but for rounding, as under a sign, falls into one bin.
                bins = (BINS_PER_DECADE * relative.log10() + 1e-6).floor().long()
                least = int(bins.min())
                found.update({least + k: count for k, count in enumerate(torch.bincount(bins - least).tolist())})
    lowest = min(found)
    return Magnitudes(zeros, lowest, BINS_PER_DECADE, [found[k] for k in range(lowest, max(found) + 1)])


class BreakdownObserver:
    """Collects the parts of each direction from the products that `stepscope.measuring.curvature.curvature` makes.

    Args:
        labels: of the directions.
        layer: the layer of a parameter, by its name.
    """

    def __init__(self, labels: Iterable[str], layer: Grouping = layer_of) -> None:
        self._layer = layer
        self._labels = list(labels)
        self.clear()
        self._norms: dict[str, dict[float, float]] = {}
        self._largest: dict[str, dict[float, _Largest]] = {}
        self._magnitudes: dict[str, Magnitudes] = {}

    def __call__(self, label: str, weight: float, u: Direction, product: Direction) -> None:
        """Adds one micro-batch's part."""
        if label not in self._largest:
            self._largest[label] = {p: _Largest.of(u, p) for p in TOP_FRACTIONS}
            self._norms[label] = {p: vectors.dot(largest.part(u), u) for p, largest in self._largest[label].items()}
            self._magnitudes[label] = magnitudes(u)
        layers = self._layers[label]
        for name, part in u.items():
            value = vectors.dot({name: part}, product) if name in product else 0.0
            layers[self._layer(name)] = layers.get(self._layer(name), 0.0) + weight * value
        for fraction, largest in self._largest[label].items():
            self._top[label][fraction] += weight * vectors.dot(largest.part(u), product)

    def clear(self) -> None:
        """Forgets what was collected."""
        self._layers: dict[str, dict[str, float]] = {label: {} for label in self._labels}
        self._top: dict[str, dict[float, float]] = {label: dict.fromkeys(TOP_FRACTIONS, 0.0) for label in self._labels}

    def result(self, label: str) -> Breakdown:
        """What was collected of one direction."""
        top = {
            fraction: {"norm": self._norms[label][fraction], "sharpness": self._top[label][fraction]}
            for fraction in TOP_FRACTIONS
        }
        return Breakdown(self._layers[label], top, self._magnitudes[label])


def within_layers(
    objective: Objective, direction: Mapping[str, Tensor], layer: Grouping = layer_of, method: Method = "auto"
) -> dict[str, float]:
    """``u_ℓᵀH_ℓℓu_ℓ`` of each layer: the sharpness that is left when layers don't interact.

    What is missing to ``uᵀHu`` is cross-layer. Cost: one more direction for each layer.

    Args:
        objective: what is measured.
        direction: ``d``, any length but zero.
        layer: the layer of a parameter, by its name.
        method: see `stepscope.measuring.curvature.curvature`.

    Returns:
        ``{layer: part}``, in the unit of ``uᵀHu``.

    Raises:
        UsageError: the direction doesn't fit the model.

    Example:
        >>> import torch
        >>> w = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.ones(1)), "b": torch.nn.Parameter(torch.ones(1))})
        >>> f = Objective(w, lambda m, _: (2 * m["a"] ** 2 + m["a"] * m["b"]).sum(), [0], lambda _: 1)
        >>> parts = within_layers(f, {"a": torch.ones(1), "b": torch.ones(1)})
        >>> {name: round(part, 4) for name, part in parts.items()}
        {'a': 2.0, 'b': 0.0}
    """
    objective.check_direction("direction", direction)
    restricted: dict[str, Direction] = {}
    for name, part in direction.items():
        restricted.setdefault(layer(name), {})[name] = part
    with objective.measuring():
        units = {
            label: vectors.UnitDirection.of(part, objective.parameters)
            for label, part in restricted.items()
            if any(bool(tensor.any()) for tensor in part.values())
        }
        terms = curvature(objective, {label: unit.u for label, unit in units.items()}, method)
    whole = math.fsum(unit.norm**2 for unit in units.values())
    sharpness = {label: objective.mean(values) for label, values in terms.sharpness.items()}
    return {label: sharpness[label] * units[label].norm ** 2 / whole if label in units else 0.0 for label in restricted}


def grouping(layer: Grouping | Mapping[str, str] | None, names: Iterable[str]) -> Grouping:
    """The user's choice of layers as a function, checked on all parameters.

    Args:
        layer: a function of a parameter's name, a mapping from the beginnings of names (the longest that fits
            counts), or ``None`` for the module that owns the parameter.
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

        def by_beginning(name: str) -> str:
            return next((group for beginning, group in table if name.startswith(beginning)), "")

        chosen = by_beginning
    for name in names:
        if not isinstance(chosen(name), str) or not chosen(name):
            raise UsageError(f"parameter {name} belongs to no layer: give one for it")
    return chosen


@dataclass(frozen=True)
class _Largest:
    """The ``⌊pn⌋`` coordinates of largest ``|uᵢ|``: all above a threshold, and of those that equal it an even part."""

    threshold: float
    tied: float

    @classmethod
    def of(cls, u: Mapping[str, Tensor], fraction: float) -> _Largest:
        threshold = fraction_threshold(list(u.values()), fraction)
        if math.isinf(threshold):
            return cls(threshold, 0.0)
        wanted = count_of(fraction, sum(part.numel() for part in u.values()))
        above = sum(int((part.abs() > threshold).sum()) for part in u.values())
        equal = sum(int((part.abs() == threshold).sum()) for part in u.values())
        # Where only zeros are left below, the threshold is the smallest magnitude that isn't zero.
        return cls(threshold, min(1.0, (wanted - above) / equal) if equal else 0.0)

    def part(self, u: Mapping[str, Tensor]) -> Direction:
        """``u`` in the largest coordinates, zero elsewhere."""
        if math.isinf(self.threshold):
            return {}
        return {
            name: x * ((x.abs() > self.threshold) + (x.abs() == self.threshold) * self.tied) for name, x in u.items()
        }
