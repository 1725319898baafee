"""Where a direction's sharpness comes from: which layers, and how much of it from the largest coordinates.

Almost all of it needs only ``u`` and the product ``Hu``, which is computed for ``uᵀHu`` anyway. The split within layers
costs more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from stepscope.clipping import count_of
from stepscope.errors import UsageError
from stepscope.measuring.curvature import Method, curvature
from stepscope.objective import Direction, Objective, vectors

Grouping = Callable[[str], str]
"""From the name of a parameter to the name of its layer."""

TOP_FRACTIONS = (0.001, 0.01, 0.1)
BINS_PER_DECADE = 4


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
    return _histogram(_Keys(direction), vectors.norm(direction) / math.sqrt(sum(t.numel() for t in direction.values())))


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
        self._magnitudes: dict[str, Magnitudes] = {}
        self._largest: dict[str, dict[float, _Largest]] = {}
        self._norms: dict[str, dict[float, float]] = {}

    def __call__(self, label: str, weight: float, u: Direction, product: Direction) -> None:
        """Adds the product of one micro-batch."""
        if label not in self._largest:
            keys, size = _Keys(u), sum(tensor.numel() for tensor in u.values())
            self._magnitudes[label] = _histogram(keys, vectors.norm(u) / math.sqrt(size))
            self._largest[label] = {p: keys.largest(count_of(p, size)) for p in TOP_FRACTIONS}
            self._norms[label] = _parts(u, u, self._largest[label])[1]
        of_parameters, of_largest = _parts(u, product, self._largest[label])
        layers = self._layers[label]
        for name, value in of_parameters.items():
            layers[self._layer(name)] = layers.get(self._layer(name), 0.0) + weight * value
        for fraction, value in of_largest.items():
            self._top[label][fraction] += weight * value

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
        terms = curvature(objective, vectors.UnitVectors(units), method)
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

    def sum(self, sizes: Tensor, values: Tensor) -> float:
        """The sum of the values that belong to them, of coordinates with the magnitudes `sizes`."""
        above = float(torch.dot((sizes > self.threshold).to(values.dtype), values))
        equal = float(torch.dot((sizes == self.threshold).to(values.dtype), values)) if self.tied else 0.0
        return above + self.tied * equal


def _parts(
    u: Mapping[str, Tensor], product: Mapping[str, Tensor], largest: Mapping[float, _Largest]
) -> tuple[dict[str, float], dict[float, float]]:
    """``Σ uᵢvᵢ`` over the coordinates of each parameter, and over the largest of all."""
    of_largest: dict[float, list[float]] = {fraction: [] for fraction in largest}
    least = min(part.threshold for part in largest.values())
    for x, y in vectors.joined_pieces((tensor, product[name]) for name, tensor in u.items() if name in product):
        sizes = x.abs()
        at = (sizes >= least).nonzero().view(-1)
        sizes, terms = sizes[at], x[at].to(vectors.accumulator(x)) * y[at]
        for fraction, part in largest.items():
            of_largest[fraction].append(part.sum(sizes, terms))
    of_parameters = {name: vectors.dot({name: tensor}, product) for name, tensor in u.items()}
    return of_parameters, {fraction: math.fsum(sums) for fraction, sums in of_largest.items()}


class _Keys:
    """The magnitudes of a direction as integers of the same order: the bits of floating-point numbers.

    One pass counts their leading bits. Each later question takes a pass over the few magnitudes with some of
    these, and no more memory than a piece.
    """

    DIGIT = 16

    def __init__(self, direction: Mapping[str, Tensor]) -> None:
        self._tensors = list(direction.values())
        double = any(tensor.dtype == torch.float64 for tensor in self._tensors)
        self.dtype, self._integer, bits = (
            (torch.float64, torch.int64, 63) if double else (torch.float32, torch.int32, 31)
        )
        self.shift = bits - bits % self.DIGIT
        self.leading = self._counts(key >> self.shift for key in self._pieces())
        self._after: dict[tuple[int, int], Tensor] = {}

    def ends(self, leading: Tensor) -> tuple[Tensor, Tensor]:
        """The smallest and the largest magnitude with some leading bits."""
        first = leading.to(self._integer) << self.shift
        return first.view(self.dtype), (first + ((1 << self.shift) - 1)).view(self.dtype)

    def with_leading(self, leading: Tensor) -> Iterator[Tensor]:
        """All magnitudes with one of these leading bits, piece by piece."""
        return (key.view(self.dtype) for key in self._with_leading(leading))

    def largest(self, count: int) -> _Largest:
        """The largest magnitudes, `count` of them."""
        counts, shift, prefix, above = self.leading, self.shift, 0, 0
        while True:
            from_largest = above + counts.flip(0).cumsum(0)
            place = int(torch.searchsorted(from_largest, count, right=True))  # of the next in order: the threshold
            above = int(from_largest[place - 1]) if place else above
            prefix = (prefix << self.DIGIT) | (counts.numel() - 1 - place)
            if not shift:
                equal = int(counts.flip(0)[place])
                threshold = torch.tensor(prefix, dtype=self._integer).view(self.dtype)
                return _Largest(float(threshold), (count - above) / equal)
            if (prefix, shift) not in self._after:
                self._after[prefix, shift] = self._digits_after(prefix, shift)
            counts, shift = self._after[prefix, shift], shift - self.DIGIT

    def _digits_after(self, prefix: int, shift: int) -> Tensor:
        """Counts the digits behind a prefix, which ends `shift` bits before the end of a key."""
        keys = self._with_leading(torch.tensor([prefix >> (self.shift - shift)]))
        digits = (key[(key >> shift) == prefix] >> (shift - self.DIGIT) for key in keys)
        return self._counts(digit & ((1 << self.DIGIT) - 1) for digit in digits)

    def _pieces(self) -> Iterator[Tensor]:
        for (piece,) in vectors.joined_pieces((tensor,) for tensor in self._tensors):
            yield piece.to(self.dtype).abs().view(self._integer)

    def _with_leading(self, leading: Tensor) -> Iterator[Tensor]:
        chosen = torch.zeros(1 << self.DIGIT, dtype=torch.bool)
        chosen[leading] = True
        for key in self._pieces():
            yield key[chosen.to(key.device).index_select(0, key >> self.shift)]

    def _counts(self, digits: Iterable[Tensor]) -> Tensor:
        total = torch.zeros(1 << self.DIGIT, dtype=torch.int64)
        for digit in digits:
            total += torch.bincount(digit, minlength=1 << self.DIGIT).cpu()
        return total


def _histogram(keys: _Keys, scale: float) -> Magnitudes:
    """Counts magnitudes by their leading bits, and those one by one that share them across the edge of a bin."""
    leading = keys.leading.nonzero().view(-1)
    first, last = (_bins(end, scale) for end in keys.ends(leading))
    across = (first != last) | (leading == 0)
    counts = Counter[int]()
    for k, count in zip(first[~across].tolist(), keys.leading[leading[~across]].tolist(), strict=True):
        counts[k] += count
    zeros = 0
    for sizes in keys.with_leading(leading[across]):
        bins = _bins(sizes[sizes > 0], scale)
        zeros += sizes.numel() - bins.numel()
        if bins.numel():
            least = int(bins.min())
            counts.update({least + k: count for k, count in enumerate(torch.bincount(bins - least).tolist())})
    lowest = min(counts)
    return Magnitudes(zeros, lowest, BINS_PER_DECADE, [counts[k] for k in range(lowest, max(counts) + 1)])


def _bins(sizes: Tensor, scale: float) -> Tensor:
    # A millionth of a bin is added: magnitudes that are 1 up to rounding, as after a sign, share a bin.
    return (BINS_PER_DECADE * (sizes.to(vectors.accumulator(sizes)) / scale).log10() + 1e-6).floor().long()
