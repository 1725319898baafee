"""English to French with a T5: the paper's first setting, and at sizes for a test, for two cores and for one GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.batching import chosen, halves
from stepscope.paper.tasks.objectives import SENTINELS, corrupted_spans
from stepscope.paper.tasks.pretrained import undropped
from stepscope.paper.tasks.pretraining import Pretraining
from stepscope.paper.tasks.sources.sentences import Pair, clean_pairs, load_pairs
from stepscope.paper.tasks.task import Task
from stepscope.paper.tasks.text import (
    END,
    PAD,
    Example,
    TextConfig,
    TextLesson,
    Tokens,
    check_text,
    published_text,
    text_task,
    tokens_of,
)

PREFIX = "translate English to French: "
ACTIVATIONS = ("gelu", "relu")
_LONGEST = 10_000  # words: which sentences are too long is decided after the halves are made
T5 = {"t5": "T5ForConditionalGeneration"}


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(TextConfig):
    """How large a translation task is; ``max_tokens`` are those of a side, and both languages share the vocabulary.

    Attributes:
        pairs: sentence pairs to train on; a source with fewer gives all that it has.
        min_words: fewest words of a sentence.
        max_words: most words of a sentence.
        d_model: width of the residual stream.
        d_ff: width inside a feed-forward block.
        d_kv: width of an attention head.
        layers: encoder blocks, and as many decoder blocks.
        heads: attention heads of a block.
        activation: of the feed-forward blocks. ``"relu"`` is T5's own; with ``"gelu"`` the loss has second
            derivatives everywhere, so that pointwise and finite-step curvature agree.
    """

    pairs: int
    min_words: int
    max_words: int
    d_model: int | None = None
    d_ff: int | None = None
    d_kv: int | None = None
    layers: int | None = None
    heads: int | None = None
    activation: str | None = "gelu"


SCALES = {
    "smoke": TranslationConfig(
        pairs=256,
        min_words=2,
        max_words=12,
        vocabulary=384,
        d_model=16,
        d_ff=32,
        d_kv=8,
        layers=1,
        heads=2,
        batch_size=8,
        eval_size=16,
        micro_batch_size=8,
        max_tokens=32,
    ),
    "cpu": TranslationConfig(
        pairs=10_240,
        min_words=4,
        max_words=20,
        vocabulary=2_048,
        d_model=64,
        d_ff=256,
        d_kv=16,
        layers=2,
        heads=4,
        batch_size=64,
        eval_size=80,
        micro_batch_size=20,
        max_tokens=64,
        pretraining=Pretraining(steps=1_000, batch_size=32, lr=5e-3),
    ),
    "desk": TranslationConfig(
        pairs=10_240,
        min_words=4,
        max_words=20,
        vocabulary=5_120,
        d_model=160,
        d_ff=640,
        d_kv=40,
        layers=3,
        heads=4,
        batch_size=64,
        eval_size=96,
        micro_batch_size=24,
        max_tokens=64,
        pretraining=Pretraining(steps=2_000, batch_size=32, lr=2e-3),
    ),
    "gpu": TranslationConfig(
        pairs=10_240,
        min_words=4,
        max_words=40,
        vocabulary=8_192,
        d_model=384,
        d_ff=1_536,
        d_kv=64,
        layers=6,
        heads=6,
        batch_size=256,
        eval_size=128,
        micro_batch_size=64,
        max_tokens=128,
        pretraining=Pretraining(steps=4_000, batch_size=64, lr=1e-3),
    ),
    "paper": TranslationConfig(
        pairs=10_240,
        min_words=1,
        max_words=10_000,  # the paper leaves none out, and cuts by tokens
        batch_size=1_024,
        eval_size=1_024,
        micro_batch_size=16,
        max_tokens=512,
        activation=None,
        set_apart=False,
        start="pretrained",
        checkpoint="google-t5/t5-small",
    ),
}
"""Sizes: for tests, for two cores (0.36 million parameters), for an afternoon on them (2.98 million, T5-small's share
of embedding, 27%), for one GPU (27.9 million: T5-small's depth at three quarters of its width and a quarter of its
vocabulary, 40 steps an epoch), and the paper's own model and data (60.5 million), which need the Hub or copies of
them."""


def translation(config: TranslationConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: real sentence pairs, a T5 with random weights and a tokenizer for them, or a pretrained one.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of random weights and of the order of training batches. Pairs and evaluation batch don't depend on it.
        source: where the pairs come from, as in ``load_pairs``.

    Returns:
        The task. ``source.examples`` is the number of pairs in use: fewer than ``config.pairs`` where the
        source has no more.

    Raises:
        UsageError: no pairs or no pretrained model is available, or a value of ``config`` is impossible.
        MissingExtraError: transformers or tokenizers is not installed.
    """
    _check(config)
    pretrained = published_text(config, T5, "a T5")
    pairs, origin = load_pairs(source, min_words=1, max_words=_LONGEST)
    pairs, apart = halves(pairs, _sides) if config.set_apart else (pairs, [])
    used = chosen(clean_pairs(pairs, min_words=config.min_words, max_words=config.max_words), config.pairs)
    if not used:
        raise UsageError(f"no pair of {config.min_words} to {config.max_words} words: set min_words and max_words")
    tokens = tokens_of(pretrained, [PREFIX, *(side for pair in used for side in pair)], config.vocabulary)
    if pretrained is not None:
        start = pretrained.config.decoder_start_token_id
        start = tokens.pad if start is None else start
        model = undropped(pretrained.config, pad_token_id=tokens.pad, decoder_start_token_id=start)
    else:
        model = _t5(config, tokens.tokenizer.get_vocab_size() + SENTINELS)

    def encode(text: str) -> list[int]:
        return [*tokens.encoded(text)[: config.max_tokens - 1], tokens.end]

    return text_task(
        "translation",
        config,
        [(encode(PREFIX + english), encode(french)) for english, french in used],
        seed=seed,
        model=model,
        make=T5["t5"],
        pretrained=pretrained,
        lesson=_lesson(config, apart, tokens, encode) if config.pretrained_here else None,
        pad=tokens.pad,
        source=origin,
    )


