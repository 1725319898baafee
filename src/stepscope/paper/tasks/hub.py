"""The Hugging Face Hub: files of models and data sets, fetched once; data sets row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepscope.errors import require
from stepscope.paper.tasks.downloads import UnavailableError

PREFLIGHT_SECONDS = 5.0
MODEL_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class HubDataset:
    """The training data of one configuration of a dataset, which the Hub keeps as one file of rows.

    Attributes:
        repository: owner and name.
        config: the configuration, a folder of the repository.
        file: in that folder; ``.parquet``, or ``.json`` with a row a line.
    """

    repository: str
    config: str
    file: str = "train-00000-of-00001.parquet"


def cached_dataset(dataset: HubDataset) -> tuple[Path, str]:
    """Gives a dataset's file and its revision (commit hash), fetched from the Hub once.

    Raises:
        UnavailableError: the Hub cannot be reached within 5 s, or has no such file.
        MissingExtraError: ``huggingface_hub`` is not installed.
    """
    name = f"{dataset.config}/{dataset.file}"
    folder, revision = cached_files(dataset.repository, (name,), kind="dataset")
    return folder / name, revision


def dataset_rows(file: Path, *, column: str) -> Iterator[dict[str, Any]]:
    """Reads the rows of a Parquet or JSON file one by one, in order, without a second copy on disk.

    Args:
        file: its path.
        column: a column that has to be there.

    Raises:
        UnavailableError: the file is of another kind or lacks the column.
        MissingExtraError: ``datasets`` is not installed.
    """
    datasets = require("datasets", "paper")
    try:
        rows = datasets.load_dataset(file.suffix[1:], data_files=str(file), split="train", streaming=True)
        for row in rows:
            if column not in row:
                raise UnavailableError(f"{file.name} has no column {column!r}")
            yield row
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UnavailableError):
            raise
        raise UnavailableError(f"{file.name} cannot be read ({type(error).__name__})") from error


def cached_files(
    repository: str, files: Sequence[str] = MODEL_FILES, *, kind: str = "model", revision: str | None = None
) -> tuple[Path, str]:
    """Gives a folder with files of a model or a dataset, fetched from the Hub once.

    They are kept in the cache of the Hub's own client. Later uses need no network and see the same files, until that
    cache is emptied. ``HF_HUB_OFFLINE`` is respected.

    Args:
        repository: owner and name.
        files: what is needed of it: of a model, the configuration and the weights as safetensors.
        kind: ``"model"`` or ``"dataset"``.
        revision: a branch, a pull request (``"refs/pr/1"``), a tag or a commit; None for the main branch.

    Returns:
        The folder, and the revision (commit hash).

    Raises:
        UnavailableError: the Hub cannot be reached within 5 s, or lacks one of the files.
        MissingExtraError: ``huggingface_hub`` is not installed.
    """
    hub = require("huggingface_hub", "paper")
    wanted = {"repo_type": kind, "revision": revision, "allow_patterns": tuple(files)}
    with suppress(Exception):  # not there yet
        folder = Path(hub.snapshot_download(repository, **wanted, local_files_only=True))
        if all((folder / name).is_file() for name in files):
            return folder, folder.name
    try:
        # Asked first, since the download itself tries again for half a minute where there is no network.
        info = hub.HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=PREFLIGHT_SECONDS)
        lacking = missing_file(files, {file.rfilename for file in info.siblings or ()})
        folder = Path() if lacking else Path(hub.snapshot_download(repository, **wanted))
    except Exception as error:
        # Only the kind of error: the message may hold an address with a token. Every one counts: which HTTP library
        # the client raises errors of has changed between its versions.
        raise UnavailableError(f"the Hub cannot be used ({type(error).__name__})") from error
    if lacking:
        raise UnavailableError(f"at {str(info.sha)[:12]} the Hub has {lacking}")
    return folder, folder.name


def missing_file(wanted: Sequence[str], there: Collection[str]) -> str:
    """Says which file of a model isn't there, as the end of a sentence; empty if all are.

    Example:
        >>> missing_file(MODEL_FILES, {"config.json", "pytorch_model.bin"})
        'no model.safetensors, only pytorch_model.bin, a pickle, which is never read'
    """
    missing = [name for name in wanted if name not in there]
    if not missing:
        return ""
    pickles = sorted(name for name in there if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    only = f", only {pickles[0]}, a pickle, which is never read" if pickles and missing[0] in MODEL_FILES[1:] else ""
    return f"no {missing[0]}{only}"
