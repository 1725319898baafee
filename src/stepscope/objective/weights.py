"""What a mean loss averages over, so that micro-batches are pooled rightly: ``f = Σ wᵢfᵢ / Σ wᵢ``.

The weights are tried, not looked up: the loss of two micro-batches together must be the mean of theirs, by valid labels
(shifted or not), ones in a mask, or examples (of the first dimension, or of the second where time comes first). Where
the losses are too close to tell, as with a head that is zero, their gradients decide. Micro-batches of other shapes are
split instead of joined. A loss that none of the weights explains, such as a sum or a contrast within the batch, is
refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stepscope.errors import UsageError, said
from stepscope.objective import vectors
from stepscope.objective.batches import mapped, tensors
from stepscope.objective.vectors import Direction

IGNORED_LABEL = -100

WeightFunction = Callable[[Any], float]

_COARSE = 1e-3
"""Losses that differ by less, relatively, don't show how they are weighted; their gradients may."""


@dataclass(frozen=True)
class Weighting:
    """How micro-batches are pooled.

    Attributes:
        shares: ``wᵢ / Σ w`` of each micro-batch.
        by: what a micro-batch is weighted by.
        check: what came of the trial: whether the loss of two micro-batches together is the mean of theirs.
    """

    shares: list[float]
    by: str
    check: str


Evaluate = Callable[[Any, bool], tuple[float, Direction]]
"""``evaluate(batch, differentiate)``: the loss of one batch, and its gradient if that is wanted."""


def weighting(
    model: nn.Module, batches: Sequence[Any], weight_fn: WeightFunction | None, evaluate: Evaluate
) -> Weighting:
    """The weights of micro-batches: given, or the first of the usual ones that a trial doesn't contradict.

    The trial evaluates two micro-batches together and apart (where their shapes differ: the rows of one micro-batch).
    A mean over examples, labels or tokens is the mean of its parts, weighted by how many each part holds.

    Args:
        model: what is trained.
        batches: the micro-batches.
        weight_fn: the user's own; ``None`` for the usual ones.
        evaluate: the loss of one batch.

    Raises:
        UsageError: no batches, weights that can't be used, or none that explains the loss of two micro-batches.
    """
    if not batches:
        raise UsageError("no batches: the objective needs at least one micro-batch")
    if weight_fn is not None:
        return Weighting(_shares(batches, weight_fn), "weight_fn", "not tried: weight_fn is given")
    usual = _usual_weights(model, batches)
    if len(batches) == 1:
        counted = [w for w in usual if w.by != "examples"]
        if counted:
            _shares(batches, counted[0].of)  # says that no label is valid
        return Weighting([1.0], "one micro-batch", "not tried: there is one micro-batch")
    by, check = _tried(batches, usual, evaluate)
    return Weighting(_shares(batches, by.of), by.by, check)


@dataclass(frozen=True)
class _Weight:
    by: str
    of: WeightFunction


@dataclass(frozen=True)
class _Trial:
    """Two batches and what they are together."""

    parts: tuple[Any, Any]
    whole: Any


def _tried(batches: Sequence[Any], usual: Sequence[_Weight], evaluate: Evaluate) -> tuple[_Weight, str]:
    """The first of the weights that explains the loss of two micro-batches together, and how far that was tried."""
    trials = _trials(batches, usual)
    unexplained = ""
    for trial, weights in trials:
        try:
            whole, first, second = _evaluated(trial, evaluate)
        except Exception as error:
            if unexplained:
                continue
            # What is wrong with the loss itself is said where it is measured.
            return usual[0], f"could not be tried: {said(error)[:100]}"
        if not all(math.isfinite(value[0]) for value in (whole, first, second)):
            return usual[0], "could not be tried: the loss isn't finite"
        for weight in weights:
            share = _share(trial.parts, weight.of)
            if share is not None and _explains(whole, first, second, share):
                return weight, "the loss of two micro-batches together is the mean of theirs"
        by = usual[0]
        unexplained = unexplained or _unexplained(whole, first, second, _share(trial.parts, by.of), by.by)
    if unexplained:
        raise UsageError(unexplained)
    return usual[0], "could not be tried: micro-batches can be neither joined nor split"


