"""Records as a run makes them, without a model: closed-form losses along each direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepscope.runs import (
    DirectionRecord,
    Record,
    RecordedLandscape,
    RecordedMagnitudes,
    RecordedShare,
    RunDirectory,
)

DIRECTIONS = {  # sharpness as a ratio to SGD's, cosine with the gradient, typical norm
    "sgd": (1.0, -0.62, 0.8),
    "sgd clip 10%": (0.21, -0.50, 0.12),
    "normalized sgd": (0.38, -0.41, 900.0),
    "normalized sgd clip 10%": (0.05, -0.33, 400.0),
    "signsgd": (0.012, -0.24, 2400.0),
    "adam": (0.09, -0.22, 1700.0),
    "adam clip 50% (first moment)": (0.007, -0.19, 500.0),
    "adam clip 50% (gradient)": (0.013, -0.18, 800.0),
    "adam clip 50% (update)": (0.031, -0.20, 1100.0),
    "adafactor": (0.0011, -0.06, 310.0),
    "adafactor clip 50% (numerator)": (0.0007, -0.05, 120.0),
    "lion": (0.016, -0.21, 2400.0),
    "lion clip 50% (update)": (0.02, -0.22, 1500.0),
    "muon": (0.11, -0.31, 60.0),
}


def landscape(slope: float, sharpness: float, loss: float) -> RecordedLandscape:
    """A quadratic with a little quartic, on a grid of steps that doubles."""
    quartic = 0.04 * abs(sharpness) / max(abs(slope / sharpness), 1e-9) ** 2
    scale = abs(slope / sharpness)
    steps = [0.0] + [scale * 2 ** (power / 3) for power in range(-24, 10)]
    losses = [loss + slope * t + 0.5 * sharpness * t**2 + quartic * t**4 for t in steps]
    status = "bracketed" if slope < 0 else "no descent"
    return RecordedLandscape(steps=tuple(steps), losses=tuple(losses), status=status)


def record(trajectory: str, step: int, direction: str, *, seed: int = 0, **given: Any) -> DirectionRecord:
    """One record with only what is given, as a file would hold it."""
    return DirectionRecord.of(given, trajectory=trajectory, seed=seed, step=step, direction=direction)


def measured(trajectory: str, seed: int, step: int, direction: str, base: float) -> DirectionRecord:
    """One full record of a made-up model whose SGD has the given sharpness."""
    ratio, cosine, norm = DIRECTIONS[direction]
    wobble = 1 + 0.3 * math.sin(step + 7 * seed + len(direction))
    gradient_norm, loss = 2.4 / (1 + step / 200), 6.0 * math.exp(-step / 300) + 0.2 * seed
    sharpness = ratio * abs(base) * wobble if direction != "sgd" else base
    slope = cosine * gradient_norm
    curve = landscape(slope, abs(sharpness), loss)
    low = min(curve.losses)
    return record(
        trajectory, step, direction, seed=seed,
        loss=loss, gradient_norm=gradient_norm, slope=slope, correlation=cosine, norm=norm,
        sharpness=sharpness, sharpness_stderr=abs(sharpness) * 0.07, sharpness_finite=sharpness * 0.98,
        finite_step=0.01, sharpness_robust=abs(sharpness) * 1.5 if sharpness < 0 else None, numerical_error=None,
        predicted_step=-slope / sharpness if sharpness > 0 else None,
        predicted_decrease=slope**2 / (2 * sharpness) if sharpness > 0 else None,
        best_step=curve.steps[curve.losses.index(low)], best_decrease=loss - low,
        landscape=curve, method="autograd", method_reason="twice differentiable", dtype="float32", seconds=0.7,
    )  # fmt: skip


def synthetic_records(
    *,
    seeds: Sequence[int] = (0,),
    steps: Sequence[int] = (20, 60, 120),
    trajectories: Sequence[str] = ("sgd", "adam"),
) -> list[DirectionRecord]:
    """Fourteen directions on two trajectories; SGD's sharpness is negative at the first step of the first one."""
    records = []
    for place, trajectory in enumerate(trajectories):
        for seed in seeds:
            for index, step in enumerate(steps):
                base = -3.0 if (place, index) == (0, 0) else 11.0 * (1 + index) * (1 + 3 * place)
                records += [measured(trajectory, seed, step, name, base) for name in DIRECTIONS]
    return records


def with_coordinates(records: Sequence[DirectionRecord]) -> list[DirectionRecord]:
    """The same with what the runner of a reproduction adds: shares of the largest coordinates, and magnitudes."""
    completed = []
    for given in records:
        norm = {"0.001": 0.2, "0.01": 0.4, "0.1": 0.8}
        top = {name: RecordedShare(norm=share, sharpness=0.9 * share * given.sharpness) for name, share in norm.items()}
        counts = (1, 0, 30 + given.seed, 300, 12)
        histogram = RecordedMagnitudes(zeros=7, lowest=-3, per_decade=4, counts=counts)
        completed.append(replace(given, top=top, magnitudes=histogram))
    return completed


CONTEXT = {
    "source": {
        "name": "books",
        "title": "English and French sentence pairs",
        "license": "CC-BY-4.0",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "examples": 4096,
    },
    "model": {"name": "T5, 2 layers", "parameters": 1_240_064, "dtype": "float32"},
}
CONFIGURATION = {"experiment": "trajectory", "scale": "cpu", "seeds": [0], "steps": [20, 60, 120], "batch": 64}

HOSTILE = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "a\nb\u2028\x1b[31mc", "[red]x[/]"]


def run_directory(
    path: Path,
    records: Sequence[Record],
    context: dict[str, Any] | None = CONTEXT,
    configuration: dict[str, Any] = CONFIGURATION,
) -> Path:
    """Writes a run directory."""
    kind = type(records[0]) if records else DirectionRecord
    with RunDirectory.open(path, kind, configuration, context=context) as run:
        run.append(records)
    return path


def hostile_run(path: Path) -> Path:
    """Writes a run directory in which every name tries to be markup."""
    names = ["sgd", *HOSTILE]
    records = [
        record(
            trajectory, 20, name, loss=1.0, sharpness=1.0 + place, correlation=-0.5, best_step=1.0, best_decrease=0.5,
            landscape=RecordedLandscape(steps=(0.0, 1.0, 2.0), losses=(1.0, 0.5, 3.0), status=name),
        )
        for trajectory in ("sgd", HOSTILE[1])
        for place, name in enumerate(names)
    ]  # fmt: skip
    context = {"source": {"title": HOSTILE[0], HOSTILE[1]: HOSTILE[0]}, "model": HOSTILE[1]}
    return run_directory(path, records, context, {"experiment": HOSTILE[0], "--><svg onload=alert(1)>": 1})
