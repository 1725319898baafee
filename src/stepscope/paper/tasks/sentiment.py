"""Is this film review positive? A BERT that classifies texts: the paper's setting for robust smoothness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.batching import (
    batches_by_length,
    check_model_sizes,
    check_sizes,
    chosen,
    initialised,
    padded,
    training_batches,
)
from stepscope.paper.tasks.pretrained import (
    Pretrained,
    Weights,
    check_length,
    pad_token,
    pretrained_bert,
    published,
    undropped,
    with_weights,
)
from stepscope.paper.tasks.reviews import load_reviews
from stepscope.paper.tasks.task import Batch, Task
from stepscope.paper.tasks.tokenizer import END, PAD, learn_tokenizer

Example = tuple[list[int], int]
Encode = Callable[[str], list[int]]

KINDS = {
    "bert": ("BertModel", "BertForSequenceClassification"),
    "distilbert": ("DistilBertModel", "DistilBertForSequenceClassification"),
}
"""For each type of model, transformers' classes of the encoder and of the classifier."""


@dataclass(frozen=True)
class SentimentConfig:
    """How large a sentiment task is.

    Attributes:
        reviews: texts to train on; a source with fewer gives all that it has.
        batch_size: training texts of a batch.
        eval_size: texts of the evaluation batch, drawn from the training texts as in the paper.
        micro_batch_size: texts of one part of the evaluation batch.
        max_tokens: a longer text is cut to so many tokens, those at its ends among them.
        vocabulary: most tokens of the byte-level BPE. None, as the sizes that follow, beside a checkpoint, which has
            its own.
        hidden: width of the residual stream.
        intermediate: width inside a feed-forward block.
        layers: blocks.
        heads: attention heads of a block.
        pretrained: ``"minilm"`` takes the weights and the tokenizer of that package, and a random head; vocabulary and
            the sizes of the model are then the package's. None: random weights, or those of the checkpoint.
        checkpoint: a pretrained BERT or DistilBERT with its tokenizer, of the Hub or in a directory, as in
            `stepscope.paper.tasks.pretrained.published`; the head is random. Empty: random weights of the sizes above.
    """

    reviews: int
    batch_size: int
    eval_size: int
    micro_batch_size: int
    max_tokens: int
    vocabulary: int | None = None
    hidden: int | None = None
    intermediate: int | None = None
    layers: int | None = None
    heads: int | None = None
    pretrained: str | None = None
    checkpoint: str = ""


SCALES = {
    "smoke": SentimentConfig(
        reviews=256,
        vocabulary=384,
        hidden=16,
        intermediate=32,
        layers=1,
        heads=2,
        batch_size=8,
        eval_size=16,
        micro_batch_size=8,
        max_tokens=24,
    ),
    "cpu": SentimentConfig(
        reviews=8_192,
        vocabulary=2_048,
        hidden=64,
        intermediate=256,
        layers=2,
        heads=4,
        batch_size=32,
        eval_size=128,
        micro_batch_size=32,
        max_tokens=96,
    ),
    "gpu": SentimentConfig(
        reviews=20_480,
        vocabulary=8_192,
        hidden=384,
        intermediate=1_536,
        layers=6,
        heads=6,
        batch_size=128,
        eval_size=128,
        micro_batch_size=64,
        max_tokens=256,
    ),
    "paper": SentimentConfig(
        reviews=10_240,
        batch_size=32,  # the number is lost in the paper's text
        eval_size=128,
        micro_batch_size=8,
        max_tokens=512,
        checkpoint="distilbert/distilbert-base-uncased",
    ),
}
"""Sizes: for tests, for two cores (0.24 million parameters), for one GPU (14.0 million: DistilBERT's depth at half its
width, 160 steps an epoch), and the model of the paper's code with its data (67 million; the text says BERT, which is
``checkpoint="google-bert/bert-base-uncased"``), which need the Hub or copies of them."""


