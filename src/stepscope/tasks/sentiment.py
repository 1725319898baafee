"""Is this film review positive? A small BERT that classifies texts: the paper's setting for robust smoothness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from stepscope.errors import UsageError, require
from stepscope.tasks.batching import batches_by_length, check_sizes, chosen, initialised, padded, training_batches
from stepscope.tasks.pretrained import Pretrained, pretrained_bert
from stepscope.tasks.reviews import Review, load_reviews
from stepscope.tasks.task import Batch, Task
from stepscope.tasks.tokenizer import END, PAD, learn_tokenizer

Example = tuple[list[int], int]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True)
class SentimentConfig:
    """How large a sentiment task is.

    Attributes:
        reviews: texts to train on; a source with fewer gives all that it has.
        vocabulary: most tokens of the byte-level BPE.
        hidden: width of the residual stream.
        intermediate: width inside a feed-forward block.
        layers: blocks.
        heads: attention heads of a block.
        batch_size: training texts of a batch.
        eval_size: texts of the evaluation batch, drawn from the training texts as in the paper.
        micro_batch_size: texts of one part of the evaluation batch.
        max_tokens: a longer text is cut to so many tokens, those at its ends among them.
        pretrained: ``"minilm"`` takes the weights and the tokenizer of that package, and a random head; vocabulary and
            the sizes of the model are then the package's. None: random weights.
    """

    reviews: int
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    batch_size: int
    eval_size: int
    micro_batch_size: int
    max_tokens: int
    pretrained: str | None = None


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
}


def sentiment(config: SentimentConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: real film reviews, a tokenizer, a BERT with a randomly initialised head.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of the weights and of the order of training batches. Texts and evaluation batch don't depend on it.
        source: where the texts come from, as in ``load_reviews``.

    Returns:
        The task; the mean loss of a batch is over its texts. ``source.examples`` is the number of texts in use: fewer
        than ``config.reviews`` where the source has no more.

    Raises:
        UsageError: no texts or no pretrained weights can be had, or a value of ``config`` is impossible.
        MissingExtraError: transformers, tokenizers or safetensors is not installed.
    """
    check_sizes(config, "reviews", "batch_size", "eval_size", "micro_batch_size")
    if config.max_tokens < 3:
        raise UsageError(f"max_tokens is {config.max_tokens}: at least 3 are needed, a token and the two ends")
    reviews, classes, origin = load_reviews(source)
    # A word has one token at least, so what is cut off here would be cut off later.
    used = [(" ".join(text.split()[: config.max_tokens]), label) for text, label in chosen(reviews, config.reviews)]
    make, encode, pad = _pretrained(config, len(classes)) if config.pretrained else _small(config, used, len(classes))
    examples: list[Example] = [(encode(text), label) for text, label in used]
    together = partial(collate, pad=pad)

    def seeded(seed: int) -> Task:
        return Task(
            name="sentiment",
            model=initialised(make, seed),
            training_batches=training_batches(examples, config.batch_size, seed, together),
            # The texts are in random order by now.
            eval_batches=batches_by_length(
                examples[: config.eval_size], config.micro_batch_size, lambda example: len(example[0]), together
            ),
            source=replace(origin, examples=len(used)),
            seeded=seeded,
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


def _small(config: SentimentConfig, reviews: Sequence[Review], classes: int) -> tuple[Callable[[], Any], Encode, int]:
    """A model of the sizes of the configuration, with what encodes texts for it and what pads them."""
    tokenizer = learn_tokenizer([text for text, _ in reviews], config.vocabulary)

    def encode(text: str) -> list[int]:
        # BERT classifies by its first token's output: the first token is the same for every text.
        return [END, *tokenizer.encode(text).ids[: config.max_tokens - 2], END]

    sizes = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.max_tokens,
        "type_vocab_size": 1,
        "pad_token_id": PAD,
    }
    return partial(_classifier, sizes, classes), encode, PAD


def _pretrained(config: SentimentConfig, classes: int) -> tuple[Callable[[], Any], Encode, int]:
    assert config.pretrained is not None
    found = pretrained_bert(config.pretrained)
    longest = found.config["max_position_embeddings"]
    if config.max_tokens > longest:
        raise UsageError(f"max_tokens is {config.max_tokens}: {config.pretrained} takes up to {longest}")
    found.tokenizer.enable_truncation(config.max_tokens)

    def make() -> nn.Module:
        return _with_weights(_classifier(found.config, classes), found)

    return make, lambda text: list(found.tokenizer.encode(text).ids), found.config["pad_token_id"]


def _with_weights(model: Any, found: Pretrained) -> nn.Module:
    model.bert.load_state_dict(found.weights)
    assert isinstance(model, nn.Module)
    return model


def _classifier(sizes: dict[str, Any], classes: int) -> Any:
    transformers = require("transformers", "tasks")
    config = transformers.BertConfig(
        **sizes,
        # Without dropout the model that trains is the very function that is measured.
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=classes,
        problem_type="single_label_classification",
    )
    return transformers.BertForSequenceClassification(config)
