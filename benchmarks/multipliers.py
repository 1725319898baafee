"""Whether a training ends lower when the rates of its layers follow `layer_multipliers`.

    python benchmarks/multipliers.py            (half an hour on a core; what was run stays in --runs)
    python benchmarks/multipliers.py --seeds 1  (a look)

Tasks of the calibration are trained with warm-up and cosine, by AdamW and by SGD with momentum, at three rates. After a
fifth of the steps the multipliers of the next update are measured on four fresh batches, and where the loss confirms
them, each layer's rate is multiplied from there on. Beside the training as it is stand three:

    once         a multiplier for each layer, measured once
    often        the same, measured again at 40%, 60% and 80% of the steps
    all alike    one multiplier for all layers; the update is as long as with those of `once`

What counts is the held-out loss at the end. Rates are named after the best of the three, by the mean over the seeds of
the training as it is. Results are kept in benchmarks/multipliers.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from environment import environment
from stepscope import Objective, next_update
from stepscope.calibration.tasks import TASKS, CalibrationTask
from stepscope.calibration.training import part_of_peak
from stepscope.measuring import layer_multipliers

RESULTS = Path(__file__).with_suffix(".json")
CHOSEN = ("bytes", "translation", "patches", "classification")
RATES = {"adamw": 3e-3, "sgd": 3e-2}
PARTS = (0.316, 1.0, 3.16)
ARMS = ("as it is", "once", "often", "all alike")
FIFTHS = {"as it is": (), "once": (1,), "often": (1, 2, 3, 4), "all alike": (1,)}
HELD_OUT, BATCHES = 512, 4

Run = tuple[str, str, float, int, str]
"""Task, optimizer, rate, seed, arm."""


def training(run: Run) -> dict[str, Any]:
    """The loss at the end, and the multipliers of each measurement."""
    name, optimizer_name, rate, seed, arm = run
    task = TASKS[name]
    torch.manual_seed(100 + seed)
    model = task.make(0.0)
    layers = layers_of(model)
    groups = [{"params": list(parameters)} for parameters in layers.values()]
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(groups, lr=rate, weight_decay=0.01)
        if optimizer_name == "adamw"
        else torch.optim.SGD(groups, lr=rate, momentum=0.9)
    )
    generator, fresh = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(500 + seed)
    looks = {fifth * task.steps // 5 for fifth in FIFTHS[arm]}
    factors, measured = dict.fromkeys(layers, 1.0), []
    for step in range(1, task.steps + 1):
        batch = task.batch(False, generator, task.sizes[1])
        for group, layer in zip(optimizer.param_groups, layers, strict=True):
            group["lr"] = rate * part_of_peak("cosine", step, task.steps) * factors[layer]
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        if task.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), task.clip)
        if step in looks:
            found = multipliers(model, task, optimizer, fresh, alike=arm == "all alike")
            measured.append(found)
            factors = {layer: factor * found.get(layer, 1.0) for layer, factor in factors.items()}
            for group, layer in zip(optimizer.param_groups, layers, strict=True):
                group["lr"] *= found.get(layer, 1.0)
        optimizer.step()
    held_out = task.batch(True, torch.Generator().manual_seed(777), HELD_OUT)
    model.eval()
    with torch.no_grad():
        return {"final": float(task.loss(model, held_out)), "multipliers": measured}


def layers_of(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Each module's own parameters, as `layer_multipliers` has them without a grouping."""
    layers: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        layers[name.rpartition(".")[0]].append(parameter)
    return dict(layers)


def multipliers(
    model: nn.Module, task: CalibrationTask, optimizer: torch.optim.Optimizer, fresh: torch.Generator, *, alike: bool
) -> dict[str, float]:
    """By layer; none where the loss doesn't confirm them, or the update isn't finite."""
    batches = [task.batch(False, fresh, task.sizes[1]) for _ in range(BATCHES)]
    objective = Objective(model, task.loss, batches, lambda _: 1.0)
    update = next_update(optimizer, objective.parameters)
    if not all(bool(tensor.isfinite().all()) for tensor in update.values()):
        return {}
    found = layer_multipliers(objective, update).multipliers or {}
    if not alike or not found:
        return found
    squares = {layer: _square(update, layer) for layer in found}
    one = math.sqrt(sum(found[layer] ** 2 * square for layer, square in squares.items()) / sum(squares.values()))
    return dict.fromkeys(found, one)


def _square(update: Mapping[str, Tensor], layer: str) -> float:
    return sum(float(t.square().sum()) for name, t in update.items() if name.rpartition(".")[0] == layer)


def judged(finals: Mapping[Run, float]) -> Iterator[dict[str, Any]]:
    """A line for each optimizer, place of the rate and arm: how the loss at the end compares with that as it is."""
    means: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for (task, optimizer, rate, _, arm), final in finals.items():
        if arm == "as it is":
            means[task, optimizer][rate].append(final)
    best = {key: min(rates, key=lambda rate, of=rates: statistics.fmean(of[rate])) for key, rates in means.items()}
    changes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    won: dict[tuple[str, str, str], int] = defaultdict(int)
    for (task, optimizer, rate, seed, arm), final in finals.items():
        place = "below" if rate < best[task, optimizer] else "above" if rate > best[task, optimizer] else "best"
        if arm != "as it is":
            changes[optimizer, place, arm].append(final - finals[task, optimizer, rate, seed, "as it is"])
            won[optimizer, place, arm] += final < finals[task, optimizer, rate, seed, "all alike"]
    for optimizer in RATES:
        for place in ("below", "best", "above"):
            for arm in ARMS[1:]:
                if found := changes.get((optimizer, place, arm)):
                    yield {
                        "optimizer": optimizer, "rate": place, "arm": arm, "trainings": len(found),
                        "lower": sum(change < 0 for change in found), "median_change": statistics.median(found),
                        "worst": max(found), "lower_than_all_alike": won[optimizer, place, arm],
                    }  # fmt: skip


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind (2)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/multipliers"), help="where trainings are kept (runs/multipliers)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.runs.mkdir(parents=True, exist_ok=True)
    finals: dict[Run, float] = {}
    for seed in range(arguments.seeds):
        for task in CHOSEN:
            for optimizer, rate in RATES.items():
                for part in PARTS:
                    for arm in ARMS:
                        run: Run = (task, optimizer, float(f"{part * rate:.3g}"), seed, arm)
                        file = arguments.runs / ("-".join(map(str, run)).replace(" ", "_") + ".json")
                        if not file.exists():
                            file.write_text(json.dumps(training(run)))
                            print(*run, flush=True)
                        final = json.loads(file.read_text())["final"]
                        finals[run] = final if math.isfinite(final) else math.inf
    lines = list(judged(finals))
    for line in lines:
        print(json.dumps(line, ensure_ascii=False))
    if arguments.seeds >= 2:
        kept = {"seeds": arguments.seeds, "lines": lines, "environment": environment()}
        RESULTS.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
