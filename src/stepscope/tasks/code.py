"""Python code, token by token, with a small GPT-Neo: the paper's second setting, at sizes for a test and two cores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from stepscope.batches import IGNORED_LABEL
from stepscope.errors import UsageError, require
from stepscope.tasks.batching import batches_by_length, check_sizes, chosen, initialised, padded, training_batches
from stepscope.tasks.programs import load_programs
from stepscope.tasks.task import Batch, Task
from stepscope.tasks.tokenizer import END, PAD, learn_tokenizer

Example = list[int]

# Learning merges takes time that grows with the text, and more text hardly changes them.
_TOKENIZER_PROGRAMS = 200


@dataclass(frozen=True)
class CodeConfig:
    """How large a code task is.

    Attributes:
        pieces: pieces of programs to train on; a source with fewer gives all that it has.
        vocabulary: most tokens of the byte-level BPE.
        hidden: width of the residual stream.
        layers: blocks; attention is global and local by turns, as in GPT-Neo.
        heads: attention heads of a block.
        window: tokens that local attention sees.
        batch_size: training pieces of a batch.
        eval_size: pieces of the evaluation batch, drawn from the training pieces as in the paper.
        micro_batch_size: pieces of one part of the evaluation batch.
        max_tokens: tokens of a piece. The paper cuts each file to its first 2,048; shorter pieces leave more of a
            file to learn from if it is cut into many, which is done here.
    """

    pieces: int
    vocabulary: int
    hidden: int
    layers: int
    heads: int
    window: int
    batch_size: int
    eval_size: int
    micro_batch_size: int
    max_tokens: int


SCALES = {
    "smoke": CodeConfig(
        pieces=256,
        vocabulary=384,
        hidden=16,
        layers=2,
        heads=2,
        window=8,
        batch_size=8,
        eval_size=16,
        micro_batch_size=8,
        max_tokens=24,
    ),
    "cpu": CodeConfig(
        pieces=10_240,
        vocabulary=2_048,
        hidden=64,
        layers=2,
        heads=4,
        window=16,
        batch_size=64,
        eval_size=80,
        micro_batch_size=20,
        max_tokens=48,
    ),
}


def code(config: CodeConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: real programs, their tokenizer, a randomly initialised GPT-Neo.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of the weights and of the order of training batches. Pieces and evaluation batch don't depend on it.
        source: where the programs come from, as in ``load_programs``.

    Returns:
        The task; the mean loss of a batch is over its tokens but the first of each piece. ``source.examples`` is the
        number of pieces in use.

    Raises:
        UsageError: no programs can be had, or a value of ``config`` is impossible.
        MissingExtraError: transformers or tokenizers is not installed.
    """
    check_sizes(config, "pieces", "layers", "window", "batch_size", "eval_size", "micro_batch_size")
    if config.max_tokens < 2:
        raise UsageError(f"max_tokens is {config.max_tokens}: at least 2 are needed, a token and the next")
    programs, origin = load_programs(source)
    programs = chosen(programs, len(programs))
    tokenizer = learn_tokenizer(programs[:_TOKENIZER_PROGRAMS], config.vocabulary)
    pieces = chosen(_first(_pieces(programs, tokenizer, config.max_tokens), 4 * config.pieces), config.pieces)
    if not pieces:
        raise UsageError("the programs are too short to learn from: give a longer file")

    def seeded(seed: int) -> Task:
        return Task(
            name="code",
            model=initialised(partial(_model, config, tokenizer.get_vocab_size()), seed),
            training_batches=training_batches(pieces, config.batch_size, seed, collate),
            # The pieces are in random order by now.
            eval_batches=batches_by_length(pieces[: config.eval_size], config.micro_batch_size, len, collate),
            source=replace(origin, examples=len(pieces)),
            seeded=seeded,
        )

    return seeded(seed)


def collate(examples: Sequence[Example]) -> Batch:
    """Makes a batch of encoded pieces, padded to its longest.

    Args:
        examples: token numbers of each piece.

    Returns:
        ``input_ids``, ``attention_mask`` and ``labels`` (int64, shape (pieces, longest)); labels are the pieces
        themselves, which the model shifts, and −100 where padded, which the loss leaves out.

    Example:
        >>> collate([[5, 6, 1], [7, 1]])["labels"].tolist()
        [[5, 6, 1], [7, 1, -100]]
    """
    mask = padded([[1] * len(example) for example in examples], 0)
    input_ids = padded(examples, PAD)
    return {
        "input_ids": input_ids,
        "attention_mask": mask,
        "labels": torch.where(mask == 1, input_ids, IGNORED_LABEL),
    }


def _pieces(programs: Sequence[str], tokenizer: Any, size: int) -> Iterator[Example]:
    for program in programs:
        tokens = [*tokenizer.encode(program).ids, END]
        for start in range(0, len(tokens), size):
            if len(piece := tokens[start : start + size]) > 1:
                yield piece


def _first(pieces: Iterator[Example], count: int) -> list[Example]:
    """So many pieces at most: of several programs, but not all of a large collection has to be encoded."""
    return [piece for _, piece in zip(range(count), pieces, strict=False)]


def _model(config: CodeConfig, vocabulary: int) -> Any:
    transformers = require("transformers", "tasks")
    kinds = [["global", "local"], config.layers // 2] if config.layers % 2 == 0 else [["global"], config.layers]
    neo = transformers.GPTNeoConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        num_layers=config.layers,
        attention_types=[kinds],
        num_heads=config.heads,
        window_size=config.window,
        max_position_embeddings=config.max_tokens,
        # Without dropout the model that trains is the very function that is measured.
        resid_dropout=0.0,
        embed_dropout=0.0,
        attention_dropout=0.0,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
        use_cache=False,
    )
    return transformers.GPTNeoForCausalLM(neo)