def _sides(pair: Pair) -> list[tuple[str, int]]:
    """The sentences of a pair, each with its language."""
    return [(text, side) for side, text in enumerate(pair)]


def _lesson(
    config: TranslationConfig, apart: Sequence[Pair], tokens: Tokens, encode: Callable[[str], list[int]]
) -> TextLesson[tuple[list[int], list[int]]]:
    """The published T5's own mixture (Raffel et al., section 3.5.3): spans of sentences to fill in, and translations.

    An example without a target is a sentence.
    """
    # Of any length up to the task's: one long sentence pads its whole batch.
    apart = clean_pairs(apart, min_words=1, max_words=config.max_words)[: config.pretraining.examples]
    examples = [
        example
        for english, french in apart
        for example in ((encode(english), []), (encode(french), []), (encode(PREFIX + english), encode(french)))
    ]
    first = tokens.tokenizer.get_vocab_size()

    def example(pair: tuple[list[int], list[int]], draw: Random) -> Example:
        text, target = pair
        return pair if target else corrupted_spans(text[:-1], first_sentinel=first, end=text[-1], draw=draw)

    title = f"span corruption and translation on {len(apart):,} other pairs"
    return TextLesson(title, T5["t5"], examples, example)


def _check(config: TranslationConfig) -> None:
    sizes = ("vocabulary", "d_model", "d_ff", "d_kv", "layers", "heads", "activation")
    check_text(config, examples="pairs", sizes=sizes, fewest=2, tokens="a token and the end")
    if not config.checkpoint and config.activation not in ACTIVATIONS:
        raise UsageError(f"activation is {config.activation!r}: choose {' or '.join(ACTIVATIONS)}")


def _t5(config: TranslationConfig, vocabulary: int) -> Any:
    t5 = require("transformers", "paper").T5Config(
        vocab_size=vocabulary,
        d_model=config.d_model,
        d_ff=config.d_ff,
        d_kv=config.d_kv,
        num_layers=config.layers,
        num_heads=config.heads,
        feed_forward_proj=config.activation,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
    )
    return undropped(t5)
