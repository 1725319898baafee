"""Other kinds of training than the study's, to judge a rule on."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscope.calibration import data, models
from stepscope.calibration.data import CLASSES, SYMBOLS, Batch
from stepscope.calibration.tasks import CalibrationTask, cross_entropy, made, pretrained, windows
from stepscope.errors import require

_SIDE = 12
_PIXELS = _SIDE**2
_SOFTNESS = 3.0


class _Llama(nn.Module):
    """A Llama of 380,000 parameters, as transformers has it."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        llama = require("transformers", "transformers")
        sizes = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
        config = llama.LlamaConfig(
            vocab_size=256, max_position_embeddings=128, num_key_value_heads=4, attention_dropout=dropout, **sizes
        )
        self.model = llama.LlamaForCausalLM(config)

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.model(input_ids=inputs, use_cache=False).logits
        return scores


class _Gated(nn.Module):
    """Two layers of gated recurrent units that foretell the next byte."""

    def __init__(self, dropout: float, width: int = 80) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS, width // 2)
        self.cells = nn.GRU(width // 2, width, 2, batch_first=True, dropout=dropout)
        self.out = nn.Linear(width, SYMBOLS)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):  # not every processor has one in bfloat16
            seen, _ = self.cells(self.symbols(inputs))
        scores: Tensor = self.out(seen)
        return scores


class _Factors(nn.Module):
    """Ratings as products of what is learned of who rates and of what is rated."""

    def __init__(self, dropout: float, width: int = 16) -> None:
        super().__init__()
        self.people, self.things = nn.Embedding(600, width), nn.Embedding(400, width)
        self.dropout, self.out = nn.Dropout(dropout), nn.Linear(width, 1)
        for table in (self.people, self.things):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, pairs: Tensor) -> Tensor:
        products = self.dropout(self.people(pairs[:, 0]) * self.things(pairs[:, 1]))
        ratings: Tensor = products.sum(-1) + self.out(products).squeeze(-1)
        return ratings


class _Autoencoder(nn.Module):
    """Pictures through a narrow layer and back; with noise in that layer, a variational one."""

    def __init__(self, dropout: float, *, noisy: bool, narrow: int = 8, width: int = 96) -> None:
        super().__init__()
        self.noisy = noisy
        first = nn.Linear(_PIXELS, width), nn.ReLU(), nn.Dropout(dropout)
        self.encoder = nn.Sequential(nn.Flatten(), *first, nn.Linear(width, 2 * narrow if noisy else narrow))
        self.decoder = nn.Sequential(nn.Linear(narrow, width), nn.ReLU(), nn.Linear(width, _PIXELS))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        if not self.noisy:
            return self.decoder(self.encoder(inputs)), inputs.new_zeros(len(inputs))
        mean, log_variance = self.encoder(inputs).chunk(2, -1)
        drawn = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        far = 0.5 * (mean**2 + log_variance.exp() - log_variance - 1).sum(-1)
        return self.decoder(drawn), far


