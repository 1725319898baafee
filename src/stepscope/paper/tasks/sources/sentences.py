"""Real English-French sentence pairs: the paper's where the Hub can be reached, else a package's, or one's own file.

Sources, tried in this order by ``load_pairs("auto")``: Books of OPUS, which the paper uses, and the translated messages
of Home Assistant's user interface, out of its wheel. A message is not quite a sentence: ``plain_message_pair`` says
what is done about the difference.
"""

from __future__ import annotations

import json
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from stepscope.paper.tasks.downloads import UnavailableError, Wheel, cached_wheel, file_sha256
from stepscope.paper.tasks.hub import HubDataset
from stepscope.paper.tasks.sources.source import DataSource, Reading, load_first, read_hub, table_rows
from stepscope.paper.tasks.task import Source

Pair = tuple[str, str]

OPUS_BOOKS = HubDataset("Helsinki-NLP/opus_books", "en-fr")
HOMEASSISTANT = Wheel("homeassistant", "2026.11.0", "7ca5fbde9dea879ac7723949fc84347aac5182e6309c357b2e4973fd391b00f7")

_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_EMPHASIS = re.compile(r"\*\*|`")
_PLACEHOLDER = re.compile(
    r"""
      \{[^{}]*\}                         # {name}, {0}
    | %\(\w+\)[sdifr]                    # %(name)s
    | %[A-Z][A-Z0-9_]{2,}                # %PRODUCTNAME
    | %(?:\d+\$)?[sdifux](?!\w)          # %s, %2$d
    | %\d+                               # %1
    | \$\(\w+\)|\$\{\w+\}|\$\w+\$?       # $(ARG1), ${name}, $name$
    """,
    re.VERBOSE,
)


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

    def clean(pairs: Iterable[Pair]) -> list[Pair]:
        kept = clean_pairs(pairs, min_words=min_words, max_words=max_words)
        if not kept:
            raise UnavailableError(f"no pair of {min_words} to {max_words} words")
        return kept

    return load_first(
        source,
        SOURCES,
        clean,
        own=lambda path: Reading(table_rows(path, "english<TAB>french"), file_sha256(path), str(path)),
        things="sentence pairs",
        suffix=".tsv",
        content="file with one english<TAB>french pair a line",
    )


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


def _read_opus_books() -> Reading[Iterable[Pair]]:
    def pairs(rows: Iterator[dict[str, Any]]) -> Iterator[Pair]:
        sides = (row["translation"] for row in rows)
        return ((side["en"], side["fr"]) for side in sides if side["en"] and side["fr"])

    return read_hub(OPUS_BOOKS, "translation", pairs)


def _read_homeassistant() -> Reading[Iterable[Pair]]:
    wheel = cached_wheel(HOMEASSISTANT)
    pairs = (plain for pair in _messages(wheel) if (plain := plain_message_pair(*pair)))
    return Reading(pairs, HOMEASSISTANT.sha256, HOMEASSISTANT.requirement)


def _messages(wheel: Path) -> Iterator[Pair]:
    """Pairs ``…/translations/en.json`` with the ``fr.json`` beside it, through a whole wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for french in sorted(name for name in names if name.endswith("/translations/fr.json")):
            english = f"{french.removesuffix('fr.json')}en.json"
            if english in names:
                yield from nested_pairs(json.loads(archive.read(english)), json.loads(archive.read(french)))


def nested_pairs(english: object, french: object) -> Iterator[Pair]:
    """Pairs the strings that stand at the same key path in two nested JSON objects, in the first one's order.

    Args:
        english: decoded JSON, objects in objects, with strings as leaves.
        french: the same in the other language; keys that it lacks are passed over.

    Example:
        >>> list(nested_pairs({"a": {"b": "one"}, "c": "two"}, {"a": {"b": "un"}}))
        [('one', 'un')]
    """
    if isinstance(english, dict) and isinstance(french, dict):
        for key, value in english.items():
            if key in french:
                yield from nested_pairs(value, french[key])
    elif isinstance(english, str) and isinstance(french, str):
        yield english, french


def plain_message_pair(english: str, french: str) -> Pair | None:
    """Makes sentences of a message and its translation, or gives none where that cannot be done.

    Markup goes, its text stays: Markdown links and emphasis, HTML tags. Placeholders (``{name}``, ``%s``,
    ``$(ARG1)``) stay as they are: like a name, each is to be copied, and no word would fit every value. A
    pair is given up when the placeholders of its sides differ (the two do not say the same), or when nothing
    but placeholders is left on a side.

    Args:
        english: the message.
        french: its translation.

    Example:
        >>> plain_message_pair("**Open** [it]({url})", "[L']({url})**ouvrir**")
        ('Open it', "L'ouvrir")
        >>> plain_message_pair("Open {name}", "Ouvrir {nom}") is None
        True
    """
    sides = [_EMPHASIS.sub("", _TAG.sub(" ", _LINK.sub(r"\1", text))) for text in (english, french)]
    if Counter(_PLACEHOLDER.findall(sides[0])) != Counter(_PLACEHOLDER.findall(sides[1])):
        return None
    if not all(any(map(str.isalpha, _PLACEHOLDER.sub("", side))) for side in sides):
        return None
    return sides[0], sides[1]


SOURCES = (
    DataSource(
        "opus_books", "Books, aligned by sentences (OPUS)", "other: personal and research use", _read_opus_books
    ),
    DataSource("homeassistant", "Home Assistant's user interface", "Apache-2.0", _read_homeassistant),
)
