"""A byte-level BPE tokenizer, learned from the very text it is for."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.downloads import cache_directory, write_cached

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # with T5's numbers: 0, 1, 2
PAD, END = 0, 1
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)


def learn_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Learns a byte-level BPE tokenizer, or takes the one learned from the same texts out of the cache.

    Byte pair encoding (Sennrich, Haddow and Birch, 2016, arXiv 1508.07909) over bytes: any text can be
    encoded, so no token is ever unknown. The result depends on the arguments alone.

    Args:
        texts: what to learn from.
        vocabulary: most tokens, at least 259: the bytes and three special tokens.

    Returns:
        A ``tokenizers.Tokenizer``; ``<pad>`` is 0, ``</s>`` is 1.

    Raises:
        UsageError: the vocabulary is too small.
        MissingExtraError: ``tokenizers`` is not installed.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise UsageError(f"vocabulary is {vocabulary}: byte-level tokens need at least {SMALLEST_VOCABULARY}")
    tokenizers = require("tokenizers", "paper")
    digest = hashlib.sha256(f"1 {tokenizers.__version__} {vocabulary} {SPECIAL_TOKENS}\n".encode())
    for text in texts:
        # With its length, so that no other split of the same characters has the same digest.
        digest.update(f"{len(text)} {text}\n".encode())
    name = f"tokenizers/{digest.hexdigest()[:32]}.json"
    # Of a damaged file the library raises a bare Exception. It is learned anew, like a missing one.
    with suppress(Exception):
        return tokenizers.Tokenizer.from_str((cache_directory() / name).read_text("utf-8"))
    tokenizer = _train(tokenizers, texts, vocabulary)
    with suppress(OSError):  # the cache only saves time here
        write_cached(name, tokenizer.to_str().encode("utf-8"))
    return tokenizer


def _train(tokenizers: Any, texts: Sequence[str], vocabulary: int) -> Any:
    bytewise = tokenizers.pre_tokenizers.ByteLevel
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=SPECIAL_TOKENS[2]))
    tokenizer.pre_tokenizer = bytewise(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(bytewise.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
