"""Numbers in a tracker: whatever kind it is, by names that are the same for every optimizer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stepscope import Probe, UsageError
from stepscope.probe.trackers import as_log, values_of_step
from stepscope.runs import RecordedEdge, StepRecord

STEP = StepRecord(trajectory="SGD", seed=0, step=7, batch_loss=2.0, batch_change=-0.5, batch_slope=-1.0)
VALUES = {"stepscope/batch_loss": 2.0, "stepscope/trust_ratio": 0.5}


class Writer:
    """As TensorBoard's."""

    def __init__(self):
        self.seen = []

    def add_scalar(self, tag, value, global_step):
        self.seen.append(({tag: value}, global_step))


class Tracker:
    """As Accelerate's, and a run of wandb."""

    def __init__(self):
        self.seen = []

    def log(self, values, step=None):
        self.seen.append((values, step))


def test_each_kind_of_tracker_gets_the_same():
    writer, tracker, called = Writer(), Tracker(), []
    for each in (writer, tracker, lambda values, step: called.append((values, step))):
        as_log(each)(VALUES, 7)
    assert called == tracker.seen == [(VALUES, 7)]
    assert writer.seen == [({name: value}, 7) for name, value in VALUES.items()]
    with pytest.raises(UsageError, match="give a function"):
        as_log(3)


class WandbRun:
    """As wandb's: what comes with a step below the last row's is dropped, and a row ends when it is committed."""

    def __init__(self):
        self.step, self.rows, self.drawn_over = 0, {}, {}

    def define_metric(self, name, step_metric=None, hidden=None):
        self.drawn_over[name] = step_metric

    def log(self, values, step=None, commit=None):
        if step is not None and step < self.step:
            return
        self.step = self.step if step is None else step
        self.rows.setdefault(self.step, {}).update(values)
        if commit or (commit is None and step is None):
            self.step += 1


@pytest.mark.parametrize("own_step", [None, 0, 1])
@pytest.mark.parametrize("every", [1, 3])
def test_a_run_of_wandb_keeps_what_the_loop_logs(own_step, every):
    """Whether it counts its steps from 0, from 1 or not at all, at each step or now and then."""
    run = WandbRun()
    log = as_log(run.log)
    for step in range(1, 10):
        log({"stepscope/batch_loss": step + 0.5}, step)
        log({"stepscope/trust_ratio": step + 0.25}, step)
        if step % every == 0:
            run.log({"loss": step}, **({} if own_step is None else {"step": step - 1 + own_step}))
    assert [row["loss"] for row in run.rows.values() if "loss" in row] == [*range(every, 10, every)]
    logged = {row["stepscope/step"]: row for row in run.rows.values() if "stepscope/step" in row}
    assert [*logged] == [*range(1, 10)]
    assert all(
        (row["stepscope/batch_loss"], row["stepscope/trust_ratio"]) == (n + 0.5, n + 0.25) for n, row in logged.items()
    )
    assert run.drawn_over["stepscope/*"] == "stepscope/step"


def test_a_step_has_fixed_names_and_only_finite_numbers():
    edge = RecordedEdge(loss=2.0, multiples=(0.0,), losses=(2.0,), critical_multiple=1.5)
    assert values_of_step(STEP) == VALUES
    with_edge = StepRecord(trajectory="SGD", seed=0, step=7, edges={"evaluation": edge})
    assert values_of_step(with_edge) == {"stepscope/critical_multiple": 1.5}
    uphill = StepRecord(trajectory="SGD", seed=0, step=7, batch_loss=float("inf"), batch_change=1.0, batch_slope=1.0)
    assert values_of_step(uphill) == {}


def test_a_probe_logs_its_own_steps_in_order():
    """Also those that are measured on their own batch alone; a tracker that takes only growing steps drops none."""
    tracker, model = Tracker(), nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss_fn(model, batch):
        return model(batch).square().mean()

    batch = torch.randn(8, 3)
    with Probe(
        model, optimizer, loss_fn, [batch], every=5, max_overhead=None, steps=40, log=tracker, quiet=True
    ) as probe:
        for _ in range(40):
            optimizer.zero_grad()
            with probe.batch(batch):
                loss_fn(model, batch).backward()
                optimizer.step()
    steps = [step for _, step in tracker.seen]
    assert steps == sorted(steps)
    logged = {
        step: values["stepscope/trust_ratio"] for values, step in tracker.seen if "stepscope/trust_ratio" in values
    }
    assert logged == {r["step"]: r["batch_change"] / r["batch_slope"] for r in probe.step_records if r["batch_slope"]}
    assert len(logged) > 3
    multiples = {step for values, step in tracker.seen if "stepscope/critical_multiple" in values}
    assert multiples == {
        r["step"] for r in probe.step_records if (r["edges"] or {}).get("evaluation", {}).get("critical_multiple")
    }
