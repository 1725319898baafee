"""Translated messages of programs: the two file formats that hold them, and plain sentences out of them.

A message is not quite a sentence. ``plain_message_pair`` says what is done about the difference.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator

Pair = tuple[str, str]

_MO_MAGIC = 0x950412DE
_LINK = re.compile(r"!?\[([^\[\]]*)\]\([^()\s]*\)")
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_EMPHASIS = re.compile(r"\*\*|`")
_MNEMONIC = re.compile(r"[_~](?=\w)")
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


def catalogue_pairs(content: bytes) -> Iterator[Pair]:
    """Pairs original and translation in a compiled gettext catalogue (``.mo``), in the catalogue's order.

    Of a message with plural forms, the singular goes with the first form and the plural with the last. The
    context of a message and the catalogue's header are left out. The standard library's ``gettext`` looks
    messages up but has no public way to list them, hence this reader of the layout in the gettext manual,
    "The Format of GNU MO Files".

    Args:
        content: bytes of the file, UTF-8 inside.

    Raises:
        ValueError: not such a catalogue, or a truncated one.
    """
    order = "<" if content[:4] == struct.pack("<I", _MO_MAGIC) else ">"
    try:
        magic, _revision, count, originals, translations = struct.unpack_from(f"{order}5I", content)
        if magic != _MO_MAGIC:
            raise ValueError("not a compiled gettext catalogue")
        for index in range(count):
            texts = []
            for table in (originals, translations):
                length, start = struct.unpack_from(f"{order}2I", content, table + 8 * index)
                if start + length > len(content):
                    raise ValueError("truncated gettext catalogue")
                texts.append(content[start : start + length].decode("utf-8"))
            forms, translated = texts[0].rpartition("\x04")[2].split("\0"), texts[1].split("\0")
            if forms[0]:
                yield forms[0], translated[0]
            if len(forms) > 1:
                yield forms[1], translated[-1]
    except struct.error as error:
        raise ValueError("truncated gettext catalogue") from error


def plain_message_pair(english: str, french: str, *, mnemonics: bool = False) -> Pair | None:
    """Makes sentences of a message and its translation, or gives none where that cannot be done.

    Markup goes, its text stays: Markdown links and emphasis, HTML tags. Placeholders (``{name}``, ``%s``,
    ``$(ARG1)``) stay as they are: like a name, each is to be copied, and no word would fit every value. A
    pair is given up when the placeholders of its sides differ (the two do not say the same), or when nothing
    but placeholders is left on a side.

    Args:
        english: the message.
        french: its translation.
        mnemonics: also remove the ``_`` and ``~`` that mark a menu entry's key, as in ``Fo_rmat``. A side
            with more than one is left alone: it is a name such as ``SUM_IF_ALL``.

    Example:
        >>> plain_message_pair("**Open** [it]({url})", "[L']({url})**ouvrir**")
        ('Open it', "L'ouvrir")
        >>> plain_message_pair("Open {name}", "Ouvrir {nom}") is None
        True
    """
    sides = []
    for text in (english, french):
        plain = _EMPHASIS.sub("", _TAG.sub(" ", _LINK.sub(r"\1", text)))
        if mnemonics and len(_MNEMONIC.findall(plain)) == 1:
            plain = _MNEMONIC.sub("", plain)
        sides.append(plain)
    if Counter(_PLACEHOLDER.findall(sides[0])) != Counter(_PLACEHOLDER.findall(sides[1])):
        return None
    if not all(any(map(str.isalpha, _PLACEHOLDER.sub("", side))) for side in sides):
        return None
    return sides[0], sides[1]
