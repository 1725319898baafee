"""What models of text are pretrained by: each kind's own objective, on token numbers.

A T5 fills in spans (Raffel et al., 2020, arXiv 1910.10683, section 3.1), a BERT names words that are masked (Devlin et
al., 2019, arXiv 1810.04805, section 3.1). A GPT-Neo predicts the next token, as its task does.
"""

from __future__ import annotations

import itertools
from random import Random

from stepscope.objective import IGNORED_LABEL

CORRUPTED = 0.15
"""The part of a text's tokens that are to be found."""

SPAN = 3
"""Mean length of a corrupted span, tokens."""

SENTINELS = 16
"""Tokens beyond a tokenizer's that stand for spans. T5 has 100 for texts of 512 tokens."""


def corrupted_spans(tokens: list[int], *, first_sentinel: int, end: int, draw: Random) -> tuple[list[int], list[int]]:
    """Takes spans out of a text: a sentinel stands for each, and the target names what was there.

    A sixth to a seventh of the tokens (`CORRUPTED`) go, in spans of `SPAN` on average, which lie anywhere and don't
    touch.

    Args:
        tokens: of a text, at least 1, without its end.
        first_sentinel: the number of the first of `SENTINELS` sentinels.
        end: the token that ends a text.
        draw: where the spans lie.

    Returns:
        The text without the spans, and the spans, each behind its sentinel, and one sentinel more; both with an end.

    Example:
        >>> corrupted_spans([5, 6, 7, 8, 9, 10, 11], first_sentinel=100, end=1, draw=Random(3))
        ([5, 100, 7, 8, 9, 10, 11, 1], [100, 6, 101, 1])
    """
    gone = max(1, round(CORRUPTED * len(tokens)))
    spans = min(max(1, round(gone / SPAN)), len(tokens) - gone + 1, SENTINELS - 1)
    lengths = _parts(gone, spans, draw)
    # Between two spans a token stays at least; before the first and after the last there may be none.
    gaps = _parts(len(tokens) - gone + 2, spans + 1, draw)
    gaps = [gaps[0] - 1, *gaps[1:-1], gaps[-1] - 1]
    text, target, at = [], list[int](), 0
    for number, (gap, length) in enumerate(zip(gaps, lengths, strict=False)):
        text += [*tokens[at : at + gap], first_sentinel + number]
        target += [first_sentinel + number, *tokens[at + gap : at + gap + length]]
        at += gap + length
    return [*text, *tokens[at:], end], [*target, first_sentinel + spans, end]


def masked_words(tokens: list[int], *, mask: int, vocabulary: int, draw: Random) -> tuple[list[int], list[int]]:
    """Masks words of a text: of `CORRUPTED` of the tokens, 80% are masked, 10% become any other, 10% stay.

    Args:
        tokens: of a text, its ends among them, which stay; at least 3.
        mask: the token that stands for a masked one.
        vocabulary: numbers of tokens that a word may become, from 0.
        draw: which words.

    Returns:
        The text, and the labels: what was there at the places that were chosen, `IGNORED_LABEL` elsewhere.

    Example:
        >>> masked_words([1, 5, 6, 7, 1], mask=2, vocabulary=9, draw=Random(1))
        ([1, 2, 6, 7, 1], [-100, 5, -100, -100, -100])
    """
    places = range(1, len(tokens) - 1)
    text, labels = list(tokens), [IGNORED_LABEL] * len(tokens)
    for place in draw.sample(places, max(1, round(CORRUPTED * len(places)))):
        labels[place] = tokens[place]
        kind = draw.random()
        if kind < 0.9:
            text[place] = mask if kind < 0.8 else draw.randrange(vocabulary)
    return text, labels


def _parts(whole: int, count: int, draw: Random) -> list[int]:
    """Whole numbers of at least 1 with this sum, any such list as likely as another."""
    cuts = [0, *sorted(draw.sample(range(1, whole), count - 1)), whole]
    return [end - start for start, end in itertools.pairwise(cuts)]
