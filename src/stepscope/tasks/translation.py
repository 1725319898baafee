"""English to French with a small T5: the paper's first setting, at sizes for a test and for two cores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from stepscope.batches import IGNORED_LABEL
from stepscope.errors import UsageError, require
from stepscope.tasks.batching import batches_by_length, check_sizes, chosen, initialised, padded, training_batches
from stepscope.tasks.sources import load_pairs
from stepscope.tasks.task import Batch, Task
from stepscope.tasks.tokenizer import END, PAD, learn_tokenizer

PREFIX = "translate English to French: "
ACTIVATIONS = ("gelu", "relu")

Example = tuple[list[int], list[int]]


@dataclass(frozen=True)
class TranslationConfig:
    """How large a translation task is.

    Attributes:
        pairs: sentence pairs to train on; a source with fewer gives all that it has.
        min_words: fewest words of a sentence.
        max_words: most words of a sentence.
        vocabulary: most tokens of the byte-level BPE, shared by both languages.
        d_model: width of the residual stream.
        d_ff: width inside a feed-forward block.
        d_kv: width of an attention head.
        layers: encoder blocks, and as many decoder blocks.
        heads: attention heads of a block.
        batch_size: training pairs of a batch.
        eval_size: pairs of the evaluation batch, drawn from the training pairs as in the paper.
        micro_batch_size: pairs of one part of the evaluation batch.
        max_tokens: a longer side is cut to so many tokens, the end token among them.
        activation: of the feed-forward blocks. ``"relu"`` is T5's own; with ``"gelu"`` the loss has second
            derivatives everywhere, so that pointwise and finite-step curvature agree.
    """

    pairs: int
    min_words: int
    max_words: int
    vocabulary: int
    d_model: int
    d_ff: int
    d_kv: int
    layers: int
    heads: int
    batch_size: int
    eval_size: int
    micro_batch_size: int
    max_tokens: int
    activation: str = "gelu"


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
    ),
}


def translation(config: TranslationConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: real sentence pairs, their tokenizer, a randomly initialised T5.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of the weights and of the order of training batches. Pairs and evaluation batch don't depend on
        it.
        source: where the pairs come from, as in ``load_pairs``.

    Returns:
        The task. ``source.examples`` is the number of pairs in use: fewer than ``config.pairs`` where the
        source has no more.

    Raises:
        UsageError: no pairs can be had, or a value of ``config`` is impossible.
        MissingExtraError: transformers or tokenizers is not installed.
    """
    _check(config)
    pairs, origin = load_pairs(source, min_words=config.min_words, max_words=config.max_words)
    used = chosen(pairs, config.pairs)
    tokenizer = learn_tokenizer([PREFIX, *(side for pair in used for side in pair)], config.vocabulary)

    def encode(text: str) -> list[int]:
        return [*tokenizer.encode(text).ids[: config.max_tokens - 1], END]

    examples: list[Example] = [(encode(PREFIX + english), encode(french)) for english, french in used]
    return Task(
        name="translation",
        model=_model(config, vocabulary=tokenizer.get_vocab_size(), seed=seed),
        training_batches=training_batches(examples, config.batch_size, seed, collate),
        # The pairs are in random order by now.
        eval_batches=batches_by_length(
            examples[: config.eval_size],
            config.micro_batch_size,
            lambda example: (len(example[0]), len(example[1])),
            collate,
        ),
        source=replace(origin, examples=len(used)),
    )


def collate(examples: Sequence[Example]) -> Batch:
    """Makes a batch of encoded pairs, padded to its longest.

    Args:
        examples: token numbers of source and target, each closed by the end token.

    Returns:
        ``input_ids`` and ``attention_mask`` (int64, shape (pairs, longest source)) and ``labels`` (int64,
        shape (pairs, longest target)); labels are −100 where padded, which the loss leaves out.

    Example:
        >>> collate([([5, 1], [7, 8, 1]), ([5, 6, 1], [1])])["labels"].tolist()
        [[7, 8, 1], [1, -100, -100]]
    """
    input_ids = padded([source for source, _ in examples], PAD)
    # Not `input_ids != PAD`: only the lengths say what is padding.
    mask = padded([[1] * len(source) for source, _ in examples], 0)
    labels = padded([target for _, target in examples], IGNORED_LABEL)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def _check(config: TranslationConfig) -> None:
    if config.activation not in ACTIVATIONS:
        raise UsageError(f"activation is {config.activation!r}: choose {' or '.join(ACTIVATIONS)}")
    check_sizes(config, "pairs", "batch_size", "eval_size", "micro_batch_size")
    if config.max_tokens < 2:
        raise UsageError(f"max_tokens is {config.max_tokens}: at least 2 are needed, a token and the end")


def _model(config: TranslationConfig, *, vocabulary: int, seed: int) -> nn.Module:
    transformers = require("transformers", "tasks")
    t5 = transformers.T5Config(
        vocab_size=vocabulary,
        d_model=config.d_model,
        d_ff=config.d_ff,
        d_kv=config.d_kv,
        num_layers=config.layers,
        num_heads=config.heads,
        feed_forward_proj=config.activation,
        # T5's default is 0.1. Without it the model that trains is the very function whose curvature is measured
        # (measuring has to switch dropout off), and every optimizer's run sees the same losses.
        dropout_rate=0.0,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=END,
        decoder_start_token_id=PAD,
        use_cache=False,
    )
    return initialised(lambda: transformers.T5ForConditionalGeneration(t5), seed)
