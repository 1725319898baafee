"""What the tests of experiments share: sentence pairs made on the spot."""

import pytest


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    words = [("red", "rouge"), ("big", "grand"), ("old", "vieux"), ("new", "neuf"), ("small", "petit")]
    lines = [
        f"the {a} house and {n} {b} dogs\tla maison {c} et {n} {d} chiens"
        for a, c in words
        for b, d in words
        for n in range(4)
        if a != b
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)
