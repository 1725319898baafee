"""What a batch may be: named tensors in the containers that users keep them in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

Fields = dict[str, Any]

OFFSET, SCALE = 3.0, 2.0


class Pair(NamedTuple):
    """A NamedTuple batch."""

    x: Any
    y: Tensor


@dataclass
class Scaled:
    """A dataclass whose constructor normalizes: built again from its own fields, it is another batch."""

    x: Any
    y: Tensor

    def __post_init__(self) -> None:
        if isinstance(self.x, Tensor) and self.x.is_floating_point():
            self.x = (self.x - OFFSET) / SCALE


def _scaled(fields: Fields) -> Scaled:
    x = fields["x"]
    return Scaled(x * SCALE + OFFSET if x.is_floating_point() else x, fields["y"])


def _encoding(fields: Fields) -> Any:
    from transformers import BatchEncoding

    return BatchEncoding(fields)


def _packed(fields: Fields) -> tuple[PackedSequence, Tensor]:
    x = fields["x"]
    lengths = torch.tensor([1 + (3 * row + len(x)) % x.shape[1] for row in range(len(x))])
    return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False), fields["y"]


def _sequences(fields: Fields) -> dict[str, Any]:
    """A list of sequences, each of its own length."""
    x = fields["x"]
    return {"x": [row[: 1 + (3 * index) % x.shape[1]] for index, row in enumerate(x)], "y": fields["y"]}


CONTAINERS: dict[str, Callable[[Fields], Any]] = {
    "dict": dict,
    "tuple": lambda fields: (fields["x"], fields["y"]),
    "list": lambda fields: [fields["x"], fields["y"]],
    "dataclass": _scaled,
    "NamedTuple": lambda fields: Pair(fields["x"], fields["y"]),
    "BatchEncoding": _encoding,
    "packed": _packed,
    "sequences": _sequences,
    "ragged": dict,
}
"""``{kind: fields -> batch}``; of a ragged kind the micro-batches are of many sizes, see `sizes`."""


def sizes(kind: str, count: int) -> list[int]:
    """How many examples each of `count` micro-batches has."""
    return [3 + (5 * index) % 7 for index in range(count)] if kind == "ragged" else [6] * count


def fields_of(batch: Any) -> tuple[Any, Tensor]:
    """``x`` and ``y`` of a batch of any kind."""
    if isinstance(batch, Mapping):
        return batch["x"], batch["y"]
    if isinstance(batch, Scaled):
        return batch.x, batch.y
    return batch[0], batch[1]


def examples(batch: Any) -> float:
    """What the mean losses here average over."""
    if isinstance(batch, Mapping) and "labels" in batch:
        return float(len(batch["labels"]))
    return float(len(fields_of(batch)[1]))
