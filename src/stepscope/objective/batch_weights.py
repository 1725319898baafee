"""The weights that pool micro-batches: the mean loss of all is ``f = Σ wᵢfᵢ / Σ wᵢ``.

The weights are tried, not looked up: the loss of two micro-batches together must be the mean of theirs, by valid labels
(shifted or not), ones in a mask, or examples (of the first dimension, or of the second where time comes first). Where
the losses are too close to tell, as with a head that is zero, their gradients decide. Micro-batches of other shapes are
split instead of joined. A loss that none of the weights explains, such as a sum or a contrast within the batch, is
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from stepscope.errors import UsageError, said
from stepscope.objective import vectors
from stepscope.objective.joined_batches import joined, length, splits
from stepscope.objective.loss_denominators import Weight, WeightFunction, usual_weights
from stepscope.objective.process_group import Ranks, number_of
from stepscope.objective.vectors import Direction

_FOUND = "the loss of two micro-batches together is the mean of theirs"
_COARSE = 1e-3
"""Losses that differ by less, relatively, don't show how they are weighted; their gradients may."""


@dataclass(frozen=True)
class Weighting:
    """How micro-batches are pooled.

    Attributes:
        weights: ``wᵢ / Σ w`` of each micro-batch of all ranks.
        by: what a micro-batch is weighted by.
        check: the result of the trial: whether the loss of two micro-batches together is the mean of theirs.
    """

    weights: list[float]
    by: str
    check: str


Evaluate = Callable[[Any, bool], tuple[float, Direction]]
"""``evaluate(batch, differentiate)``: the loss of one batch, and its gradient where `differentiate` is true."""


def weighting(
    model: nn.Module, batches: Sequence[Any], weight_fn: WeightFunction | None, evaluate: Evaluate, ranks: Ranks
) -> Weighting:
    """The weights of micro-batches: given, or the first of the usual ones that a trial doesn't contradict.

    The trial evaluates two micro-batches together and apart. Where their shapes differ, it takes the rows of one
    micro-batch instead. A mean over examples, labels or tokens is the mean of two batches, weighted by how many each
    holds. Of several ranks each tries its own micro-batches, and all use the weight that a trial has found.

    Args:
        model: the model that is trained.
        batches: the micro-batches of this rank.
        weight_fn: the user's own; ``None`` for the usual ones.
        evaluate: the loss of one batch.
        ranks: all that bring micro-batches.

    Returns:
        The weights of the micro-batches of all ranks, one rank after another.

    Raises:
        UsageError: no batches, weights that can't be used, or none that explains the loss of two micro-batches.
    """
    if not ranks.concatenated([1.0] * len(batches)):
        raise UsageError("no batches: the objective needs at least one micro-batch")
    if weight_fn is not None:
        return Weighting(_normalized(batches, weight_fn, ranks), "weight_fn", "not tried: weight_fn is given")
    with ranks.agreed("the trial of weights"):
        usual = usual_weights(model, batches) if batches else []
        if ranks.alone and len(batches) == 1:
            counted = [w for w in usual if w.by != "examples"]
            if counted:
                _normalized(batches, counted[0].of, ranks)  # raises where no label is valid
            return Weighting([1.0], "one micro-batch", "not tried: there is one micro-batch")
        weight, check = _tried(batches, usual, evaluate) if batches else (None, "another rank's")
    weight, check = _agreed(weight, check, usual, ranks)
    return Weighting(_normalized(batches, weight.of, ranks), weight.by, check)


def _agreed(weight: Weight | None, check: str, usual: Sequence[Weight], ranks: Ranks) -> tuple[Weight, str]:
    """The weight that all ranks use: the one that trials have found, or the likeliest one where none could be made.

    Args:
        weight: what this rank's micro-batches are weighted by, on their own; ``None`` without any.
        check: the result of this rank's trial.
        usual: the weights that its micro-batches have.
        ranks: all that bring micro-batches.
    """
    if ranks.alone:
        assert weight is not None
        return weight, check
    own = [math.nan, math.nan] if weight is None else [float(check == _FOUND), number_of(weight.by)]
    numbers = ranks.concatenated(own)
    pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
    first = max(range(ranks.size), key=lambda rank: (pairs[rank][0] == 1, pairs[rank][0] == 0))
    tried, by = pairs[first]
    name, check = ranks.broadcast(weight.by if weight else "", first), ranks.broadcast(check, first)
    with ranks.agreed("the weight of micro-batches"):
        if any(other != by for how, other in pairs if how == tried):
            raise UsageError("some ranks' micro-batches are weighted by one thing, others' by another: give weight_fn")
        if weight is None:  # no micro-batches that it is a weight of
            return Weight(name, lambda _: math.nan), check
        chosen = next((w for w in (weight, *usual) if w.by == name), None)
        if chosen is None:
            raise UsageError(f"other ranks weigh their micro-batches by {name}, which isn't in these: give weight_fn")
        return chosen, check


def _number(weight: Any) -> float:
    try:
        return float(weight)
    except (TypeError, ValueError):
        return math.nan


def _normalized(batches: Sequence[Any], weight_fn: WeightFunction, ranks: Ranks) -> list[float]:
    """The weights of the micro-batches of all ranks, which add up to 1."""
    with ranks.agreed("the weights of micro-batches"):
        if not callable(weight_fn):
            raise UsageError(f"weight_fn is a {type(weight_fn).__name__}: give a function of a micro-batch")
        given = [weight_fn(batch) for batch in batches]
        weights = [_number(weight) for weight in given]
        for index, weight in enumerate(weights):
            if not (math.isfinite(weight) and weight >= 0):
                raise UsageError(
                    f"weight_fn gave {given[index]!r} for micro-batch {index}: a weight is a finite number ≥ 0"
                )
    weights = ranks.concatenated(weights)
    total = math.fsum(weights)
    if total == 0:
        raise UsageError("all micro-batches have weight 0: they hold no valid label")
    return [weight / total for weight in weights]


