"""What the probe adds to a training: the translation task with it and without it, step by step in turn.

    python benchmarks/overhead.py --scale smoke --limits 0.05   (minutes on two cores)
    python benchmarks/overhead.py --scale cpu --steps 5500      (about 45 minutes)

The same model is trained twice on the same batches, in one process of one thread: a step without a probe, one with
it, the order changing from step to step, so that what else goes on in the machine slows both alike. The probe has its
default settings but for the limit. Its time is all that passes from before it is attached: self-check, hooks, the steps
at which others follow, measurements. The limits are compared in processes of their own at the same time. Results are
added to benchmarks/overhead.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from environment import environment
from stepscope import Probe
from stepscope.paper.tasks.task import Task
from stepscope.paper.tasks.translation import SCALES, translation

RESULTS = Path(__file__).with_suffix(".json")


def trainer(scale: str) -> tuple[Task, Optimizer, Callable[[], float]]:
    """The task, its optimizer, and a function that makes one step and gives the loss."""
    task = translation(SCALES[scale])
    optimizer = torch.optim.Adam(task.model.parameters(), lr=2e-3)
    batches = task.training_batches()

    def step() -> float:
        optimizer.zero_grad()
        loss = task.model(**next(batches)).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return task, optimizer, step


def compare(scale: str, steps: int, limit: float) -> dict[str, Any]:
    """One limit: both trainings in turn."""
    torch.set_num_threads(1)
    _, _, plain_step = trainer(scale)
    task, optimizer, probed_step = trainer(scale)
    for _ in range(10):  # the first ones are slower
        plain_step(), probed_step()
    started = time.perf_counter()
    probe = Probe(task.model, optimizer, None, task.eval_batches, max_overhead=limit, quiet=True)
    plain, probed = 0.0, time.perf_counter() - started
    for number in range(steps):
        for with_probe in (number % 2 == 0, number % 2 != 0):
            started = time.perf_counter()
            if with_probe:
                probed_loss = probed_step()
                probed += time.perf_counter() - started
            else:
                with probe.paused():
                    plain_loss = plain_step()
                    plain += time.perf_counter() - started
    if not probe.records:
        raise SystemExit(f"nothing was measured at a limit of {limit:.0%}: give more --steps")
    return {
        "scale": scale,
        "steps": steps,
        "max_overhead": limit,
        "overhead": probed / plain - 1,
        "measured_at": sorted({record.step for record in probe.records}),
        "directions": len(probe.records),
        "same_last_loss": plain_loss == probed_loss,
        "environment": environment(),
    }


def main() -> None:
    """Runs the comparisons, prints and stores them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="smoke")
    parser.add_argument("--steps", type=int, default=12_000)
    parser.add_argument("--limits", type=float, nargs="+", default=[0.05, 0.01])
    arguments = parser.parse_args()
    stored = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with ProcessPoolExecutor(len(arguments.limits)) as pool:
        for found in pool.map(partial(compare, arguments.scale, arguments.steps), arguments.limits):
            what = f"{found['scale']}, {found['steps']} steps, limit {found['max_overhead']:.0%}"
            same = "is the same" if found["same_last_loss"] else "DIFFERS"
            measured = len(found["measured_at"])
            print(f"{what}: {found['overhead']:+.2%}, {measured} measurements, the training {same}", flush=True)
            stored[f"{found['scale']} {found['max_overhead']:g}"] = found
            RESULTS.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
