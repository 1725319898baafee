"""A small GELU network whose coordinate-wise smoothness along a segment is bounded by interval arithmetic.

Its Hessian has a closed form, so that intervals go through it: what comes out bounds every entry at *every* point of
the segment. A grid of Hessians would bound it at the grid alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stepscope.paper.experiments import intervals
from stepscope.paper.experiments.intervals import Interval, hull

_ROUNDING = 1e-9
"""Added to what intervals give, as a part of it: ten thousand times the rounding of sums as long as these."""


@dataclass(frozen=True)
class GeluNetwork:
    """``o = a + Σⱼ vⱼ·gelu(Σₖ wⱼₖxₖ + bⱼ)`` with the logistic loss of two classes, on fixed examples.

    Its ``n = h(m + 2) + 1`` parameters are one vector: the rows ``(wⱼ, bⱼ)`` one after the other, ``v``, and ``a``.

    Attributes:
        inputs: float64, shape (examples, m).
        labels: 0 or 1 as float64, shape (examples,).
        hidden: ``h``, how many units.
    """

    inputs: Tensor
    labels: Tensor
    hidden: int

    @property
    def extended(self) -> Tensor:
        """The inputs and a 1, which the biases are the weights of, shape (examples, m + 1)."""
        return torch.cat([self.inputs, torch.ones_like(self.inputs[:, :1])], 1)

    @property
    def parameters(self) -> int:
        """``n``."""
        return self.hidden * (self.inputs.shape[1] + 2) + 1

    def loss(self, x: Tensor) -> Tensor:
        """The mean loss, nats, at parameters of shape (n,)."""
        weights, outer, shift = self._split(x)
        output = torch.nn.functional.gelu(self.extended @ weights.T) @ outer + shift
        return torch.nn.functional.binary_cross_entropy_with_logits(output, self.labels)

    def gradient(self, x: Tensor) -> Tensor:
        """``∇f``, shape (n,)."""
        x = x.detach().clone().requires_grad_()
        return torch.autograd.grad(self.loss(x), x)[0]

    def smoothness(self, x: Tensor, direction: Tensor, step: float, pieces: int = 2) -> Tensor:
        """``Lᵢ`` that hold on the segment from ``x`` to ``x − step·d``: the largest ``Σⱼ|Hᵢⱼ|`` on it, from above.

        With these, ``diag(L) − H`` is diagonally dominant, hence positive semidefinite, at each point of the segment;
        so ``f(y) ≤ f(x) + gᵀ(y−x) + ½ Σ Lᵢ(yᵢ−xᵢ)²`` for ``y`` on it. Nothing is sampled: the intervals enclose the
        Hessian at all points of a piece. What isn't proven is rounding (to nearest, not outwards), which a billionth
        is added for. ``Lᵢ`` isn't the least such bound: row sums aren't, and intervals are wider than what they
        enclose, which more pieces mend.

        Args:
            x: where the segment starts, shape (n,).
            direction: ``d``, shape (n,).
            step: its length in multiples of ``d``, at least 0.
            pieces: into how many parts it is cut, each of which has intervals of its own.

        Returns:
            Shape (n,), loss per squared length.
        """
        return self.hessian(x, direction, step, pieces).magnitude().sum(-1).amax(0) * (1 + _ROUNDING)

    def hessian(self, x: Tensor, direction: Tensor, step: float, pieces: int = 2) -> Interval:
        """``H`` on each piece of the segment from ``x`` to ``x − step·d``, shape (pieces, n, n).

        With ``J = ∂o/∂x``: ``H`` is the mean over the examples of ``σ′(o)JJᵀ + (σ(o) − label)∇²o``. Pre-activations are
        linear along the segment, so their intervals are exact.
        """
        ends = torch.linspace(0, step, pieces + 1, dtype=x.dtype)
        weights, outer, shift = self._split(x[None] - ends[:, None] * direction)
        z, outer_between, shift_between = (_between(t) for t in (self.extended @ weights.mT, outer, shift))
        v = outer_between.at(slice(None), None)  # one for all examples
        value, slope, bend = intervals.gelu(z), intervals.gelu_slope(z), intervals.gelu_bend(z)
        output = value.times(v).sum(-1).plus(shift_between.at(slice(None), None))
        first = intervals.sigmoid(output)
        first = Interval(first.low - self.labels, first.high - self.labels)
        second = intervals.sigmoid_slope(output)
        jacobian = self._jacobian(slope.times(v), value)
        outer_product = jacobian.at(..., None).times(jacobian.at(..., None, slice(None)))
        curved = self._output_hessian(bend.times(v), slope)
        whole = outer_product.times(second.at(..., None, None)).plus(curved.times(first.at(..., None, None)))
        return Interval(whole.low.mean(1), whole.high.mean(1))

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights with biases (…, h, m + 1), outer weights (…, h), shift (…)."""
        inner = self.hidden * (self.inputs.shape[1] + 1)
        weights = x[..., :inner].reshape(*x.shape[:-1], self.hidden, -1)
        return weights, x[..., inner:-1], x[..., -1]

    def _jacobian(self, scaled: Interval, value: Interval) -> Interval:
        """``∂o/∂x``, shape (pieces, examples, n), from ``vⱼ·gelu′(zⱼ)`` and ``gelu(zⱼ)``, (pieces, examples, h)."""
        inner = scaled.at(..., None).times(self.extended[:, None])
        parts = zip(inner, value, strict=True)
        return Interval(*(torch.cat([a.flatten(-2), b, torch.ones_like(b[..., :1])], -1) for a, b in parts))

    def _output_hessian(self, bend: Interval, slope: Interval) -> Interval:
        """``∇²o``, shape (pieces, examples, n, n), from ``vⱼ·gelu″(zⱼ)`` and ``gelu′(zⱼ)``: a block for each unit."""
        n, width = self.parameters, self.inputs.shape[1] + 1
        pairs = self.extended[:, :, None] * self.extended[:, None, :]
        found = Interval(*(torch.zeros(*part.shape[:2], n, n, dtype=part.dtype) for part in bend))
        for unit in range(self.hidden):
            rows, column = slice(unit * width, (unit + 1) * width), self.hidden * width + unit
            within = bend.at(..., unit, None, None).times(pairs)
            across = slope.at(..., unit, None).times(self.extended)
            for whole, a, b in zip(found, within, across, strict=True):
                whole[..., rows, rows] = a
                whole[..., rows, column] = b
                whole[..., column, rows] = b
        return found


def _between(values: Tensor) -> Interval:
    """What is linear along a segment, on each of its pieces, from its values at their ends (the first dimension)."""
    return hull(values[:-1], values[1:])
