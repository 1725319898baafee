"""Records as a probe makes them, without a model, and the command line on run directories."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stepscope.cli import main
from stepscope.runs import DirectionRecord, RecordedEdge, RecordedLandscape, RunDirectory, StepRecord
from synthetic_records import DIRECTIONS, HOSTILE, synthetic_records

CONFIGURATION = {"experiment": "probe", "model": "Net", "parameters": 1200, "optimizer": "SGD"}
CONTEXT = {"source": {"title": "ten batches"}}
EDGE = RecordedEdge(loss=2.0, multiples=(0.0, 1.0), losses=(2.0, 1.9), critical_multiple=1.5, status="found")


def steps_of(count=20, ratio=0.3, length=100):
    """A training whose steps are too long; every fifth was measured on the evaluation examples too."""
    return [
        StepRecord(
            trajectory="SGD", seed=0, step=n, steps=length, lr=(0.1,), peak_lr=(0.2,), batch_loss=3.0 - n / 102,
            batch_slope=-1.0, batch_change=-ratio - n / 1000, batch_size=64,
            edges={"evaluation": EDGE} if n % 5 == 0 else None,
        )
        for n in range(5, 5 + count)
    ]  # fmt: skip


def own(step, **given):
    place = {"trajectory": "SGD", "seed": 0, "step": step, "lr": (0.1,)}
    return [DirectionRecord(**place, direction=name, sharpness=2.0, **given) for name in ("own SGD", "sgd")]


def in_full(step, layer="a"):
    """A full measurement that has all that the page of a probe draws."""
    clipped = [replace(own(step)[0], direction=f"own SGD clip {percent}%") for percent in (10, 30)]
    return [
        replace(
            record, sharpness=2.0 + place, slope=-1.0, best_decrease=0.5 + place, within_layer=1.0, cross_layer=1.0,
            layers={layer: 1.0, "b": -0.5}, best_step=1.0, landscape=RecordedLandscape(steps=(0.0, 1.0), losses=(2, 1)),
        )
        for place, record in enumerate((*own(step), *clipped))
    ]  # fmt: skip


def long_training():
    """100 measurements of 12 directions in 30 layers, 12 points along each, and 300 steps on their own batches."""
    records = []
    for each in synthetic_records(steps=range(10, 1010, 10), trajectories=["SGD"]):
        few = slice(None, None, 3)
        curve = replace(each.landscape, steps=each.landscape.steps[few], losses=each.landscape.losses[few])
        layers = {f"encoder.layer.{n}.attention": each.sharpness / 30 for n in range(30)}
        if each.direction in [*DIRECTIONS][:12]:
            direction = "own SGD" if each.direction == "adam" else each.direction
            records.append(replace(each, direction=direction, landscape=curve, layers=layers, within_layer=1.0))
    return records, steps_of(300, length=1000)


ILL_NAMED = [
    *HOSTILE,
    "\"double\" 'single' `back` & </textarea>",
    "x" * 10_000,
    "\u202eright \u05d0\u05d1\u05d2 to left",
]
"""Names that try to be markup, to end what they stand in, to take all the room, and to turn the line around."""


def hostile_training(path):
    """A probe's run in which whatever a user names has such a name: directions, layers, model, optimizer, source."""
    model, layer, *_ = ILL_NAMED
    records = [
        replace(record, direction=name, landscape=replace(record.landscape, status=name))
        for step in (5, 10)
        for record, name in zip(in_full(step, layer) * 2, ("own SGD", *ILL_NAMED), strict=True)
    ]
    configuration = CONFIGURATION | {"model": model, "optimizer": ILL_NAMED[-1], ILL_NAMED[1]: ILL_NAMED[-2]}
    context = {"source": {"title": ILL_NAMED[-2], ILL_NAMED[1]: ILL_NAMED[0]}}
    return probed_run(path, records, steps_of(), configuration, context)


def probed_run(path, directions=(), steps=(), configuration=CONFIGURATION, context=CONTEXT):
    with RunDirectory.open(path, DirectionRecord, configuration, context=context) as run:
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
