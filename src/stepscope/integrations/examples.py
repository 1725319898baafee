"""Which examples are measured on where nobody says which: random ones, always the same.

The first of a data set are often alike (one file, one label, sorted by length), and then tell of themselves alone.
Examples are looked up by their indices: to iterate a loader of the trainer's would move its state.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from stepscope.errors import UsageError
from stepscope.objective import reading


class RandomExamples:
    """A draw of examples, without repetition; random numbers elsewhere stay as they are.

    Args:
        micro_batches: how many micro-batches they make; fewer where the data are.
        seed: of the draw.

    Raises:
        UsageError: less than one micro-batch.

    Example:
        >>> RandomExamples(2, seed=0).batches("abcdefgh", "letters", "".join, size=3)
        (['ghd', 'acf'], '6 random examples of letters, seed 0')
    """

    def __init__(self, micro_batches: int, seed: int) -> None:
        if not isinstance(micro_batches, int) or micro_batches < 1:
            raise UsageError(f"micro_batches is {micro_batches!r}: give a number ≥ 1")
        self._micro_batches, self._seed = micro_batches, seed

    def batches(
        self,
        data: Any,
        name: str,
        collate: Callable[[list[Any]], Any],
        *,
        size: int,
        columns: Sequence[str] | None = None,
    ) -> tuple[list[Any], str]:
        """The micro-batches, and which examples they are, in words.

        Args:
            data: a data set with a length, whose examples are found by index.
            name: what it is called.
            collate: makes a batch of examples.
            size: examples of a micro-batch.
            columns: of examples that are dictionaries, those to keep; ``None`` for all.

        Raises:
            UsageError: the data have no length or no indices.
        """
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise UsageError(f"examples of a {type(data).__name__} can't be looked up: give eval_batches")
        chosen = random.Random(self._seed).sample(range(len(data)), min(len(data), size * self._micro_batches))
        with reading(data):
            examples = [_only(data[index], columns) for index in chosen]
            batches = [collate(examples[start : start + size]) for start in range(0, len(examples), size)]
        return batches, f"{len(chosen)} random examples of {name}, seed {self._seed}"


def _only(example: Any, columns: Sequence[str] | None) -> Any:
    if columns is None or not isinstance(example, dict):
        return example
    return {name: value for name, value in example.items() if name in columns}
