"""Sentence pairs: each source's reading, the cleaning, the order in which sources are tried."""

import hashlib
import json
import os
from dataclasses import replace
from functools import partial

import pytest

from stepscope.errors import MissingExtraError, UsageError
from stepscope.paper.tasks.downloads import UnavailableError
from stepscope.paper.tasks.sources import sentences
from stepscope.paper.tasks.sources.sentences import clean_pairs, load_pairs, nested_pairs, plain_message_pair
from stepscope.paper.tasks.sources.source import DataSource, Reading
from stepscope.paper.tasks.task import Source

WORDS = {"min_words": 2, "max_words": 6}


@pytest.fixture
def package_index(serve_wheel):
    return partial(serve_wheel, sentences)


def test_homeassistant(package_index, cache):
    part = "homeassistant/components/{}/translations/{}.json"
    wheel = package_index(
        "HOMEASSISTANT",
        {
            part.format("b", "en"): json.dumps({"x": {"y": "the {n} lights"}, "z": "only here"}),
            part.format("b", "fr"): json.dumps({"x": {"y": "les lumières {n}"}}),
            part.format("a", "fr"): json.dumps({"t": "le chat"}),
            part.format("a", "en"): json.dumps({"t": "the cat"}),
            part.format("d", "fr"): json.dumps({"t": "sans anglais"}),
            part.format("c", "en"): json.dumps({"t": "the dog"}),
            part.format("c", "fr"): json.dumps({"t": "le chien"}),
        },
    )
    pairs, source = load_pairs("homeassistant", **WORDS)
    assert pairs == [("the cat", "le chat"), ("the {n} lights", "les lumières {n}"), ("the dog", "le chien")]
    assert (source.name, source.license, source.sha256) == ("homeassistant", "Apache-2.0", wheel.sha256)
    assert source.examples == 3
    assert [path.name for path in cache.iterdir()] == ["homeassistant-2026.11.0.whl"]


def test_tampered_wheel_is_refused(package_index, monkeypatch, cache):
    package_index("HOMEASSISTANT", {"a": "b"})
    monkeypatch.setattr(sentences, "HOMEASSISTANT", replace(sentences.HOMEASSISTANT, sha256="0" * 64))
    with pytest.raises(UsageError, match="SHA-256"):
        load_pairs("homeassistant", **WORDS)
    assert list(cache.iterdir()) == []


def test_nested_pairs_follow_the_key_path():
    english = {"b": {"title": "one", "gone": "lost"}, "a": "two", "list": ["x"], "number": 3, "shape": "text"}
    french = {"a": "deux", "b": {"title": "un", "new": "neuf"}, "list": ["y"], "number": 4, "shape": {"a": "b"}}
    assert list(nested_pairs(english, french)) == [("one", "un"), ("two", "deux")]


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
    ("pair", "kept"),
    [
        (("the cat", "le chat"), [("the cat", "le chat")]),
        (("  the\n cat ", "le\u00a0\u202fchat"), [("the cat", "le chat")]),
        (("the e\u0301tude", "une étude"), [("the étude", "une étude")]),
        (("cat", "le chat"), []),
        (("the cat", "chat"), []),
        (("one two three four five six seven", "le chat"), []),
        (("the cat", "un deux trois quatre cinq six sept"), []),
        (("Home Assistant", "Home  Assistant"), []),
        (("12 + 3", "douze et trois"), []),
        (("the cat", "12 34"), []),
    ],
)
def test_cleaning(pair, kept):
    assert clean_pairs([pair, pair], **WORDS) == kept


def test_cleaning_keeps_the_first_of_equals_in_order():
    pairs = [("b b", "x x"), ("a a", "y y"), ("b  b", "x x"), ("b b", "z z")]
    assert clean_pairs(pairs, **WORDS) == [("b b", "x x"), ("a a", "y y"), ("b b", "z z")]


@pytest.fixture
def use(monkeypatch):
    """``use(one=pairs or error, …)`` makes these the sources; gives the list of those that are asked."""
    asked = []

    def use(**results):
        def read(key, result):
            asked.append(key)
            if isinstance(result, Exception):
                raise result
            return Reading(result, "0" * 64, "version 1")

        sources = [DataSource(k, f"Title of {k}", "MIT", partial(read, k, result)) for k, result in results.items()]
        monkeypatch.setattr(sentences, "SOURCES", sources)
        return asked

    return use


CAT = [("the cat", "le chat")]
DOWN = UnavailableError("down")


def test_auto_takes_the_first_that_works(use):
    missing = MissingExtraError("datasets is not installed: pip install it")
    asked = use(one=DOWN, two=missing, three=[("cat", "chat")], four=CAT, five=CAT)
    pairs, source = load_pairs(**WORDS)
    assert asked == ["one", "two", "three", "four"]  # the third has no pair of so many words
    assert pairs == CAT
    assert source == Source("four", "Title of four, version 1", "MIT", "0" * 64, 1)


def test_a_name_forces_its_source(use):
    asked = use(one=CAT, two=CAT, three=DOWN)
    assert load_pairs("two", **WORDS)[1].name == "two"
    with pytest.raises(UsageError, match="three: down"):
        load_pairs("three", **WORDS)
    assert asked == ["two", "three"]


def test_all_failing_is_one_line_with_each_reason_and_a_remedy(use):
    use(one=DOWN, two=UnavailableError("gone"))
    with pytest.raises(UsageError) as caught:
        load_pairs(**WORDS)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ("one: down", "two: gone", "get online", "<TAB>"))


def test_unknown_source_lists_the_known():
    with pytest.raises(UsageError, match="'nonsense': auto, opus_books, homeassistant, or the path"):
        load_pairs("nonsense", **WORDS)


def test_table(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes("\ufeffthe cat\tle chat\r\n\r\nthe dog\u2028\tle chien\nrain\tpluie".encode())
    pairs, source = load_pairs(str(path), **WORDS)
    assert pairs == [("the cat", "le chat"), ("the dog", "le chien")]
    assert (source.name, source.examples) == ("file", 2)
    assert str(path) in source.title
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"the cat\tle chat\n\nthe dog\n", "line 3: expected english<TAB>french, saw 'the dog'"),
        (b"a\tb\tc\n", "line 1: expected"),
        (b"the cat\t \n", "line 1: expected"),
        (b"the cat\tle chat\nd\xe9j\xe0\tvu\n", "line 2: not UTF-8"),
        (b"", "no pair of 2 to 6 words"),
    ],
)
def test_table_with_mistakes(tmp_path, content, message):
    path = tmp_path / "pairs.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_pairs(str(path), **WORDS)


def test_missing_table(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*none\.tsv: No such file"):
        load_pairs(str(tmp_path / "none.tsv"), **WORDS)


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("STEPSCOPE_NETWORK") != "1", reason="set STEPSCOPE_NETWORK=1 to download 68 MB")
def test_homeassistant_really_has_ten_thousand_pairs():
    pairs, source = load_pairs("homeassistant", min_words=4, max_words=40)
    assert len(pairs) == source.examples >= 10_000
    assert load_pairs("homeassistant", min_words=4, max_words=40)[0] == pairs