Value = tuple[float, Direction]


def _evaluated(trial: _Trial, evaluate: Evaluate) -> tuple[Value, Value, Value]:
    """The whole and its parts, by their gradients too where the losses alone don't show how they are weighted."""
    first, second, whole = (evaluate(batch, False) for batch in (*trial.parts, trial.whole))
    if abs(first[0] - second[0]) > _COARSE * max(abs(first[0]), abs(second[0])):
        return whole, first, second
    return evaluate(trial.whole, True), evaluate(trial.parts[0], True), evaluate(trial.parts[1], True)


def _explains(whole: Value, first: Value, second: Value, share: float) -> bool:
    """Whether the whole is ``share · first + (1 − share) · second``, by the loss and, if it is there, the gradient."""
    pooled = share * first[0] + (1 - share) * second[0]
    scale = max(abs(first[0]), abs(second[0]))
    if abs(whole[0] - pooled) > 1e-3 * abs(first[0] - second[0]) + 1e-5 * scale:
        return False
    if not whole[1]:
        return True
    expected = _combination([(share, first[1]), (1 - share, second[1])])
    missed = vectors.norm(_combination([(1.0, whole[1]), (-1.0, expected)]))
    return missed <= 1e-3 * max(vectors.norm(first[1]), vectors.norm(second[1]))


def _combination(terms: Sequence[tuple[float, Direction]]) -> Direction:
    total: Direction = {}
    for factor, direction in terms:
        for name, part in direction.items():
            total[name] = total[name] + factor * part if name in total else factor * part
    return total


def _unexplained(whole: Value, first: Value, second: Value, share: float | None, by: str) -> str:
    share = 0.5 if share is None else share
    pooled = share * first[0] + (1 - share) * second[0]
    gap = first[0] - second[0]
    text = f"the loss of two micro-batches together is {whole[0]:.6g}, their mean by {by} is {pooled:.6g}"
    implied = (whole[0] - second[0]) / gap if gap else math.nan
    if abs(whole[0] - first[0] - second[0]) <= 1e-4 * abs(whole[0]):
        text += " (it is their sum)"
    elif 0 < implied < 1 and not whole[1]:
        text += f" (it weighs them {implied:.3g} : {1 - implied:.3g}, and not {share:.3g} : {1 - share:.3g})"
    return (
        f"{text}: give weight_fn, the number of terms that the loss of a micro-batch averages over, "
        "or weight_fn=lambda batch: 1 for the plain mean of micro-batches"
    )


# ----------------------------------------------------------------------------------------------- the batches of a trial


def _trials(batches: Sequence[Any], usual: Sequence[_Weight]) -> list[tuple[_Trial, Sequence[_Weight]]]:
    """Two micro-batches of the same shapes or two parts of one, those that the weights disagree most about.

    Where examples may lie along the second dimension (time comes first), they are joined along that too.
    """

    def disagreement(parts: tuple[Any, Any]) -> float:
        shares = [s for weight in usual if (s := _share(parts, weight.of)) is not None]
        return max(shares) - min(shares) if shares else 0.0

    pairs = sorted(((batches[0], other) for other in batches[1:]), key=disagreement, reverse=True)
    rows = next((_Trial(pair, whole) for pair in pairs if (whole := _joined(*pair, 0)) is not None), None)
    if rows is None:
        split = (trial for batch in batches for trial in _split(batch))
        rows = max(split, key=lambda trial: disagreement(trial.parts), default=None)
    second = next((_Trial(pair, whole) for pair in pairs if (whole := _joined(*pair, 1)) is not None), None)
    columns = _Weight("the second dimension", lambda batch: float(_length(batch, 1) or math.nan))
    found = ((rows, usual), (second, (columns, *usual)))
    return [(trial, weights) for trial, weights in found if trial is not None]


def _share(parts: tuple[Any, Any], weight_fn: WeightFunction) -> float | None:
    first, second = (float(weight_fn(part)) for part in parts)
    total = first + second
    return first / total if total > 0 and math.isfinite(total) else None


