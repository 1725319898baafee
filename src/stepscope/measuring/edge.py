"""`edge`: how far a step is from where it would raise the loss, from losses alone.

Nothing is differentiated, so the loss is evaluated as training runs it: compiled where the model is, under autocast,
with fused attention, in the precision of the weights. Modules are in evaluation mode, as in `measure`: the same batches
give the same losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any, Literal

from torch import Tensor

from stepscope.errors import UsageError
from stepscope.measuring.crossing import Bracket, Crossing
from stepscope.measuring.slopes import slopes_at
from stepscope.objective import Direction, Objective, check_objective, vectors
from stepscope.shown import brief, format_number, html_table

Status = Literal["found", "beyond the last", "no descent", "within noise"]

FORWARDS = 8
"""How often the evaluation batches are evaluated, at most."""
NEAR = 8.0
"""The noise is looked for this many units of rounding away from the weights, relative to their norm."""
NEAR_AT_MOST = 1 / 8
"""But at most at this multiple of the step."""
CERTAIN = 4.0
"""A change of the loss has a sign where it is this many times as large as an error that was seen, or a rounding."""

_SHOWN = ("status", "critical_multiple", "critical_bracket", "realized_change", "predicted_change", "trust_ratio")
"""What is shown of an edge; `Edge.record` has all."""


@dataclass(frozen=True, repr=False)
class Edge:
    """The loss ``f`` at multiples ``t`` of one step ``d`` from parameters ``x``; multiples are of ``d`` itself.

    Attributes:
        loss: ``f(x)``.
        norm: ``‖d‖``.
        multiples: where the loss was evaluated, ascending, the first 0.
        losses: ``f(x + t·d)``, the same length; ``math.inf`` where it isn't finite.
        status: ``"found"``: the loss is below ``f(x)`` at the lower end of the bracket and above at the upper end.
            ``"beyond the last"``: it is below up to the largest multiple. ``"no descent"``: it is above at 1 and at
            all smaller ones. ``"within noise"``: no evaluated multiple lowers it by more than the noise, and the step
            itself changes it by less.
        critical_multiple: ``min {t > 0: f(x + t·d) > f(x)}`` [1], the first one met outward from 1, interpolated in its
            bracket; ``None`` unless found.
        critical_bracket: ``(lower, upper)``, between which it lies; an end is ``None`` where it isn't known. The ends
            lie within 1/16 of one another unless evaluations ran out, the loss isn't finite, or noise hides the sign.
        lowest_multiple: the evaluated multiple with the lowest loss.
        realized_change: ``f(x + d) − f(x)``; infinite where the loss isn't finite there.
        realized_stderr: its standard error over micro-batches as a sample; ``None`` for a single one.
        predicted_change: ``gᵀd``; ``None`` without a slope.
        trust_ratio: ``realized_change / predicted_change``: ``1 − t/c`` on a quadratic, with ``t = 1`` and its critical
            multiple ``c``. ``None`` unless ``gᵀd < 0``.
        directional_smoothness: ``2(f(x + d) − f(x) − gᵀd) / ‖d‖²`` [2], the curvature that the whole step meets;
            ``None`` without a slope.
        slope_stderr: the standard error of ``gᵀd`` over micro-batches; ``None`` without a slope of each.
        signal_to_noise: ``|gᵀd| / slope_stderr``; ``None`` likewise.
        decay_slope: ``gᵀw``, the part of ``gᵀd`` that is due to weight decay, whose part of the step is ``w``; ``None``
            without that part, and unless the slope was asked for.
        decay_change: ``f(x + d) − f(x + d − w)``: what weight decay adds to the change; ``None`` without that part.
        noise: a difference of two losses of this size or less may be rounding, as measured near ``x``.
        forwards: how often the micro-batches were evaluated.

    References:
        [1] arXiv 2601.16979: ``2/(c·lr)`` is its critical sharpness. [2] arXiv 2403.04081.
    """

    loss: float
    norm: float
    multiples: tuple[float, ...]
    losses: tuple[float, ...]
    status: Status
    critical_multiple: float | None
    critical_bracket: Bracket
    lowest_multiple: float
    realized_change: float
    realized_stderr: float | None
    predicted_change: float | None
    trust_ratio: float | None
    directional_smoothness: float | None
    slope_stderr: float | None
    signal_to_noise: float | None
    decay_slope: float | None
    decay_change: float | None
    noise: float
    forwards: int

    def __repr__(self) -> str:
        return brief(self, _SHOWN)

    def _repr_html_(self) -> str:
        along = zip(self.multiples, self.losses, strict=True)
        rows = [(f"{multiple:.3g}", format_number(loss - self.loss)) for multiple, loss in along]
        return f"<p>{escape(repr(self))}</p>{html_table(('multiple of the step', 'change of the loss'), rows)}"

    def record(self) -> dict[str, Any]:
        """The edge as plain values, for `stepscope.runs.RecordedEdge`."""
        return asdict(self)


def edge(
    objective: Objective,
    direction: Mapping[str, Tensor],
    *,
    slope: float | Sequence[float] | Literal["gradient"] | None = None,
    decay: Mapping[str, Tensor] | None = None,
) -> Edge:
    """How far a step is from where it would raise the loss, for at most 8 forward passes.

    The loss is evaluated at a few multiples of the step, outward from 1, until it is below ``f(x)`` at one and above
    at another near it. Nothing is differentiated: half precision, compiled code, fused attention and an autocast that
    is on, or that the loss enters, are those of training. Modules are in evaluation mode. The model is left as it is.

    Args:
        objective: the loss and the micro-batches that it is measured on.
        direction: the step ``d`` itself, with the learning rate in it. A parameter that is left out doesn't move.
        slope: ``gᵀd`` where it is known, or that of each micro-batch, or ``"gradient"``: computed, for one gradient of
            the micro-batches (about three forward passes more), in the precision of `measure`.
        decay: the part of the step that weight decay makes (`stepscope.directions.decay_part`), for one of the forward
            passes; ``None`` where it isn't known.

    Returns:
        The `Edge`.

    Raises:
        UsageError: the step doesn't fit the model or is zero, or the loss isn't scalar or not finite at ``x``.

    Example:
        >>> import torch
        >>> x = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))})
        >>> f = Objective(x, lambda m, _: m["w"].square().sum() / 2, [torch.ones(1)], lambda _: 1)
        >>> found = edge(f, {"w": torch.tensor([-1.5])})  # the best step is twice as long, the edge four times
        >>> found.status, round(found.critical_multiple, 9), found.forwards <= 8
        ('found', 4.0, True)
    """
    check_objective(objective)
    objective.check_direction("step", direction)
    if decay:
        objective.check_direction("decay", decay)
        if others := decay.keys() - direction.keys():
            raise UsageError(f"decay names {min(others)!r}, which the step doesn't move")
    slopes, decay_slope = _slopes(objective, direction, slope, decay)
    with objective.measuring(as_trained=True):
        return _Step(objective, direction, slopes, decay, decay_slope).edge()


def _slopes(
    objective: Objective,
    direction: Mapping[str, Tensor],
    slope: float | Sequence[float] | str | None,
    decay: Mapping[str, Tensor] | None,
) -> tuple[float | list[float] | None, float | None]:
    """``gᵀd``, of each micro-batch where that is known, and the decay's part of it.

    Raises:
        UsageError: it is neither a finite number, nor one for each micro-batch, nor ``"gradient"``.
    """
    if slope is None:
        return None, None
    if slope == "gradient":
        gradient: Direction = {}
        with objective.measuring():
            each_slope = slopes_at(objective, dict(direction), 0.0, gradient if decay else None, 1.0)[1]
            return each_slope, None if decay is None else vectors.dot(decay, objective.pooled(gradient))
    each = isinstance(slope, Sequence) and not isinstance(slope, str)
    try:
        values = [float(value) for value in (slope if each else [slope])]  # type: ignore[union-attr, arg-type]
    except (TypeError, ValueError):
        values = [math.nan]
    if not all(map(math.isfinite, values)):
        raise UsageError(f"slope is {slope!r}: give a finite number, one for each micro-batch, 'gradient', or None")
    if each and len(values) != len(objective.weights):
        raise UsageError(
            f"slope has {len(values)} values for {len(objective.weights)} micro-batches: give one for each"
        )
    return values if each else values[0], None


class _Step:
    """A step from the present parameters, with the losses along it. Only in `measuring`.

    Args:
        objective: the loss.
        direction: the step.
        slopes: ``gᵀd``, or that of each micro-batch, or ``None``.
        decay: the part of the step that weight decay makes, or ``None``.
        decay_slope: the slope along it, or ``None``.
    """

    def __init__(
        self,
        objective: Objective,
        direction: Mapping[str, Tensor],
        slopes: float | list[float] | None,
        decay: Mapping[str, Tensor] | None,
        decay_slope: float | None,
    ) -> None:
        self._objective, self._direction = objective, direction
        self._decay, self._decay_slope, self._decay_change = decay, decay_slope, None if decay is None else 0.0
        self._each = slopes if isinstance(slopes, list) else None
        self._slope = objective.mean(slopes) if isinstance(slopes, list) else slopes
        self._norm = vectors.norm(direction)
        self._forwards = 1 if objective.rehearses() else 0
        self._losses: dict[float, list[float]] = {}
        self._crossing = Crossing(self._slope)

    def edge(self) -> Edge:
        """Evaluates the losses, and says what they show."""
        loss = self._objective.mean(self._at(0.0))
        if not math.isfinite(loss):
            raise UsageError(f"the loss is {loss} at the present parameters: nothing can be measured there")
        self._evaluate(1.0)
        if self._decay:
            self._decay_change = self._change_by(self._decay)
        near = self._near()
        self._at(near)
        while self._forwards < FORWARDS:
            self._crossing.noise = self._noise(near)
            t = self._crossing.next()
            if t is None:
                break
            self._evaluate(t)
        self._crossing.noise = self._noise(near)
        return self._result()

    def _at(self, t: float) -> list[float]:
        """``f(x + t·d)`` of each micro-batch."""
        self._losses[t] = self._values(self._direction, t)
        return self._losses[t]

    def _values(self, direction: Mapping[str, Tensor], t: float) -> list[float]:
        with self._objective.displaced(direction, t):
            self._forwards += 1
            return self._objective.values()

    def _change_by(self, part: Mapping[str, Tensor]) -> float:
        """``f(x + d) − f(x + d − w)``: what a part of the step adds to its change; infinite where that isn't finite."""
        rest = {name: d - part[name] if name in part else d for name, d in self._direction.items()}
        pairs = zip(self._losses[1.0], self._values(rest, 1.0), strict=True)
        change = self._objective.mean([there - here for there, here in pairs])
        return change if math.isfinite(change) else math.inf

    def _change(self, t: float) -> float:
        """``f(x + t·d) − f(x)``, infinite where that isn't finite."""
        pairs = zip(self._losses[t], self._losses[0.0], strict=True)
        change = self._objective.mean([there - here for there, here in pairs])
        return change if math.isfinite(change) else math.inf

    def _evaluate(self, t: float) -> None:
        self._at(t)
        self._crossing.changes[t] = self._change(t)

    def _near(self) -> float:
        """A multiple so small that polynomials foretell the loss, and large enough that it is rounded differently."""
        computed, _ = self._objective.roundings()
        return min(NEAR * computed * (vectors.norm(self._objective.parameters) or 1.0) / self._norm, NEAR_AT_MOST)

    def _noise(self, near: float) -> float:
        """The rounding of a loss in its own type, or more where a loss near ``x`` isn't what polynomials foretell."""
        _, of_loss = self._objective.roundings()
        size = abs(self._objective.mean(self._losses[0.0]))
        foretold = self._crossing.foretold_near(near)
        seen = abs(self._change(near) - foretold) if foretold is not None else 0.0
        return CERTAIN * max(error for error in (of_loss * size, seen, 0.0) if math.isfinite(error))

    def _result(self) -> Edge:
        objective, slope, crossing = self._objective, self._slope, self._crossing
        multiples = sorted(self._losses)
        loss, realized = objective.mean(self._losses[0.0]), crossing.changes[1.0]
        losses = [loss + self._change(t) for t in multiples]
        differences = [there - here for there, here in zip(self._losses[1.0], self._losses[0.0], strict=True)]
        slope_stderr = objective.standard_error(self._each) if self._each else None
        lower, upper = crossing.bracket()
        return Edge(
            loss=loss,
            norm=self._norm,
            multiples=tuple(multiples),
            losses=tuple(losses),
            status=self._status(lower, upper),
            critical_multiple=crossing.root(),
            critical_bracket=(lower, upper),
            lowest_multiple=min(multiples, key=lambda t: losses[multiples.index(t)]),
            realized_change=realized,
            realized_stderr=objective.standard_error(differences) if math.isfinite(realized) else None,
            predicted_change=slope,
            trust_ratio=realized / slope if slope is not None and slope < 0 else None,
            directional_smoothness=2 * (realized - slope) / self._norm**2 if slope is not None else None,
            slope_stderr=slope_stderr,
            signal_to_noise=abs(slope) / slope_stderr if slope is not None and slope_stderr else None,
            decay_slope=self._decay_slope,
            decay_change=self._decay_change,
            noise=crossing.noise,
            forwards=self._forwards,
        )

    def _status(self, lower: float | None, upper: float | None) -> Status:
        if lower is not None:
            return "found" if upper is not None else "beyond the last"
        return "no descent" if self._crossing.changes[1.0] > self._crossing.noise else "within noise"
