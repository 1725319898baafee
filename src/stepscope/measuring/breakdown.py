"""Where a direction's sharpness comes from: which layers, and how much of it from the largest coordinates.

Almost all of it needs only ``u`` and the product ``Hu``, which is computed for ``uᵀHu`` anyway. The split within layers
costs more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from stepscope.clipping import count_of
from stepscope.errors import UsageError
from stepscope.measuring.curvature import Method, curvature
from stepscope.measuring.magnitudes import Largest, Magnitudes, SortedMagnitudes
from stepscope.objective import Direction, Objective, UnitDirection, dtensors, vectors

Grouping = Callable[[str], str]
"""From the name of a parameter to the name of its layer."""

TOP_FRACTIONS = (0.001, 0.01, 0.1)


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


class BreakdownObserver:
    """Adds up the breakdown of each direction from the products ``Hu`` of a curvature method; an `Observer`.

    Args:
        units: the directions: one after another is sorted before the first product.
        layer: the layer of a parameter, a function of its name.
    """

    def __init__(self, units: Mapping[str, UnitDirection], layer: Grouping = layer_of) -> None:
        self._layer = layer
        self._labels = list(units)
        self._magnitudes: dict[str, Magnitudes] = {}
        self._largest: dict[str, dict[float, Largest]] = {}
        for label in self._labels:
            vector = units[label].vector
            ordered = SortedMagnitudes(vector)
            self._magnitudes[label] = ordered.histogram()
            self._largest[label] = {p: ordered.largest(count_of(p, ordered.size)) for p in TOP_FRACTIONS}
            del ordered, vector  # one direction at a time
        self._squares = {label: unit.length**2 for label, unit in units.items()}
        self.clear()

    def __call__(self, label: str, weight: float, vector: Direction, product: Direction) -> None:
        """Adds the product of one micro-batch."""
        layers, dots = self._layers[label], vectors.dots(vector, product)
        for name in vector:
            layers[self._layer(name)] = layers.get(self._layer(name), 0.0) + weight * dots.get(name, 0.0)
        for fraction, value in _of_largest(vector, product, self._largest[label]).items():
            self._top[label][fraction] += weight * value

    def clear(self) -> None:
        """Starts again from zero."""
        self._layers: dict[str, dict[str, float]] = {label: {} for label in self._labels}
        self._top: dict[str, dict[float, float]] = {label: dict.fromkeys(TOP_FRACTIONS, 0.0) for label in self._labels}

    def result(self, label: str) -> Breakdown:
        """The breakdown of one direction."""
        top = {
            fraction: {"norm": part.norm / self._squares[label], "sharpness": self._top[label][fraction]}
            for fraction, part in self._largest[label].items()
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
    moving = vectors.moving(direction)
    with objective.measuring():
        units = {
            label: UnitDirection.of(own, objective.parameters)
            for label, own in restricted.items()
            if not moving.isdisjoint(own)
        }
        terms = curvature(objective, units, method)
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


def _of_largest(
    u: Mapping[str, Tensor], product: Mapping[str, Tensor], largest: Mapping[float, Largest]
) -> dict[float, float]:
    """``Σ uᵢvᵢ`` over the largest ``|uᵢ|``, for each fraction."""
    least = min(part.threshold for part in largest.values())
    by_shards: dict[int, list[str]] = {}
    for name, tensor in u.items():
        if name in product:
            by_shards.setdefault(dtensors.shards(tensor), []).append(name)
    totals = dict.fromkeys(largest, 0.0)
    for names in by_shards.values():
        sums: dict[float, list[Tensor]] = {fraction: [] for fraction in largest}
        for x, y in vectors.joined_pieces((dtensors.part(u[name]), dtensors.part(product[name])) for name in names):
            sizes = x.abs()
            at = vectors.places(sizes >= least)
            sizes, terms = sizes[at], x[at].to(vectors.accumulator(x)) * y[at]
            for fraction, part in largest.items():
                sums[fraction].append(part.sum(sizes, terms))
        own = [math.fsum(vectors.numbers(parts)) for parts in sums.values()]
        for fraction, value in zip(largest, dtensors.summed(own, [u[names[0]]] * len(own)), strict=True):
            totals[fraction] += value
    return totals
