"""What a step does to the loss of the batch that made it, and what the gradient of that batch foretells.

The loss is evaluated before the step and after it, as training evaluates it. The slope needs the batch's gradient. It
is what ``backward`` left on the parameters, which clipping multiplies, and other things change more. Whether the loss
that is evaluated is the one that was differentiated is tried: its gradient is computed and compared with what
``backward`` left, at the first step of a kind, at each that triples the number of such steps, since a training may
change its loss, and where it multiplies its loss by another factor. Where that doesn't agree, nothing is said of the
batch, nor where the loss has changed by more than the step: something else that it depends on may move meanwhile. Of
one among several processes, a gradient that is changed after ``backward`` is taken to be averaged over them, and isn't
that of the batch.

Ranks that measure together compare the gradient of all their batches with what ``backward`` has averaged, which may be
changed then as in one process. They have to make the same step of the same gradient: where they don't, the step isn't
measured.

Nor is anything said where the gradient isn't that of its loss, as with straight-through estimators: what it foretells
then doesn't come true at the shortest step either. A loss close to the weights tells that, once.

A model whose output has a ``loss``, as those of Hugging Face do, has said what it is before the step. Where that is
what the evaluation found when gradients were compared, to the last bit, it isn't evaluated until they are again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from stepscope.objective import dtensors, vectors
from stepscope.objective.replay import Evaluation, Replay
from stepscope.probe.alike import check_alike, check_gradients
from stepscope.probe.step_batch import StepBatch
from stepscope.probe.step_weights import StepWeights

Way = Literal["step", "recomputed"]

Kind = tuple[int, int, bool]
"""How many forward and backward passes have made a step, and whether they added to the gradients of the one before."""

_AGREES = 0.02
"""How far gradients may be from one another that differ by rounding alone."""

_CLIPS = 1e-3
"""How far lengths that one factor has multiplied may be from that, by rounding. Clipping a few coordinates does more,
and what is left of the gradient has another slope."""

_MANY = 3**20
"""Gradients are compared at the steps whose number divides it: the powers of 3."""

_TRIALS = 3
"""After so many steps in a row whose gradient wasn't that of the loss, no more are tried."""

_FAR = 0.25
"""A loss is compared with its gradient at this multiple of a step or nearer: as near as rounding allows."""

_RESOLVED = 2**6
"""So many roundings of the weights a displacement is long, at least."""

_OTHER_LOSS = (
    "the loss of the batch, evaluated again, has another gradient than the one that made the step, so that nothing can "
    "be said of the step on its own batch"
)
_OTHER_GRADIENT = (
    "the gradient isn't that of the loss (a straight-through estimator, a stop-gradient, a gradient reversal): what it "
    "foretells doesn't come true at shorter steps either, so that nothing can be said of the step on its own batch"
)
_OTHER_STATE = (
    "the loss of the batch has changed by more than the step: something else that it depends on, such as a teacher, "
    "moves while the step is made; move it after the step, or in a post hook that is registered after the probe, and "
    "give the probe a model that holds all that is trained (a head, a temperature)"
)


@dataclass(frozen=True)
class BatchTerms:
    """The terms of the trust ratio at one step, as `StepRecord` has them."""

    batch_loss: float
    batch_change: float
    batch_slope: float
    batch_noise: float
    batch_size: int | None
    slope_by: Way


@dataclass(frozen=True)
class _Known:
    """What was found of steps of a kind when gradients were compared.

    Attributes:
        way: how the slope is had.
        scale: what the mean loss of the passes is multiplied by in the training.
        evaluation: of that mean, without a gradient.
        is_told: whether the model's output had it.
        factors: see `StepBatch`.
    """

    way: Way
    scale: float
    evaluation: Evaluation
    is_told: bool
    factors: list[float]


