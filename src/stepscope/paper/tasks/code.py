"""Python code, token by token, with a GPT-Neo: the paper's second setting, and sizes for a test, two cores, one GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from stepscope.errors import UsageError, require
from stepscope.paper.tasks.batching import chosen, halves
from stepscope.paper.tasks.pretrained import undropped
from stepscope.paper.tasks.pretraining import Pretraining
from stepscope.paper.tasks.sources.programs import load_programs
from stepscope.paper.tasks.task import Task
from stepscope.paper.tasks.text import (
    END,
    PAD,
    TextConfig,
    TextLesson,
    check_text,
    published_text,
    text_task,
    tokens_of,
)

GPT_NEO = {"gpt_neo": "GPTNeoForCausalLM"}

# Learning merges takes time that grows with the text, and more text hardly changes them.
_TOKENIZER_PROGRAMS = 200


@dataclass(frozen=True, kw_only=True)
class CodeConfig(TextConfig):
    """How large a code task is; ``max_tokens`` are those of a piece.

    Attributes:
        pieces: pieces of programs to train on; a source with fewer gives all that it has.
        first_only: whether only the first piece of each program is used. The paper cuts each file to its first 2,048
            tokens; of shorter pieces more of a file is left to learn from if all are used.
        hidden: width of the residual stream.
        layers: blocks; attention is global and local by turns, as in GPT-Neo.
        heads: attention heads of a block.
        window: tokens that local attention sees.
    """

    pieces: int
    first_only: bool = False
    hidden: int | None = None
    layers: int | None = None
    heads: int | None = None
    window: int | None = None


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
        pretraining=Pretraining(steps=1_200, batch_size=32, lr=5e-3),
    ),
    "desk": CodeConfig(
        pieces=10_240,
        vocabulary=4_096,
        hidden=192,
        layers=4,
        heads=6,
        window=16,
        batch_size=64,
        eval_size=96,
        micro_batch_size=24,
        max_tokens=48,
        pretraining=Pretraining(steps=2_400, batch_size=32, lr=2e-3),
    ),
    "gpu": CodeConfig(
        pieces=10_240,
        vocabulary=8_192,
        hidden=512,
        layers=6,
        heads=8,
        window=128,
        batch_size=128,
        eval_size=128,
        micro_batch_size=32,
        max_tokens=256,
        pretraining=Pretraining(steps=4_000, batch_size=64, lr=1e-3),
    ),
    "paper": CodeConfig(
        pieces=10_000,
        batch_size=1_024,  # the paper gives none but that of translation
        eval_size=1_024,
        micro_batch_size=1,
        max_tokens=2_048,
        first_only=True,
        # On the main branch there are only pickles; the Hub's own robot offers the same weights as safetensors.
        set_apart=False,
        start="pretrained",
        checkpoint="flax-community/gpt-neo-125M-code-clippy@refs/pr/1",
    ),
}
"""Sizes: for tests, for two cores (0.23 million parameters), for an afternoon on them (2.57 million, GPT-Neo 125M's
share of embedding, 32%, to a hundredth), for one GPU (23.2 million: half the depth and two thirds of the width of
GPT-Neo 125M, 80 steps an epoch), and the paper's own model and data (125 million), which need the Hub, where the data
are for those who have accepted their terms, or copies of them."""


def code(config: CodeConfig, *, seed: int = 0, source: str = "auto") -> Task:
    """Makes the task: real programs, a GPT-Neo with random weights and a tokenizer for them, or a pretrained one.

    Args:
        config: the size, such as ``SCALES["cpu"]``.
        seed: of random weights and of the order of training batches. Pieces and evaluation batch don't depend on it.
        source: where the programs come from, as in ``load_programs``.

    Returns:
        The task; the mean loss of a batch is over its tokens but the first of each piece. ``source.examples`` is the
        number of pieces in use.

    Raises:
        UsageError: no programs or no pretrained model is available, or a value of ``config`` is impossible.
        MissingExtraError: transformers or tokenizers is not installed.
    """
    sizes = ("vocabulary", "hidden", "layers", "heads", "window")
    check_text(config, examples="pieces", sizes=sizes, fewest=2, tokens="a token and the next")
    pretrained = published_text(config, GPT_NEO, "a GPT-Neo")
    programs, origin = load_programs(source)
    own, apart = _divided(programs) if config.set_apart else (programs, [])
    programs = chosen(own, len(own))
    tokens = tokens_of(pretrained, programs[:_TOKENIZER_PROGRAMS], config.vocabulary)
    model = undropped(pretrained.config) if pretrained else _gpt_neo(config, tokens.tokenizer.get_vocab_size())

    def pieces_of(programs: Sequence[str], count: int) -> list[list[int]]:
        encoded = ([*tokens.encoded(program), tokens.end] for program in programs)
        # Of several programs, but not all of a large collection has to be encoded.
        first = islice(_pieces(encoded, config.max_tokens, config.first_only), 4 * count)
        return chosen(list(first), count)

    pieces = pieces_of(programs, config.pieces)
    if not pieces:
        raise UsageError("the programs are too short to learn from: give a longer file")
    return text_task(
        "code",
        config,
        [(piece, piece) for piece in pieces],  # the model shifts the labels
        seed=seed,
        model=model,
        make=GPT_NEO["gpt_neo"],
        pretrained=pretrained,
        lesson=_lesson(pieces_of(apart, config.pretraining.examples), pieces) if config.pretrained_here else None,
        pad=tokens.pad,
        source=origin,
    )


def _divided(programs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Halves of the programs; of a single one, of its lines."""
    if len(programs) > 1:
        return halves(programs)
    lines = programs[0].splitlines(keepends=True)
    middle = (len(lines) + 1) // 2
    return ["".join(lines[:middle])], ["".join(lines[middle:])]


def _lesson(apart: Sequence[list[int]], own: Sequence[list[int]]) -> TextLesson[list[int]]:
    """The task's own objective. Licenses and the like stand in many programs: what the task has too is left out."""
    seen = set(map(tuple, own))
    examples = [piece for piece in apart if tuple(piece) not in seen]
    title = f"next tokens of {len(examples):,} pieces of other programs"
    return TextLesson(title, GPT_NEO["gpt_neo"], examples, lambda piece, _: (piece, piece))


def _pieces(programs: Iterable[list[int]], size: int, first_only: bool) -> Iterator[list[int]]:
    for tokens in programs:
        for start in range(0, size if first_only else len(tokens), size):
            if len(piece := tokens[start : start + size]) > 1:
                yield piece


def _gpt_neo(config: CodeConfig, vocabulary: int) -> Any:
    assert config.layers is not None
    kinds = [["global", "local"], config.layers // 2] if config.layers % 2 == 0 else [["global"], config.layers]
    neo = require("transformers", "paper").GPTNeoConfig(
        vocab_size=vocabulary,
        hidden_size=config.hidden,
        num_layers=config.layers,
        attention_types=[kinds],
        num_heads=config.heads,
        window_size=config.window,
        max_position_embeddings=config.max_tokens,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return undropped(neo)
