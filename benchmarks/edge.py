"""Whether `stepscope.edge` meets the critical multiple that a scan along the step meets, and what it evaluates.

    python benchmarks/edge.py   (a quarter of an hour on a core)

Eight families of small models are trained by AdamW on made data that can be learned. At three steps of the training the
next updates of seven optimizers are taken, each once, 5 and 25 times as long. Once more under autocast in
bfloat16. Results are kept in benchmarks/edge.json, family by family.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models
from environment import environment
from stepscope import Objective, PseudoUpdates, edge

RESULTS = Path(__file__).with_suffix(".json")
POINTS = 12
"""Multiples of a scan in a factor of two."""
FARTHEST = 256.0
WIDTH, LENGTH, EXAMPLES = 16, 12, 8
AT = (10, 40, 120)
LENGTHS = (1.0, 5.0, 25.0)
CLASSES = 64
SLOPES: dict[str, Any] = {"without a slope": None, "with a slope": "gradient"}

OPTIMIZERS = models.OPTIMIZERS | {
    "Lion": lambda parameters: Sign(parameters, lr=1e-3),
}


class Sign(torch.optim.Optimizer):
    """Lion's rule without weight decay: the sign of an average of gradients."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step."""
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                p.add_((0.9 * mean + 0.1 * p.grad).sign(), alpha=-group["lr"])
                mean.lerp_(p.grad, 0.01)


class Recurrent(nn.Module):
    """Two layers of LSTM, the next token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(models.VOCABULARY, width)
        self.lstm = nn.LSTM(width, width, num_layers=2, batch_first=True)
        self.out = nn.Linear(width, models.VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits."""
        return self.out(self.lstm(self.embedding(tokens))[0])


class Classifier(nn.Sequential):
    """Layer norm, GELU, two hidden layers."""

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Flatten(), nn.Linear(3 * 32 * 32, width), nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width),
            nn.GELU(), nn.Linear(width, 10),
        )  # fmt: skip


FAMILIES: dict[str, Callable[[int, int], nn.Module]] = models.MODELS | {
    "LSTM": lambda width, _: Recurrent(width),
    "MLP": lambda width, _: Classifier(width),
}


def batch(name: str, examples: int, length: int) -> models.Batch:
    """A micro-batch of data that can be learned: each token but for a bit follows from the one before it."""
    if name in ("ResNet", "MLP"):
        labels = torch.randint(0, 10, (examples,))
        patterns = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return {"pixel_values": patterns[labels] / 4 + torch.randn(examples, 3, 32, 32), "labels": labels}
    tokens = [torch.randint(0, CLASSES, (examples,))]
    for _ in range(length - 1):
        tokens.append((5 * tokens[-1] + torch.randint(0, 2, (examples,))) % CLASSES)
    ids = torch.stack(tokens, 1) + 1
    return {"input_ids": ids, "labels": ids.flip(1) if name == "T5" else (7 * ids) % CLASSES if name == "BERT" else ids}


def loss(model: nn.Module, given: models.Batch) -> Tensor:
    """The mean loss of a micro-batch."""
    if isinstance(model, Classifier):
        return F.cross_entropy(model(given["pixel_values"]), given["labels"])
    if isinstance(model, Recurrent):
        logits = model(given["input_ids"])[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), given["labels"][:, 1:].flatten())
    return models.loss(model, given)


