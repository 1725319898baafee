"""How a micro-batch is evaluated while the model is measurable: each time from the same state and random numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from stepscope.errors import UsageError, said
from stepscope.objective.batches import moved
from stepscope.objective.loss_calls import failure, is_out_of_memory
from stepscope.objective.measurable import Measurable, measured_dtype
from stepscope.objective.plain_model import PlainModel
from stepscope.objective.randomness import seed_everything
from stepscope.objective.sharded_model import GatheredModel, ShardedModel

Output = TypeVar("Output")


@dataclass
class Evaluations:
    """The evaluations of one measurement.

    Attributes:
        how: a plain model's, or that of one that is sharded.
        measured: the model, measurable.
        parameters: ``x``, as they are measured.
        batches: the micro-batches of this rank.
        dtype: the type to measure in; ``None`` is the parameters' own.
        given: the type that the first parameter is measured in, without `as_trained`.
        raised: whether half precision is raised to float32.
        as_trained: whether losses are computed as training computes them.
        seen: micro-batches that have been evaluated before: an error of these isn't a mistake in the loss.
        loss_eps: the relative rounding of the coarsest loss so far.
        displaced: how often the parameters are displaced by now, one within the other.
    """

    how: PlainModel | ShardedModel | GatheredModel
    measured: Measurable
    parameters: Mapping[str, Tensor]
    batches: Sequence[Any]
    dtype: torch.dtype | None
    given: torch.dtype
    raised: bool
    as_trained: bool
    seen: set[Hashable]
    loss_eps: float = 0.0
    displaced: int = 0

    def each(
        self, evaluate: Callable[[Any, int], Output], weights: Sequence[float], first: int
    ) -> Iterator[tuple[float, Output]]:
        """The weight of each micro-batch, and what `evaluate` gives for it and its number.

        Args:
            evaluate: is given tensors that are copies on the model's device.
            weights: of the micro-batches.
            first: the number of the first of them, of those of all ranks.
        """
        for index, (weight, batch) in enumerate(zip(weights, self.batches, strict=True), first):
            self.how.deliver()
            seed_everything(index)
            copied = self.copy(batch)
            # Without a variable: the result has a graph, which would stay in memory while the next one grows.
            yield weight, self.one(partial(evaluate, copied, index), copied, index)

    def copy(self, batch: Any) -> Any:
        """A micro-batch as it is measured: its tensors follow the parameters where these have changed their dtype."""
        first = next(iter(self.parameters.values()))
        if self.as_trained:
            then, now = self.given, measured_dtype(first.dtype, None)
            follow = now != then
            return moved(
                batch, first.device, lambda d: first.dtype if follow and measured_dtype(d, None) == then else d
            )

        def dtype_of(dtype: torch.dtype) -> torch.dtype:
            measured = measured_dtype(dtype, self.dtype)
            return first.dtype if measured == self.given else measured

        return moved(batch, first.device, dtype_of)

    def one(self, evaluate: Callable[[], Output], batch: Any, index: Hashable) -> Output:
        """The result of one evaluation.

        Args:
            evaluate: gives it.
            batch: the copy that is evaluated.
            index: what tells this evaluation apart from others, such as the number of its micro-batch.

        Raises:
            UsageError: the model or the loss fails on a batch that it hasn't been evaluated on before.
        """

        def within() -> Output:
            with self.how.evaluating():
                return evaluate()

        try:
            result = self.measured.evaluate(index, within)
        except Exception as error:
            if isinstance(error, UsageError) or is_out_of_memory(error):
                raise
            if isinstance(error, RuntimeError) and self.raised and not self.as_trained:
                raise UsageError(
                    f"the model doesn't run in float32, in which half precision is measured ({said(error)}): "
                    "if its attention needs half precision, choose another (attn_implementation='sdpa')"
                ) from error
            # A loss that differentiates inside is tried again, with gradients.
            again = not torch.is_grad_enabled() and "does not require grad" in str(error)
            if again or index in self.seen:
                raise
            name = f"micro-batch {index}" if isinstance(index, int) else "micro-batches together"
            raise UsageError(failure(error, name, batch, self.batches, self.parameters)) from error
        self.seen.add(index)
        return result
