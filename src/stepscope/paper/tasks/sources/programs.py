"""Python programs: the paper's collection where the Hub gives it, else the standard library, or one's own file.

Sources, tried in this order by ``load_programs("auto")``: the Python part of the-stack-smol (which the Hub gives to
those who have accepted its terms), and the standard library of the Python that is running.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from stepscope.errors import UsageError
from stepscope.paper.tasks.downloads import UnavailableError, file_sha256, files_sha256
from stepscope.paper.tasks.hub import HubDataset
from stepscope.paper.tasks.sources.source import DataSource, Reading, load_first, read_bytes, read_hub
from stepscope.paper.tasks.task import Source

STACK = HubDataset("bigcode/the-stack-smol", "data/python", file="data.json")
# Tests say the same in many ways, and distributions differ in whether they ship them.
LEFT_OUT = ("test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__")


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
        source, SOURCES, _clean, own=_read_file, things="Python programs", suffix=".py", content=".py file"
    )


def _clean(programs: Iterable[str]) -> list[str]:
    texts = list(dict.fromkeys(text for text in programs if text.strip()))
    if not texts:
        raise UnavailableError("no program in it")
    return texts


def _read_stack() -> Reading[Iterable[str]]:
    return read_hub(STACK, "content", lambda rows: (str(row["content"]) for row in rows))


def _read_standard_library() -> Reading[Iterable[str]]:
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in root.rglob("*.py") if not set(LEFT_OUT) & set(file.relative_to(root).parts))
    if not files:
        raise UnavailableError("this Python comes without its sources")
    return Reading(_texts(files), files_sha256(files), f"Python {sys.version.split()[0]}")


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            yield file.read_text("utf-8")
        except UnicodeDecodeError:
            continue  # a few are in another encoding, on purpose


def _read_file(path: Path) -> Reading[Iterable[str]]:
    try:
        text = read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: save the file as UTF-8") from error
    if not text.strip():
        raise UsageError(f"{path} is empty: give a Python program")
    return Reading([text], file_sha256(path), str(path))


SOURCES = (
    DataSource("the-stack-smol", "Python programs (The Stack)", "permissive, by file", _read_stack),
    DataSource("standard-library", "Python's standard library", "PSF-2.0", _read_standard_library),
)
