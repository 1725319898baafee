"""Drawn combinations of loss, model, optimizer, batch, loop: the probe changes nothing, the direction is the step made.

Further, that the table notices what it is there to notice.
"""

import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import stepscope
from drawn.draw import drawn
from drawn.optimizers import OPTIMIZERS, Spec
from drawn.trial import Combination, attach_probe, tried

SMALL = drawn(40, seed=4)

PLAIN = Combination("function", "MLP", "Adam", "dict", "plain")


@pytest.mark.parametrize("combination", SMALL, ids=str)
def test_training_is_the_same_and_the_direction_is_the_step_made(combination):
    verdict = tried(combination)
    assert verdict.kind in ("identical", "refused"), verdict.line


def test_few_combinations_can_not_be_trained_at_all():
    """A table of what fails by itself would say nothing."""
    assert len({str(c) for c in SMALL}) == len(SMALL)
    assert {c.loop for c in SMALL} >= {"plain", "two probes", "frozen midway", "state loaded midway"}


class Disturbing:
    """In the place of a probe: at attaching, and before each step, does something that a probe must not do."""

    def __init__(self, model, optimizer, loss, evaluation, *, deed, **settings):
        self.records = [{"step": step, "direction": "own", "step_error": 0.0} for step in (2, 4, 6)]

        def act(*_):
            deed(model, optimizer, loss)

        self._hook = optimizer.register_step_pre_hook(act)

    def close(self):
        self._hook.remove()


def _leave_a_buffer(model, optimizer, loss):
    model.left_behind = torch.zeros(1)


def _nudge(tensor):
    with torch.no_grad():
        tensor.reshape(-1)[0] = torch.nextafter(tensor.reshape(-1)[0], torch.tensor(10.0))


def _first(model):
    return next(model.parameters())


def _closed_over(loss, name):
    return dict(zip(loss.__code__.co_freevars, loss.__closure__, strict=True))[name]


