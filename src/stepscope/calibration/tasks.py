"""The kinds of training that the calibration goes through: model, data, loss, length."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscope.calibration import data, models
from stepscope.calibration.data import Batch

Loss = Callable[[nn.Module, Batch], Tensor]
Draw = Callable[[bool, torch.Generator, int], Batch]


@dataclass(frozen=True)
class CalibrationTask:
    """One kind of training.

    Attributes:
        name: in the records.
        make: makes the model, with a dropout probability, from the global random state.
        batch: ``batch(held out, generator, size)``.
        loss: the mean loss of a batch.
        steps: the length of a training.
        sizes: of a small and of a large batch.
        clip: the norm that gradients are clipped to; ``None`` leaves them.
    """

    name: str
    make: Callable[[float], nn.Module]
    batch: Draw
    loss: Loss
    steps: int
    sizes: tuple[int, int]
    clip: float | None = None


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Of classes, and of the symbols of sequences."""
    given = [batch[name] for name in ("source", "inputs") if name in batch]
    scores, labels = model(*given), batch["labels"]
    padding = 0 if "source" in batch else -100
    return functional.cross_entropy(scores.flatten(0, -2), labels.flatten(), ignore_index=padding)


def squared_error(model: nn.Module, batch: Batch) -> Tensor:
    """Half of it, of a number."""
    return functional.mse_loss(model(batch["inputs"]), batch["labels"]) / 2


def windows(text: Callable[[bool], Tensor], length: int) -> Draw:
    """Pieces of a text of so many symbols."""
    return lambda held_out, generator, size: data.windows(text(held_out), generator, size, length)


def made(make: Callable[..., Batch], **options: str) -> Draw:
    """Of data that are made when they are asked for, those that are held out are others by themselves."""
    return lambda _, generator, size: make(generator, size, **options)


_source, _angles = windows(data.source_text, 32), made(data.gratings)
_widths = made(data.gratings, of="width")


def pretrained(begin: str, new_head: bool = False, steps: int = 400) -> Callable[[float], nn.Module]:
    """Makes models whose weights another task has trained, once a process, with the last layer as it was or new."""

    @functools.cache
    def weights() -> dict[str, Tensor]:
        source = _BEGINNINGS[begin]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = source.make(0.0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        generator = torch.Generator().manual_seed(7)
        for _ in range(steps):
            optimizer.zero_grad()
            source.loss(model, source.batch(False, generator, source.sizes[1])).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return copy.deepcopy(model.state_dict())

    def make(dropout: float) -> nn.Module:
        model = _BEGINNINGS[begin].make(dropout)
        model.load_state_dict(weights())
        if new_head:
            [module for module in model.modules() if isinstance(module, nn.Linear)][-1].reset_parameters()
        return model

    return make


def _bytes_model(dropout: float) -> nn.Module:
    return models.LanguageModel(data.SYMBOLS, 48, gated=False, dropout=dropout)


def _words_model(dropout: float) -> nn.Module:
    return models.LanguageModel(data.WORDS, 48, gated=True, dropout=dropout)


_BEGINNINGS = {
    task.name: task
    for task in (
        CalibrationTask("prose", _bytes_model, windows(data.prose_bytes, 32), cross_entropy, 0, (4, 16)),
        CalibrationTask("angles", models.convolutional, _angles, cross_entropy, 0, (8, 64)),
    )
}
"""What fine-tunings begin with."""

TASKS = {
    task.name: task
    for task in (
        CalibrationTask("bytes", _bytes_model, _source, cross_entropy, 200, (4, 16), clip=1.0),
        CalibrationTask("words", _words_model, windows(data.prose_words, 24), cross_entropy, 200, (4, 16), clip=1.0),
        CalibrationTask("translation", models.Translator, data.translations, cross_entropy, 250, (8, 32)),
        CalibrationTask("classification", models.bag_of_pairs, data.modules, cross_entropy, 300, (8, 64)),
        CalibrationTask("convolutions", models.convolutional, _angles, cross_entropy, 250, (8, 64)),
        CalibrationTask("patches", models.PictureTransformer, _angles, cross_entropy, 250, (8, 32)),
        CalibrationTask("recurrent", models.Recurrent, _source, cross_entropy, 200, (4, 16)),
        CalibrationTask("regression", models.perceptron, made(data.curves), squared_error, 300, (8, 64)),
        CalibrationTask("fine-tuned bytes", pretrained("prose"), _source, cross_entropy, 200, (4, 16), clip=1.0),
        CalibrationTask("fine-tuned pictures", pretrained("angles", True), _widths, cross_entropy, 250, (8, 64)),
    )
}  # fmt: skip
