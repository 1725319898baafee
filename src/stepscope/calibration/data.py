"""Data for small trainings: texts that Python ships with, and examples that are made when they are asked for."""

from __future__ import annotations

import collections
import functools
import math
import os
import re
from pathlib import Path

import torch
from torch import Tensor

Batch = dict[str, Tensor]

SYMBOLS = 128
"""Bytes above are counted as the last one."""

PAIRS = 1024
"""Pairs of bytes are hashed to so many."""

WORDS = 512
LONGEST = 10
"""Letters of a word with its end."""

LETTERS = 28
"""Padding, the letters, and the mark of an end."""

CLASSES = 10

_FILES = 60


@functools.cache
def source_text(held_out: bool) -> Tensor:
    """Bytes of modules of the standard library; every sixth module is held out."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))[::2][:_FILES]
    chosen = [file.read_bytes() for place, file in enumerate(files) if (place % 6 == 0) == held_out]
    return _as_symbols(b"".join(chosen))


@functools.cache
def prose(held_out: bool) -> str:
    """The language reference that `help()` shows; every sixth topic is held out."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for place, name in enumerate(sorted(topics)) if (place % 6 == 0) == held_out)


@functools.cache
def prose_bytes(held_out: bool) -> Tensor:
    """The same as bytes."""
    return _as_symbols(prose(held_out).encode(errors="replace"))


@functools.cache
def prose_words(held_out: bool) -> Tensor:
    """The same as words, the most frequent ones by number and all others as 0."""
    pattern = r"[A-Za-z]+|\d|[^\sA-Za-z\d]|\n"
    common = collections.Counter(re.findall(pattern, prose(False))).most_common(WORDS - 1)
    numbers = {word: number for number, (word, _) in enumerate(common, start=1)}
    return torch.tensor([numbers.get(word, 0) for word in re.findall(pattern, prose(held_out))])


def windows(text: Tensor, generator: torch.Generator, size: int, length: int) -> Batch:
    """Pieces of a text, and the same one place further on."""
    start = torch.randint(len(text) - length, (size, 1), generator=generator)
    piece = text[start + torch.arange(length + 1)]
    return {"inputs": piece[:, :-1], "labels": piece[:, 1:]}


@functools.cache
def _spelled(held_out: bool) -> Tensor:
    """Words of the prose as letters; every sixth word is held out."""
    found = sorted(set(re.findall(rf"[a-z]{{3,{LONGEST - 1}}}", prose(False).lower())))
    chosen = [word for place, word in enumerate(found) if (place % 6 == 0) == held_out]
    spelled = [[ord(letter) - 96 for letter in word] + [LETTERS - 1] for word in chosen]
    return torch.tensor([word + [0] * (LONGEST - len(word)) for word in spelled])


def translations(held_out: bool, generator: torch.Generator, size: int) -> Batch:
    """Words, and what a made rule turns them into: read backwards, each letter moved on by the one before it."""
    words = _spelled(held_out)
    source = words[torch.randint(len(words), (size,), generator=generator)]
    lengths = (source > 0).sum(1, keepdim=True) - 1
    places = (lengths - 1 - torch.arange(LONGEST)).clamp(min=0)
    turned = source.gather(1, places)
    moved = (turned - 1 + turned.roll(1, 1) % 3) % 26 + 1
    inside = torch.arange(LONGEST) < lengths
    target = torch.where(inside, moved, torch.where(torch.arange(LONGEST) == lengths, LETTERS - 1, 0))
    begun = torch.cat([torch.full((size, 1), LETTERS - 1), target[:, :-1]], 1)
    return {"source": source, "inputs": begun, "labels": target}


@functools.cache
def _largest_modules() -> tuple[Tensor, ...]:
    files = sorted(Path(os.__file__).parent.glob("*.py"), key=lambda file: (-file.stat().st_size, file.name))
    return tuple(_as_symbols(file.read_bytes()) for file in files[:CLASSES])


def modules(held_out: bool, generator: torch.Generator, size: int, length: int = 48) -> Batch:
    """Pieces of source text, and from which of ten modules; the last fifth of each is held out."""
    labels = torch.randint(CLASSES, (size,), generator=generator)
    pieces = []
    for label in labels.tolist():
        text = _largest_modules()[label]
        cut = len(text) * 4 // 5
        first, last = (cut, len(text) - length) if held_out else (0, cut - length)
        start = int(torch.randint(first, last, (1,), generator=generator))
        pieces.append(text[start : start + length])
    symbols = torch.stack(pieces)
    return {"inputs": (symbols[:, :-1] * 37 + symbols[:, 1:]) % PAIRS, "labels": labels}


def gratings(generator: torch.Generator, size: int, *, of: str = "angle", side: int = 12) -> Batch:
    """Noisy stripes of ten angles, or of ten widths, under an envelope somewhere in a picture."""
    labels = torch.randint(CLASSES, (size,), generator=generator)
    other = torch.rand(size, generator=generator)
    wanted = (labels + 0.3 * torch.randn(size, generator=generator)) / CLASSES
    angle, width = (wanted, other) if of == "angle" else (other, wanted)
    phase, at = 2 * math.pi * torch.rand(size, generator=generator), 2 * torch.randn(2, size, generator=generator)
    place = torch.arange(side) - (side - 1) / 2
    x, y = place[None, None, :], place[None, :, None]
    across = (math.pi * angle).cos()[:, None, None] * x + (math.pi * angle).sin()[:, None, None] * y
    wave = ((0.8 + 1.4 * width)[:, None, None] * across + phase[:, None, None]).cos()
    envelope = (-((x - at[0][:, None, None]) ** 2 + (y - at[1][:, None, None]) ** 2) / 30).exp()
    noise = 0.35 * torch.randn(size, side, side, generator=generator)
    return {"inputs": (wave * envelope + noise)[:, None], "labels": labels}


@functools.cache
def _teacher() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(16, 24, generator=generator) / 4, torch.randn(24, generator=generator) / 24**0.5


def curves(generator: torch.Generator, size: int) -> Batch:
    """Points, and a smooth function of them with a little noise."""
    inner, outer = _teacher()
    inputs = torch.randn(size, 16, generator=generator)
    return {
        "inputs": inputs,
        "labels": 3 * (2 * inputs @ inner).tanh() @ outer + 0.1 * torch.randn(size, generator=generator),
    }


def _as_symbols(text: bytes) -> Tensor:
    return torch.tensor(list(text)).clamp(max=SYMBOLS - 1)
