"""Draws combinations by a seed: each loss, model, optimizer, batch and loop comes up about equally often."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from drawn.loops import LOOPS
from drawn.losses import LOSSES
from drawn.models import MODELS
from drawn.optimizers import OPTIMIZERS
from drawn.trial import Combination


def drawn(count: int, seed: int) -> list[Combination]:
    """`count` different combinations, each of things that go together."""
    generator = random.Random(seed)
    losses, models, optimizers, loops = (_cycled(list(t), generator) for t in (LOSSES, MODELS, OPTIMIZERS, LOOPS))
    used: Counter[str] = Counter()
    found: dict[Combination, None] = {}
    waiting: list[str] = []  # optimizers that didn't fit: they come again
    while len(found) < count:
        loss, model, loop = next(losses), next(models), next(loops)
        optimizer = waiting.pop(0) if waiting else next(optimizers)
        if not _fits(loss, model, optimizer, loop):
            waiting.append(optimizer)
            if len(waiting) > 20:
                waiting.pop(0)
            continue
        kinds = sorted(MODELS[model].batches, key=lambda kind: (used[kind], generator.random()))
        used[kinds[0]] += 1
        combination = Combination(
            loss, model, optimizer, kinds[0], loop, generator.random() < 0.5, generator.choice((1, 2))
        )
        found[combination] = None
    return list(found)


def _fits(loss: str, model: str, optimizer: str, loop: str) -> bool:
    spec = OPTIMIZERS[optimizer]
    if loss == "the model's own" and not MODELS[model].task.own_loss:
        return False
    if (model == "sparse embedding") != spec.sparse:
        # SGD and Adagrad take both kinds of gradients.
        return spec.sparse and optimizer != "SparseAdam" and model != "sparse embedding"
    if model == "sparse embedding" and LOOPS[loop].clip_norm:
        return False
    return not ((spec.closure or spec.curved) and loop != "plain")


def _cycled(names: Sequence[str], generator: random.Random) -> Iterator[str]:
    while True:
        yield from generator.sample(names, len(names))
