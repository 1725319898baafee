"""Messages of programs: both formats read right, and sentences made of them."""

import struct

import pytest

from stepscope.paper.tasks.messages import catalogue_pairs, nested_pairs, plain_message_pair


def catalogue(entries: list[tuple[str, str]], order: str = "<") -> bytes:
    """Compiles a gettext catalogue: header, table of originals, table of translations, texts."""
    texts = [[side.encode() for side in entry] for entry in entries]
    start = 28 + 16 * len(entries)
    tables, blob = [], b""
    for side in (0, 1):
        for entry in texts:
            tables.append(struct.pack(f"{order}2I", len(entry[side]), start + len(blob)))
            blob += entry[side] + b"\0"
    header = struct.pack(f"{order}7I", 0x950412DE, 0, len(entries), 28, 28 + 8 * len(entries), 0, start)
    return header + b"".join(tables) + blob


def test_nested_pairs_follow_the_key_path():
    english = {"b": {"title": "one", "gone": "lost"}, "a": "two", "list": ["x"], "number": 3, "shape": "text"}
    french = {"a": "deux", "b": {"title": "un", "new": "neuf"}, "list": ["y"], "number": 4, "shape": {"a": "b"}}
    assert list(nested_pairs(english, french)) == [("one", "un"), ("two", "deux")]


@pytest.mark.parametrize("order", ["<", ">"])
def test_catalogue_pairs_leave_out_header_and_context(order):
    content = catalogue(
        [("", "Content-Type: text/plain"), ("menu\x04Open", "Ouvrir"), ("%d day\0%d days", "%d jour\0%d jours")], order
    )
    assert list(catalogue_pairs(content)) == [("Open", "Ouvrir"), ("%d day", "%d jour"), ("%d days", "%d jours")]


def test_catalogue_agrees_with_the_standard_library():
    import gettext
    import io

    entries = [("", "Content-Type: text/plain; charset=UTF-8\n"), ("Close", "Fermer"), ("Save", "Enregistrer, été")]
    content = catalogue(entries)
    reference = gettext.GNUTranslations(io.BytesIO(content))
    assert all(reference.gettext(english) == french for english, french in catalogue_pairs(content))


@pytest.mark.parametrize("damage", [b"", b"nonsense, not a catalogue at all", catalogue([("a", "b")])[:40]])
def test_damaged_catalogues_are_refused(damage):
    with pytest.raises(ValueError, match="catalogue"):
        list(catalogue_pairs(damage))


def test_a_text_that_reaches_beyond_the_file_is_refused():
    with pytest.raises(ValueError, match="truncated"):
        list(catalogue_pairs(catalogue([("Close it", "Fermer")])[:-4]))


@pytest.mark.parametrize(
    ("english", "french", "expected"),
    [
        ("See [the docs]({url})", "Voir [la doc](https://x.org/a)", ("See the docs", "Voir la doc")),
        ("Use `on` or **off**", "Utiliser `on` ou **off**", ("Use on or off", "Utiliser on ou off")),
        ("<b>Bold</b> move", "Un <a href='x'>coup</a>", (" Bold  move", "Un  coup ")),
        ("a < b", "a < c", ("a < b", "a < c")),
        ("{a} then {b}", "{b} après {a}", ("{a} then {b}", "{b} après {a}")),
        ("Set {name}", "Régler {nom}", None),
        ("At most %(n)d", "Au plus", None),
        ("{a} %s $(ARG1)", "{a} %s $(ARG1) !", None),
        ("100 %", "100 %", None),
        ("Fo_rmat", "_Format", ("Fo_rmat", "_Format")),
    ],
)
def test_plain_message_pair(english, french, expected):
    assert plain_message_pair(english, french) == expected


@pytest.mark.parametrize(
    ("english", "french", "expected"),
    [
        ("Fo_rmat", "~Format", ("Format", "Format")),
        ("See SUM_IF_ALL", "Voir _la somme", ("See SUM_IF_ALL", "Voir la somme")),
        ("about ~ and _", "vers ~ et _", ("about ~ and _", "vers ~ et _")),
    ],
)
def test_mnemonics(english, french, expected):
    assert plain_message_pair(english, french, mnemonics=True) == expected
