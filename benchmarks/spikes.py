"""Which number of a training warns of a spike of its loss, how long before, and how often without cause.

    python benchmarks/spikes.py            (half an hour on a core; what was run stays in --runs, and isn't run again)
    python benchmarks/spikes.py --seeds 1  (a look)

Tasks of the calibration are trained by AdamW. From the middle of the training on something goes wrong: the rate grows
by a twentieth a step, that of one matrix by a tenth, one batch has wrong labels and a hundred times the weight, or
gradients grow faster than their second moment follows. Healthy trainings at three rates, and with the slow second
moment, are the controls. A spike begins where the loss of a batch lies above what it was before by six standard
deviations and 0.3.

Each number has the threshold that it passes at one of 1,000 steps (of 300) of the controls of all other tasks. A spike
is foretold if the number passes it between the cause and the spike. Results are kept in benchmarks/spikes.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from environment import environment
from stepscope.calibration.tasks import TASKS

RESULTS = Path(__file__).with_suffix(".json")
CHOSEN = ("bytes", "words", "translation", "patches")
CONTROLS = {"usual rate": 3e-3, "√10 below": 9.5e-4, "√10 above": 9.5e-3, "slow second moment": 3e-3}
CAUSES = ("the rate grows", "one matrix's rate grows", "a bad batch", "gradients grow")
STEPS, CAUSE, WARM, BEFORE = 300, 150, 60, 50
FALSE_ALARMS = (1 / 1000, 1 / 300)
EVERY = 10
"""Steps between those that a probe measures in the later part of a training of 300."""

Row = dict[str, float]


def training(task_name: str, kind: str, seed: int) -> list[Row]:
    """The numbers of each step."""
    task = TASKS[task_name]
    torch.manual_seed(seed)
    model = task.make(0.0)
    parameters = list(model.parameters())
    matrix = max((p for p in parameters if p.dim() == 2), key=Tensor.numel)
    rate, beta = CONTROLS.get(kind, 3e-3), 0.999 if kind in ("slow second moment", "gradients grow") else 0.99
    groups = [{"params": [matrix]}, {"params": [p for p in parameters if p is not matrix]}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, beta), weight_decay=0.01)
    generator = torch.Generator().manual_seed(1000 + seed)
    rows: list[Row] = []
    for step in range(1, STEPS + 1):
        since = max(0, step - CAUSE)
        batch, scale = task.batch(False, generator, task.sizes[1]), 1.0
        if kind == "a bad batch" and step == CAUSE:
            shuffled = batch["labels"].flatten()[torch.randperm(batch["labels"].numel(), generator=generator)]
            batch, scale = batch | {"labels": shuffled.view_as(batch["labels"])}, 100.0
        if kind == "gradients grow":
            scale = min(1e3, 1.4**since)
        for group, growth in zip(optimizer.param_groups, (1.1, 1.05), strict=True):
            grows = kind == "the rate grows" or (kind == "one matrix's rate grows" and growth == 1.1)
            factor = 1.05 if kind == "the rate grows" else growth
            group["lr"] = rate * min(1.0, step / 20) * (factor**since if grows else 1.0)
        rows.append(numbers_of_step(model, optimizer, lambda m, b=batch: task.loss(m, b), scale, beta, step))
        if not math.isfinite(rows[-1]["loss"]):
            break
    return rows


def numbers_of_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss_of: Any, scale: float, beta: float, step: int
) -> Row:
    """Makes a step, and gives what can be known when it has been made."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.zero_grad()
    loss = loss_of(model)
    (scale * loss).backward()
    gradients = [p.grad.detach().clone() for p in parameters if p.grad is not None]
    squares = [float(g.square().sum()) for g in gradients]
    lag = 0.0
    if step > 1:
        moments = [optimizer.state[p]["exp_avg_sq"] / (1 - beta ** (step - 1)) for p in parameters]
        lag = max(s / max(float(v.sum()), 1e-30) for s, v in zip(squares, moments, strict=True))
    start = [p.detach().clone() for p in parameters]
    optimizer.step()
    step_made = [p.detach() - x for p, x in zip(parameters, start, strict=True)]
    end = [p.detach().clone() for p in parameters]
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, step_made, strict=True)) / scale
    with torch.no_grad():
        change = float(loss_of(model)) - float(loss.detach())
        for p, x, d in zip(parameters, start, step_made, strict=True):
            p.copy_(x + 0.05 * d)
    beside = torch.autograd.grad(loss_of(model), parameters)
    with torch.no_grad():
        for p, kept in zip(parameters, end, strict=True):
            p.copy_(kept)
    curvature = (sum(float((g * d).sum()) for g, d in zip(beside, step_made, strict=True)) - slope) / 0.05
    return {
        "loss": float(loss.detach()), "norm": math.sqrt(sum(squares)), "lag": lag,
        "ratio": change / slope if slope < 0 else -50.0, "edge": curvature / -slope if slope < 0 else 50.0,
    }  # fmt: skip


