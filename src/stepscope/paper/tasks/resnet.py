"""ResNets with a new head: random, pretrained on the spot, or pretrained by others."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from stepscope.errors import require
from stepscope.paper.tasks.batching import initialized
from stepscope.paper.tasks.pretrained import Weights, published

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
    model = initialized(lambda: transformers.ResNetForImageClassification(settings), seed)
    if backbone is not None:
        backbone_of(model).load_state_dict(backbone)
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


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    """What a ResNet is pretrained with: SGD with momentum and weight decay, at a learning rate that is set later."""
    return torch.optim.SGD(parameters, lr=0.0, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)


def backbone_of(model: nn.Module) -> nn.Module:
    """A classifier without its head."""
    inside = model.resnet
    assert isinstance(inside, nn.Module)
    return inside