DEEDS = {
    "a weight": ({}, lambda m, o, f: _nudge(_first(m))),
    "a gradient": ({"optimizer": "SGD"}, lambda m, o, f: _nudge(_first(m).grad)),
    "a mode": ({}, lambda m, o, f: m.eval()),
    "what is left on the model": ({}, _leave_a_buffer),
    "an attribute of a parameter": ({}, lambda m, o, f: setattr(_first(m), "mark", 1)),
    "the optimizer's state": ({}, lambda m, o, f: [_nudge(s["exp_avg"]) for s in list(o.state.values())[:1]]),
    "the learning rate": ({"optimizer": "SGD"}, lambda m, o, f: o.param_groups[0].update(lr=0.1001)),
    "the random state of torch": ({}, lambda m, o, f: torch.rand(())),
    "the random state of Python": ({}, lambda m, o, f: random.random()),
    "the random state of numpy": ({}, lambda m, o, f: np.random.rand()),
    "a teacher's buffer": (
        {"loss": "closure over a teacher"},
        lambda m, o, f: _nudge(_closed_over(f, "teacher").cell_contents[1].running_mean),
    ),
    "a teacher's mode": (
        {"loss": "closure over a teacher"},
        lambda m, o, f: _closed_over(f, "teacher").cell_contents.eval(),
    ),
    "a counter in a closure": (
        {"loss": "annealed by a counter"},
        lambda m, o, f: setattr(_closed_over(f, "calls"), "cell_contents", 100),
    ),
    "an attribute of the loss": (
        {"loss": "annealed by an object"},
        lambda m, o, f: f.history.append(0),
    ),
    "a generator of the loss": (
        {"loss": "torch generator"},
        lambda m, o, f: torch.rand((), generator=_closed_over(f, "generator").cell_contents),
    ),
    "an array of the loss": (
        {"loss": "queue in an array"},
        lambda m, o, f: _closed_over(f, "queue").cell_contents.__setitem__((0, 0), 7.0),
    ),
    "an iterator of the loss": (
        {"loss": "annealed by an iterator"},
        lambda m, o, f: next(_closed_over(f, "numbers").cell_contents),
    ),
    "a counter on the model's class": (
        {"model": "counter on the class"},
        lambda m, o, f: setattr(type(m), "calls", 100),
    ),
    "a counter on the optimizer's class": (
        {"optimizer": "rule: counter on its class"},
        lambda m, o, f: setattr(type(o), "steps", type(o).steps + 1),
    ),
    "state in the optimizer's closure": (
        {"optimizer": "rule: momentum in a closure"},
        lambda m, o, f: [v.add_(1e-9) for v in _closed_over(o.moved, "momenta").cell_contents.values()],
    ),
    "state by id": (
        {"optimizer": "rule: momentum by id"},
        lambda m, o, f: [_nudge(v) for v in o.momentum.values()],
    ),
    "a list on the model": ({"model": "caches"}, lambda m, o, f: m.seen["shapes"].append(0)),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_whatever_is_disturbed_is_noticed(deed):
    changes, act = DEEDS[deed]

    def attach(*args, **settings):
        return Disturbing(*args, deed=act, **settings)

    verdict = tried(replace(PLAIN, **changes), attach, lambda *_: {})
    assert verdict.kind == "DISTURBED", verdict.line
    assert "by the probe:" in verdict.line


def test_a_batch_that_is_written_to_is_noticed():
    def attach(model, optimizer, loss, evaluation, **settings):
        evaluation[0]["x"].add_(1)
        return Disturbing(model, optimizer, loss, evaluation, deed=lambda *_: None)

    assert "evaluation[0]['x']" in tried(PLAIN, attach).line


def test_asking_that_disturbs_is_told_from_a_probe_that_does():
    def ask(optimizer, parameters):
        torch.rand(())
        return stepscope.next_update(optimizer, parameters)

    assert tried(PLAIN, attach_probe, ask).line.startswith("DISTURBED: by next_update:")


def test_a_direction_that_is_slightly_wrong_is_noticed():
    def ask(optimizer, parameters):
        found = stepscope.next_update(optimizer, parameters)
        return {name: d * (1 + 2e-4) for name, d in found.items()}

    assert tried(PLAIN, attach_probe, ask).kind == "WRONG"


def test_a_direction_without_one_of_its_tensors_is_noticed():
    def ask(optimizer, parameters):
        return dict(list(stepscope.next_update(optimizer, parameters).items())[1:])

    assert tried(PLAIN, attach_probe, ask).kind == "WRONG"


@pytest.mark.parametrize("records", [[], [{"step": 2, "direction": "own Adam", "step_error": 0.3}]])
def test_records_that_are_missing_without_a_line_or_wrong_are_noticed(records):
    def attach(*args, **settings):
        return SimpleNamespace(records=records, close=lambda: None)

    assert tried(PLAIN, attach).kind == "WRONG"


def test_an_error_from_inside_is_no_refusal():
    def attach(*args, **settings):
        raise TypeError("from inside")

    assert tried(PLAIN, attach).line == "CRASHED: attaching: TypeError: from inside"


def test_a_refusal_is_one_and_a_refusal_that_disturbs_is_none():
    def attach(model, *args, **settings):
        raise stepscope.UsageError("not this one")

    def disturbing(model, *args, **settings):
        model.eval()
        attach(model)

    assert tried(PLAIN, attach).line == "refused: not this one"
    assert tried(PLAIN, disturbing).kind == "DISTURBED"


@pytest.mark.parametrize(("factor", "kind"), [(1, "identical"), (1e9, "WRONG")])
def test_a_step_that_rounds_to_nothing_is_compared_with_rounding_alone(factor, kind, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "SGD", Spec(lambda parameters: torch.optim.SGD(parameters, lr=1e-9)))

    def ask(optimizer, parameters):
        return {name: d * factor for name, d in stepscope.next_update(optimizer, parameters).items()}

    verdict = tried(replace(PLAIN, model="MLP in bfloat16", optimizer="SGD"), attach_probe, ask)
    assert verdict.kind == kind, verdict.line
