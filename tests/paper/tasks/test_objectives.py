"""Objectives of pretraining: what is taken out of a text is all in the target, and as much as is said."""

import itertools
from random import Random

import pytest

from stepscope.objective import IGNORED_LABEL
from stepscope.paper.tasks.objectives import CORRUPTED, SENTINELS, corrupted_spans, masked_words

FIRST, END = 1_000, 1


def put_back(text, target):
    """The text that two sides of a corrupted one are of."""
    spans, number = {}, None
    for token in target[:-1]:
        if token >= FIRST:
            number = token
            spans[number] = []
        else:
            spans[number].append(token)
    assert spans.pop(number) == [], "the last sentinel ends the last span"
    found = []
    for token in text[:-1]:
        found += spans.pop(token) if token >= FIRST else [token]
    assert not spans
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 7, 20, 63, 512])
def test_spans_are_all_in_the_target(length):
    tokens = list(range(10, 10 + length))
    seen = set()
    for seed in range(60):
        text, target = corrupted_spans(tokens, first_sentinel=FIRST, end=END, draw=Random(seed))
        assert text[-1] == target[-1] == END
        assert put_back(text, target) == tokens
        gone = length - sum(token < FIRST for token in text[:-1])
        assert gone == max(1, round(CORRUPTED * length))
        assert max(target) < FIRST + SENTINELS
        assert not any(a >= FIRST and b >= FIRST for a, b in itertools.pairwise(text)), "spans don't touch"
        seen |= set(target)
    if length < 100:
        assert set(tokens) < seen, "a span may lie anywhere"


def test_masked_words_are_in_the_labels():
    tokens = [END, *range(10, 110), END]
    kinds = {"mask": 0, "stays": 0, "other": 0}
    for seed in range(200):
        text, labels = masked_words(tokens, mask=2, vocabulary=5, draw=Random(seed))
        chosen = [place for place, label in enumerate(labels) if label != IGNORED_LABEL]
        assert len(chosen) == 15
        assert 0 < chosen[0] <= chosen[-1] < 101
        assert all(labels[place] == tokens[place] for place in chosen)
        assert all(text[place] == tokens[place] for place in range(102) if place not in chosen)
        for place in chosen:
            kinds["stays" if text[place] == tokens[place] else "mask" if text[place] == 2 else "other"] += 1
    # 3,000 draws: five standard deviations are 0.036 and 0.027. Of the others a fifth falls on the mask by chance.
    assert kinds["mask"] / 3_000 == pytest.approx(0.82, abs=0.036)
    assert kinds["stays"] / 3_000 == pytest.approx(0.1, abs=0.027)
