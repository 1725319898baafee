"""ResNets with a new head: random, pretrained on the spot, or pretrained by others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.batching import initialised
from stepscope.paper.tasks.downloads import UnavailableError, cached_file
from stepscope.paper.tasks.pretrained import Weights, published
from stepscope.paper.tasks.task import Batch

Progress = Callable[[float, str], None]
"""Called with the part of the work that has been done (0 to 1), and what is going on."""

MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4  # those of He et al. on ImageNet (2016, arXiv 1512.03385, §3.4)


def resnet_config(
    *, layer_type: str, depths: tuple[int, ...], widths: tuple[int, ...], embedding: int, channels: int
) -> Any:
    """Gives the configuration of a ResNet (He et al., 2016), as transformers keeps it.

    Args:
        layer_type: ``"basic"`` (two 3×3 convolutions a layer) or ``"bottleneck"`` (1×1, 3×3, 1×1).
        depths: layers of each stage.
        widths: channels that each stage gives.
        embedding: channels of the first convolution.
        channels: of the images.

    Raises:
        MissingExtraError: transformers is not installed.
    """
    return require("transformers", "paper").ResNetConfig(
        num_channels=channels,
        embedding_size=embedding,
        hidden_sizes=list(widths),
        depths=list(depths),
        layer_type=layer_type,
    )


def classifier(config: Any, *, classes: int, seed: int, backbone: Weights | None = None) -> nn.Module:
    """Makes a classifier in training mode; ``model(pixel_values=…, labels=…).loss`` is the mean over the images.

    Args:
        config: of the ResNet. It is not changed.
        classes: outputs of the new head, at least 2.
        seed: of the random weights: all of them, or the head's alone where there is a backbone. Global random state is
            neither used nor moved.
        backbone: weights and running statistics of everything but the head.
    """
    transformers = require("transformers", "paper")
    values = config.to_dict() | {"problem_type": "single_label_classification"}
    for mapping in ("id2label", "label2id", "num_labels"):
        values.pop(mapping, None)
    settings = transformers.ResNetConfig(**values, num_labels=classes)
    model = initialised(lambda: transformers.ResNetForImageClassification(settings), seed)
    if backbone is not None:
        _inside(model).load_state_dict(backbone)
    return model


def published_backbone(name: str) -> tuple[Any, Weights, str]:
    """Takes a pretrained ResNet of the Hub, or of a directory in its format; its head is left.

    Args:
        name: such as ``"microsoft/resnet-152"``, see `stepscope.paper.tasks.pretrained.published`.

    Returns:
        The configuration, the weights in float32, and where they are from, with the revision.

    Raises:
        UsageError: it is not available, or is no ResNet.
        MissingExtraError: transformers is not installed.
    """
    pretrained = published(name, {"resnet": "ResNetModel"}, title="a ResNet", tokenizer=False)
    return pretrained.config, pretrained.weights, pretrained.origin


def pretrained_backbone(
    config: Any,
    batches: Callable[[], Iterator[Batch]],
    *,
    data: str,
    classes: int,
    steps: int,
    lr: float,
    seed: int,
    progress: Progress | None = None,
) -> Weights:
    """Pretrains a ResNet here and now, or takes the one pretrained so before out of the cache.

    SGD with momentum and weight decay, the learning rate falling linearly to 0. The result depends on the arguments and
    the versions of torch and transformers, and in its last digits on the processor and the number of threads.

    Args:
        config: of the ResNet.
        batches: starts the sequence of training batches.
        data: digest of everything that the batches depend on.
        classes: classes of the labels, at least 2.
        steps: training steps.
        lr: the learning rate at the first step.
        seed: of the random weights at the beginning.
        progress: told how far it is; not called where the cache has the result.

    Returns:
        Weights and running statistics, without the head.

    Raises:
        UsageError: it diverged.
        MissingExtraError: transformers or safetensors is not installed.
    """
    safetensors = require("safetensors.torch", "paper")
    versions = [torch.__version__, require("transformers", "paper").__version__]
    key = [1, versions, config.to_dict(), data, classes, steps, lr, seed]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
    made: Weights = {}

    def pretrain() -> Weights:
        model = classifier(config, classes=classes, seed=seed)
        _train(model, batches(), steps, lr, progress)
        return {name: tensor.detach().contiguous() for name, tensor in _inside(model).state_dict().items()}

    def fetch(scratch: Path) -> Path:
        made.update(pretrain())
        safetensors.save_file(made, scratch / "weights.safetensors")
        return scratch / "weights.safetensors"

    try:
        path = cached_file(f"pretrained/resnet-{digest[:32]}.safetensors", fetch)
        return made or dict(safetensors.load(path.read_bytes()))
    except (UnavailableError, OSError):  # the cache only saves time here
        return made or pretrain()


def _train(model: nn.Module, batches: Iterator[Batch], steps: int, lr: float, progress: Progress | None) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
            optimizer.zero_grad()
            loss = model(**next(batches)).loss
            if not torch.isfinite(loss):
                raise UsageError(f"pretraining diverged at step {step + 1}: lower pretraining_lr, which is {lr:g}")
            loss.backward()
            optimizer.step()
            if progress is not None:
                progress((step + 1) / steps, f"pretraining, step {step + 1} of {steps}")


def _inside(model: nn.Module) -> nn.Module:
    inside = model.resnet
    assert isinstance(inside, nn.Module)
    return inside