def sentiment(config: SentimentConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: real film reviews, a tokenizer, a BERT with a randomly initialised head.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of random weights and of the order of training batches. Texts and evaluation batch don't depend on it.
        source: where the texts come from, as in ``load_reviews``.

    Returns:
        The task; the mean loss of a batch is over its texts. ``source.examples`` is the number of texts in use: fewer
        than ``config.reviews`` where the source has no more.

    Raises:
        UsageError: no texts or no pretrained weights can be had, or a value of ``config`` is impossible.
        MissingExtraError: transformers, tokenizers or safetensors is not installed.
    """
    if config.pretrained and config.checkpoint:
        raise UsageError(f"pretrained is {config.pretrained!r} beside a checkpoint: give one of them")
    if not config.pretrained:
        check_model_sizes(config, "vocabulary", "hidden", "intermediate", "layers", "heads")
    check_sizes(config, "reviews", "batch_size", "eval_size", "micro_batch_size")
    if config.max_tokens < 3:
        raise UsageError(f"max_tokens is {config.max_tokens}: at least 3 are needed, a token and the two ends")
    found = _found(config)  # before the data, which may be a long download
    reviews, classes, origin = load_reviews(source)
    # A word has one token at least, so what is cut off here would be cut off later.
    used = [(" ".join(text.split()[: config.max_tokens]), label) for text, label in chosen(reviews, config.reviews)]
    model, encode, pad = _pretrained(config, found) if found else _small(config, [text for text, _ in used])
    model = undropped(model, num_labels=len(classes), problem_type="single_label_classification")
    examples: list[Example] = [(encode(text), label) for text, label in used]
    together = partial(collate, pad=pad)

    def seeded(seed: int) -> Task:
        return Task(
            name="sentiment",
            model=initialised(partial(_model, model, found.weights if found else None), seed),
            training_batches=training_batches(examples, config.batch_size, seed, together),
            # The texts are in random order by now.
            eval_batches=batches_by_length(
                examples[: config.eval_size], config.micro_batch_size, lambda example: len(example[0]), together
            ),
            source=replace(origin, examples=len(used)),
            seeded=seeded,
            initialisation=f"pretrained: {found.origin}" if found else "random",
        )

    return seeded(seed)


def collate(examples: Sequence[Example], pad: int = PAD) -> Batch:
    """Makes a batch of encoded texts, padded to its longest.

    Args:
        examples: token numbers and class of each text.
        pad: the token to fill up with.

    Returns:
        ``input_ids`` and ``attention_mask`` (int64, shape (texts, longest)) and ``labels`` (int64, shape (texts,)).

    Example:
        >>> batch = collate([([1, 5, 1], 0), ([1, 5, 6, 1], 1)])
        >>> batch["attention_mask"].tolist(), batch["labels"].tolist()
        ([[1, 1, 1, 0], [1, 1, 1, 1]], [0, 1])
    """
    return {
        "input_ids": padded([tokens for tokens, _ in examples], pad),
        "attention_mask": padded([[1] * len(tokens) for tokens, _ in examples], 0),
        "labels": torch.tensor([label for _, label in examples]),
    }


def _found(config: SentimentConfig) -> Pretrained | None:
    if config.pretrained:
        found, whose = pretrained_bert(config.pretrained), config.pretrained
    elif config.checkpoint:
        encoders = {kind: encoder for kind, (encoder, _) in KINDS.items()}
        found, whose = published(config.checkpoint, encoders, title="a BERT or DistilBERT"), config.checkpoint
    else:
        return None
    check_length(config.max_tokens, found.config, whose)
    return found


def _small(config: SentimentConfig, texts: Sequence[str]) -> tuple[Any, Encode, int]:
    """A model's configuration of the task's sizes, with what encodes texts for it and what pads them."""
    assert config.vocabulary is not None
    tokenizer = learn_tokenizer(texts, config.vocabulary)

    def encode(text: str) -> list[int]:
        # BERT classifies by its first token's output: the first token is the same for every text.
        return [END, *tokenizer.encode(text).ids[: config.max_tokens - 2], END]

    return _bert(config, tokenizer.get_vocab_size()), encode, PAD


def _bert(config: SentimentConfig, vocabulary: int) -> Any:
    return require("transformers", "paper").BertConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=config.intermediate,
        max_position_embeddings=config.max_tokens,
        type_vocab_size=1,
        pad_token_id=PAD,
    )


def _pretrained(config: SentimentConfig, found: Pretrained) -> tuple[Any, Encode, int]:
    found.tokenizer.enable_truncation(config.max_tokens)
    return found.config, lambda text: list(found.tokenizer.encode(text).ids), pad_token(found)


def _model(config: Any, weights: Weights | None) -> nn.Module:
    model = getattr(require("transformers", "paper"), KINDS[config.model_type][1])(config)
    with_weights(model.base_model, weights)
    assert isinstance(model, nn.Module)
    return model
