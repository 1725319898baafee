"""How many losses the line search evaluates, and whether it meets what the one before it met.

    git worktree add ../before eddb71d
    python benchmarks/line_search.py ../before --again translation code   (some minutes on two cores)

Both searches look along the same directions: those whose landscapes `docs/reproduction` stores, where the loss between
two stored points is interpolated, and those of trajectories that are run again, where every loss is evaluated.
Results are kept in benchmarks/line_search.json.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from environment import environment
from stepscope.cli import main as stepscope
from stepscope.measuring import landscape, line_search, measurement

RESULTS = Path(__file__).with_suffix(".json")
STORED = Path(__file__).parent.parent / "docs" / "reproduction"
NOISE = 8 * float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Met:
    """What a search met: its status, the decrease, and how often it evaluated the loss."""

    status: str
    decrease: float
    evaluations: int


def _met(result: Any, evaluations: int) -> Met:
    return Met(result.status, result.best_decrease, evaluations)


def by_new(loss: Callable[[float], float], slope: float, sharpness: float, first: float, lr: float) -> Met:
    """By the search of this source."""
    start = loss(0.0)
    line = line_search.Line(loss, start, slope, sharpness, NOISE * abs(start))
    line(lr)
    status, best = line_search.search(line, first)
    return Met(status, max(start - line(best), 0.0), len(line.values) - 1)


def by_old(before: ModuleType, loss: Callable[[float], float], slope: float, first: float, lr: float) -> Met:
    """By the search before it, which evaluated ``f(0)`` for every direction too."""
    line = before._Line(loss, NOISE)
    line(lr)
    result = before._line_search(line, slope, first)
    return _met(result, len(result.steps))


def interpolated(record: dict[str, Any]) -> Callable[[float], float]:
    """The loss along a stored direction: through the points of its landscape, with the slope at 0."""
    steps = np.array(record["landscape"]["steps"])
    losses = np.array([value if math.isfinite(value) else 1e30 for value in record["landscape"]["losses"]])
    curve = Akima1DInterpolator(steps, losses, method="makima")
    first, last = float(steps[1]), float(steps[-1])
    outward = (losses[-1] - losses[-2]) / (steps[-1] - steps[-2])

    def loss(t: float) -> float:
        if t > last:
            return float(losses[-1] + outward * (t - last) + 0.5 * abs(outward) / last * (t - last) ** 2)
        if t > first:
            return float(curve(t))
        z, end = t / first, float(curve(first, 1))  # a cubic with both slopes
        return float(
            (1 + 2 * z) * (1 - z) ** 2 * losses[0]
            + z * (1 - z) ** 2 * first * record["slope"]
            + z * z * (3 - 2 * z) * losses[1]
            + z * z * (z - 1) * first * end
        )

    return loss


def stored(before: ModuleType) -> Iterator[tuple[str, Met, Met]]:
    """Both searches along every stored direction."""
    for path in sorted(STORED.glob("trajectory*/measurements.jsonl")):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record.get("landscape"):
                loss, slope, sharpness = interpolated(record), record["slope"], record["sharpness"]
                scale, lr = record["finite_step"] / measurement.FINITE_STEP, record["lr_step"]
                old = by_old(before, loss, slope, before._first_step(loss(0.0), slope, sharpness, scale), lr)
                new = by_new(loss, slope, sharpness, landscape.first_step(loss(0.0), slope, sharpness, scale), lr)
                yield path.parent.name, old, new


def again(before: ModuleType, task: str, scale: str, source: str) -> list[tuple[str, Met, Met]]:
    """Both searches along the directions of a trajectory that is run now."""
    pairs: list[tuple[str, Met, Met]] = []

    def both(objective: Any, u: Any, **known: Any) -> landscape.Landscape:
        old = before.scan(objective, u, slope=known["slope"], sharpness=known["sharpness"], also=known["also"])
        new = landscape.scan(objective, u, **known)
        evaluated = len(old.steps), len(new.steps) - 1
        pairs.append((f"{task}, run again", *map(_met, (old, new), evaluated)))
        return new

    measurement.scan = both  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as out:
        try:
            stepscope(
                ["run", "trajectory", "--task", task, "--scale", scale, "--source", source, "--out", f"{out}/run"]
            )
        except SystemExit as end:
            if end.code:
                raise
        finally:
            measurement.scan = landscape.scan
    return pairs


def summary(pairs: list[tuple[str, Met, Met]]) -> dict[str, Any]:
    """How often both met the same, and how many losses each evaluated."""
    old, new = [[pair[place].evaluations for pair in pairs] for place in (1, 2)]
    return {
        "directions": len(pairs),
        "same status": _share(a.status == b.status for _, a, b in pairs),
        "decrease within 1%, or larger": _share(b.decrease >= 0.99 * a.decrease for _, a, b in pairs),
        "evaluations": {"before": _quantiles(old), "now": _quantiles(new)},
    }


def _share(true: Iterator[bool]) -> float:
    values = list(true)
    return sum(values) / len(values)


def _quantiles(values: list[int]) -> dict[str, float]:
    return {"median": statistics.median(values), "90%": float(np.percentile(values, 90)), "most": max(values)}


def main() -> None:
    """Runs both searches, prints and stores the summaries."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="a checkout of commit eddb71d")
    parser.add_argument("--again", nargs="*", default=[], metavar="TASK[=FILE]", help="tasks to run again")
    parser.add_argument("--scale", default="smoke", help="their size")
    given = parser.parse_args()
    path = given.before / "src/stepscope/measuring/landscape.py"
    before = SourceFileLoader("before", str(path)).load_module()
    pairs = list(stored(before))
    for task in given.again:
        name, _, source = task.partition("=")
        pairs += again(before, name, given.scale, source or "auto")
    groups = {name: [pair for pair in pairs if pair[0] == name] for name in dict.fromkeys(pair[0] for pair in pairs)}
    results = {"all": summary(pairs), **{name: summary(group) for name, group in groups.items()}}
    RESULTS.write_text(json.dumps({"environment": environment(), "results": results}, indent=1) + "\n")
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
