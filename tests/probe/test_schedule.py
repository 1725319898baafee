"""The schedule keeps to the overhead, on a clock that the test moves."""

from contextlib import suppress

import pytest

from stepscope import UsageError
from stepscope.probe import schedule as module
from stepscope.probe.schedule import Schedule


class Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def train(schedule, clock, *, steps, step_seconds, cost, follow_cost=0.0, first=1):
    """What was planned at each step, and how long all of it took."""
    plans = []
    for step in range(first, first + steps):
        clock.now += step_seconds
        with schedule.turn(step) as turn:
            plans.append(turn.plan)
            if turn.plan == "measure":
                clock.now += cost
                turn.measured()
            elif turn.plan == "follow":
                clock.now += follow_cost
    return plans


def test_without_a_limit_it_measures_when_asked(clock):
    plans = train(Schedule(10, None, 1.0, 3), clock, steps=30, step_seconds=1.0, cost=100.0)
    assert [i for i, plan in enumerate(plans, 1) if plan == "measure"] == [10, 20, 30]
    assert [i for i, plan in enumerate(plans, 1) if plan == "follow"] == [7, 8, 9, 17, 18, 19, 27, 28, 29]


@pytest.mark.parametrize("limit", [0.01, 0.05, 0.5])
@pytest.mark.parametrize("follow_cost", [0.0, 0.01])
def test_the_overhead_is_kept(clock, limit, follow_cost):
    """Cheap estimate, dear measurements: the interval stretches, the total stays within, and it does measure."""
    schedule = Schedule(10, limit, 0.5, 5)
    schedule.begin(2.0)
    plans = train(schedule, clock, steps=5000, step_seconds=0.2, cost=3.0, follow_cost=follow_cost)
    spent = plans.count("measure") * 3.0 + plans.count("follow") * follow_cost + 2.0
    assert spent <= limit * 1000 + 3.0 + 5 * follow_cost
    assert schedule.overhead == pytest.approx(spent / 1000, rel=1e-6)
    possible = min((limit * 1000 - 5) / (3.0 + 6 * follow_cost), 500)
    assert plans.count("measure") > 0.7 * possible
    for at in (i for i, plan in enumerate(plans) if plan == "measure"):
        assert "pass" not in plans[max(at - 5, 0) : at]


def test_the_estimate_delays_the_first_measurement(clock):
    plans = train(Schedule(1, 0.1, 5.0, 0), clock, steps=60, step_seconds=1.0, cost=1.0)
    assert plans.index("measure") == 55  # 5 s are nine tenths of a tenth of 55.6


def test_a_function_of_the_step(clock):
    plans = train(Schedule(lambda step: step in (4, 9), None, 1.0, 1), clock, steps=10, step_seconds=1.0, cost=1.0)
    assert [i for i, plan in enumerate(plans, 1) if plan == "measure"] == [4, 9]


def test_the_function_is_asked_once_for_each_step_in_order(clock):
    asked = []

    def every(step):
        asked.append(step)
        return len(asked) == 7  # it may keep state

    plans = train(Schedule(every, None, 1.0, 3), clock, steps=10, step_seconds=1.0, cost=1.0)
    assert asked == list(range(1, 14))
    assert [i for i, plan in enumerate(plans, 1) if plan == "measure"] == [7]


@pytest.mark.parametrize("follow_cost", [0.02, 0.06, 0.3])
def test_each_measurement_has_been_followed_up_to(clock, follow_cost):
    """Also where following costs more than the overhead allows at each step."""
    schedule = Schedule(100, 0.05, 10.0, 20, follow_cost=follow_cost)
    plans = train(schedule, clock, steps=5000, step_seconds=1.0, cost=10.0, follow_cost=follow_cost)
    at = [i for i, plan in enumerate(plans) if plan == "measure"]
    assert len(at) > 10
    assert all(plans[i - 20 : i] == ["follow"] * 20 for i in at)
    assert schedule.overhead <= 0.05


