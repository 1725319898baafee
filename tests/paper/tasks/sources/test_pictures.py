"""Labeled images: each source's reading, what damaged ones say, the order in which sources are tried."""

import gzip
import hashlib
import io
import os
import shutil
import sys

import pytest
import torch

from stepscope.errors import UsageError
from stepscope.paper.tasks import downloads
from stepscope.paper.tasks.sources import pictures
from stepscope.paper.tasks.sources.pictures import idx_tensor, load_pictures

PIXELS = torch.arange(3 * 4 * 5, dtype=torch.uint8).view(3, 4, 5)
LABELS = torch.tensor([7, 0, 2], dtype=torch.uint8)


@pytest.fixture(autouse=True)
def not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "FASHION_ROOT", tmp_path / "not installed")
    return tmp_path / "cache"


def idx(tensor):
    """Writes the format, as MNIST's page describes it."""
    head = bytes([0, 0, 8, tensor.dim()]) + b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return head + bytes(tensor.flatten().tolist())


def fashion_files(folder, pixels=PIXELS, labels=LABELS):
    folder.mkdir(parents=True)
    for name, tensor in zip(pictures.FASHION_FILES, (pixels, labels), strict=True):
        (folder / name).write_bytes(gzip.compress(idx(tensor)))
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"not for training")


def test_installed_fashion_mnist(tmp_path, monkeypatch):
    fashion_files(tmp_path / "here")
    monkeypatch.setattr(pictures, "FASHION_ROOT", tmp_path / "here")
    found, source = load_pictures("fashion-mnist")
    assert torch.equal(found.pixels, PIXELS.unsqueeze(1))
    assert torch.equal(found.labels, LABELS.long())
    assert (source.name, source.license, source.examples) == ("fashion-mnist", "MIT", 3)
    assert source.title.startswith("Fashion-MNIST, installed in")


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_fashion_mnist_of_a_debian_package(tmp_path, monkeypatch, cache):
    tree = tmp_path / "tree"
    fashion_files(tree / pictures.FASHION_FOLDER)
    (tree / "DEBIAN").mkdir()
    control = (
        "Package: dataset-fashion-mnist\nVersion: 0.1-2\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    )
    (tree / "DEBIAN/control").write_text(control)
    real = downloads.run_tool

    def run(command, *, cwd, seconds):
        if command[0] == "apt-get":
            command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(cwd / "fashion_0.1-2_all.deb")]
        return real(command, cwd=cwd, seconds=seconds)

    monkeypatch.setattr(downloads, "run_tool", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    found, source = load_pictures("fashion-mnist")
    assert torch.equal(found.pixels[:, 0], PIXELS)
    assert found.labels.tolist() == [7, 0, 2]
    assert source.title == "Fashion-MNIST, dataset-fashion-mnist 0.1-2"
    assert source.sha256 == hashlib.sha256((cache / "dataset-fashion-mnist.deb").read_bytes()).hexdigest()
    (tree / pictures.FASHION_FOLDER / pictures.FASHION_FILES[1]).unlink()
    (cache / "dataset-fashion-mnist.deb").unlink()
    with pytest.raises(UsageError, match=r"dataset-fashion-mnist\.deb has no train-labels"):
        load_pictures("fashion-mnist")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "not an idx file of bytes"),  # 32-bit floats
        (idx(PIXELS)[:-1], r"75 bytes says it has shape \(3, 4, 5\)"),
        (idx(PIXELS) + b"\0", r"77 bytes says it has shape \(3, 4, 5\)"),
        (b"\0\0\x08\x03\0\0", "6 bytes"),
    ],
)
def test_damaged_idx(content, message):
    with pytest.raises(ValueError, match=message):
        idx_tensor(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(idx(PIXELS))[:40], gzip.compress(b"abcd")],
    ids=["empty", "not gzip", "cut off", "too short"],  # a compressed file holds the time: no name for a test
)
def test_damaged_fashion_mnist(tmp_path, monkeypatch, content):
    fashion_files(tmp_path / "here")
    monkeypatch.setattr(pictures, "FASHION_ROOT", tmp_path / "here")
    (tmp_path / "here" / pictures.FASHION_FILES[0]).write_bytes(content)
    with pytest.raises(UsageError, match="fashion-mnist: damaged data"):
        load_pictures("fashion-mnist")


def test_labels_of_other_images(tmp_path, monkeypatch):
    fashion_files(tmp_path / "here", labels=LABELS[:2])
    monkeypatch.setattr(pictures, "FASHION_ROOT", tmp_path / "here")
    with pytest.raises(UsageError, match=r"shape \(3, 1, 4, 5\) with labels of shape \(2,\)"):
        load_pictures("fashion-mnist")


