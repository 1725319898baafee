"""Tasks so small that their whole Hessian is computed: made data, float64, smooth losses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscope.errors import UsageError
from stepscope.paper.tasks.batching import DATA_SEED, initialized, task_of
from stepscope.paper.tasks.task import Batch, Source, Task

_EXAMPLES = 512
_SIZES = SimpleNamespace(batch_size=32, eval_size=32, micro_batch_size=16)
_FEATURES, _CLASSES = 8, 4
_VOCABULARY, _LENGTH = 24, 12


@dataclass(frozen=True)
class Output:
    """What these models give.

    Attributes:
        loss: mean cross entropy over the labels, nats.
    """

    loss: Tensor


class Classifier(nn.Module):
    """A perceptron of two hidden layers, with layer norm after the first; 432 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(_FEATURES, 16)
        self.norm = nn.LayerNorm(16)
        self.middle = nn.Linear(16, 12)
        self.out = nn.Linear(12, _CLASSES)

    def forward(self, inputs: Tensor, labels: Tensor) -> Output:
        """The loss of inputs, shape (examples, features), with their classes, shape (examples,)."""
        x = functional.gelu(self.norm(self.inside(inputs)))
        return Output(functional.cross_entropy(self.out(functional.gelu(self.middle(x))), labels))


class LanguageModel(nn.Module):
    """A transformer of one block, layer norm before each part, the embedding tied to the output; 824 parameters.

    It has no biases: the softmax takes no notice of a bias of the keys, whose derivatives are rounding alone.
    """

    def __init__(self) -> None:
        super().__init__()
        width = 8
        self.tokens = nn.Embedding(_VOCABULARY, width)
        self.positions = nn.Embedding(_LENGTH, width)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.3)
        self.block = nn.TransformerEncoderLayer(
            width, 2, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True, bias=False
        )
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Output:
        """The loss of predicting `labels` from the tokens up to each place; both of shape (sequences, length)."""
        length = input_ids.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).triu(1)
        x = self.tokens(input_ids) + self.positions.weight[:length]
        logits = self.norm(self.block(x, src_mask=later)) @ self.tokens.weight.T
        return Output(functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))


def _classified(generator: torch.Generator) -> Batch:
    """Normal inputs, none on a larger scale than another, and the classes that a random network gives them."""
    inputs = torch.randn(_EXAMPLES, _FEATURES, generator=generator, dtype=torch.float64)
    first = torch.randn(_FEATURES, 12, generator=generator, dtype=torch.float64)
    second = torch.randn(12, _CLASSES, generator=generator, dtype=torch.float64)
    return {"inputs": inputs, "labels": (torch.tanh(inputs @ first) @ second).argmax(1)}


def _sentences(generator: torch.Generator) -> Batch:
    """Walks through a random Markov chain whose words are as unequally frequent as a language's (Zipf's law)."""
    frequency = 1 / torch.arange(1, _VOCABULARY + 1, dtype=torch.float64)
    unequal = torch.randn(_VOCABULARY, _VOCABULARY, generator=generator, dtype=torch.float64).mul(1.5).exp()
    walk = [torch.multinomial(frequency, _EXAMPLES, replacement=True, generator=generator)]
    for _ in range(_LENGTH):
        walk.append(torch.multinomial((frequency * unequal)[walk[-1]], 1, generator=generator)[:, 0])
    words = torch.stack(walk, 1)
    return {"input_ids": words[:, :-1], "labels": words[:, 1:]}


SMALL: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Batch], str]] = {
    "classifier": (Classifier, _classified, "normal inputs, labeled by a random network"),
    "language model": (LanguageModel, _sentences, "walks through a random Markov chain of words"),
}
"""The small tasks, by name: the model, its data, and what these are."""


def small_task(name: str, *, seed: int = 0) -> Task:
    """Makes a small task.

    Args:
        name: one of `SMALL`.
        seed: of the weights and of the order of training batches; the data don't depend on it.

    Raises:
        UsageError: no task of that name.
    """
    if name not in SMALL:
        raise UsageError(f"no small task {name!r}: choose {' or '.join(SMALL)}")
    model, make, title = SMALL[name]
    data = make(torch.Generator().manual_seed(DATA_SEED))
    digest = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in data.values())).hexdigest()
    return task_of(
        name,
        _SIZES,
        range(_EXAMPLES),
        seed=seed,
        model=lambda seed, _: initialized(lambda: model().double(), seed),
        collate=lambda places: {key: value[torch.tensor(places)] for key, value in data.items()},
        source=Source("made", f"Made data: {title}", "none needed", digest, _EXAMPLES),
    )
