"""Families of models that users train, in float32 and their default configuration: a probe changes nothing."""

import logging
import os
import signal
from dataclasses import replace
from functools import cache

import pytest
import torch

from cases import FAMILIES, case
from stepscope import Probe
from traces import Log, fingerprint, outcome, same

STEPS = 6


def own_loss(c):
    """The loss as the training computes it; Hugging Face models bring theirs."""
    return c.loss_fn or (lambda model, batch: model(**batch).loss)


def train(name, *, probe=None, poisoned=False):
    """Some steps on the family's batches in turn; `probe(case, optimizer)` puts a probe on."""
    c = case(name, torch.float32)
    optimizer = torch.optim.AdamW(c.model.parameters(), lr=1e-2)
    attached = probe(c, optimizer) if probe else None
    interrupted = 0
    for step in range(STEPS):
        if poisoned and step == 2:
            optimizer.param_groups[0]["lr"] = float("inf")
        optimizer.zero_grad()
        own_loss(c)(c.model, c.batches[step % len(c.batches)]).backward()
        before = fingerprint(c.model, optimizer)
        try:
            optimizer.step()
        except KeyboardInterrupt:
            # As in a notebook: the cell is interrupted, and run again.
            assert fingerprint(c.model, optimizer) == before
            interrupted += 1
            optimizer.step()
    return outcome(c.model, optimizer), attached, interrupted


@cache
def plain(name, *, poisoned=False):
    """The outcome without a probe."""
    return train(name, poisoned=poisoned)[0]


def attach(every, **settings):
    given = {"every": every, "max_overhead": None, "quiet": True, **settings}
    return lambda c, optimizer: Probe(c.model, optimizer, c.loss_fn, c.batches, **given)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_bit_identical(name, family_table):
    probed, probe, _ = train(name, probe=attach(4))
    assert same(plain(name), probed)
    assert [r["step"] for r in probe.records] == [4] * 4
    assert probe.check.suspicions == ()
    assert not any(torch.isnan(t).any() for t in plain(name) if t.is_floating_point())
    family_table.identical(name, "training")


class Trap:
    """The family's loss, which at the `at`-th evaluation since it was armed does `what`."""

    def __init__(self, loss_fn, at, what):
        self.loss_fn, self.at, self.what = loss_fn, at, what
        self.armed, self.calls, self.sprung = False, Log(), Log()

    def __call__(self, model, batch):
        if self.armed and self.calls() == self.at:
            self.sprung()
            self.what()
        return self.loss_fn(model, batch)


def attach_trapped(what, traps):
    """A probe of the own direction whose first measurement springs the trap half-way."""

    def attached(c, optimizer):
        trap = Trap(own_loss(c), 10, what)
        traps.append(trap)
        probe = attach(3, directions={})(replace(c, loss_fn=trap), optimizer)
        assert probe.check.repeatable
        trap.armed = True
        return probe

    return attached


def out_of_memory():
    raise RuntimeError("out of memory")


@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_bit_identical_when_a_measurement_raises(name, family_table, caplog):
    traps = []
    with caplog.at_level(logging.WARNING, "stepscope"):
        probed, probe, _ = train(name, probe=attach_trapped(out_of_memory, traps))
    assert len(traps[0].sprung) == 1
    assert caplog.text.count("out of memory") == 1
    assert {r["step"] for r in probe.records} == {6}
    assert same(plain(name), probed)
    family_table.identical(name, "raises")


@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_bit_identical_after_ctrl_c(name, family_table):
    traps = []
    probed, probe, interrupted = train(name, probe=attach_trapped(lambda: os.kill(os.getpid(), signal.SIGINT), traps))
    assert (len(traps[0].sprung), interrupted) == (1, 1)
    assert {r["step"] for r in probe.records} == {3, 6}
    assert same(plain(name), probed)
    family_table.identical(name, "Ctrl-C")


@pytest.mark.parametrize("name", FAMILIES)
def test_training_is_bit_identical_when_the_loss_turns_nan(name, family_table, caplog):
    assert any(torch.isnan(t).any() for t in plain(name, poisoned=True) if t.is_floating_point())
    with caplog.at_level(logging.WARNING, "stepscope"):
        probed, probe, _ = train(name, poisoned=True, probe=attach(1, directions={}))
    assert {r["step"] for r in probe.records} == {1, 2}
    assert "the probe is off after 3 failures" in caplog.text
    assert same(plain(name, poisoned=True), probed)
    family_table.identical(name, "NaN")
