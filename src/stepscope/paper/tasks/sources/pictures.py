"""Labeled images: the paper's data where the Hub can be reached, else what a package ships, or the user's own file.

Two sources, tried in this order by ``load_pictures("auto")``: CIFAR-10 of the Hub, and Fashion-MNIST of Debian's
archive or installed from there.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.downloads import (
    UnavailableError,
    cached_debian_package,
    debian_files,
    debian_version,
    file_sha256,
    files_sha256,
)
from stepscope.paper.tasks.hub import HubDataset
from stepscope.paper.tasks.sources.source import DataSource, Reading, load_first, read_bytes, read_hub
from stepscope.paper.tasks.task import Source

CIFAR10 = HubDataset("uoft-cs/cifar10", "plain_text")
FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = "usr/share/datasets/fashion-mnist"
FASHION_ROOT = Path("/") / FASHION_FOLDER
FASHION_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


@dataclass(frozen=True)
class Pictures:
    """Images with their labels, as a source gave them.

    Attributes:
        pixels: uint8, shape (images, channels, height, width).
        labels: int64, shape (images,); at least 0.

    Raises:
        UnavailableError: the shapes don't fit, a label is negative, or there is no image.
    """

    pixels: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.pixels.dim() != 4 or self.labels.shape != self.pixels.shape[:1] or self.pixels.numel() == 0:
            shapes = f"images of shape {tuple(self.pixels.shape)} with labels of shape {tuple(self.labels.shape)}"
            raise UnavailableError(f"{shapes}: expected (N, channels, height, width) and (N,)")
        if int(self.labels.min()) < 0:
            raise UnavailableError(f"a label is {int(self.labels.min())}: labels are whole numbers from 0")

    def __len__(self) -> int:
        return len(self.labels)


def load_pictures(source: str = "auto") -> tuple[Pictures, Source]:
    """Loads labeled images, in an order that depends on the data alone.

    Args:
        source: a key of ``SOURCES``; ``"auto"`` for the first of them that works; or the path of a ``.safetensors``
            file with the tensors ``images`` (uint8, shape (N, channels, height, width)) and ``labels`` (whole numbers
            from 0, shape (N,)).

    Returns:
        The images, and where they are from.

    Raises:
        UsageError: no source works, the one asked for doesn't, or the file is not as described.
    """
    return load_first(
        source,
        SOURCES,
        lambda pictures: pictures,
        own=_read_file,
        things="labeled images",
        suffix=".safetensors",
        content=".safetensors file with images (uint8, N×C×H×W) and labels (N)",
    )


def _read_cifar10() -> Reading[Pictures]:
    # First of all: without it, 120 MB would be fetched in vain.
    pillow = require("PIL.Image", "paper")

    def pictures(rows: Iterator[dict[str, Any]]) -> Pictures:
        examples = [(_decoded(row["img"], pillow), _label(row)) for row in rows]
        if len(sizes := {image.shape for image, _ in examples}) != 1:
            raise UnavailableError(f"images of {len(sizes)} sizes where one was expected")
        pixels, labels = zip(*examples, strict=True)
        return Pictures(torch.stack(pixels), torch.tensor(labels))

    return read_hub(CIFAR10, "img", pictures)


def _decoded(cell: Any, pillow: Any) -> Tensor:
    """One image of a Parquet row as uint8 of shape (3, height, width): its file's bytes, or decoded by `datasets`."""
    try:
        picture = pillow.open(io.BytesIO(cell["bytes"])) if isinstance(cell, Mapping) else cell
        colors = picture.convert("RGB")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnavailableError(f"an image cannot be decoded ({type(error).__name__})") from error
    flat = torch.frombuffer(bytearray(colors.tobytes()), dtype=torch.uint8)
    return flat.view(colors.height, colors.width, 3).permute(2, 0, 1)


def _label(row: Mapping[str, Any]) -> int:
    label = row.get("label")
    if not isinstance(label, int):
        raise UnavailableError(f"a row's label is {label!r}: expected a whole number")
    return label


def _read_fashion() -> Reading[Pictures]:
    paths = [FASHION_ROOT / name for name in FASHION_FILES]
    if all(path.is_file() for path in paths):
        contents = [path.read_bytes() for path in paths]
        return _pictures_of_idx(contents, files_sha256(paths), f"installed in {FASHION_ROOT}")
    package = cached_debian_package(FASHION_PACKAGE)
    files = debian_files(package, FASHION_FOLDER)
    by_name = {name.rpartition("/")[2]: content for name, content in files.items()}
    if missing := [name for name in FASHION_FILES if name not in by_name]:
        raise UnavailableError(f"{package.name} has no {missing[0]}")
    version = f"{FASHION_PACKAGE} {debian_version(package)}"
    return _pictures_of_idx([by_name[name] for name in FASHION_FILES], file_sha256(package), version)


def _pictures_of_idx(compressed: list[bytes], sha256: str, version: str) -> Reading[Pictures]:
    try:
        pixels, labels = (idx_tensor(gzip.decompress(content)) for content in compressed)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UnavailableError(f"damaged data ({error})") from error
    return Reading(Pictures(pixels.unsqueeze(1), labels.long()), sha256, version)


def idx_tensor(content: bytes) -> Tensor:
    """Reads an array of bytes in the idx format, in which MNIST and its kin are published.

    Two zero bytes, the type (8: unsigned bytes, the only one read here), the number of dimensions, each dimension as a
    big-endian 32-bit number, then the values, the last dimension fastest
    (LeCun, Cortes and Burges, *The MNIST database*).

    Args:
        content: the file, decompressed.

    Returns:
        uint8, of the shape that the file says.

    Raises:
        ValueError: it is something else, or of another length than its dimensions say.

    Example:
        >>> idx_tensor(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 3, 7, 8, 9])).tolist()
        [[7, 8, 9]]
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("not an idx file of bytes")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if len(content) != start + math.prod(shape):
        raise ValueError(f"an idx file of {len(content)} bytes says it has shape {tuple(shape)}")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[start:].view(shape)


def _read_file(path: Path) -> Reading[Pictures]:
    safetensors = require("safetensors.torch", "paper")
    content = read_bytes(path)
    try:
        tensors = safetensors.load(content)
    except Exception as error:  # the library's own class of error isn't part of its interface
        raise UsageError(f"{path} is not a safetensors file: save one with safetensors.torch.save_file") from error
    if missing := {"images", "labels"} - set(tensors):
        held = ", ".join(sorted(tensors)) or "nothing"
        raise UsageError(f"{path} has no tensor {min(missing)!r} (it holds {held}): images and labels are needed")
    pixels, labels = tensors["images"], tensors["labels"]
    if pixels.dtype != torch.uint8:
        raise UsageError(f"{path}: images are {pixels.dtype}, expected torch.uint8, pixels from 0 to 255")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UsageError(f"{path}: labels are {labels.dtype}, expected whole numbers, such as torch.int64")
    try:
        return Reading(Pictures(pixels, labels.long()), file_sha256(path), str(path))
    except UnavailableError as error:
        raise UsageError(f"{path}: {error}") from error


SOURCES = (
    DataSource("cifar10", "CIFAR-10", "unknown", _read_cifar10),
    DataSource("fashion-mnist", "Fashion-MNIST", "MIT", _read_fashion),
)