def steps(name: str, seed: int = 0) -> Iterator[tuple[str, Objective, models.Direction]]:
    """Steps from points of a training, each with its objective."""
    torch.manual_seed(seed)
    model = FAMILIES[name](WIDTH, LENGTH)
    parameters = dict(model.named_parameters())
    updates = PseudoUpdates(parameters, OPTIMIZERS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(1, max(AT) + 1):
        given = batch(name, EXAMPLES, LENGTH)
        optimizer.zero_grad()
        loss(model, given).backward()
        gradients = {key: p.grad for key, p in parameters.items()}
        made = updates.step(gradients, capture=step in AT)
        if step in AT:
            # Half of the examples are the step's own, half of them fresh: both are asked for in use.
            fresh = batch(name, EXAMPLES, LENGTH)
            evaluated = {key: torch.cat([own, fresh[key]]) for key, own in given.items()}
            objective = Objective(model, loss, [evaluated], lambda _: 1.0)
            for label, direction in made.items():
                for factor in LENGTHS:
                    yield f"{step} {label} {factor:g}", objective, {k: factor * d for k, d in direction.items()}
        optimizer.step()


def scanned(objective: Objective, direction: models.Direction) -> float | None:
    """The critical multiple that a scan outward from 1 meets first, to a thousandth; ``None`` up to `FARTHEST`."""
    with objective.measuring(as_trained=True):
        start = objective.loss()

        def falls(t: float) -> bool:
            return objective.loss_at(direction, t) < start

        outward = 2 ** (1 / POINTS if falls(1.0) else -1 / POINTS)
        last = 1.0
        while 1 / FARTHEST <= last <= FARTHEST:
            t = last * outward
            if falls(t) == (outward < 1):
                lower, upper = min(last, t), max(last, t)
                while upper > 1.001 * lower:
                    middle = (lower * upper) ** 0.5
                    lower, upper = (middle, upper) if falls(middle) else (lower, middle)
                return (lower * upper) ** 0.5
            last = t
    return None


def met(objective: Objective, direction: models.Direction, slope: Any) -> dict[str, Any]:
    """What `stepscope.edge` meets."""
    found = edge(objective, direction, slope=slope)
    kept = ("status", "critical_multiple", "critical_bracket", "noise", "forwards", "predicted_change")
    return {key: value for key, value in found.record().items() if key in kept}


def changes(objective: Objective, direction: models.Direction, multiples: Sequence[float | None]) -> list[float | None]:
    """The change of the loss at some multiples."""
    with objective.measuring(as_trained=True):
        start = objective.loss()
        return [None if t is None else objective.loss_at(direction, t) - start for t in multiples]


def measured(name: str) -> Iterator[dict[str, Any]]:
    """A row for each step of a family."""
    for label, objective, direction in steps(name):
        row: dict[str, Any] = {"family": name, "step": label, "scan": scanned(objective, direction)}
        row |= {way: met(objective, direction, slope) for way, slope in SLOPES.items()}
        if label.endswith(" 5") and name != "LSTM":  # not every processor has one in bfloat16
            with torch.autocast("cpu", torch.bfloat16):
                low = met(objective, direction, None)
                low["scan"] = scanned(objective, direction)
                low["change at the scan"] = changes(objective, direction, [low["scan"]])[0]
            low["changes in float32"] = changes(objective, direction, low["critical_bracket"])
            row["bfloat16"] = low
        yield row


def is_near(found: dict[str, Any], scan: float) -> bool:
    """Whether the critical multiple is that of the scan to a sixteenth."""
    return found["critical_multiple"] is not None and abs(found["critical_multiple"] / scan - 1) <= 1 / 16


def is_right(low: dict[str, Any]) -> bool:
    """Whether no end of a bracket in bfloat16 has the other sign in float32, by more than the noise that is stated."""
    lower, upper = low["changes in float32"]
    return (lower is None or lower <= low["noise"]) and (upper is None or upper >= -low["noise"])


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of the steps: how often, how near, how narrow."""
    crossed = [row for row in rows if row["scan"] is not None]
    result: dict[str, Any] = {"steps": len(rows), "with a critical multiple by the scan": len(crossed)}
    for way in SLOPES:
        found = [row[way] for row in crossed]
        within = [row[way] for row in crossed if 1 / 16 <= row["scan"] <= 16]
        narrow = [
            f for f in found if f["status"] == "found" and f["critical_bracket"][1] <= 1.0626 * f["critical_bracket"][0]
        ]
        result[way] = {
            "within 1/16": share(is_near(row[way], row["scan"]) for row in crossed),
            "within 1/16, scan between 1/16 and 16": share(
                is_near(row[way], row["scan"]) for row in crossed if row[way] in within
            ),
            "bracket within 1/16": len(narrow) / len(found),
            "forwards, mean and most": [
                statistics.fmean(f["forwards"] for f in found),
                max(f["forwards"] for f in found),
            ],
        }
    low = [row["bfloat16"] for row in rows if "bfloat16" in row]
    seen = [f for f in low if f["status"] == "found" and f["scan"] is not None]
    result["bfloat16"] = {
        "steps": len(low),
        "found": len(seen),
        "brackets right in float32 within the noise": share(map(is_right, low)),
        "within 1/16 of the scan, or its change within the noise": share(
            is_near(f, f["scan"]) or abs(f["change at the scan"]) <= f["noise"] for f in seen
        ),
        "median noise": statistics.median(f["noise"] for f in low),
    }
    return result


def share(values: Any) -> float:
    """The part of some booleans that is true."""
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def main() -> None:
    """Runs the benchmark, and stores and prints what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    models.VOCABULARY = 2 * CLASSES
    stored = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    for name in parser.parse_args().families:
        stored = [row for row in stored if row["family"] != name] + list(measured(name))
        found = {"environment": environment(), "summary": summary(stored), "rows": stored}
        RESULTS.write_text(json.dumps(found) + "\n")
    print(json.dumps(summary(stored), indent=1))


if __name__ == "__main__":
    main()
