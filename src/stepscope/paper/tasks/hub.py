"""The Hugging Face Hub: a quick question whether it is there, then data sets pinned by digest, and models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from stepscope.errors import require
from stepscope.paper.tasks.downloads import UnavailableError, cache_directory, cached_file, write_cached

PREFLIGHT_SECONDS = 5.0
MODEL_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class HubDataset:
    """One configuration of a dataset that the Hub keeps as files of rows, such as ``config/train-….parquet``.

    Attributes:
        repository: owner and name.
        config: the configuration, a folder of the repository.
        files: the names of the training files, as a pattern; ``.parquet``, or ``.json`` with a row a line.
    """

    repository: str
    config: str
    files: str = "train-*.parquet"

    @property
    def folder(self) -> str:
        """Where the cache keeps its files."""
        return f"{self.repository.rpartition('/')[2]}/{self.config}"


@dataclass(frozen=True)
class _Pin:
    """A revision of a dataset, and the SHA-256 of each of its files by name."""

    revision: str
    files: dict[str, str]


def cached_dataset(dataset: HubDataset) -> tuple[list[Path], str]:
    """Gives a dataset's training files and their revision, fetched from the Hub once.

    The first use asks the Hub for the newest revision with its files' digests, and records both: later uses
    need no network and see the same data, until the cache is emptied. ``HF_HUB_OFFLINE`` is respected.

    Returns:
        Paths in the order of their names, and the revision (commit hash).

    Raises:
        UnavailableError: the Hub cannot be reached within 5 s, or its files are not as announced.
        MissingExtraError: ``huggingface_hub`` is not installed.
    """
    record = f"{dataset.folder}/revision.json"
    recorded = _recorded_pin(cache_directory() / record)
    pin = recorded or _newest_pin(dataset)
    paths = [_cached_part(dataset, pin, name) for name in sorted(pin.files)]
    if recorded is None:  # only now: a revision whose files are not available is not kept
        with suppress(OSError):
            write_cached(record, json.dumps({"revision": pin.revision, "files": pin.files}, indent=1).encode())
    return paths, pin.revision


def dataset_rows(files: Sequence[Path], *, column: str) -> Iterator[dict[str, Any]]:
    """Reads the rows of Parquet or JSON files one by one, in order, without a second copy on disk.

    Args:
        files: local paths, all of one kind.
        column: a column that has to be there.

    Raises:
        UnavailableError: a file is of another kind or lacks the column.
        MissingExtraError: ``datasets`` is not installed.
    """
    datasets = require("datasets", "paper")
    try:
        names = [str(file) for file in files]
        rows = datasets.load_dataset(files[0].suffix[1:], data_files=names, split="train", streaming=True)
        for row in rows:
            if column not in row:
                raise UnavailableError(f"{files[0].name} has no column {column!r}")
            yield row
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, UnavailableError):
            raise
        raise UnavailableError(f"{files[0].name} cannot be read ({type(error).__name__})") from error


def cached_model(
    repository: str, *, files: Sequence[str] = MODEL_FILES, revision: str | None = None
) -> tuple[Path, str]:
    """Gives a folder with a model's configuration and weights as safetensors, fetched from the Hub once.

    They are kept in the cache of the Hub's own client. Later uses need no network and see the same weights, until that
    cache is emptied.

    Args:
        repository: owner and name.
        files: what is needed of it.
        revision: a branch, a pull request (``"refs/pr/1"``), a tag or a commit; None for the main branch.

    Returns:
        The folder, and the revision (commit hash).

    Raises:
        UnavailableError: the Hub cannot be reached within 5 s, or has no such model with all the files.
        MissingExtraError: ``huggingface_hub`` is not installed.
    """
    hub = require("huggingface_hub", "paper")
    wanted = {"revision": revision, "allow_patterns": tuple(files)}
    with suppress(Exception):  # not there yet
        folder = Path(hub.snapshot_download(repository, **wanted, local_files_only=True))
        if all((folder / name).is_file() for name in files):
            return folder, folder.name
    try:
        # Asked first, since the download itself tries again for half a minute where there is no network.
        info = hub.HfApi().model_info(repository, revision=revision, timeout=PREFLIGHT_SECONDS)
        lacking = missing_file(files, {file.rfilename for file in info.siblings or ()})
        folder = Path() if lacking else Path(hub.snapshot_download(repository, **wanted))
    except Exception as error:
        raise _unreachable(error) from error
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


def _recorded_pin(path: Path) -> _Pin | None:
    try:
        record = json.loads(path.read_bytes())
        pin = _Pin(str(record["revision"]), {str(name): str(digest) for name, digest in record["files"].items()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # never fetched, or damaged: the Hub is asked again
    return pin if pin.files and all(_is_plain(name) for name in pin.files) else None


def _newest_pin(dataset: HubDataset) -> _Pin:
    hub = require("huggingface_hub", "paper")
    try:
        info = hub.HfApi().dataset_info(dataset.repository, files_metadata=True, timeout=PREFLIGHT_SECONDS)
        files = {
            PurePosixPath(file.rfilename).name: str(file.lfs.sha256)
            for file in info.siblings or ()
            if file.rfilename == f"{dataset.config}/{PurePosixPath(file.rfilename).name}"
            and PurePosixPath(file.rfilename).match(dataset.files)
            and file.lfs is not None
        }
    except Exception as error:
        raise _unreachable(error) from error
    if not files or info.sha is None:
        raise UnavailableError(f"the Hub lists no files {dataset.files} for {dataset.config}")
    return _Pin(str(info.sha), files)


def _cached_part(dataset: HubDataset, pin: _Pin, name: str) -> Path:
    def fetch(scratch: Path) -> Path:
        hub = require("huggingface_hub", "paper")
        try:
            path = hub.hf_hub_download(
                dataset.repository,
                f"{dataset.config}/{name}",
                repo_type="dataset",
                revision=pin.revision,
                local_dir=scratch,
                etag_timeout=PREFLIGHT_SECONDS,
            )
        except Exception as error:
            raise _unreachable(error) from error
        return Path(shutil.move(path, scratch / name))

    return cached_file(f"{dataset.folder}/{name}", fetch, sha256=pin.files[name])


def _unreachable(error: Exception) -> UnavailableError:
    """Names only the kind of error: the message may hold an address with a token.

    Every exception counts: which HTTP library the Hub's client raises errors of has changed between its
    versions.
    """
    return UnavailableError(f"the Hub cannot be used ({type(error).__name__})")


def _is_plain(name: str) -> bool:
    return name == PurePosixPath(name).name and name not in ("", ".", "..")