def signals(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Of each step, numbers that are large where something is about to go wrong."""
    untrue = [1 - _bounded(row["ratio"]) for row in rows]
    edges = [_bounded(row["edge"]) for row in rows]
    logs = [math.log(max(row["norm"], 1e-30)) if math.isfinite(row["norm"]) else math.inf for row in rows]
    sparse = [statistics.fmean(untrue[max(0, n - 2 * EVERY) : n + 1 : EVERY]) for n in range(0, len(rows), EVERY)]
    return {
        "z-score of the gradient's log norm": _z_scores(logs),
        "z-score of the loss": _z_scores([row["loss"] for row in rows]),
        "second moment's lag, largest tensor": [row["lag"] for row in rows],
        "edge ratio": edges,
        "edge ratio, mean of 5": _means(edges),
        "z-score of the edge ratio, mean of 5": _z_scores(_means(edges)),
        "1 − T": untrue,
        "1 − T, mean of 5": _means(untrue),
        "z-score of 1 − T, mean of 5": _z_scores(_means(untrue)),
        f"1 − T at every {EVERY}th step, mean of 3": [sparse[n // EVERY] if n % EVERY == 0 else -math.inf for n in range(len(rows))],  # noqa: E501
    }  # fmt: skip


def _bounded(value: float) -> float:
    return max(-50.0, min(50.0, value)) if math.isfinite(value) else -50.0


def _means(values: Sequence[float]) -> list[float]:
    return [statistics.fmean(values[max(0, n - 4) : n + 1]) for n in range(len(values))]


def _z_scores(values: Sequence[float]) -> list[float]:
    """Of each against the ones before it."""
    scores = []
    for place, value in enumerate(values):
        window = [v for v in values[max(0, place - BEFORE) : place] if math.isfinite(v)]
        deviation = statistics.pstdev(window) if len(window) > 10 else 0.0
        if not math.isfinite(value):
            scores.append(math.inf)
        else:
            scores.append((value - statistics.fmean(window)) / deviation if deviation else 0.0)
    return scores


def onset(rows: Sequence[Row], kind: str) -> int | None:
    """The place of the first step whose batch has a loss far above what it was; a bad batch itself is none."""
    losses = [row["loss"] for row in rows]
    before = losses[CAUSE - 60 : CAUSE - 1]
    limit = statistics.median(before) + max(0.3, 6 * statistics.pstdev(before))
    first = CAUSE if kind == "a bad batch" else CAUSE - 1
    return next((place for place in range(first, len(losses)) if not losses[place] <= limit), None)


def judged(runs: dict[tuple[str, str, int], list[Row]]) -> Iterator[dict[str, Any]]:
    """A line for each number and rate of false alarms."""
    numbers = {key: signals(rows) for key, rows in runs.items()}
    controls = [key for key in runs if key[1] in CONTROLS]
    for allowed in FALSE_ALARMS:
        for name in next(iter(numbers.values())):
            seen = {k: [v for v in numbers[k][name][WARM:] if v > -math.inf] for k in controls}
            thresholds = {}
            for task in CHOSEN:
                others = sorted(v for key in controls if key[0] != task for v in seen[key])
                thresholds[task] = others[min(len(others) - 1, math.ceil((1 - allowed) * len(others)))]
            of_controls = [v > thresholds[key[0]] for key in controls for v in seen[key]]
            foretold = {}
            for cause in CAUSES:
                leads, spikes = [], 0
                for key in (key for key in runs if key[1] == cause):
                    if (at := onset(runs[key], cause)) is None:
                        continue
                    spikes += 1
                    first = next((n for n in range(CAUSE - 1, at) if numbers[key][name][n] > thresholds[key[0]]), None)
                    leads += [] if first is None else [at - first]
                foretold[cause] = {"spikes": spikes, "foretold": len(leads), "lead": statistics.median(leads) if leads else None}  # noqa: E501  # fmt: skip
            yield {
                "number": name, "allowed": allowed, "thresholds": [thresholds[task] for task in CHOSEN],
                "false_alarms": sum(of_controls) / len(of_controls), "foretold": foretold,
            }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each kind and task (3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/spikes"), help="where trainings are kept (runs/spikes)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    runs = {}
    for seed in range(arguments.seeds):
        for task in CHOSEN:
            for kind in (*CONTROLS, *CAUSES):
                file = arguments.runs / f"{task}-{kind.replace(' ', '-')}-{seed}.json"
                if not file.exists():
                    file.write_text(json.dumps(training(task, kind, seed)))
                    print(f"{task}: {kind}, seed {seed}", flush=True)
                runs[task, kind, seed] = json.loads(file.read_text())
    lines = list(judged(runs))
    in_controls = sum(onset(rows, key[1]) is not None for key, rows in runs.items() if key[1] in CONTROLS)
    for line in lines:
        print(json.dumps(line, ensure_ascii=False))
    if arguments.seeds >= 3:
        kept = {
            "seeds": arguments.seeds,
            "spikes_in_controls": in_controls,
            "lines": lines,
            "environment": environment(),
        }
        RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