def test_the_cost_is_in_steps_until_it_is_known(clock):
    schedule = Schedule(1, 0.1, None, 0, cost_in_steps=3.0)
    for step in range(1, 40):
        clock.now += 2.0
        with schedule.turn(step) as turn:
            if turn.plan == "measure":
                schedule.expect(20.0, 0.0)
                turn.reconsider()
                break
    assert (step, turn.plan) == (34, "pass")  # 6 s of 66.7, nine tenths of the limit, and not 20
    plans = train(schedule, clock, steps=80, step_seconds=2.0, cost=20.0, first=35)
    assert plans.index("measure") == 77  # 20 s of 222.2


def test_a_step_that_is_not_made_comes_again(clock):
    schedule = Schedule(4, None, 1.0, 2)
    plans = []
    for step in (1, 2, 3, 4, 4, 5, 6, 7, 8):
        with suppress(KeyboardInterrupt), schedule.turn(step) as turn:
            plans.append(turn.plan)
            if plans.count("measure") == 1 and step == 4 and plans[-2] != "measure":
                raise KeyboardInterrupt
    assert plans == ["pass", "follow", "follow", "measure", "measure", "pass", "follow", "follow", "measure"]


def test_one_schedule_takes_no_measuring_of_another_for_training(clock):
    first, second = Schedule(1, None, 1.0, 0), Schedule(1, None, 1.0, 0)
    for step in range(1, 11):
        clock.now += 1.0
        for schedule, cost in ((first, 3.0), (second, 5.0)):
            with schedule.turn(step):
                clock.now += cost
        with module.paused():  # somebody measures at will
            clock.now += 2.0
            with module.paused():
                clock.now += 1.0
    assert (first.overhead, second.overhead) == (3.0, 5.0)


def test_work_that_was_still_queued_is_the_trainings(clock):
    schedule = Schedule(1, None, 1.0, 0)
    with schedule.turn(1) as turn:
        clock.now += 1.0
        turn.settle()
        clock.now += 0.5
    assert schedule.overhead == 0.5


def test_a_failure_inside_leaves_the_step_made(clock):
    schedule = Schedule(2, None, 1.0, 0)
    plans = []
    for step in (1, 2, 3, 4):
        with suppress(ValueError), schedule.turn(step) as turn:
            plans.append(turn.plan)
            clock.now += 1.0
            raise ValueError
    assert plans == ["pass", "measure", "pass", "measure"]
    clock.now += 4.0
    with schedule.turn(5):
        assert schedule.overhead == 1.0


def test_what_could_not_be_measured_is_due_at_the_next_step(clock):
    schedule = Schedule(2, None, 1.0, 0)
    plans = []
    for step in (1, 2, 3, 4):
        with schedule.turn(step) as turn:
            plans.append(turn.plan)
            if step == 2:
                turn.postpone()
    assert plans == ["pass", "measure", "measure", "measure"]


def test_what_to_expect_in_words(clock):
    schedule = Schedule(10, 0.05, 2.0, 5)
    assert schedule.described(0) == "when due"
    train(schedule, clock, steps=5, step_seconds=0.5, cost=2.0)
    assert schedule.described(5) == "from about step 89, at most every 89 steps"
    assert schedule.described(5, 89) == schedule.described(5)
    assert schedule.described(5, 88).startswith("not before step 89, after the end: raise max_overhead=")
    resumed = Schedule(10, 0.05, 2.0, 5, first=1001)
    train(resumed, clock, steps=5, step_seconds=0.5, cost=2.0, first=1001)
    assert resumed.described(1005) == "from about step 1,089, at most every 89 steps"
    seldom = Schedule(1000, 0.002, 2e-4, 1000)
    train(seldom, clock, steps=5, step_seconds=0.5, cost=2.0)
    assert seldom.described(5) == "from about step 1,000"


@pytest.mark.parametrize(
    ("every", "limit"),
    [(0, 0.1), (1.5, 0.1), (-3, None), (10, 0.0), (10, -1.0), (10, float("nan")), (10, 5), (10, "5%")],
)
def test_wrong_settings(every, limit):
    with pytest.raises(UsageError, match="give a"):
        Schedule(every, limit, 1.0, 5)


def test_five_is_no_five_percent():
    with pytest.raises(UsageError, match=r"max_overhead is 5: .* up to 1 \(0.05 is 5%\), or None for no limit$"):
        Schedule(10, 5, 1.0, 5)
    Schedule(10, 1, 1.0, 5)
