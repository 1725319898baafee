"""Is this film review positive? A BERT that classifies texts: the paper's setting for robust smoothness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from typing_extensions import override

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.batching import chosen, halves
from stepscope.paper.tasks.objectives import masked_words
from stepscope.paper.tasks.pretrained import Pretrained, check_length, pad_token, pretrained_bert, undropped
from stepscope.paper.tasks.pretraining import Pretraining
from stepscope.paper.tasks.sources.reviews import Review, load_reviews
from stepscope.paper.tasks.task import Task
from stepscope.paper.tasks.text import (
    END,
    PAD,
    UNKNOWN,
    TextConfig,
    TextLesson,
    check_text,
    learn_tokenizer,
    published_text,
    text_task,
)

Encode = Callable[[str], list[int]]

KINDS = {
    "bert": ("BertModel", "BertForSequenceClassification"),
    "distilbert": ("DistilBertModel", "DistilBertForSequenceClassification"),
}
"""For each type of model, transformers' classes of the encoder and of the classifier."""


@dataclass(frozen=True, kw_only=True)
class SentimentConfig(TextConfig):
    """How large a sentiment task is; a checkpoint is a BERT or DistilBERT, and its head is random.

    Attributes:
        reviews: texts to train on; a source with fewer gives all that it has.
        hidden: width of the residual stream.
        intermediate: width inside a feed-forward block.
        layers: blocks.
        heads: attention heads of a block.
        pretrained: ``"minilm"`` takes that package in the place of a checkpoint: its tokenizer and its sizes, and its
            weights unless the start is random.
    """

    reviews: int
    hidden: int | None = None
    intermediate: int | None = None
    layers: int | None = None
    heads: int | None = None
    pretrained: str | None = None

    @property
    @override
    def pretrained_here(self) -> bool:
        return super().pretrained_here and not self.pretrained


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
        pretraining=Pretraining(steps=1_000, batch_size=16, lr=5e-3),
    ),
    "desk": SentimentConfig(
        reviews=10_240,
        vocabulary=5_120,
        hidden=192,
        intermediate=768,
        layers=4,
        heads=6,
        batch_size=32,
        eval_size=96,
        micro_batch_size=24,
        max_tokens=96,
        pretraining=Pretraining(steps=2_000, batch_size=16, lr=2e-3),
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
        pretraining=Pretraining(steps=4_000, batch_size=64, lr=1e-3),
    ),
    "paper": SentimentConfig(
        reviews=10_240,
        batch_size=32,  # the number is lost in the paper's text
        eval_size=128,
        micro_batch_size=8,
        max_tokens=512,
        set_apart=False,
        start="pretrained",
        checkpoint="distilbert/distilbert-base-uncased",
    ),
}
"""Sizes: for tests, for two cores (0.24 million parameters), for an afternoon on them (2.82 million, DistilBERT's share
of embedding, 36%), for one GPU (14.0 million: DistilBERT's depth at half its width, 160 steps an epoch), and the model
of the paper's code with its data (67 million; the text says BERT, which is
``checkpoint="google-bert/bert-base-uncased"``), which need the Hub or copies of them."""


def sentiment(config: SentimentConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: real film reviews, a tokenizer, a BERT with a randomly initialized head.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of random weights and of the order of training batches. Texts and evaluation batch don't depend on it.
        source: where the texts come from, as in ``load_reviews``.

    Returns:
        The task; the mean loss of a batch is over its texts. ``source.examples`` is the number of texts in use: fewer
        than ``config.reviews`` where the source has no more.

    Raises:
        UsageError: no texts or no pretrained weights are available, or a value of ``config`` is impossible.
        MissingExtraError: transformers, tokenizers or safetensors is not installed.
    """
    if config.pretrained and config.checkpoint:
        raise UsageError(f"pretrained is {config.pretrained!r} beside a checkpoint: give one of them")
    sizes = () if config.pretrained else ("vocabulary", "hidden", "intermediate", "layers", "heads")
    check_text(config, examples="reviews", sizes=sizes, fewest=3, tokens="a token and the two ends")
    pretrained = _pretrained(config)
    reviews, classes, origin = load_reviews(source)
    # A word has one token at least, so what is cut off here would be cut off later.
    reviews = [(" ".join(text.split()[: config.max_tokens]), label) for text, label in reviews]
    own, apart = halves(reviews, lambda review: [review[0]]) if config.set_apart else (reviews, [])
    used = chosen(own, config.reviews)
    texts = [text for text, _ in used]
    model, encode, pad = _encoder(config, pretrained) if pretrained else _small(config, texts)
    model = undropped(model, num_labels=len(classes), problem_type="single_label_classification")
    return text_task(
        "sentiment",
        config,
        [(encode(text), label) for text, label in used],
        seed=seed,
        model=model,
        make=KINDS[model.model_type][1],
        pretrained=pretrained,
        lesson=_lesson(config, apart, encode, model) if config.pretrained_here else None,
        new_head=True,
        pad=pad,
        source=origin,
    )


def _pretrained(config: SentimentConfig) -> Pretrained | None:
    if not config.pretrained:
        return published_text(config, {kind: names[0] for kind, names in KINDS.items()}, "a BERT or DistilBERT")
    package = pretrained_bert(config.pretrained)
    check_length(config.max_tokens, package.config, config.pretrained)
    return package


def _lesson(config: SentimentConfig, apart: Sequence[Review], encode: Encode, model: Any) -> TextLesson[list[int]]:
    """BERT's masked words. No byte-level token is ever unknown: that one's number is free to be the mask."""
    examples = [encode(text) for text, _ in apart[: config.pretraining.examples]]
    title = f"masked words of {len(examples):,} other reviews"

    def example(tokens: list[int], draw: Random) -> tuple[list[int], list[int]]:
        return masked_words(tokens, mask=UNKNOWN, vocabulary=model.vocab_size, draw=draw)

    return TextLesson(title, "BertForMaskedLM", examples, example)


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


def _encoder(config: SentimentConfig, pretrained: Pretrained) -> tuple[Any, Encode, int]:
    """The same of a pretrained model."""
    pretrained.tokenizer.enable_truncation(config.max_tokens)
    return pretrained.config, lambda text: list(pretrained.tokenizer.encode(text).ids), pad_token(pretrained)
