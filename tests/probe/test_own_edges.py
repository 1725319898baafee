"""The edge of the optimizer's own step, from losses alone, without a full measurement."""

import logging

import pytest
import torch
from torch import nn

from classes import data, loss_fn
from stepscope import Objective, Probe, edge, next_update
from stepscope.probe import schedule as module
from stepscope.probe.own_edges import EdgeSchedule
from stepscope.probe.schedule import Schedule
from stepscope.probe.step_schedule import StepSchedule
from traces import outcome, same


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 3)).train()


def train(model, optimizer, steps=20, probe=None, named=True, look=None):
    for step, batch in enumerate(data(steps), 1):
        optimizer.zero_grad()
        if probe is not None and named:
            with probe.batch(batch):
                loss_fn(model, batch).backward()
        else:
            loss_fn(model, batch).backward()
        if look is not None:
            look(step)
        optimizer.step()


def attached(model, optimizer, **settings):
    return Probe(
        model, optimizer, loss_fn, data(3, seed=9), every=10**9, max_overhead=None, steps=20, quiet=True, **settings
    )


def edges_of(probe):
    return {record["step"]: record["edges"]["evaluation"] for record in probe.step_records if record["edges"]}


@pytest.mark.parametrize("named", [True, False])
def test_it_is_that_of_the_next_update(named):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    probe, expected = attached(model, optimizer), {}

    def look(step):
        objective = Objective(model, loss_fn, data(3, seed=9))
        expected[step] = edge(objective, next_update(optimizer, objective.parameters)).record()

    train(model, optimizer, probe=probe, named=named, look=look)
    assert probe.records == []
    found = edges_of(probe)
    assert len(found) > 10
    for step, one in found.items():
        for name in ("loss", "norm", "realized_change", "critical_multiple"):
            assert one[name] == pytest.approx(expected[step][name])
    if named:  # what tells noise from a step that is too long stands side by side
        changes = {record["step"]: record["batch_change"] for record in probe.step_records}
        assert all(changes[step] is not None for step in found)


def test_the_training_is_the_same():
    outcomes = []
    for with_probe in (False, True):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        probe = attached(model, optimizer) if with_probe else None
        train(model, optimizer, probe=probe)
        outcomes.append(outcome(model, optimizer))
    assert same(*outcomes)
    assert edges_of(probe)


def test_of_a_step_that_turns_out_another_nothing_is_recorded():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = attached(model, optimizer)

    def doubled(optimizer, *_):
        for p in optimizer.param_groups[0]["params"]:
            p.grad.mul_(2)

    optimizer.register_step_pre_hook(doubled)
    train(model, optimizer, probe=probe)
    assert edges_of(probe) == {}


def test_what_fails_is_said_once_and_training_goes_on(caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = data(3, seed=9)
    probe = Probe(
        model, optimizer, loss_fn, [(x * torch.nan, y) for x, y in inputs], every=10**9, max_overhead=None, steps=20,
        weight_fn=lambda b: 1.0, quiet=True,
    )  # fmt: skip
    with caplog.at_level(logging.WARNING, "stepscope"):
        train(model, optimizer, probe=probe)
    assert edges_of(probe) == {}
    said = [record.getMessage() for record in caplog.records if "edge" in record.getMessage()]
    assert said == ["the edge wasn't measured at step 2 (the loss is nan at the present parameters: nothing can be "
                    "measured there)"]  # fmt: skip
    assert len(probe.step_records) > 10


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def scheduled(monkeypatch, *, length, known, cost, full=1e9, limit=0.05, own_cost=0.0):
    """The steps that are measured where a step takes a second, and the part of the time that they take.

    With ``own_cost`` steps are measured on their own batches beside: then it is the part of both, and how many of these
    lie where the rate is judged is a third.
    """
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    schedule = Schedule(10**9, limit, cost=full, window=0)
    own = StepSchedule(schedule, length if known else None)
    steps = EdgeSchedule(schedule, own, 1, cost_in_steps=cost)
    measured, judged = [], 0
    for step in range(1, length + 1):
        clock.now += 1.0
        own_due, due = own_cost > 0 and own.is_due(step), steps.is_due(step)
        with schedule.turn(step):
            clock.now += cost * due + own_cost * own_due
        if own_due:
            own.made(step, own_cost)
            judged += 0.03 * length <= step <= 0.3 * length
        if due:
            steps.made(step, cost)
            measured.append(step)
    if own_cost:
        return measured, schedule.overhead, judged
    return measured, len(measured) * cost / length


@pytest.mark.parametrize(("length", "cost"), [(300, 1.0), (1000, 3.0), (10_000, 10.0)])
def test_they_take_two_percent_at_the_default_and_come_early(monkeypatch, length, cost):
    measured, part = scheduled(monkeypatch, length=length, known=True, cost=cost)
    assert len(measured) >= 4
    assert part <= 0.02
    assert measured[0] <= 0.05 * length
    assert measured[-1] > 0.5 * length


def test_of_an_unknown_length_they_take_little(monkeypatch):
    measured, part = scheduled(monkeypatch, length=3000, known=False, cost=2.0)
    assert len(measured) >= 4
    assert part <= 0.005


@pytest.mark.parametrize(("length", "least"), [(300, 0), (2000, 0), (3000, 3), (10_000, 10)])
def test_the_steps_that_the_rate_is_judged_by_come_first_and_all_take_two_percent(monkeypatch, length, least):
    *_, alone = scheduled(monkeypatch, length=length, known=True, cost=1e9, own_cost=1.0)
    edges, part, beside = scheduled(monkeypatch, length=length, known=True, cost=3.0, own_cost=1.0)
    assert beside >= alone - 1
    assert len(edges) >= least
    assert part <= (0.02 if edges else 0.05)


def test_where_full_measurements_are_within_reach_they_take_little(monkeypatch):
    measured, part = scheduled(monkeypatch, length=10_000, known=True, cost=3.0, full=50.0)
    assert 5 <= len(measured) <= 20
    assert part <= 0.005


def test_a_training_too_short_for_any_has_none(monkeypatch):
    assert scheduled(monkeypatch, length=100, known=True, cost=3.0) == ([], 0)


def test_in_a_training_of_seconds_a_few_are_made_in_the_time_that_is_spent_anyway(monkeypatch):
    monkeypatch.setattr("stepscope.probe.own_edges.SECONDS_ANYWAY", 1000.0)
    assert len(scheduled(monkeypatch, length=100, known=True, cost=3.0)[0]) == 5