def _joined(a: Any, b: Any, along: int) -> Any | None:
    """Both in one batch, along one dimension; ``None`` where their shapes or anything else in them differ."""
    mine, theirs = list(tensors(a)), list(tensors(b))
    length, other_length = _length(a, along), _length(b, along)
    if length is None or other_length is None or len(mine) != len(theirs) or _skeleton(a) != _skeleton(b):
        return None
    joined: dict[int, Tensor] = {}
    for x, y in zip(mine, theirs, strict=True):
        y = y.to(x.device)
        place = min(along, x.dim() - 1)
        if x.dtype == y.dtype and x.dim() and x.dim() == y.dim() and x.shape[place] == length:
            if y.shape[place] != other_length or _others(x, place) != _others(y, place):
                return None
            joined[id(x)] = torch.cat([x, y], place)
        elif x.dtype != y.dtype or not torch.equal(x, y):
            return None
        else:
            joined[id(x)] = x
    return mapped(a, lambda tensor: joined[id(tensor)])


def _others(tensor: Tensor, place: int) -> list[int]:
    return [size for dimension, size in enumerate(tensor.shape) if dimension != place]


def _split(batch: Any) -> Iterator[_Trial]:
    """The rows of a batch in two parts, of unequal and of equal sizes."""
    rows = _rows(batch)
    if rows is None or rows < 2:
        return
    for cut in sorted({1, rows // 2, rows - 1}):
        parts = [
            mapped(batch, lambda t, s=s: t[s] if t.dim() and len(t) == rows else t)  # type: ignore[misc]
            for s in (slice(0, cut), slice(cut, rows))
        ]
        yield _Trial((parts[0], parts[1]), batch)


def _rows(batch: Any) -> int | None:
    return _length(batch, 0)


def _length(batch: Any, along: int) -> int | None:
    """A dimension of a batch's first tensor that has it; ``None`` if it is no plain batch of tensors."""
    if not isinstance(batch, Mapping | list | tuple | Tensor) and not hasattr(batch, "__dict__"):
        return None
    if hasattr(batch, "batch_sizes"):  # a packed sequence
        return None
    if any(isinstance(part, list) for part in (batch.values() if isinstance(batch, Mapping) else _parts(batch))):
        return None  # a list of something for each example, such as boxes
    return next((tensor.shape[along] for tensor in tensors(batch) if tensor.dim() > along), None)


def _parts(batch: Any) -> list[Any]:
    return list(batch) if isinstance(batch, list | tuple) else list(getattr(batch, "__dict__", {}).values())


def _skeleton(batch: Any) -> Any:
    """What a batch holds beside its tensors, to be compared."""
    if isinstance(batch, Tensor):
        return Tensor
    if isinstance(batch, Mapping):
        return [(key, _skeleton(value)) for key, value in batch.items()]
    if isinstance(batch, list | tuple):
        return [_skeleton(value) for value in batch]
    attributes = getattr(batch, "__dict__", None)
    if attributes is not None and not callable(batch):
        return [(key, _skeleton(value)) for key, value in attributes.items()]
    return batch


# -------------------------------------------------------------------------------------------------------- usual weights


def _usual_weights(model: nn.Module, batches: Sequence[Any]) -> list[_Weight]:
    """What losses usually average over, as far as these batches have it; the likeliest first."""
    labelled = [b["labels"] for b in batches if isinstance(b, Mapping) and isinstance(b.get("labels"), Tensor)]
    tokens = any(labels.dim() >= 2 and not labels.is_floating_point() for labels in labelled)
    weights = []
    if tokens:
        shifted = predicts_next_token(model)
        weights = [_labels(shifted=shifted), _labels(shifted=not shifted)]
        ignored = getattr(getattr(model, "config", None), "semantic_loss_ignore_index", None)
        if isinstance(ignored, int):
            weights.append(_Weight(f"labels other than {ignored}", lambda b: int((b["labels"] != ignored).sum())))
    else:
        weights = [_labels(shifted=False)]
    masks = {key for b in batches if isinstance(b, Mapping) for key, value in b.items() if _is_mask(key, value)}
    weights += [_ones(key) for key in sorted(masks)]
    if not isinstance(batches[0], Mapping):
        places = [
            index for index, tensor in enumerate(tensors(batches[0])) if tensor.dim() > 1 and _is_zeros_and_ones(tensor)
        ]
        weights += [_ones_at(index) for index in places]
    if labelled:
        weights.append(_Weight("examples", lambda b: float(_rows(b) or math.nan)))
    return weights


def _labels(*, shifted: bool) -> _Weight:
    by = "valid labels after the first of a row" if shifted else "valid labels, or examples"
    return _Weight(by, lambda batch: averaged_over(batch, shifted=shifted))


def _ones(key: str) -> _Weight:
    return _Weight(f"ones in {key}", lambda batch: float(batch[key].sum()) if key in batch else math.nan)


def _ones_at(index: int) -> _Weight:
    def ones(batch: Any) -> float:
        found = list(tensors(batch))
        return float(found[index].sum()) if index < len(found) else math.nan

    return _Weight(f"ones in tensor {index}", ones)


def _is_zeros_and_ones(tensor: Tensor) -> bool:
    return not tensor.is_complex() and bool(((tensor == 0) | (tensor == 1)).all())


def _is_mask(key: Any, value: Any) -> bool:
    return isinstance(key, str) and "mask" in key and isinstance(value, Tensor) and not value.is_complex()


def averaged_over(batch: Any, *, shifted: bool) -> int:
    """How many terms the mean loss of a batch averages over.

    Where the batch has ``labels``: the labels that aren't −100, without the first of each row where the model shifts
    them (it predicts the next token, so the first label is never a target). Otherwise the length of the first
    dimension of its first tensor.

    Args:
        batch: a micro-batch.
        shifted: whether the model shifts its labels inside.

    Raises:
        UsageError: the batch has neither, or hides −100 in a tensor that isn't called ``labels``.
    """
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if isinstance(labels, Tensor) and labels.dim() > 0:
        if labels.is_floating_point():
            return labels.numel()
        if shifted and labels.dim() >= 2:
            labels = labels[..., 1:]
        return int((labels != IGNORED_LABEL).sum())
    if any(t.dtype == torch.int64 and bool((t == IGNORED_LABEL).any()) for t in tensors(batch)):
        raise UsageError(f"a batch holds {IGNORED_LABEL} outside of 'labels': pass weight_fn, a function of the batch")
    for tensor in tensors(batch, of_objects=False):
        if tensor.dim() > 0:
            return tensor.shape[0]
    raise UsageError(
        f"cannot tell how many examples a {type(batch).__name__} holds: pass weight_fn, a function of the batch"
    )


# Classes whose name says that they shift their labels, and which don't.
_UNSHIFTED = re.compile(
    r"^(Bart|MBart|Marian|Pegasus|BigBirdPegasus|Blenderbot|BlenderbotSmall|PLBart|Mvp|TrOCR|ProphetNet|Speech2Text2)"
    r"ForCausalLM$|^XLNetLMHeadModel$|^(XLM|Flaubert)WithLMHeadModel$"
)


def predicts_next_token(model: nn.Module) -> bool:
    """Whether the model's class says that it shifts its labels inside, as most of Hugging Face's causal models do.

    A trial has the last word where one is possible.
    """
    inner = getattr(model, "_orig_mod", model)
    inner = getattr(getattr(inner, "base_model", None), "model", inner) if hasattr(inner, "peft_config") else inner
    name = type(inner).__name__
    config = getattr(inner, "config", None)
    if _UNSHIFTED.search(name) or getattr(config, "is_encoder_decoder", False):
        return False
    kind = getattr(inner, "loss_type", None)
    if kind == "ForConditionalGeneration":
        return hasattr(config, "text_config")  # a language model that also sees images
    kind = kind if isinstance(kind, str) else name
    return "ForCausalLM" in kind or kind.endswith("LMHeadModel")


def _shares(batches: Sequence[Any], weight_fn: WeightFunction) -> list[float]:
    weights = [float(weight_fn(batch)) for batch in batches]
    for index, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise UsageError(f"weight_fn gave {weight} for micro-batch {index}: a weight is a finite number ≥ 0")
    total = math.fsum(weights)
    if total == 0:
        raise UsageError("all micro-batches have weight 0: they hold no valid label")
    return [weight / total for weight in weights]
