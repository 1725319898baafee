"""Real English-French sentence pairs: the paper's data where the Hub can be reached, else what packages ship.

Four sources, tried in this order by ``load_pairs("auto")``. Each needs only what its machine may well have:
the Hub, a package index, Debian's archive (or an installed LibreOffice), a package index again for a smaller
file.
"""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stepscope.paper.tasks.downloads import (
    UnavailableError,
    Wheel,
    cached_debian_package,
    cached_wheel,
    debian_files,
    debian_version,
    file_sha256,
    files_sha256,
)
from stepscope.paper.tasks.hub import HubDataset, cached_dataset, dataset_rows
from stepscope.paper.tasks.messages import Pair, catalogue_pairs, nested_pairs, plain_message_pair
from stepscope.paper.tasks.origins import DataSource, load_first, table_rows
from stepscope.paper.tasks.task import Source

HOMEASSISTANT = Wheel("homeassistant", "2026.11.0", "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7")
DJANGO = Wheel("django", "5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00")
OPUS_BOOKS = HubDataset("Helsinki-NLP/opus_books", "en-fr")
LIBREOFFICE_PACKAGE = "libreoffice-l10n-fr"
LIBREOFFICE_CATALOGUES = "program/resource/fr/LC_MESSAGES"
LIBREOFFICE_ROOTS = (Path("/usr/lib/libreoffice"), Path("/usr/lib64/libreoffice"), Path("/opt/libreoffice"))


@dataclass(frozen=True)
class Reading:
    """What a source gave: raw pairs, and what identifies them.

    Attributes:
        pairs: English and French, uncleaned.
        sha256: digest of the file or files that they were read from, hexadecimal.
        version: what was read exactly, to stand behind the source's title.
    """

    pairs: Iterable[Pair]
    sha256: str
    version: str


PairSource = DataSource[Reading]


def load_pairs(source: str = "auto", *, min_words: int, max_words: int) -> tuple[list[Pair], Source]:
    """Loads English-French pairs, cleaned and in an order that depends on the data alone.

    Args:
        source: a key of ``SOURCES``; ``"auto"`` for the first of them that works; or the path of a UTF-8 file
            with one pair a line, ``english<TAB>french``.
        min_words: fewest words of either side.
        max_words: most words of either side.

    Returns:
        The pairs (English, French), and where they are from.

    Raises:
        UsageError: no source works, the one asked for doesn't, or the file is not as described.
    """
    return load_first(
        source,
        SOURCES,
        lambda each: _clean_reading(each, min_words, max_words),
        own=PairSource("file", "Sentence pairs", "unknown", lambda: _read_table(Path(source))),
        suffix=".tsv",
        missing="no sentence pairs",
        remedy="get online, or pass the path of a file with one english<TAB>french pair a line",
    )


def _clean_reading(source: PairSource, min_words: int, max_words: int) -> tuple[list[Pair], Source]:
    reading = source.read()
    pairs = clean_pairs(reading.pairs, min_words=min_words, max_words=max_words)
    if not pairs:
        raise UnavailableError(f"no pair of {min_words} to {max_words} words")
    return pairs, Source(source.key, f"{source.title}, {reading.version}", source.license, reading.sha256, len(pairs))


def clean_pairs(pairs: Iterable[Pair], *, min_words: int, max_words: int) -> list[Pair]:
    """Keeps the pairs to learn from, each once, in the order given.

    Text is brought to Unicode's composed form (NFC) with single spaces (French sets narrow and unbreakable
    ones before ``!`` and ``:``). A pair stays if both sides have a letter and between ``min_words`` and
    ``max_words`` words, separated by white space, and the sides differ.

    Args:
        pairs: English and French.
        min_words: fewest words of either side.
        max_words: most words of either side.

    Example:
        >>> clean_pairs([("a  cat", "un chat"), ("a cat", "un chat"), ("OK", "OK")], min_words=1, max_words=5)
        [('a cat', 'un chat')]
    """
    kept: dict[Pair, None] = {}
    for english, french in pairs:
        words = [unicodedata.normalize("NFC", text).split() for text in (english, french)]
        if not all(min_words <= len(side) <= max_words for side in words):
            continue
        pair = " ".join(words[0]), " ".join(words[1])
        if pair[0] != pair[1] and all(any(map(str.isalpha, side)) for side in pair):
            kept[pair] = None
    return list(kept)


def _read_opus_books() -> Reading:
    files, revision = cached_dataset(OPUS_BOOKS)
    rows = (row["translation"] for row in dataset_rows(files, column="translation"))
    pairs = [(row["en"], row["fr"]) for row in rows if row["en"] and row["fr"]]
    return Reading(pairs, files_sha256(files), f"{OPUS_BOOKS.repository} {OPUS_BOOKS.config} at {revision[:12]}")


def _read_homeassistant() -> Reading:
    wheel = cached_wheel(HOMEASSISTANT)
    return Reading(_plain(_json_pairs(wheel)), HOMEASSISTANT.sha256, HOMEASSISTANT.requirement)


def _read_django() -> Reading:
    with zipfile.ZipFile(cached_wheel(DJANGO)) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".mo") and "/locale/fr/" in name)
        contents = [archive.read(name) for name in names]
    return Reading(_plain(_catalogues(contents)), DJANGO.sha256, DJANGO.requirement)


def _read_libreoffice() -> Reading:
    for root in LIBREOFFICE_ROOTS:
        if files := sorted((root / LIBREOFFICE_CATALOGUES).glob("*.mo")):
            pairs = _catalogues(file.read_bytes() for file in files)
            return Reading(_plain(pairs, mnemonics=True), files_sha256(files), f"installed in {root}")
    package = cached_debian_package(LIBREOFFICE_PACKAGE)
    pairs = _catalogues(debian_files(package, LIBREOFFICE_CATALOGUES).values())
    version = f"{LIBREOFFICE_PACKAGE} {debian_version(package)}"
    return Reading(_plain(pairs, mnemonics=True), file_sha256(package), version)


def _json_pairs(wheel: Path) -> Iterator[Pair]:
    """Pairs ``…/translations/en.json`` with the ``fr.json`` beside it, through a whole wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for french in sorted(name for name in names if name.endswith("/translations/fr.json")):
            english = f"{french.removesuffix('fr.json')}en.json"
            if english in names:
                yield from nested_pairs(json.loads(archive.read(english)), json.loads(archive.read(french)))


def _catalogues(contents: Iterable[bytes]) -> Iterator[Pair]:
    for content in contents:
        try:
            yield from catalogue_pairs(content)
        except ValueError as error:
            raise UnavailableError(str(error)) from error


def _plain(pairs: Iterable[Pair], *, mnemonics: bool = False) -> Iterator[Pair]:
    for english, french in pairs:
        if pair := plain_message_pair(english, french, mnemonics=mnemonics):
            yield pair


def _read_table(path: Path) -> Reading:
    pairs = table_rows(path, "english<TAB>french")
    return Reading(pairs, file_sha256(path), str(path))


SOURCES: dict[str, DataSource[Reading]] = {
    source.key: source
    for source in (
        PairSource(
            "opus_books",
            "Books, aligned by sentences (OPUS)",
            "other: personal and research use",
            _read_opus_books,
        ),
        PairSource("homeassistant", "Home Assistant's user interface", "Apache-2.0", _read_homeassistant),
        PairSource("libreoffice", "LibreOffice's user interface", "MPL-2.0", _read_libreoffice),
        PairSource("django", "Django's messages", "BSD-3-Clause", _read_django),
    )
}
