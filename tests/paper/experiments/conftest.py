"""What the tests of experiments share: sentence pairs made on the spot."""

import pytest


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    words = [("red", "rouge"), ("big", "grand"), ("old", "vieux"), ("new", "neuf"), ("small", "petit")]
    lines = [f"the {a} house and {b} dogs\tla maison {c} et {d} chiens" for a, c in words for b, d in words if a != b]
    path.write_text("\n".join(f"{line} {i}" for line in lines for i in range(4)) + "\n")
    return str(path)
