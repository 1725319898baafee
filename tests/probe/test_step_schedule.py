"""When the own step is measured, on a clock that the test moves."""

import itertools
import random

import pytest

from stepscope.probe import schedule as module
from stepscope.probe.schedule import Schedule
from stepscope.probe.step_schedule import StepSchedule


class Clock:
    now = 0.0

    def perf_counter(self):
        return self.now


def train(monkeypatch, *, length, known, cost, limit=0.05):
    """The steps that are measured in a training whose steps take a second each, and the part of the time they take."""
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    schedule = Schedule(10**9, limit, cost=1e9, window=0)
    steps = StepSchedule(schedule, length if known else None)
    measured, spent = [], 0.0
    for step in range(1, length + 1):
        clock.now += 1.0
        due = steps.is_due(step)
        seconds = (cost() if callable(cost) else cost) if due else 0.0
        with schedule.turn(step):
            clock.now += seconds
        if due:
            steps.made(step, seconds)
            measured.append(step)
            spent += seconds
    return measured, spent / length


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("length", [200, 300, 1000, 10_000])
def test_two_forward_passes_a_step_are_ten_measurements_within_the_limit(monkeypatch, known, length):
    """Two of three forward passes of a training step: at least ten, and five where the rate is judged."""
    measured, part = train(monkeypatch, length=length, known=known, cost=0.67)
    assert len(measured) >= 10
    assert part <= 0.05
    assert measured[0] <= max(5, 0.02 * length)
    assert sum(0.03 * length <= step <= 0.30 * length for step in measured) >= 5


@pytest.mark.parametrize("length", [700, 1000, 2000])
def test_twenty_are_made_and_more_within_two_percent(monkeypatch, length):
    measured, part = train(monkeypatch, length=length, known=True, cost=0.67)
    assert len(measured) >= 20
    assert part <= 0.02
    judged = [step for step in measured if 0.03 * length <= step <= 0.30 * length]
    assert len(judged) >= 12, "spread as all of them would be"


def test_a_machine_that_stalls_once_ends_nothing(monkeypatch):
    """The first and the third compare gradients, the fourth meets a stall that takes two fifths of what is planned."""
    costs = iter([1.6, 0.15, 1.2, 2.8])
    measured, part = train(monkeypatch, length=200, known=True, cost=lambda: next(costs, 0.15))
    assert len(measured) >= 10
    assert part <= 0.05


@pytest.mark.parametrize("stalls", [[20.0], [0.4, 30.0], [9.0, 0.4, 0.4, 9.0]])
def test_a_stall_that_takes_the_whole_limit_ends_nothing(monkeypatch, stalls):
    """Nine seconds are planned; twelve usual measurements take less than four."""
    costs = iter(stalls)
    measured, part = train(monkeypatch, length=200, known=True, cost=lambda: next(costs, 0.3))
    assert len(measured) >= 10
    assert part * 200 - sum(stalls) <= 0.02 * 200
    assert max(measured) > 0.30 * 200


def test_measurements_that_are_all_dear_keep_the_limit(monkeypatch):
    measured, part = train(monkeypatch, length=200, known=True, cost=4.0)
    assert 1 <= len(measured) <= 2
    assert part <= 0.05


@pytest.mark.parametrize(("least", "most"), [(0.2, 3.0), (0.1, 4.0), (0.3, 6.0)])
def test_measurements_of_differing_costs_keep_the_limit_but_for_the_last(monkeypatch, least, most):
    for seed in range(20):
        draw = random.Random(seed)
        _, part = train(monkeypatch, length=200, known=True, cost=lambda d=draw: d.uniform(least, most))
        assert part * 200 <= 0.05 * 200 + most


def test_what_is_made_beyond_the_limit_is_spread_too(monkeypatch):
    """A long warm-up is judged by what comes after it."""
    monkeypatch.setattr("stepscope.probe.step_schedule.SECONDS_ANYWAY", 1e9)
    measured, _ = train(monkeypatch, length=240, known=True, cost=3.0)
    assert 10 <= len(measured) <= 12
    assert max(measured) > 0.30 * 240


def test_thirty_measurements_in_ten_thousand_steps(monkeypatch):
    measured, part = train(monkeypatch, length=10_000, known=True, cost=2.0)
    assert len(measured) >= 30
    assert part <= 0.05


def test_of_an_unknown_length_the_limit_thins_them_out(monkeypatch):
    """Each comes at most half as late again as the one before, and a tenth as late again where it can be paid."""
    dear, _ = train(monkeypatch, length=2_000, known=False, cost=3.0)
    cheap, part = train(monkeypatch, length=2_000, known=False, cost=0.1)
    assert len(dear) < len(cheap)
    assert part <= 0.05
    assert all(later <= 1.13 * step + 1 for step, later in itertools.pairwise(cheap) if step > 20)


@pytest.mark.parametrize("length", [300, 500, 1000])
def test_what_couldnt_be_paid_at_its_time_isnt_made_up_by_steps_side_by_side(monkeypatch, length):
    """Where gradients are compared, at the first and the third, a measurement costs several others."""
    for first, rest in ((2.0, 0.5), (1.2, 0.15), (0.67, 0.67)):
        costs = iter([first, rest, first])
        measured, _ = train(monkeypatch, length=length, known=True, cost=lambda c=costs, r=rest: next(c, r))
        judged = [step for step in measured if step >= 0.03 * length]
        assert min(later - step for step, later in itertools.pairwise(judged)) >= int(0.75 * 0.27 * length / 20)
        assert measured[-1] > 0.30 * length
