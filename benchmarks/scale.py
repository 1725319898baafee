"""What measuring a sharded model sends over the network and keeps in memory: a model of the cost, and what is counted.

    python benchmarks/scale.py   (a minute on two cores)

GPT-2s of three widths are sharded by `fully_shard` over 2, 4 and 8 processes. Every collective of a few measurements is
counted by its bytes, beside what the model of the cost foretells for them. Results go to benchmarks/scale.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import models
from environment import environment
from on_ranks import Counted, Rows, measured_by

RESULTS = Path(__file__).with_suffix(".json")
WIDTHS, RANKS = (64, 128, 256), (2, 4, 8)
BATCHES = 2
"""Micro-batches of each rank."""


def gathered(parameters: float, ranks: int, width: int = 4) -> float:
    """Bytes that a rank receives where all parts of all parameters are gathered once: ``(R − 1)/R · P · width``."""
    return (ranks - 1) / ranks * parameters * width


def of_losses(parameters: float, ranks: int, rounds: int, losses: int) -> float:
    """Bytes that a rank receives for losses at as many points: each round of each gathers once."""
    return losses * rounds * gathered(parameters, ranks)


def of_gradients(parameters: float, ranks: int, rounds: int, gradients: int) -> float:
    """Bytes that a rank exchanges for gradients: a round gathers, again in the backward pass, and scatters once."""
    return gradients * rounds * 3 * gathered(parameters, ranks)


def evaluations(measured: str, result: Any) -> tuple[int, int]:
    """At how many points a measurement needs the loss, and the gradient.

    Curvature is four gradients for each direction, and one more where it is negative (arXiv 2306.00204, eq. 4), beside
    the gradient at the weights and the loss once more, to see that it repeats.
    """
    if measured == "a loss":
        return 1, 0
    if measured == "a gradient":
        return 0, 1
    if measured == "an edge":
        return result.forwards, 0
    return 1, 1 + sum(4 + (one.sharpness < 0) for one in result.values())


def count(_: int, ranks: int) -> Rows:
    """One process: what each measurement of each width exchanges."""
    from torch.distributed.fsdp import fully_shard

    from stepscope import Objective, edge, measure

    rows = []
    for width in WIDTHS:
        torch.manual_seed(0)
        work = models.workload("GPT-2", width, 8, 1)
        size = work.size
        for block in work.model.transformer.h:
            fully_shard(block)
        fully_shard(work.model)
        objective = Objective(work.model, models.loss, work.batches[:BATCHES], weight_fn=lambda _: 1.0)
        with objective.measuring():
            _, gradient = objective.gradient()
        step = {name: -1e-3 * g for name, g in gradient.items()}
        counts: dict[str, Callable[[], Any]] = {
            "a loss": objective.loss,
            "a gradient": objective.gradient,
            "an edge": lambda f=objective, d=step: edge(f, d),
            "curvature of 2 directions": lambda f=objective, d=step: measure(f, {"one": d, "two": d}),
        }
        for name, work_of in counts.items():
            with Counted() as counted:
                result = work_of()
            losses, gradients = evaluations(name, result)
            foretold = of_losses(size, ranks, BATCHES, losses) + of_gradients(size, ranks, BATCHES, gradients)
            rows.append({
                "measured": name, "parameters": size, "ranks": ranks, "counted": counted.bytes, "foretold": foretold,
                "beside": counted.small, "calls": counted.calls,
            })  # fmt: skip
    return rows


def main() -> None:
    """The command line."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rows: Rows = []
    for ranks in RANKS:
        rows += measured_by(ranks, count)
        for row in rows[-4 * len(WIDTHS) :]:
            print(row, f"{row['counted'] / row['foretold']:.3f}", flush=True)
    RESULTS.write_text(json.dumps({"rows": rows, "environment": environment()}, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
