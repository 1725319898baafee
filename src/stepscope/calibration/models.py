"""Small models of the kinds that people train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stepscope.calibration.data import CLASSES, LETTERS, LONGEST, PAIRS, SYMBOLS


class _Block(nn.Module):
    """A layer of a transformer, normalized before each part: GPT's, or Llama's with RMS norms and gates."""

    def __init__(self, width: int, heads: int, dropout: float, *, gated: bool, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal, self.gated, self.dropout = heads, causal, gated, dropout
        norm: Any = nn.RMSNorm if gated else nn.LayerNorm
        self.before, self.between = norm(width), norm(width)
        self.attention = nn.Linear(width, 3 * width, bias=not gated)
        self.joined = nn.Linear(width, width, bias=not gated)
        self.up = nn.Linear(width, 4 * width, bias=not gated)
        self.down = nn.Linear(2 * width if gated else 4 * width, width, bias=not gated)

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        parts = self.attention(self.before(x)).view(size, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        drop = self.dropout if self.training else 0.0
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=self.causal, dropout_p=drop)
        x = x + functional.dropout(self.joined(seen.transpose(1, 2).reshape(x.shape)), drop)
        hidden = self.up(self.between(x))
        if self.gated:
            gate, hidden = hidden.chunk(2, -1)
            hidden = functional.silu(gate) * hidden
        else:
            hidden = functional.gelu(hidden)
        return x + functional.dropout(self.down(hidden), drop)


class LanguageModel(nn.Module):
    """A transformer that foretells the next symbol."""

    def __init__(self, symbols: int, width: int, *, gated: bool, dropout: float, length: int = 32) -> None:
        super().__init__()
        self.symbols, self.places = nn.Embedding(symbols, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(_Block(width, 2, dropout, gated=gated, causal=True) for _ in range(2))
        self.norm: nn.Module = nn.RMSNorm(width) if gated else nn.LayerNorm(width)
        self.out = nn.Linear(width, symbols, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of each symbol at each place."""
        x = self.symbols(inputs) + self.places.weight[: inputs.shape[1]]
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.out(self.norm(x))
        return scores


class Translator(nn.Module):
    """An encoder and a decoder, a layer each."""

    def __init__(self, dropout: float = 0.0, width: int = 48) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(LETTERS, width), nn.Embedding(LONGEST, width)
        options: dict[str, Any] = {"dropout": dropout, "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, **options)
        self.decoder = nn.TransformerDecoderLayer(width, 2, 2 * width, **options)
        self.out = nn.Linear(width, LETTERS)

    def forward(self, source: Tensor, inputs: Tensor) -> Tensor:
        """Scores of each letter at each place of the translation."""
        places, nothing = self.places.weight, source == 0
        memory = self.encoder(self.letters(source) + places, src_key_padding_mask=nothing)
        later = torch.ones(LONGEST, LONGEST, dtype=torch.bool).triu(1)
        seen = self.decoder(self.letters(inputs) + places, memory, later, memory_key_padding_mask=nothing)
        scores: Tensor = self.out(seen)
        return scores


class PictureTransformer(nn.Module):
    """A transformer on the patches of a picture."""

    def __init__(self, dropout: float = 0.0, width: int = 48, patch: int = 3) -> None:
        super().__init__()
        self.cut = nn.Unfold(patch, stride=patch)
        self.patches = nn.Linear(patch**2, width)
        self.places = nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList(_Block(width, 2, dropout, gated=False, causal=False) for _ in range(2))
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of each class."""
        x = self.patches(self.cut(inputs).transpose(1, 2)) + self.places
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.out(self.norm(x).mean(1))
        return scores


class Recurrent(nn.Module):
    """An LSTM that foretells the next byte."""

    def __init__(self, dropout: float = 0.0, width: int = 64) -> None:
        super().__init__()
        self.symbols, self.lstm = nn.Embedding(SYMBOLS, width), nn.LSTM(width, width, batch_first=True)
        self.dropout, self.out = nn.Dropout(dropout), nn.Linear(width, SYMBOLS)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores of each byte at each place."""
        with torch.autocast("cpu", enabled=False):  # not every processor has an LSTM in bfloat16
            seen, _ = self.lstm(self.symbols(inputs))
        scores: Tensor = self.out(self.dropout(seen))
        return scores


def bag_of_pairs(dropout: float, width: int = 64) -> nn.Sequential:
    """The mean of embeddings of pairs of bytes, and a perceptron on it."""
    layers = nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width), nn.ReLU()
    return nn.Sequential(nn.EmbeddingBag(PAIRS, width), *layers, nn.Dropout(dropout), nn.Linear(width, CLASSES))


def convolutional(dropout: float, channels: int = 32) -> nn.Sequential:
    """Three convolutions with batch norm."""
    layers: list[nn.Module] = []
    for given, made in ((1, channels), (channels, 2 * channels), (2 * channels, 2 * channels)):
        layers += [nn.Conv2d(given, made, 3, padding=1), nn.BatchNorm2d(made), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * channels, CLASSES))


def perceptron(dropout: float) -> nn.Sequential:
    """Three layers with tanh, a wide one first, to a number."""
    inner = nn.Linear(16, 512), nn.Tanh(), nn.Dropout(dropout), nn.Linear(512, 80), nn.Tanh()
    return nn.Sequential(*inner, nn.Linear(80, 1), nn.Flatten(0))