def _embedder(dropout: float) -> nn.Sequential:
    """Convolutions without norms, into 32 numbers."""
    first = nn.Conv2d(1, 16, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.GELU()
    return nn.Sequential(*first, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(32 * 9, 32))


def _clicker(dropout: float) -> nn.Sequential:
    inner = nn.Linear(24, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 64), nn.ReLU()
    return nn.Sequential(*inner, nn.Linear(64, 1), nn.Flatten(0))


def _pictures(generator: torch.Generator, size: int) -> Batch:
    """Stripes between 0 and 1."""
    return {"inputs": torch.sigmoid(2 * data.gratings(generator, size, side=_SIDE)["inputs"])}


def _clicks(generator: torch.Generator, size: int) -> Batch:
    """Rare events that inputs say little about."""
    inputs, fixed = torch.randn(size, 24, generator=generator), torch.Generator().manual_seed(11)
    odds = 0.12 * inputs @ torch.randn(24, generator=fixed) + 0.25 * inputs[:, 0] * inputs[:, 1] - 0.8
    return {"inputs": inputs, "labels": (torch.rand(size, generator=generator) < odds.sigmoid()).float()}


def _weak_curves(generator: torch.Generator, size: int) -> Batch:
    """The function of the regression, under noise of about its own size."""
    points = data.curves(generator, size)
    return {**points, "labels": points["labels"] + 2.5 * torch.randn(size, generator=generator)}


def _ratings(generator: torch.Generator, size: int) -> Batch:
    fixed = torch.Generator().manual_seed(13)
    people, things = torch.randn(600, 4, generator=fixed), torch.randn(400, 4, generator=fixed)
    who, what = (torch.randint(count, (size,), generator=generator) for count in (600, 400))
    noise = 0.5 * torch.randn(size, generator=generator)
    return {"inputs": torch.stack([who, what], 1), "labels": (people[who] * things[what]).sum(-1) / 2 + noise}


def _log_loss(model: nn.Module, batch: Batch) -> Tensor:
    return functional.binary_cross_entropy_with_logits(model(batch["inputs"]), batch["labels"])


def _squared_error(model: nn.Module, batch: Batch) -> Tensor:
    return functional.mse_loss(model(batch["inputs"]), batch["labels"])


def _reconstruction(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each pixel, and what a variational one adds: in nats of a picture."""
    again, far = model(batch["inputs"])
    each = functional.binary_cross_entropy_with_logits(again, batch["inputs"].flatten(1), reduction="none")
    of_picture: Tensor = each.sum(1) + far
    return of_picture.mean()


def _contrast(model: nn.Module, batch: Batch) -> Tensor:
    """Which of a batch's pictures is the same one, moved and with other noise."""
    pictures = batch["inputs"]
    views = (pictures + 0.2 * torch.randn_like(pictures), pictures.roll(1, -1) + 0.2 * torch.randn_like(pictures))
    one, other = (functional.normalize(model(view), dim=-1) for view in views)
    return functional.cross_entropy(one @ other.T / 0.2, torch.arange(len(pictures), device="cpu"))


def _smoothed(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch["inputs"]), batch["labels"], label_smoothing=0.2)


@functools.cache
def _teacher() -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(9)
        model, generator = models.convolutional(0.0), torch.Generator().manual_seed(9)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(300):
            optimizer.zero_grad()
            cross_entropy(model, data.gratings(generator, 64)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval().requires_grad_(False)


def _distilled(model: nn.Module, batch: Batch) -> Tensor:
    """The distance from a trained model's probabilities."""
    wanted = (_teacher()(batch["inputs"]) / _SOFTNESS).log_softmax(-1)
    given = (model(batch["inputs"]) / _SOFTNESS).log_softmax(-1)
    return _SOFTNESS**2 * functional.kl_div(given, wanted, log_target=True, reduction="batchmean")


def _small_convolutional(dropout: float) -> nn.Sequential:
    return nn.Sequential(_embedder(dropout), nn.GELU(), nn.Linear(32, CLASSES))


_made_gratings, _made_pictures = made(data.gratings), made(_pictures)
_prose, _source = windows(data.prose_bytes, 32), windows(data.source_text, 32)
_begun = pretrained("prose", steps=1200)
_plain, _noisy = functools.partial(_Autoencoder, noisy=False), functools.partial(_Autoencoder, noisy=True)

FRESH = {
    task.name: task
    for task in (
        CalibrationTask("Llama", _Llama, windows(data.source_text, 96), cross_entropy, 300, (4, 16), clip=1.0),
        CalibrationTask("clicks", _clicker, made(_clicks), _log_loss, 300, (64, 1024)),
        CalibrationTask("weak regression", models.perceptron, made(_weak_curves), _squared_error, 300, (32, 512)),
        CalibrationTask("autoencoder", _plain, _made_pictures, _reconstruction, 300, (16, 128)),
        CalibrationTask("variational", _noisy, _made_pictures, _reconstruction, 300, (16, 128)),
        CalibrationTask("contrastive", _embedder, _made_gratings, _contrast, 250, (32, 128)),
        CalibrationTask("smoothed", models.convolutional, _made_gratings, _smoothed, 250, (16, 128)),
        CalibrationTask("distilled", _small_convolutional, _made_gratings, _distilled, 250, (16, 128)),
        CalibrationTask("ratings", _Factors, made(_ratings), _squared_error, 400, (64, 1024)),
        CalibrationTask("gated", _Gated, windows(data.prose_bytes, 48), cross_entropy, 250, (8, 32), clip=1.0),
        CalibrationTask("continued", _begun, _prose, cross_entropy, 150, (16, 64), clip=1.0),
        CalibrationTask("fine-tuned longer", _begun, _source, cross_entropy, 150, (16, 64), clip=1.0),
    )
}  # fmt: skip
