"""Ctrl-C waits until everything can be put back, at whatever line of the package it arrives."""

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import stepscope
from stepscope import Objective
from stepscope.objective import interrupts
from traces import Log, fingerprint


def press():
    signal.raise_signal(signal.SIGINT)


def test_it_waits_and_is_delivered_at_the_end():
    seen = []

    def work():
        with interrupts.held():
            press()
            seen.append("after")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == ["after"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_it_is_delivered_where_it_is_asked_for():
    def work():
        with interrupts.held(), interrupts.held():
            press()
            interrupts.deliver()
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        work()
    with interrupts.held():
        interrupts.deliver()  # nothing is left of it


def test_a_second_one_does_not_wait():
    def work():
        with interrupts.held():
            press()
            press()
            raise AssertionError

    with pytest.raises(KeyboardInterrupt):
        work()


def test_a_handler_of_the_users_own_is_called():
    seen = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    try:
        with interrupts.held():
            press()
            assert seen == []
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_handler_that_saves_a_checkpoint_saves_what_is_there(tmp_path):
    """SIGTERM on a cluster: the handler runs when the measurement is over, and the training goes on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()
    batch = torch.randn(5, 3)
    saved = []

    def save(number, frame):
        saved.append((model.training, {n: t.clone() for n, t in model.state_dict().items()}))

    calls = Log()

    def loss_fn(model, batch):
        if calls() == 10:
            signal.raise_signal(signal.SIGTERM)
        return model(batch).square().mean()

    objective = Objective(model, loss_fn, [batch])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    handler = signal.signal(signal.SIGTERM, save)
    try:
        direction = {n: torch.ones_like(p) for n, p in objective.parameters.items()}
        found = stepscope.measure(objective, {"d": direction}, landscape=True)
        assert signal.getsignal(signal.SIGTERM) is save
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert len(calls) > 10
    assert found["d"].landscape is not None
    [(training, weights)] = saved
    assert training
    assert all(torch.equal(weights[n], before[n]) for n in before)


def test_no_signal_is_lost():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append("term"))
    try:

        def work():
            with interrupts.held():
                signal.raise_signal(signal.SIGTERM)
                press()

        with pytest.raises(KeyboardInterrupt):
            work()
        assert seen == ["term"]
        mine = lambda *_: None  # noqa: E731
        with interrupts.held():
            signal.signal(signal.SIGTERM, mine)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.slow
def test_nothing_is_left_wherever_it_arrives():
    """One interrupt at every fourth line that a measurement runs through, in the package and in contextlib."""
    package = f"{Path(stepscope.__file__).parent}{os.sep}"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    batch = torch.randn(5, 3)
    model(batch).square().mean().backward()
    optimizer = torch.optim.Adam(model.parameters())
    objective = Objective(model, lambda m, b: m(b).square().mean(), [batch])
    directions = {"d": stepscope.next_update(optimizer, objective.parameters)}
    before = fingerprint(model, optimizer)
    lines = set()

    def measure_interrupted_at(place):
        pressed = []

        def trace(frame, event, argument):
            file = frame.f_code.co_filename
            if place and file != place[0]:
                return None
            if not file.startswith(package) and not file.endswith("contextlib.py"):
                return None
            here = (file, frame.f_lineno)
            lines.add(here)
            if here == place and not pressed:
                pressed.append(here)
                press()
            return trace

        sys.settrace(trace)
        try:
            directions["d"] = stepscope.next_update(optimizer, objective.parameters)
            stepscope.measure(objective, directions, landscape=True, breakdown=True)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    assert not measure_interrupted_at(None)
    lines.clear()  # some run only once, where an answer is remembered
    assert not measure_interrupted_at(None)
    for place in sorted(lines)[::4]:
        assert measure_interrupted_at(place), place
        assert fingerprint(model, optimizer) == before, place
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, place
    objective.loss()
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.autocast("cpu"):
        assert torch.is_autocast_enabled("cpu")


def test_threads_measure_one_after_another():
    """Switches of the process that two threads left in the order in which they entered would stay off."""
    switch = torch.autocast.__enter__
    one_is_inside, both_are = threading.Event(), threading.Event()

    def objective():
        return Objective(nn.Linear(2, 1), lambda model, x: model(x).square().mean(), [torch.ones(2, 2)])

    def first():
        with objective().measuring():
            one_is_inside.set()
            both_are.wait(0.5)

    def second():
        one_is_inside.wait()
        with objective().measuring():
            both_are.set()
            threads[0].join()

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.autocast.__enter__ is switch
