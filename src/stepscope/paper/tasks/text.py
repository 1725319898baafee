"""What a text task is: checked settings, a tokenizer, encoded examples, and a model at random or pretrained.

A task of this kind is its data, its model and how texts are encoded; all else of it is here. In order: `check_text`;
`published_text`, before the data, which may be a long download; its data; `tokens_of` or its own encoding; `text_task`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from stepscope.cache import cache_directory
from stepscope.errors import UsageError, require
from stepscope.objective import IGNORED_LABEL
from stepscope.paper.tasks.batching import DATA_SEED, initialized, task_of, training_batches
from stepscope.paper.tasks.downloads import write_cached
from stepscope.paper.tasks.pretrained import Pretrained, Weights, check_length, end_token, pad_token, published
from stepscope.paper.tasks.pretraining import BRIEF, Lesson, Pretraining, check_beginning, digest_of
from stepscope.paper.tasks.task import Batch, Source, Task

SPECIAL_TOKENS = ("<pad>", "</s>", "<unk>")  # with T5's numbers: 0, 1, 2
PAD, END, UNKNOWN = 0, 1, 2
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

Example = tuple[list[int], list[int] | int]
"""Token numbers of a text, and its target: token numbers, or the number of its class."""

Apart = TypeVar("Apart")


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """How large a text task is, but for its examples and its model.

    Attributes:
        batch_size: training examples of a batch.
        eval_size: examples of the evaluation batch, drawn from the training examples as in the paper.
        micro_batch_size: examples of one part of the evaluation batch.
        max_tokens: a longer text is cut to so many tokens, those at its ends among them.
        vocabulary: most tokens of the byte-level BPE. None, as the sizes of the model, beside a checkpoint, which has
            its own.
        checkpoint: a pretrained model with its tokenizer, of the Hub or in a directory, as in
            `stepscope.paper.tasks.pretrained.published`. Empty: a model of the sizes given.
        start: ``"pretrained"``: with the checkpoint's weights, or pretrained on the spot if there is none;
            ``"random"``: with random ones.
        set_apart: whether a half of the data is set apart for pretraining. Both starts train on the other.
        pretraining: how far the model is pretrained on the spot.
    """

    batch_size: int
    eval_size: int
    micro_batch_size: int
    max_tokens: int
    vocabulary: int | None = None
    checkpoint: str = ""
    start: str = "random"
    set_apart: bool = True
    pretraining: Pretraining = BRIEF

    @property
    def pretrained_here(self) -> bool:
        """Whether the model is pretrained on the spot."""
        return self.start == "pretrained" and not self.checkpoint


def check_text(config: TextConfig, *, examples: str, sizes: Sequence[str], fewest: int, tokens: str) -> None:
    """Refuses settings that no text task can have.

    Args:
        config: of the task.
        examples: the setting that says how many examples are trained on.
        sizes: the settings that hold the model's sizes; a checkpoint has its own, and leaves them None.
        fewest: tokens that an example has at least.
        tokens: what these are.

    Raises:
        UsageError: a number is too small, a size of the model is missing, or one is set beside a checkpoint.
    """
    _check_model_sizes(config, *sizes)
    _check_sizes(config, examples, "batch_size", "eval_size", "micro_batch_size")
    check_beginning(config.start, config.pretraining, possible=bool(config.checkpoint) or config.set_apart)
    if config.max_tokens < fewest:
        raise UsageError(f"max_tokens is {config.max_tokens}: at least {fewest} are needed, {tokens}")


def published_text(config: TextConfig, models: Mapping[str, str], title: str) -> Pretrained | None:
    """The pretrained model that a configuration names as its ``checkpoint``; None where it names none.

    Args:
        config: of the task.
        models: transformers' class for each type of model that fits.
        title: what to call those types, such as ``"a T5"``.

    Raises:
        UsageError: it is not available (see `published`), or has fewer positions than the texts have tokens.
    """
    if not config.checkpoint:
        return None
    pretrained = published(config.checkpoint, models, title=title)
    check_length(config.max_tokens, pretrained.config, config.checkpoint)
    return pretrained


@dataclass(frozen=True)
class Tokens:
    """How texts become token numbers.

    Attributes:
        tokenizer: a ``tokenizers.Tokenizer``.
        end: the number of the token that ends a text.
        pad: the number of the token to fill up with.
    """

    tokenizer: Any
    end: int
    pad: int

    def encoded(self, text: str) -> list[int]:
        """The token numbers of a text, without an end."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


def tokens_of(pretrained: Pretrained | None, texts: Sequence[str], vocabulary: int | None) -> Tokens:
    """The tokens of a pretrained model; those learned from the texts where there is none."""
    if pretrained is not None:
        return Tokens(pretrained.tokenizer, end_token(pretrained), pad_token(pretrained))
    assert vocabulary is not None, "checked by check_text"
    return Tokens(learn_tokenizer(texts, vocabulary), END, PAD)


@dataclass(frozen=True)
class TextLesson(Generic[Apart]):
    """What a text task's model is pretrained on, on the spot.

    Attributes:
        title: one line, such as ``"masked words of 9,000 other reviews"``.
        make: transformers' class of what learns it.
        examples: encoded, of what the task doesn't see, in random order; at least 2.
        example: makes a training example of one of them, with what is random in it.
    """

    title: str
    make: str
    examples: Sequence[Apart]
    example: Callable[[Apart, Random], Example]