COLORS = torch.randint(0, 256, (4, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def cifar(tmp_path, serve_dataset):
    """Serves Parquet files as the Hub has them: an image's file and its label, with or without the Hub's own types."""
    image = pytest.importorskip("PIL.Image")
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")

    def file(tensor):
        buffer = io.BytesIO()
        image.fromarray(tensor.permute(1, 2, 0).numpy()).save(buffer, "PNG")
        return buffer.getvalue()

    def serve(tensors, *, typed=True, contents=None, label=lambda number: number + 5):
        contents = contents or [file(tensor) for tensor in tensors]
        rows = [{"img": {"bytes": c, "path": None}, "label": label(n)} for n, c in enumerate(contents)]
        path = tmp_path / "train-00000-of-00001.parquet"
        if typed:
            classes = datasets.ClassLabel(names=list("abcdefghij"))
            features = datasets.Features({"img": datasets.Image(), "label": classes})
            table = arrow.Table.from_pylist(rows, schema=features.arrow_schema)
        else:
            table = arrow.Table.from_pylist(rows)
        parquet.write_table(table, path)
        serve_dataset(path)
        return path

    return serve


@pytest.mark.parametrize("typed", [True, False])
def test_cifar10(cifar, typed):
    path = cifar(COLORS, typed=typed)
    found, source = load_pictures("cifar10")
    assert torch.equal(found.pixels, COLORS)
    assert found.labels.tolist() == [5, 6, 7, 8]
    assert source.title == "CIFAR-10, uoft-cs/cifar10 plain_text at 0123456789ab"
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("typed", [True, False])
def test_damaged_image_of_cifar10(cifar, typed):
    cifar(None, typed=typed, contents=[b"not a picture"])
    with pytest.raises(UsageError, match=r"cifar10: .*cannot be"):
        load_pictures("cifar10")


def test_cifar10_of_other_forms(cifar):
    cifar([COLORS[0], COLORS[1][:, :4]])
    with pytest.raises(UsageError, match="images of 2 sizes"):
        load_pictures("cifar10")
    cifar(COLORS, typed=False, label=str)
    with pytest.raises(UsageError, match="label is '0'"):
        load_pictures("cifar10")


def test_cifar10_without_pillow_is_said_before_anything_is_fetched(monkeypatch, serve_dataset):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    serve_dataset(None)
    with pytest.raises(UsageError, match=r"cifar10: PIL is not installed: pip install 'stepscope\[paper\]'"):
        load_pictures("cifar10")


def save(path, **tensors):
    pytest.importorskip("safetensors.torch").save_file(tensors, path)
    return str(path)


def test_own_file(tmp_path):
    path = save(tmp_path / "mine.safetensors", images=COLORS, labels=torch.tensor([3, 3, 0, 9], dtype=torch.int32))
    found, source = load_pictures(path)
    assert torch.equal(found.pixels, COLORS)
    assert found.labels.tolist() == [3, 3, 0, 9]
    assert found.labels.dtype == torch.int64
    assert (source.name, source.examples) == ("file", 4)
    assert source.sha256 == hashlib.sha256((tmp_path / "mine.safetensors").read_bytes()).hexdigest()


GOOD = {"images": COLORS, "labels": torch.arange(4)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"images": COLORS}, r"has no tensor 'labels' \(it holds images\)"),
        ({"labels": torch.arange(4), "x": COLORS}, r"has no tensor 'images' \(it holds labels, x\)"),
        (GOOD | {"images": COLORS.float()}, "images are torch.float32, expected torch.uint8"),
        (GOOD | {"labels": torch.rand(4)}, "labels are torch.float32, expected whole numbers"),
        (GOOD | {"labels": torch.arange(5)}, r"labels of shape \(5,\)"),
        (GOOD | {"images": COLORS[:, 0].contiguous()}, r"images of shape \(4, 5, 6\)"),
        (GOOD | {"labels": torch.arange(4) - 1}, "a label is -1"),
        ({"images": COLORS[:0], "labels": torch.arange(0)}, r"images of shape \(0, 3, 5, 6\)"),
    ],
)
def test_own_file_with_mistakes(tmp_path, tensors, message):
    path = save(tmp_path / "mine.safetensors", **tensors)
    with pytest.raises(UsageError, match=message) as caught:
        load_pictures(path)
    assert "\n" not in str(caught.value)


def test_own_file_that_is_none(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(UsageError, match=r"cannot read .*none\.safetensors: No such file"):
        load_pictures(str(tmp_path / "none.safetensors"))
    torch.save(GOOD, tmp_path / "pickle.pt")
    with pytest.raises(UsageError, match=r"pickle\.pt is not a safetensors file"):
        load_pictures(str(tmp_path / "pickle.pt"))


def test_unknown_source_lists_the_known():
    with pytest.raises(UsageError, match="'nonsense': auto, cifar10, fashion-mnist, or the path"):
        load_pictures("nonsense")


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("STEPSCOPE_NETWORK") != "1", reason="set STEPSCOPE_NETWORK=1 to download 31 MB")
def test_fashion_mnist_really_has_sixty_thousand_images():
    found, source = load_pictures("fashion-mnist")
    assert found.pixels.shape == (60_000, 1, 28, 28)
    assert found.labels.bincount().tolist() == [6_000] * 10
    assert source.examples == 60_000
    assert 0 < found.pixels.float().mean() < 128
