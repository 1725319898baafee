"""What is measured next is known alike on all ranks, by few messages."""

import random
import time

import pytest
import torch
import torch.distributed as dist

from ranks import on_ranks
from stepscope.objective import Ranks
from stepscope.probe.agenda import AHEAD, Agenda
from stepscope.probe.schedule import Schedule
from stepscope.probe.step_schedule import StepSchedule

SCHEDULES, STEPS = 200, 20


def walked(number, ranks):
    """A training of one of the schedules, at this rank's own pace and by its own `every`."""
    alike, own = random.Random(number), random.Random(f"{number} {ranks.rank}")
    clock = random.Random(f"edges {number} {ranks.rank}")
    window, overhead, steps = alike.choice((0, 3, 20)), alike.choice((None, 0.05, 0.5)), alike.choice((None, STEPS))
    every = alike.choice((1, 5, lambda step: own.random() < 0.2))
    schedule = Schedule(every, overhead, None, window, cost_in_steps=alike.choice((0.1, 2.0)))
    own_steps = StepSchedule(schedule, steps)
    agenda = Agenda(ranks, own_steps.is_due, lambda step, own: own and clock.random() < 0.5, schedule.ahead)
    schedule.begin(0.0)
    seen = []
    for step in range(1, STEPS + 1):
        has_own = agenda.has_own(step)
        time.sleep(own.choice((0.0, 0.0, 2e-4)))
        with schedule.turn(step, plan=agenda.plan(step)) as turn:
            seen.append((has_own, agenda.has_edge(step, has_own), turn.plan))
            if has_own:
                own_steps.made(step, own.random() * 1e-3)
            if turn.plan != "pass" and alike.random() < 0.2:
                schedule.expect(own.random() * 1e-3, own.random() * 1e-4)
                turn.reconsider()
                agenda.drop(step)
                turn.plan = agenda.agree(turn.plan)
                seen[-1] = has_own, agenda.has_edge(step, has_own), turn.plan
            if turn.plan == "measure" and alike.random() < 0.1:
                turn.postpone()
    return seen


# ------------------------------------------------------------------------------------------------------------ cases


def schedules():
    sent, gather = [], dist.all_gather
    dist.all_gather = lambda *args, **kwargs: (sent.append(1), gather(*args, **kwargs))[1]
    ranks = Ranks(dist.group.WORLD, torch.device("cpu"))
    seen = [walked(number, ranks) for number in range(SCHEDULES)]
    dist.all_gather = gather
    return [seen, len(sent)]


def failing_every():
    """On the first rank, whose alone counts."""

    def every(step):
        if dist.get_rank() == 0 and step == 4:
            raise KeyError("a step")
        return step == 8

    ranks = Ranks(dist.group.WORLD, torch.device("cpu"))
    schedule = Schedule(every, None, 1.0, 0)
    agenda = Agenda(ranks, lambda step: False, lambda step, own: False, schedule.ahead)
    said = []
    for step in range(1, 9):
        try:
            agenda.has_own(step)
        except (KeyError, RuntimeError) as error:
            said.append(f"{step} {error}")
        with schedule.turn(step, plan=agenda.plan(step)) as turn:
            said.append(turn.plan)
    return said


CASES = (schedules, failing_every)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(CASES, 2, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
def test_ranks_are_never_out_of_step(results):
    (first, _), (second, _) = results["schedules"]
    assert first == second
    assert {plan for seen in first for *_, plan in seen} == {"pass", "follow", "measure"}
    assert sum(has_own for seen in first for has_own, *_ in seen) > SCHEDULES
    assert sum(has_edge for seen in first for _, has_edge, _ in seen) > SCHEDULES


@pytest.mark.slow
def test_steps_at_which_nothing_is_done_cost_a_message_in_sixteen(results):
    seen, sent = results["schedules"][0]
    busy = sum(has_own or plan != "pass" for walk in seen for has_own, _, plan in walk)
    assert sent <= busy + (SCHEDULES * STEPS - busy) / AHEAD + SCHEDULES


@pytest.mark.slow
def test_a_failure_of_every_is_known_to_all(results):
    first, second = results["failing_every"]
    assert "rank 0: KeyError" in second[0]
    assert [said for said in first if "step" not in said] == [said for said in second if "step" not in said]


def test_what_is_foretold_is_what_comes():
    plans, alone = {}, Ranks(None, torch.device("cpu"))
    for foretold in (False, True):
        schedule = Schedule(lambda step: step in (3, 7, 12), None, 1.0, 2)
        agenda = Agenda(alone, lambda step: False, lambda step, own: False, schedule.ahead)
        assert agenda.plan(1) is None
        plans[foretold], ahead = [], []
        for step in range(1, 15):
            if foretold and not ahead:
                ahead = schedule.ahead(step, 6)
            with schedule.turn(step, plan=ahead.pop(0) if foretold else None) as turn:
                plans[foretold].append(turn.plan)
    assert plans[True] == plans[False]
    assert plans[True].count("measure") == 3


def test_every_is_asked_once_for_each_step():
    asked = []
    schedule = Schedule(lambda step: bool(asked.append(step)), None, 1.0, 2)
    for step in range(1, 10):
        schedule.ahead(step, 4)
        with schedule.turn(step):
            pass
    assert asked == list(range(1, len(asked) + 1))