class StepMeter:
    """Measures steps on the batches that made them, each between `before` and `after`.

    Args:
        replay: evaluates the loss of a batch again.

    Attributes:
        ranks: those that measure together.
        refusal: why nothing is measured, once that is known.
    """

    def __init__(self, replay: Replay) -> None:
        self._replay, self.ranks = replay, replay.ranks
        self._known: dict[Kind, _Known] = {}
        self._looked = Counter[Kind]()
        self._trials = Counter[str]()
        self._agreed = set[Kind]()
        self._copies = False
        self._weights = StepWeights({})
        self._batch: StepBatch | None = None
        self._kind: Kind = (0, 0, False)
        self._size: int | None = None
        self._left: dict[str, float] = {}
        self._before: Evaluation | None = None
        self._others: list[tuple[Tensor, int]] = []
        self._gradient: dict[str, Tensor] = {}
        self._versions: dict[str, int] = {}
        self._scale = 1.0
        self._factor = 1.0
        self._way: Way = "step"
        self.refusal = ""

    def before(self, batch: StepBatch | None, parameters: Mapping[str, nn.Parameter]) -> None:
        """The step is about to be made.

        Args:
            batch: what made it; ``None`` where that isn't known.
            parameters: those that it will move, with the gradients that it gets.
        """
        self.drop()
        self._weights = StepWeights(parameters)
        if batch is not None and not self.refusal:
            self._batch = batch
            self._pool(batch, parameters)
            self._look(batch, parameters)
            others = self._replay.reached(apart=parameters.values())
            self._others = [(tensor, tensor._version) for tensor in others]

    def _pool(self, batch: StepBatch, parameters: Mapping[str, nn.Parameter]) -> None:
        """Rows of all ranks, and the norms of what ``backward`` left, where that is the gradient of all."""
        remedy = "they make the same number of forward and backward passes for a step"
        passes = len(batch.passes), batch.backwards
        self.ranks.check_same("the passes of a step", [*passes, len(batch.norms)], remedy)
        everyone = self.ranks.concatenated([math.nan if batch.size is None else batch.size, float(batch.adds)])
        rows, self._kind = everyone[::2], (*passes, any(everyone[1::2]))
        self._size = None if any(map(math.isnan, rows)) else int(sum(rows))
        lengths, owners = vectors.numbers(batch.norms.values()), [parameters[name] for name in batch.norms]
        self._left = dict(zip(batch.norms, dtensors.whole_lengths(lengths, owners), strict=True))

    def after(self) -> tuple[float, BatchTerms | None]:
        """The step has been made: its length, and its terms where they are known.

        Raises:
            UsageError: it differs between ranks.
        """
        try:
            seen = self._has_changed_gradients(), self._has_others_moved(), self._weights.is_shared
            norm, product = self._weights.moved(self._gradient)
            own = [norm, self._factor * product, *map(float, seen)]
            everyone = self.ranks.concatenated(own)  # the same numbers on all
            norms, slopes, changed, others, shared = (everyone[kind::5] for kind in range(5))
            norm, slope = norms[0], slopes[0]
            before, batch = self._before, self._batch
            if any(changed):
                self._copies, before = True, None
            if before is None or batch is None:
                return norm, None
            for numbers in (norms, slopes):
                check_alike("the step that was made", numbers)
            if any(others) and not any(shared) and self._is_another_loss(batch, before):
                self._disagrees(_OTHER_STATE)
                return norm, None
            if not math.isfinite(before.loss):
                slope = 0.0  # which says that the step was measured, as no number would
            change = self._replay.evaluated(batch.passes).loss - before.loss
            if not self._is_of_its_loss(batch, before, norm, change, slope / self._scale):
                return norm, None
            return norm, BatchTerms(
                batch_loss=self._scale * before.loss,
                batch_change=self._scale * change,
                batch_slope=slope,
                batch_noise=self._scale * self._noise(before),
                batch_size=self._size,
                slope_by=self._way,
            )
        finally:
            self.drop()

    def drop(self) -> None:
        """Forgets a step that wasn't made."""
        self._weights, self._gradient, self._batch, self._before, self._others = StepWeights({}), {}, None, None, []

    def _look(self, batch: StepBatch, parameters: Mapping[str, nn.Parameter]) -> None:
        known = self._known.get(self._kind)
        self._looked[self._kind] += 1
        again = _MANY % self._looked[self._kind] == 0 or (known is not None and self._have_changed(known, batch))
        given = {name: (p.grad.detach(), p) for name, p in parameters.items() if p.grad is not None}
        # Before what is computed of parts that lie on several ranks.
        check_gradients(self.ranks, {name: g for name, (g, _) in given.items()})
        now = {name: dtensors.placed_like(g, p) if dtensors.is_spread(p) else g for name, (g, p) in given.items()}
        clipped = self._clipped(now)
        if known is None or known.way == "recomputed" or clipped is None or again:
            # Where nothing is known of what ``backward`` left, it is what the step gets.
            bound = clipped is not None or not self._left or (self.ranks.alone and _among_others())
            self._recompute(batch, parameters, _dense(now) if bound else None)
            return
        told = batch.loss if known.is_told else None
        self._before = self._replay.evaluated(batch.passes) if told is None else replace(known.evaluation, loss=told)
        # A step may change its gradients: a fused one undoes their scale.
        parts = {name: dtensors.part(g) for name, g in now.items()}
        self._gradient = {name: g.clone() if self._copies else g for name, g in parts.items()}
        self._versions = {} if self._copies else {name: g._version for name, g in parts.items()}
        self._way, self._factor, self._scale = "step", 1 / clipped, known.scale

    def _have_changed(self, known: _Known, batch: StepBatch) -> bool:
        """Whether the training multiplies losses by other factors than when gradients were compared."""
        then, now = known.factors, batch.factors
        same = len(then) == len(now) and all(map(partial(math.isclose, rel_tol=_AGREES), then, now))
        return any(self.ranks.concatenated([float(not same)]))

    def _clipped(self, now: Mapping[str, Tensor]) -> float | None:
        """What the gradients that the step gets are of those that ``backward`` left; ``None`` if no multiple.

        Raises:
            UsageError: they differ between ranks.
        """
        if not self._left or any(gradient.is_sparse for gradient in now.values()):
            return None
        lengths = vectors.norms(now)
        check_alike("the gradients of a step", self.ranks.concatenated([math.hypot(*lengths.values())]))
        return self._of_all(_factor(lengths, self._left, _CLIPS))

    def _of_all(self, factor: float | None) -> float | None:
        """The factor of all ranks; ``None`` where one of them has none, though others may."""
        everyone = self.ranks.concatenated([math.nan if factor is None else factor])
        return None if any(map(math.isnan, everyone)) else everyone[0]

    def _recompute(
        self, batch: StepBatch, parameters: Mapping[str, nn.Parameter], now: Mapping[str, Tensor] | None
    ) -> None:
        """The slope by the gradient of the loss that is evaluated, if that is the gradient that made the step.

        Args:
            batch: what made the step.
            parameters: what it will move.
            now: the gradients that it gets, where they have to be a multiple of those that ``backward`` left.
        """
        before = self._replay.evaluated(batch.passes, differentiate=True)
        if not math.isfinite(before.loss):  # which a record says: its gradient can't be compared, nor would it move
            self._before, self._gradient, self._versions = before, {}, {}
            self._way, self._factor, self._scale = "recomputed", 1.0, 1.0
            return
        found = {name: gradient for name, gradient in (before.gradient or {}).items() if name in parameters}
        left = self._left or vectors.norms(now or {})
        norms = vectors.norms({name: gradient for name, gradient in found.items() if name in left})
        factor = self._of_all(_factor(left, norms))
        another = factor is not None and now is not None and not _are_parallel(now, found)
        if factor is None or any(self.ranks.concatenated([float(another)])):
            self._disagrees(_OTHER_LOSS)
            return
        del self._trials[_OTHER_LOSS]
        count = len(batch.passes)
        # The loop adds the losses of the passes up, or takes their mean.
        self._scale = float(count) if _is_near(factor, count) else 1.0
        way: Way = "step" if _is_near(factor, self._scale) else "recomputed"
        is_told = self.ranks.alone and batch.loss == before.loss
        self._known[self._kind] = _Known(way, self._scale, replace(before, gradient=None), is_told, batch.factors)
        self._before, self._versions = before, {}
        self._gradient = {name: dtensors.part(gradient) for name, gradient in found.items()}
        self._way, self._factor = "recomputed", self._scale

    def _disagrees(self, why: str) -> None:
        self._known.pop(self._kind, None)
        self._trials[why] += 1
        if self._trials[why] == _TRIALS:
            self.refusal = why

    def _is_of_its_loss(self, batch: StepBatch, before: Evaluation, norm: float, change: float, slope: float) -> bool:
        """Whether the gradient is that of the loss, as far as can be seen: looked at until it could be told once.

        ``(f_b(x + td) − f_b(x)) / t`` is the slope but for the bend, which is taken to be that of the whole step.

        Args:
            batch: what made the step.
            before: its loss at the start.
            norm: of the step.
            change: of that loss, by the step.
            slope: of that loss, along the step.
        """
        rounding = self._noise(before)
        if self._kind in self._agreed or not rounding < 0.02 * _FAR * abs(slope):
            return True
        weights = self._weights
        everyone = self.ranks.concatenated([float(weights.is_shared), vectors.norm(weights.parameters)])
        if any(everyone[::2]):
            return True  # other processes train these weights too, so they can't be moved for a moment
        t = max(rounding / (0.02 * abs(slope)), _RESOLVED * before.eps_inside * everyone[1] / norm)
        if not t <= _FAR or t * abs(slope) > abs(before.loss):  # no loss falls by more than all of it
            return True
        with weights.at(t):
            close = self._replay.evaluated(batch.passes).loss
        if not math.isfinite(close + change):
            return True
        if not abs((close - before.loss) / t - slope) <= 0.05 * abs(slope) + t * abs(change - slope) + rounding / t:
            self._disagrees(_OTHER_GRADIENT)
            return False
        self._agreed.add(self._kind)
        return True

    def _is_another_loss(self, batch: StepBatch, before: Evaluation) -> bool:
        """Whether the loss at the start is another one now."""
        with self._weights.at(0.0):
            now = self._replay.evaluated(batch.passes).loss
        return math.isfinite(before.loss) and not abs(now - before.loss) <= self._noise(before)

    def _noise(self, evaluation: Evaluation) -> float:
        """The error of a difference of two such losses: rounding of the mean, and of what it is the mean of."""
        return abs(evaluation.loss) * (evaluation.eps + evaluation.eps_inside / math.sqrt(self._size or 1))

    def _has_others_moved(self) -> bool:
        """Whether the loss reaches something beside the weights that was written to: it may depend on it."""
        return any(tensor._version != version for tensor, version in self._others)

    def _has_changed_gradients(self) -> bool:
        return any(
            gradient._version != self._versions.get(n, gradient._version) for n, gradient in self._gradient.items()
        )