def text_task(
    name: str,
    config: TextConfig,
    examples: Sequence[Example],
    *,
    seed: int,
    model: Any,
    make: str,
    pretrained: Pretrained | None,
    lesson: TextLesson[Any] | None,
    new_head: bool = False,
    pad: int,
    source: Source,
) -> Task:
    """Makes a task of encoded examples, and of a model.

    Args:
        name: of the task.
        config: with the sizes of batches.
        examples: in random order; the first of them are evaluated on, in the order of their lengths: little padding,
            and unlike numbers of tokens.
        seed: of random weights and of the order of training batches.
        model: its configuration, as transformers keeps it.
        make: transformers' class of the model.
        pretrained: the published model that has its architecture; its weights are taken unless the start is random.
        lesson: what it is pretrained on here; None if it isn't.
        new_head: whether pretrained weights are of the model without its head, which is drawn at random.
        pad: the token to fill up with.
        source: where the examples are from.
    """
    taken = pretrained if config.start == "pretrained" else None

    def inside(whole: Any) -> Any:
        return whole.base_model if new_head else whole

    def begun(seed: int, learned: Weights | None) -> nn.Module:
        whole = initialized(partial(_drawn, make, model), seed)
        if taken is not None:
            inside(whole).load_state_dict(taken.weights)
        elif learned is not None:
            # What pretraining doesn't need, such as a BERT's pooler, is as new as the head.
            inside(whole).load_state_dict({**inside(whole).state_dict(), **learned})
        return whole

    return task_of(
        name,
        config,
        examples,
        seed=seed,
        model=begun,
        collate=partial(collate, pad=pad),
        source=source,
        initialisation=f"pretrained: {taken.origin}" if taken else "random",
        lesson=(_lesson(lesson, config.pretraining, model, inside, pad), config.pretraining) if lesson else None,
        order=lambda example: [len(side) for side in example if isinstance(side, list)],
    )


def _drawn(make: str, model: Any) -> nn.Module:
    whole: nn.Module = getattr(require("transformers", "paper"), make)(model)
    return whole


def _lesson(
    text: TextLesson[Any], settings: Pretraining, model: Any, kept: Callable[[nn.Module], nn.Module], pad: int
) -> Lesson:
    if len(text.examples) < 2:
        raise UsageError("too little is left to pretrain on: give more data, or begin at random")
    # A tenth at most is held out: of few examples most are to be learned from.
    held = max(1, min(settings.batch_size, len(text.examples) // 10))

    def batches(examples: Sequence[Any], seed: int, size: int) -> Iterator[Batch]:
        draw = Random(seed)
        made = training_batches(
            examples, size, seed, lambda chosen: collate([text.example(each, draw) for each in chosen], pad)
        )
        return made()

    return Lesson(
        title=text.title,
        model=lambda seed: initialized(partial(_drawn, text.make, model), seed),
        kept=kept,
        batches=lambda seed: batches(text.examples[held:], seed, settings.batch_size),
        held_out=next(batches(text.examples[:held], DATA_SEED, held)),
        optimizer=partial(torch.optim.AdamW, weight_decay=0.01),
        digest=digest_of(text.title, text.make, model.to_dict(), text.examples),
    )


def collate(examples: Sequence[Example], pad: int = PAD) -> Batch:
    """Makes a batch of encoded examples, padded to its longest.

    Args:
        examples: token numbers of each text, and its target: token numbers, or the number of its class.
        pad: the token to fill up texts with.

    Returns:
        ``input_ids`` and ``attention_mask`` (int64, shape (examples, longest)) and ``labels`` (int64, shape (examples,
        longest target) or (examples,)); labels are −100 where padded, which the loss leaves out.

    Example:
        >>> collate([([5, 1], [7, 8, 1]), ([5, 6, 1], [1])])["labels"].tolist()
        [[7, 8, 1], [1, -100, -100]]
        >>> collate([([1, 5, 1], 0), ([1, 5, 6, 1], 1)])["labels"].tolist()
        [0, 1]
    """
    texts = [text for text, _ in examples]
    targets = [target for _, target in examples if isinstance(target, list)]
    labels = padded(targets, IGNORED_LABEL) if targets else torch.tensor([label for _, label in examples])
    return {"input_ids": padded(texts, pad), "attention_mask": mask_of(texts), "labels": labels}


def padded(rows: Sequence[list[int]], filler: int) -> Tensor:
    """Token numbers as one int64 tensor, shape (rows, longest), filled up at the end.

    Example:
        >>> padded([[5], [7, 8]], 0).tolist()
        [[5, 0], [7, 8]]
    """
    longest = max(map(len, rows))
    return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])


def mask_of(rows: Sequence[Sequence[int]]) -> Tensor:
    """1 for each token, 0 for what fills up: only the lengths say what is padding, a padding token may be a word too.

    Example:
        >>> mask_of([[5], [7, 8]]).tolist()
        [[1, 0], [1, 1]]
    """
    return padded([[1] * len(row) for row in rows], 0)


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
    # Of a damaged file the library raises a bare Exception. It is learned again, like a missing one.
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


def _check_sizes(config: object, *names: str) -> None:
    """Refuses a configuration in which one of these numbers is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise UsageError(f"{name} is {getattr(config, name)}: at least 1 is needed")


def _check_model_sizes(config: TextConfig, *names: str) -> None:
    """Refuses sizes of a model beside a checkpoint, which has its own, and missing or impossible ones without one."""
    given = [name for name in names if getattr(config, name) is not None]
    if config.checkpoint:
        if given:
            remedy = f"set {', '.join(given)} to None"
            raise UsageError(f"{given[0]} is {getattr(config, given[0])}, but a checkpoint has its own: {remedy}")
    elif missing := [name for name in names if name not in given]:
        raise UsageError(f"{missing[0]} is not set: give it, or a checkpoint")
    else:
        _check_sizes(config, *(name for name in names if isinstance(getattr(config, name), int)))
