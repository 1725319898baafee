"""Sentence pairs: each source's reading, the cleaning, the order in which sources are tried."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from functools import partial

import pytest
from test_messages import catalogue

from stepscope.errors import MissingExtraError, UsageError
from stepscope.paper.tasks import downloads, sources
from stepscope.paper.tasks.downloads import UnavailableError
from stepscope.paper.tasks.sources import PairSource, Reading, clean_pairs, load_pairs

WORDS = {"min_words": 2, "max_words": 6}


@pytest.fixture
def package_index(serve_wheel):
    return partial(serve_wheel, sources)


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
    monkeypatch.setattr(sources, "HOMEASSISTANT", replace(sources.HOMEASSISTANT, sha256="0" * 64))
    with pytest.raises(UsageError, match="SHA-256"):
        load_pairs("homeassistant", **WORDS)
    assert list(cache.iterdir()) == []


def test_django(package_index):
    french, german = catalogue([("Save it", "Le sauver")]), catalogue([("Save it", "Sichere es")])
    package_index("DJANGO", {"django/x/locale/fr/y/z.mo": french, "django/x/locale/de/y/z.mo": german})
    assert load_pairs("django", **WORDS)[0] == [("Save it", "Le sauver")]


def test_damaged_catalogue(package_index):
    package_index("DJANGO", {"django/x/locale/fr/y/z.mo": b"rubbish, long enough to have a header"})
    with pytest.raises(UsageError, match="django: not a compiled gettext catalogue"):
        load_pairs("django", **WORDS)


def test_installed_libreoffice(tmp_path, monkeypatch):
    folder = tmp_path / "office" / sources.LIBREOFFICE_CATALOGUES
    folder.mkdir(parents=True)
    (folder / "b.mo").write_bytes(catalogue([("x\x04Fo_rmat cell", "Fo_rmater une cellule")]))
    (folder / "a.mo").write_bytes(catalogue([("Open file", "Ouvrir le fichier")]))
    monkeypatch.setattr(sources, "LIBREOFFICE_ROOTS", (tmp_path / "none", tmp_path / "office"))
    pairs, source = load_pairs("libreoffice", **WORDS)
    assert pairs == [("Open file", "Ouvrir le fichier"), ("Format cell", "Formater une cellule")]
    (folder / "a.mo").write_bytes(catalogue([("Open file", "Ouvrir un fichier")]))
    assert load_pairs("libreoffice", **WORDS)[1].sha256 != source.sha256


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")
def test_debian_package(tmp_path, monkeypatch, cache):
    tree = tmp_path / "tree"
    folder = tree / "usr/lib/libreoffice" / sources.LIBREOFFICE_CATALOGUES
    folder.mkdir(parents=True)
    (folder / "a.mo").write_bytes(catalogue([("Open file", "Ouvrir le fichier")]))
    (tree / "DEBIAN").mkdir()
    control = "Package: libreoffice-l10n-fr\nVersion: 1:2.3\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: x\n"
    (tree / "DEBIAN/control").write_text(control)
    real = downloads.run_tool

    def run(command, *, cwd, seconds):
        if command[0] == "apt-get":
            command = ["dpkg-deb", "--root-owner-group", "--build", str(tree), str(cwd / "libreoffice_1%3a2.3_all.deb")]
        return real(command, cwd=cwd, seconds=seconds)

    monkeypatch.setattr(downloads, "run_tool", run)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(sources, "LIBREOFFICE_ROOTS", ())
    pairs, source = load_pairs("libreoffice", **WORDS)
    assert pairs == [("Open file", "Ouvrir le fichier")]
    assert source.title.endswith("libreoffice-l10n-fr 1:2.3")
    assert source.sha256 == hashlib.sha256((cache / "libreoffice-l10n-fr.deb").read_bytes()).hexdigest()
    assert sorted(path.name for path in cache.iterdir()) == [
        "libreoffice-l10n-fr.deb",
        "libreoffice-l10n-fr.deb.sha256",
    ]


def test_debian_package_without_catalogues(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "LIBREOFFICE_ROOTS", ())
    monkeypatch.setattr(sources, "cached_debian_package", lambda name: tmp_path / "x.deb")
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w").close()
    monkeypatch.setattr(downloads, "_dpkg", lambda package, action, *fields: empty.getvalue())
    (tmp_path / "x.deb").write_bytes(b"")
    with pytest.raises(UsageError, match="libreoffice: no pair of 2 to 6 words"):
        load_pairs("libreoffice", **WORDS)


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


def works(key, asked):
    def read():
        asked.append(key)
        return Reading([("the cat", f"le {key}")], "0" * 64, "version 1")

    return PairSource(key, f"Title of {key}", "MIT", read)


def fails(key, asked, error):
    def read():
        asked.append(key)
        raise error

    return PairSource(key, key, "MIT", read)


def use(monkeypatch, *candidates):
    monkeypatch.setattr(sources, "SOURCES", {candidate.key: candidate for candidate in candidates})


def test_auto_takes_the_first_that_works(monkeypatch):
    asked = []
    missing = MissingExtraError("datasets is not installed: pip install it")
    use(
        monkeypatch,
        fails("one", asked, UnavailableError("down")),
        fails("two", asked, missing),
        works("three", asked),
        works("four", asked),
    )
    pairs, source = load_pairs(**WORDS)
    assert asked == ["one", "two", "three"]
    assert pairs == [("the cat", "le three")]
    assert source == sources.Source("three", "Title of three, version 1", "MIT", "0" * 64, 1)


def test_a_name_forces_its_source(monkeypatch):
    asked = []
    use(monkeypatch, works("one", asked), works("two", asked), fails("three", asked, UnavailableError("down")))
    assert load_pairs("two", **WORDS)[1].name == "two"
    with pytest.raises(UsageError, match="three: down"):
        load_pairs("three", **WORDS)
    assert asked == ["two", "three"]


def test_a_source_without_fitting_pairs_counts_as_failed(monkeypatch):
    asked = []
    empty = PairSource("empty", "Empty", "MIT", lambda: Reading([("cat", "chat")], "0" * 64, "1"))
    use(monkeypatch, empty, works("two", asked))
    assert load_pairs(**WORDS)[1].name == "two"


def test_all_failing_is_one_line_with_each_reason_and_a_remedy(monkeypatch):
    use(monkeypatch, fails("one", [], UnavailableError("down")), fails("two", [], UnavailableError("gone")))
    with pytest.raises(UsageError) as caught:
        load_pairs(**WORDS)
    message = str(caught.value)
    assert "\n" not in message
    assert all(part in message for part in ("one: down", "two: gone", "get online", "<TAB>"))


def test_order_of_the_real_sources():
    assert list(sources.SOURCES) == ["opus_books", "homeassistant", "libreoffice", "django"]


def test_unknown_source_lists_the_known():
    with pytest.raises(UsageError, match="'nonsense': auto, opus_books, homeassistant, libreoffice, django"):
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
