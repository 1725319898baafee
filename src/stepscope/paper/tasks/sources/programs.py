"""Python programs: the paper's collection where the Hub gives it, else the standard library, or one's own file.

Sources, tried in this order by ``load_programs("auto")``: the Python part of the-stack-smol (which the Hub gives to
those who have accepted its terms), and the standard library of the Python that is running.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stepscope.errors import UsageError
from stepscope.paper.tasks.downloads import UnavailableError, files_sha256
from stepscope.paper.tasks.hub import HubDataset, cached_dataset, dataset_rows
from stepscope.paper.tasks.sources.source import DataSource, load_first
from stepscope.paper.tasks.task import Source

STACK = HubDataset("bigcode/the-stack-smol", "data/python", files="data.json")
# Tests say the same in many ways, and distributions differ in whether they ship them.
LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


@dataclass(frozen=True)
class Programs:
    """What a source gave.

    Attributes:
        texts: programs, uncleaned.
        sha256: digest of the files that they were read from, hexadecimal.
        version: what was read exactly, to stand behind the source's title.
    """

    texts: Iterable[str]
    sha256: str
    version: str


ProgramSource = DataSource[Programs]


def load_programs(source: str = "auto") -> tuple[list[str], Source]:
    """Loads Python programs, each once, in an order that depends on the data alone.

    Args:
        source: a key of ``SOURCES``; ``"auto"`` for the first of them that works; or the path of a ``.py`` file.

    Returns:
        The programs, and where they are from.

    Raises:
        UsageError: no source works, the one asked for doesn't, or the file is not as described.
    """
    return load_first(
        source,
        SOURCES,
        _clean,
        own=ProgramSource("file", "Python program", "unknown", lambda: _read_file(Path(source))),
        suffix=".py",
        missing="no Python programs",
        remedy="get online, or pass the path of a .py file",
    )


def _clean(source: ProgramSource) -> tuple[list[str], Source]:
    found = source.read()
    texts = list(dict.fromkeys(text for text in found.texts if text.strip()))
    if not texts:
        raise UnavailableError("no program in it")
    title = f"{source.title}, {found.version}"
    return texts, Source(source.key, title, source.license, found.sha256, len(texts))


def _read_stack() -> Programs:
    files, revision = cached_dataset(STACK)
    texts = (str(row["content"]) for row in dataset_rows(files, column="content"))
    return Programs(texts, files_sha256(files), f"{STACK.repository} {STACK.config} at {revision[:12]}")


def _read_standard_library() -> Programs:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if not set(LEFT_OUT) & set(file.relative_to(root).parts))
    if not files:
        raise UnavailableError("this Python comes without its sources")
    return Programs(_texts(files), files_sha256(files), f"Python {sys.version.split()[0]}")


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            yield file.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a few are in another encoding, on purpose


def _read_file(path: Path) -> Programs:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: save the file as UTF-8") from error
    if not text.strip():
        raise UsageError(f"{path} is empty: give a Python program")
    return Programs([text], files_sha256([path]), str(path))


SOURCES: dict[str, ProgramSource] = {
    source.key: source
    for source in (
        ProgramSource("the-stack-smol", "Python programs (The Stack)", "permissive, by file", _read_stack),
        ProgramSource("standard-library", "Python's standard library", "PSF-2.0", _read_standard_library),
    )
}
