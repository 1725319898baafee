"""Records as a probe makes them, without a model, and the command line on run directories."""

from __future__ import annotations

import pytest

from stepscope.cli import main
from stepscope.runs import DirectionRecord, RecordedEdge, RunDirectory, StepRecord

CONFIGURATION = {"experiment": "probe", "model": "Net", "parameters": 1200, "optimizer": "SGD"}
EDGE = RecordedEdge(loss=2.0, multiples=(0.0, 1.0), losses=(2.0, 1.9), critical_multiple=1.5, status="found")


def steps_of(count=20, ratio=0.3, length=100):
    """A training whose steps are too long; every fifth was measured on the evaluation examples too."""
    return [
        StepRecord(
            trajectory="SGD", seed=0, step=n, steps=length, lr=(0.1,), peak_lr=(0.2,), batch_loss=3.0 - n / 100,
            batch_slope=-1.0, batch_change=-ratio - n / 1000, batch_size=64,
            edges={"evaluation": EDGE} if n % 5 == 0 else None,
        )
        for n in range(5, 5 + count)
    ]  # fmt: skip


def own(step, **given):
    place = {"trajectory": "SGD", "seed": 0, "step": step, "lr": (0.1,)}
    return [DirectionRecord(**place, direction=name, sharpness=2.0, **given) for name in ("own SGD", "sgd")]


def probed_run(path, directions=(), steps=()):
    with RunDirectory.open(path, DirectionRecord, CONFIGURATION, context={"source": {"title": "ten batches"}}) as run:
        run.append(list(directions))
        for step in steps:
            run.append_step(step)
    return path


def call(*arguments, capsys, status=0):
    """What a command prints: of a mistake, on standard error."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert stop.value.code == status, err
    return out if status == 0 else err
