"""Image classification with a ResNet: the paper's setting where its claim is absent or reversed (appendix E, Table 9).

The paper trains a ResNet-152, pretrained on ImageNet, on 10,000 images of CIFAR-10. Here are also sizes for a test and
for two cores and for one GPU, with a ResNet that is small enough to be pretrained on the spot.

**Pretraining on the spot.** From ImageNet to CIFAR-10 is supervised pretraining on labeled objects, then a new head
for other labels and other images of the same kind. The same is had from one data set by its classes: the first half of
them is for pretraining, the task has the second half. So pretraining sees no image and no label of the task, as many
images as there are, and the true labels of objects rather than a made-up puzzle. What differs: ImageNet has a hundred
times as many classes, and most of CIFAR-10's are among them. Both initializations train on the same images of the same
classes, so that nothing but the weights tells them apart.

**Batch norm.** What is measured is the model in evaluation mode, with running statistics; what trains uses those of
each batch. A model that was just initialized has running mean 0 and variance 1, which normalize nothing; after `k`
training steps 0.9ᵏ of that is left. Measurements of a random start are therefore about another function than the one
that trains during the first few dozen steps (`docs/limits.md`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stepscope.errors import UsageError
from stepscope.paper.tasks.batching import DATA_SEED, Collate, task_of, training_batches
from stepscope.paper.tasks.pretrained import Weights
from stepscope.paper.tasks.pretraining import BRIEF, Lesson, Pretraining, check_beginning, digest_of
from stepscope.paper.tasks.resnet import backbone_of, classifier, optimizer_of, published_backbone, resnet_config
from stepscope.paper.tasks.sources.pictures import Pictures, load_pictures
from stepscope.paper.tasks.task import Task

LAYERS = ("basic", "bottleneck")

Examples = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ImagesConfig:
    """How large an image task is, and where its weights begin.

    Attributes:
        images: images to train on; a source with fewer gives all that it has.
        set_apart: whether the first half of the classes (rounded down) is set apart for pretraining, and the task has
            the second half alone.
        batch_size: training images of a batch, at least 2: batch norm needs them.
        eval_size: images of the evaluation batch, drawn from the training images as in the paper.
        micro_batch_size: images of one part of the evaluation batch.
        layer_type: ``"basic"`` or ``"bottleneck"``.
        depths: layers of each stage of the ResNet.
        widths: channels that each stage gives.
        embedding: channels of the first convolution.
        start: ``"random"`` or ``"pretrained"``; the head is always new.
        checkpoint: a pretrained ResNet of the Hub or in a directory, as in `stepscope.paper.tasks.pretrained.published`
            (without a tokenizer); it must have the architecture above. Empty: pretrained on the spot on the images
            set apart.
        pretraining: how far the model is pretrained on the spot.
    """

    images: int
    set_apart: bool
    batch_size: int
    eval_size: int
    micro_batch_size: int
    layer_type: str
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    embedding: int
    start: str = "random"
    checkpoint: str = ""
    pretraining: Pretraining = BRIEF


SCALES = {
    "smoke": ImagesConfig(
        images=128,
        set_apart=True,
        batch_size=16,
        eval_size=24,
        micro_batch_size=12,
        layer_type="basic",
        depths=(1, 1),
        widths=(4, 8),
        embedding=4,
        pretraining=replace(BRIEF, lr=0.1),
    ),
    "cpu": ImagesConfig(
        images=10_000,
        set_apart=True,
        batch_size=250,
        eval_size=500,
        micro_batch_size=125,
        layer_type="basic",
        depths=(1, 1, 1),
        widths=(16, 32, 64),
        embedding=16,
        pretraining=Pretraining(steps=1_500, batch_size=250, lr=0.1),
    ),
    "desk": ImagesConfig(
        images=10_000,
        set_apart=True,
        batch_size=250,
        eval_size=500,
        micro_batch_size=125,
        layer_type="basic",
        depths=(2, 2, 2, 2),
        widths=(32, 64, 128, 256),
        embedding=32,
        pretraining=Pretraining(steps=1_500, batch_size=250, lr=0.1),
    ),
    "gpu": ImagesConfig(
        images=10_000,
        set_apart=True,
        batch_size=500,
        eval_size=1_000,
        micro_batch_size=250,
        layer_type="basic",
        depths=(2, 2, 2, 2),
        widths=(64, 128, 256, 512),
        embedding=64,
        pretraining=Pretraining(steps=3_000, batch_size=250, lr=0.1),
    ),
    "paper": ImagesConfig(
        images=10_000,
        set_apart=False,
        batch_size=1_000,
        eval_size=1_000,
        micro_batch_size=100,
        layer_type="bottleneck",
        depths=(3, 8, 36, 3),
        widths=(256, 512, 1_024, 2_048),
        embedding=64,
        start="pretrained",
        checkpoint="microsoft/resnet-152",
    ),
}
"""Sizes: for tests, for two cores (0.08 million parameters), for an afternoon on them (2.8 million), for one GPU (11.2
million: ResNet-18, 20 steps an epoch), and the paper's own (58.2 million), which needs the Hub or copies of model and
data."""


def images(config: ImagesConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: labeled images and a ResNet with a new head.

    Pixels are normalized to mean 0 and variance 1 in each color, by the images that are trained on. Nothing is
    augmented: it is the training loss that is measured, on images that training sees as they are.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of the new weights (the head's alone after pretraining by others), of the pretraining here, and of the
            order of training batches. Images and evaluation batch don't depend on it.
        source: where the images come from, as in ``load_pictures``.

    Returns:
        The task; its batches have ``pixel_values`` (float32, shape (images, channels, height, width)) and ``labels``
        (int64, shape (images,)). ``source.examples`` is the number of images in use.

    Raises:
        UsageError: no images or no pretrained model is available, or a value of ``config`` is impossible.
        MissingExtraError: transformers is not installed.
    """
    _check(config)
    pictures, origin = load_pictures(source)
    half = len(torch.unique(pictures.labels)) // 2 if config.set_apart else 0
    apart, used = _of_classes(pictures, 0, half), _of_classes(pictures, half, None)
    pixels, labels = used[0][: config.images], used[1][: config.images]
    model_config, published, initialisation = _backbone(config, pixels.shape[1])
    lesson = _lesson(config, model_config, apart) if config.start == "pretrained" and published is None else None
    classes = _classes(used, "the task")
    if len(labels) < 2:
        raise UsageError("the task has 1 image to train on: at least 2 are needed")
    return task_of(
        "images",
        config,
        range(len(labels)),
        seed=seed,
        model=lambda seed, learned: classifier(model_config, classes=classes, seed=seed, backbone=learned or published),
        collate=_batches_of(normalized(_with_channels(pixels, model_config.num_channels)), labels),
        source=origin,
        initialisation=initialisation,
        lesson=(lesson, config.pretraining) if lesson else None,
    )