def _dense(gradients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: g.to_dense() if g.is_sparse else g for name, g in gradients.items()}


def _among_others() -> bool:
    """Whether there are other processes whose gradients may come in."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _factor(norms: Mapping[str, float], others: Mapping[str, float], within: float = _AGREES) -> float | None:
    """What `others` are multiplied by to give `norms`, of each tensor the same but for rounding; ``None`` for nothing.

    A tensor counts as much as its norm: the gradient of a bias that changes nothing is all rounding.
    """
    names = norms.keys() | others.keys()
    pairs = [(norms.get(name, 0.0), others.get(name, 0.0)) for name in names]
    squares = math.fsum(other * other for _, other in pairs)
    if not 0 < squares < math.inf:
        return None
    factor = math.fsum(norm * other for norm, other in pairs) / squares
    rest = math.fsum((norm - factor * other) ** 2 for norm, other in pairs)
    return factor if 0 < factor < math.inf and math.sqrt(rest / squares) <= within * factor else None


def _are_parallel(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two gradients are multiples of one another, but for rounding."""
    product, norms = vectors.dot(a, b), vectors.norm(a) * vectors.norm(b)
    return product > 0 and math.sqrt(max(0.0, 1 - (product / norms) ** 2)) <= _AGREES


def _is_near(factor: float, number: float) -> bool:
    return abs(factor / number - 1) <= _AGREES
