"""`measure`: all quantities of a direction at one point of parameter space."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from stepscope.errors import UsageError
from stepscope.measuring import breakdown as breakdowns
from stepscope.measuring.breakdown import Breakdown, BreakdownObserver, Grouping, grouping
from stepscope.measuring.curvature import Method, curvature
from stepscope.measuring.curvature_terms import Curvature
from stepscope.measuring.landscape import Landscape, scan
from stepscope.measuring.measurements import Measurements
from stepscope.measuring.slopes import (
    Segment,
    curvature_ahead,
    relative_step,
    rounding_of_losses,
    segment_of_gradients,
    segment_of_losses,
)
from stepscope.objective import Direction, Objective, check_objective, vectors
from stepscope.shown import brief, format_number, html_table

FINITE_STEP = 1e-3
"""Half-length of the segment of `sharpness_finite`, and the displacement of `sharpness_robust`, relative to ``‖x‖``."""
ACCURATE = 0.1
"""`sharpness_finite` is given where its error bar is below this part of it."""

_SHOWN = (
    "loss", "slope", "correlation", "sharpness", "sharpness_stderr", "edge_ratio", "best_step", "best_decrease",
    "lr_step",
)  # fmt: skip
"""What is shown of a measurement; `Measurement.record` has all."""


@dataclass(frozen=True, repr=False)
class Measurement:
    """One direction ``d`` at parameters ``x``, with ``u = d/‖d‖``, ``g = ∇f(x)``, ``H = ∇²f(x)``.

    Steps are lengths in parameter space (a step ``t`` moves to ``x + t·u``); decreases are in units of the loss.
    `docs/definitions.md` has each with its formula and source.

    Attributes:
        loss: ``f(x)``.
        gradient_norm: ``‖g‖``.
        norm: ``‖d‖``.
        slope: ``gᵀu``, negative when ``d`` descends: the gradient correlation of [1], by unit of length.
        loss_slope: ``(f(x + hu) − f(x − hu)) / 2h`` with ``h = finite_step``, or an eighth of it where the slope
            changes much within: the slope of the loss itself; ``None`` without a landscape or segment, and where the
            loss isn't finite at an end.
        gradient_agrees: whether `loss_slope` is the slope that gradients have on the same segment. It isn't where the
            gradient isn't that of the loss: straight-through estimators, stop-gradients, gradient reversals. Without
            a `loss_slope`, whether that is so along the gradient; ``None`` where the loss isn't finite there.
        correlation: ``gᵀd / (‖g‖‖d‖)``.
        sharpness: ``uᵀHu``, the directional sharpness of [1].
        sharpness_stderr: its standard error over micro-batches as a sample; ``None`` for a single one.
        numerical_error: error bar of the method; ``None`` where the method is exact up to rounding.
        sharpness_finite: mean of ``uᵀHu`` over ``x ± finite_step·u``: the curvature that a finite step meets where the
            loss has kinks. ``None`` likewise, and where rounding hides it.
        sharpness_finite_error: its error bar; ``None`` likewise.
        finite_step: half-length of that segment.
        sharpness_robust: ``uᵀ∇²f(x + finite_step·u)u`` ([1], eq. 4), by a central difference of slopes around that
            point, where ``sharpness`` is negative. ``None`` elsewhere, and where the loss isn't finite there.
        predicted_step: ``−slope/sharpness``, the best step of the second-order model; ``None`` without a minimum ahead.
        predicted_decrease: the model's decrease there, ``slope² / (2·sharpness)``; ``None`` likewise.
        edge_ratio: ``dᵀHd / (−gᵀd)``: 1 at the second-order model's best step, 2 where it no longer lowers the loss;
            ``None`` where ``d`` doesn't descend.
        best_step: step of the first minimum that the search along ``u`` meets; 0 where nothing descends, ``None``
            without a landscape.
        best_decrease: measured decrease there; ``None`` likewise.
        landscape: the loss along ``u``; ``None`` likewise.
        lr_step: ``‖d‖``, the optimizer's own step at its own learning rate.
        lr_loss: ``f(x + d)``, the loss at ``lr_step``; ``None`` likewise.
        overshoot: ``lr_step / best_step``: above 1 the learning rate goes past the best step, below 1 it falls short;
            ``None`` without a measured minimum.
        breakdown: where the sharpness comes from; ``None`` unless ``measure(…, breakdown=True)``.
        within_layer: ``Σ_ℓ u_ℓᵀH_ℓℓu_ℓ``, the sharpness without interaction of layers; ``None`` unless
            ``measure(…, within_layers=True)``.
        cross_layer: the interaction of layers, ``sharpness − within_layer``; ``None`` likewise.
        method: ``"autograd"``, ``"difference"``, or another of `METHODS`.
        method_reason: why that method.
        dtype: the floating-point type of the measurement.
        seconds: time spent on this direction, with an equal fraction of the work that all directions share.

    References:
        [1] Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204.
    """

    loss: float
    gradient_norm: float
    norm: float
    slope: float
    loss_slope: float | None
    gradient_agrees: bool | None
    correlation: float
    sharpness: float
    sharpness_stderr: float | None
    numerical_error: float | None
    sharpness_finite: float | None
    sharpness_finite_error: float | None
    finite_step: float
    sharpness_robust: float | None
    predicted_step: float | None
    predicted_decrease: float | None
    edge_ratio: float | None
    best_step: float | None
    best_decrease: float | None
    landscape: Landscape | None
    lr_step: float
    lr_loss: float | None
    overshoot: float | None
    breakdown: Breakdown | None
    within_layer: float | None
    cross_layer: float | None
    method: str
    method_reason: str
    dtype: str
    seconds: float

    def __repr__(self) -> str:
        return brief(self, _SHOWN)

    def _repr_html_(self) -> str:
        values = {name: getattr(self, name) for name in _SHOWN}
        return html_table((), [(name, format_number(value)) for name, value in values.items() if value is not None])

    def record(self) -> dict[str, Any]:
        """The measurement as plain JSON-able values, the breakdown as ``layers``, ``top`` and ``magnitudes``."""
        values = asdict(self)
        breakdown = values.pop("breakdown") or dict.fromkeys(("layers", "top", "magnitudes"))
        values |= breakdown
        values["top"] = values["top"] and {f"{fraction:g}": largest for fraction, largest in values["top"].items()}
        if self.landscape is not None:
            kept = ("steps", "losses", "status")
            values["landscape"] = {key: values["landscape"][key] for key in kept}
        return values


def measure(
    objective: Objective,
    directions: Mapping[str, Mapping[str, Tensor]],
    method: Method = "auto",
    landscape: bool = False,
    *,
    breakdown: bool = False,
    segment: bool = False,
    within_layers: bool = False,
    layer: Grouping | Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Measurements:
    """Measures update directions at the model's present parameters, which are left as they are.

    Args:
        objective: the loss and the micro-batches that it is measured on.
        directions: ``{label: {parameter name: tensor}}``, with any labels. A parameter that is left out doesn't move.
        method: how ``uᵀHu`` is computed: ``"autograd"`` (exact, double backward), ``"difference"`` (of gradients, with
            an error bar), or ``"auto"``: autograd where the model has a second derivative that can be trusted.
        landscape: whether to scan the loss along each direction too, for about 8 forward passes a direction.
        breakdown: whether to say which layers and how many coordinates the sharpness comes from (nearly free).
        segment: whether to measure ``sharpness_finite`` by gradients, for two of them a direction. Else it comes with
            the landscape, from losses.
        within_layers: whether to split the sharpness into that within layers and that between them, for the cost of
            one more direction a layer.
        layer: the layer of a parameter: a function of its name, or a mapping from prefixes of names to layers.
            ``None``: each module's own parameters.
        progress: called with each label before that direction is measured (the common work comes first).

    Returns:
        A `Measurement` for each label; shown, they are a table.

    Raises:
        UsageError: a direction doesn't fit the model or is zero, the loss isn't scalar or finite, or the method doesn't
            work on this model.

    References:
        Pan and Li, *Toward Understanding Why Adam Converges Faster Than SGD for Transformers*, arXiv 2306.00204: §3
        for directional sharpness and gradient correlation, eq. 4 for ``sharpness_robust``.

    Example:
        >>> import torch
        >>> x = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.tensor([3.0, 4.0]))})
        >>> f = Objective(x, lambda m, b: 0.5 * (b * m["w"] ** 2).sum(), [torch.tensor([1.0, 100.0])], lambda b: 1)
        >>> round(measure(f, {"second axis": {"w": torch.tensor([0.0, -2.0])}})["second axis"].sharpness, 4)
        100.0
    """
    check_objective(objective)
    if not isinstance(directions, Mapping):
        raise UsageError(f"directions is a {type(directions).__name__}: give {{label: {{parameter name: tensor}}}}")
    if not directions:
        raise UsageError("no directions to measure")
    for label, direction in directions.items():
        objective.check_direction(label, direction)
    with objective.measuring():
        units = {label: vectors.UnitDirection.of(d, objective.parameters) for label, d in directions.items()}
        return measure_units(
            objective, units, method, landscape,
            breakdown=breakdown, segment=segment, within_layers=within_layers, layer=layer, progress=progress,
        )  # fmt: skip


def measure_units(
    objective: Objective,
    units: Mapping[str, vectors.UnitDirection],
    method: Method = "auto",
    landscape: bool = False,
    *,
    breakdown: bool = False,
    segment: bool = False,
    within_layers: bool = False,
    layer: Grouping | Mapping[str, str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Measurements:
    """`measure` of directions whose unit vectors are computed already: nothing is copied."""
    started = time.perf_counter()
    with objective.measuring():
        layer_of = grouping(layer, objective.parameters)
        observer = BreakdownObserver(units, layer_of) if breakdown else None
        terms = curvature(objective, units, method, observer)
        point = _Point(objective, terms, landscape, segment, observer, layer_of if within_layers else None)
        point.check()
        shared_seconds = (time.perf_counter() - started) / len(units)
        measured = Measurements()
        for label, unit in units.items():
            if progress is not None:
                progress(label)
            measured[label] = point.measurement(label, unit, shared_seconds)
        return measured


class _Point:
    """The point ``x`` at which several directions are measured, with all that they share.

    Args:
        objective: the loss.
        terms: its gradient at ``x``, and its curvature along the directions.
        with_landscape: whether the loss is scanned along each of them.
        with_gradients: whether the segment around it is measured by gradients.
        observer: holds their breakdowns; ``None`` for none.
        layer_of: layers to split the sharpness by; ``None`` for no split.
    """

    def __init__(
        self,
        objective: Objective,
        terms: Curvature,
        with_landscape: bool,
        with_gradients: bool,
        observer: BreakdownObserver | None,
        layer_of: Grouping | None,
    ) -> None:
        self._objective, self._terms = objective, terms
        self._with_landscape, self._with_gradients = with_landscape, with_gradients
        self._observer, self._layer_of = observer, layer_of
        self._loss = terms.loss
        self._gradient_agrees: bool | None = None
        self._rounding = 0.0
        self._gradient_norm = vectors.norm(terms.gradient)
        self._finite_step = relative_step(objective, FINITE_STEP)
        dtypes = {str(p.dtype).removeprefix("torch.") for p in objective.parameters.values()}
        self._dtype = "/".join(sorted(dtypes))

    def check(self) -> None:
        """Refuses a point without a finite gradient, and a loss that isn't a function.

        Raises:
            UsageError: an infinite gradient, or two evaluations that differ.
        """
        if not math.isfinite(self._gradient_norm):
            raise UsageError("the loss has infinite or NaN derivatives at the present parameters")
        # Landscapes start from this one: it is evaluated as they are.
        first, self._loss = self._terms.loss, self._objective.loss_beside(self._terms.loss)
        if abs(self._loss - first) > 1e-4 * abs(first) + 1e-12:
            raise UsageError(
                f"two evaluations of the loss give {first:.6g} and {self._loss:.6g}: it draws random numbers from a "
                "generator of its own, or keeps state from call to call"
            )
        if self._gradient_norm == 0:
            return
        along = vectors.UnitDirection.of(self._terms.gradient, self._objective.parameters).u
        if self._with_landscape or self._with_gradients:
            self._rounding = rounding_of_losses(self._objective, along, self._loss, self._gradient_norm)
        elif not self._terms.slope_checks:
            around = segment_of_losses(self._objective, along, self._finite_step, self._loss, self._gradient_norm)
            self._gradient_agrees = around.slope_check.agrees if around else None

    def measurement(self, label: str, unit: vectors.UnitDirection, shared_seconds: float) -> Measurement:
        """The measurement of one direction.

        Args:
            label: its name.
            unit: the direction.
            shared_seconds: its fraction of the time for the work that all directions share.
        """
        started = time.perf_counter()
        objective, terms, u, norm = self._objective, self._terms, unit.u, unit.norm
        slope, sharpness = vectors.dot(u, terms.gradient), objective.mean(terms.sharpness[label])
        robust = None
        if sharpness < 0:
            with suppress(UsageError):  # the loss isn't finite ahead
                robust = curvature_ahead(objective, u, self._finite_step, slope)
        around = self._segment(u, slope)
        curve = None
        if self._with_landscape:
            curve = scan(
                objective, u, slope=slope, sharpness=sharpness, loss=self._loss, rounding=self._rounding, also=(norm,)
            )
        check = around.slope_check if around else terms.slope_checks.get(label)
        accurate = around is not None and around.numerical_error <= ACCURATE * abs(around.curvature)
        within = self._within_layers(u)
        has_minimum = slope < 0 < sharpness
        return Measurement(
            loss=terms.loss,
            gradient_norm=self._gradient_norm,
            norm=norm,
            slope=slope,
            loss_slope=check.by_losses if check else None,
            gradient_agrees=check.agrees if check else self._gradient_agrees,
            correlation=slope / self._gradient_norm if self._gradient_norm > 0 else 0.0,
            sharpness=sharpness,
            sharpness_stderr=objective.standard_error(terms.sharpness[label]),
            numerical_error=terms.numerical_error.get(label),
            sharpness_finite=around.curvature if around and accurate else None,
            sharpness_finite_error=around.numerical_error if around and accurate else None,
            finite_step=self._finite_step,
            sharpness_robust=robust,
            predicted_step=-slope / sharpness if has_minimum else None,
            predicted_decrease=slope**2 / (2 * sharpness) if has_minimum else None,
            edge_ratio=norm * sharpness / -slope if slope < 0 else None,
            best_step=curve.best_step if curve else None,
            best_decrease=curve.best_decrease if curve else None,
            landscape=curve,
            lr_step=norm,
            lr_loss=curve.losses[curve.steps.index(norm)] if curve else None,
            overshoot=norm / curve.best_step if curve and curve.status == "bracketed" else None,
            breakdown=self._observer.result(label) if self._observer else None,
            within_layer=within,
            cross_layer=None if within is None else sharpness - within,
            method=terms.method,
            method_reason=terms.reason,
            dtype=self._dtype,
            seconds=shared_seconds + time.perf_counter() - started,
        )

    def _segment(self, u: Direction, slope: float) -> Segment | None:
        if self._with_gradients:
            with suppress(UsageError):  # the loss isn't finite at an end
                return segment_of_gradients(self._objective, u, self._finite_step, slope, self._rounding)
            return None
        if self._with_landscape:
            return segment_of_losses(self._objective, u, self._finite_step, self._loss, slope, self._rounding)
        return None

    def _within_layers(self, u: Direction) -> float | None:
        if self._layer_of is None:
            return None
        return math.fsum(breakdowns.within_layers(self._objective, u, self._layer_of, self._terms.method).values())