def normalized(pixels: Tensor) -> Tensor:
    """Brings pixels to mean 0 and variance 1 in each channel, over all images.

    Args:
        pixels: uint8, shape (images, channels, height, width). A channel that is the same everywhere becomes 0.

    Returns:
        float32, of the same shape.

    Example:
        >>> normalized(torch.tensor([0, 0, 2, 2], dtype=torch.uint8).view(2, 1, 1, 2)).flatten().tolist()
        [-1.0, -1.0, 1.0, 1.0]
    """
    values = pixels.float()
    dims = (0, 2, 3)
    mean = values.mean(dims, keepdim=True)
    deviation = values.std(dims, correction=0, keepdim=True)
    return (values - mean) / torch.where(deviation > 0, deviation, 1.0)


def _backbone(config: ImagesConfig, channels: int) -> tuple[Any, Weights | None, str]:
    """The ResNet's configuration, its published weights but for the head, and what to say of them."""
    wanted = {
        "layer_type": config.layer_type,
        "depths": config.depths,
        "widths": config.widths,
        "embedding": config.embedding,
    }
    if config.start == "pretrained" and config.checkpoint:
        published, weights, origin = published_backbone(config.checkpoint)
        actual = {
            "layer_type": published.layer_type,
            "depths": tuple(published.depths),
            "widths": tuple(published.hidden_sizes),
            "embedding": published.embedding_size,
        }
        if wrong := [name for name in wanted if wanted[name] != actual[name]]:
            name = wrong[0]
            raise UsageError(
                f"{name} is {wanted[name]}, but {config.checkpoint} has {actual[name]}: set {name} to that"
            )
        return published, weights, f"pretrained: {origin}"
    model_config = resnet_config(**wanted, channels=channels)  # type: ignore[arg-type]
    return model_config, None, "random"