# ---------------------------------------------------------------------------------------------------------- the trial


@dataclass(frozen=True)
class _Trial:
    """Two batches, and both as one."""

    pair: tuple[Any, Any]
    union: Any


Value = tuple[float, Direction]
"""The loss of a batch, and its gradient; the gradient is empty where losses alone show how they are weighted."""


def _tried(batches: Sequence[Any], usual: Sequence[Weight], evaluate: Evaluate) -> tuple[Weight, str]:
    """The first of the weights that explains the loss of two micro-batches together, and how far that was tried."""
    unexplained = ""
    for trial, weights in _trials(batches, usual):
        try:
            union, first, second = _evaluated(trial, evaluate)
        except Exception as error:
            if unexplained:
                continue
            # An error of the loss itself is reported where it is measured.
            return usual[0], f"could not be tried: {said(error)[:100]}"
        if not all(math.isfinite(value[0]) for value in (union, first, second)):
            return usual[0], "could not be tried: the loss isn't finite"
        for weight in weights:
            fraction = _first_fraction(trial.pair, weight.of)
            if fraction is not None and _explains(union, first, second, fraction):
                return weight, _FOUND
        likeliest = usual[0]
        fraction = _first_fraction(trial.pair, likeliest.of)
        unexplained = unexplained or _unexplained(union, first, second, fraction, likeliest.by)
    if unexplained:
        raise UsageError(unexplained)
    return usual[0], "could not be tried: micro-batches can be neither joined nor split"


def _trials(batches: Sequence[Any], usual: Sequence[Weight]) -> list[tuple[_Trial, Sequence[Weight]]]:
    """Two micro-batches of the same shapes, or one that is split: the pair that the weights disagree most about.

    Where examples may lie along the second dimension (time comes first), they are joined along that too.
    """

    def disagreement(pair: tuple[Any, Any]) -> float:
        fractions = [f for weight in usual if (f := _first_fraction(pair, weight.of)) is not None]
        return max(fractions) - min(fractions) if fractions else 0.0

    pairs = sorted(((batches[0], other) for other in batches[1:]), key=disagreement, reverse=True)

    def first_joined(along: int) -> _Trial | None:
        unions = ((pair, joined(*pair, along)) for pair in pairs)
        return next((_Trial(pair, union) for pair, union in unions if union is not None), None)

    rows = first_joined(0)
    if rows is None:
        halves = (_Trial(pair, batch) for batch in batches for pair in splits(batch))
        rows = max(halves, key=lambda trial: disagreement(trial.pair), default=None)
    columns = Weight("the second dimension", lambda batch: float(length(batch, 1) or math.nan))
    trials = ((rows, usual), (first_joined(1), (columns, *usual)))
    return [(trial, weights) for trial, weights in trials if trial is not None]


def _first_fraction(pair: tuple[Any, Any], weight_fn: WeightFunction) -> float | None:
    """The weight of the first of two batches, where both weights add up to 1."""
    first, second = (float(weight_fn(batch)) for batch in pair)
    total = first + second
    return first / total if total > 0 and math.isfinite(total) else None


def _evaluated(trial: _Trial, evaluate: Evaluate) -> tuple[Value, Value, Value]:
    """Both batches as one, the first, the second; with gradients where the losses alone don't show their weights."""
    first, second, union = (evaluate(batch, False) for batch in (*trial.pair, trial.union))
    if abs(first[0] - second[0]) > _COARSE * max(abs(first[0]), abs(second[0])):
        return union, first, second
    return evaluate(trial.union, True), evaluate(trial.pair[0], True), evaluate(trial.pair[1], True)


def _explains(union: Value, first: Value, second: Value, fraction: float) -> bool:
    """Whether both as one are ``fraction · first + (1 − fraction) · second``, in the loss and in a gradient."""
    pooled = fraction * first[0] + (1 - fraction) * second[0]
    scale = max(abs(first[0]), abs(second[0]))
    if abs(union[0] - pooled) > 1e-3 * abs(first[0] - second[0]) + 1e-5 * scale:
        return False
    if not union[1]:
        return True
    missed: Direction = {}
    for value, factor in ((union, 1.0), (first, -fraction), (second, fraction - 1)):
        vectors.add(missed, value[1], factor)
    return vectors.norm(missed) <= 1e-3 * max(vectors.norm(first[1]), vectors.norm(second[1]))


def _unexplained(union: Value, first: Value, second: Value, fraction: float | None, by: str) -> str:
    fraction = 0.5 if fraction is None else fraction
    pooled = fraction * first[0] + (1 - fraction) * second[0]
    gap = first[0] - second[0]
    text = f"the loss of two micro-batches together is {union[0]:.6g}, their mean by {by} is {pooled:.6g}"
    implied = (union[0] - second[0]) / gap if gap else math.nan
    if abs(union[0] - first[0] - second[0]) <= 1e-4 * abs(union[0]):
        text += " (it is their sum)"
    elif 0 < implied < 1 and not union[1]:
        text += f" (it weighs them {implied:.3g} : {1 - implied:.3g}, and not {fraction:.3g} : {1 - fraction:.3g})"
    return (
        f"{text}: give weight_fn, the number of terms that the loss of a micro-batch averages over, "
        "or weight_fn=lambda batch: 1 for the plain mean of micro-batches"
    )