def _lesson(config: ImagesConfig, model_config: Any, apart: Examples) -> Lesson:
    """The labels of the images that are set apart; a tenth of them at most is held out."""
    count, settings = _classes(apart, "pretraining"), config.pretraining
    pixels, labels = apart[0][: settings.examples], apart[1][: settings.examples]
    batches = _batches_of(normalized(pixels), labels)
    held = max(1, min(settings.batch_size, len(labels) // 10))
    digest = hashlib.sha256(digest_of(model_config.to_dict(), tuple(pixels.shape)).encode())
    for tensor in (pixels, labels):
        digest.update(tensor.numpy().tobytes())
    return Lesson(
        title=f"{len(labels):,} other images of {count} other classes",
        model=lambda seed: classifier(model_config, classes=count, seed=seed),
        kept=backbone_of,
        batches=lambda seed: training_batches(range(held, len(labels)), settings.batch_size, seed, batches)(),
        held_out=batches(range(held)),
        optimizer=optimizer_of,
        digest=digest.hexdigest(),
    )


def _of_classes(pictures: Pictures, first: int, end: int | None) -> Examples:
    """The images of some of the classes, which are counted in the order of their numbers, with labels from 0.

    In an order that depends on the data alone.
    """
    classes = torch.unique(pictures.labels)[first:end]
    order = torch.randperm(len(pictures.labels), generator=torch.Generator().manual_seed(DATA_SEED))
    chosen = order[torch.isin(pictures.labels[order], classes)]
    return pictures.pixels[chosen], torch.searchsorted(classes, pictures.labels[chosen])


def _classes(examples: Examples, whose: str) -> int:
    count = len(torch.unique(examples[1]))
    if count < 2:
        raise UsageError(
            f"{whose} has {count} of the images' classes: at least 2 are needed (set_apart=False leaves all to the "
            "task, which then starts at random or from a checkpoint)"
        )
    return count


def _with_channels(pixels: Tensor, channels: int) -> Tensor:
    """Gray images for a network that was pretrained on colors: the same in each."""
    if pixels.shape[1] not in (1, channels):
        raise UsageError(f"the images have {pixels.shape[1]} channels, the pretrained model takes {channels}")
    return pixels.expand(-1, channels, -1, -1)


def _batches_of(pixels: Tensor, labels: Tensor) -> Collate[int]:
    """What makes a batch of the places of some images."""
    return lambda places: {"pixel_values": pixels[torch.tensor(places)], "labels": labels[torch.tensor(places)]}


def _check(config: ImagesConfig) -> None:
    if config.layer_type not in LAYERS:
        raise UsageError(f"layer_type is {config.layer_type!r}: choose {' or '.join(LAYERS)}")
    least = {"images": 2, "batch_size": 2, "eval_size": 1, "micro_batch_size": 1, "embedding": 1}
    for name, number in least.items():
        if getattr(config, name) < number:
            raise UsageError(f"{name} is {getattr(config, name)}: at least {number} is needed")
    if len(config.depths) != len(config.widths) or not config.depths or min(config.depths + config.widths) < 1:
        raise UsageError(
            f"depths are {config.depths} and widths {config.widths}: give as many of both, at least 1 each"
        )
    if config.layer_type == "bottleneck" and min(config.widths) < 4:
        raise UsageError(f"widths are {config.widths}: a bottleneck needs at least 4 channels")
    check_beginning(config.start, config.pretraining, possible=bool(config.checkpoint) or config.set_apart)
