"""Once a step: before the update, gradients in place, and after it."""

import sys

import pytest
import torch
from torch import nn

from stepscope import UsageError
from stepscope.clipping.steps import StepHook


class Decaying(torch.optim.Adam):
    """Its step calls that of its base class, which torch hooks as well."""

    def step(self, closure=None):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)
        return super().step(closure)


class Twice(torch.optim.SGD):
    """Evaluates its closure twice a step."""

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])


def watched(make):
    w = nn.Parameter(torch.ones(2))
    optimizer = make([w])
    events = []
    hook = StepHook(
        optimizer,
        lambda *_: events.append(("before", w.tolist(), w.grad.tolist())),
        lambda *_: events.append(("after", w.tolist(), w.grad.tolist())),
    )
    return w, optimizer, events, hook


def closure_of(w, optimizer, value=1.0):
    def closure():
        optimizer.zero_grad()
        loss = value * w.sum()
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("dynamo", [False, True])
def test_a_step_inside_a_step_is_one(dynamo):
    if dynamo:
        pytest.importorskip("torch._dynamo")
    torch.optim.Adam([nn.Parameter(torch.ones(1))])  # from here on, torch hooks the step of Adam too
    w, optimizer, events, _ = watched(lambda p: Decaying(p, lr=0.1))
    w.grad = torch.ones(2)
    for _ in range(2):
        optimizer.step()
    assert [kind for kind, *_ in events] == ["before", "after"] * 2
    assert events[0][1] == [1.0, 1.0]  # before the decay


@pytest.mark.parametrize("passed", ["by position", "by keyword"])
def test_a_closure_counts_at_its_first_call(passed):
    w, optimizer, events, _ = watched(lambda p: Twice(p, lr=0.5))
    closure = closure_of(w, optimizer, 3.0)
    optimizer.step(closure) if passed == "by position" else optimizer.step(closure=closure)
    assert events == [("before", [1.0, 1.0], [3.0, 3.0]), ("after", [-0.5, -0.5], [3.0, 3.0])]


def test_a_step_that_raises_is_none_and_the_next_one_is():
    class Failing(torch.optim.SGD):
        fail = True

        def step(self, closure=None):
            if self.fail:
                raise RuntimeError("no")
            return super().step(closure)

    w, optimizer, events, _ = watched(lambda p: Failing(p, lr=0.5))
    w.grad = torch.ones(2)
    with pytest.raises(RuntimeError):
        optimizer.step()
    optimizer.fail = False
    optimizer.step()
    assert [kind for kind, *_ in events] == ["before", "before", "after"]


def test_two_optimizers_are_two():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    inner = torch.optim.SGD([second], lr=1.0)

    class Nested(torch.optim.SGD):
        def step(self, closure=None):
            inner.step()
            return super().step(closure)

    seen = []
    outer = Nested([first], lr=1.0)
    StepHook(outer, lambda *_: seen.append("outer"), lambda *_: None)
    StepHook(inner, lambda *_: seen.append("inner"), lambda *_: None)
    first.grad = second.grad = torch.ones(1)
    outer.step()
    assert seen == ["outer", "inner"]


def test_removed_it_is_silent():
    w, optimizer, events, hook = watched(lambda p: torch.optim.SGD(p, lr=0.5))
    hook.remove()
    hook.remove()
    w.grad = torch.ones(2)
    optimizer.step()
    assert events == []


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step_calls_it_each_time():
    w, optimizer, events, _ = watched(lambda p: torch.optim.SGD(p, lr=0.5))
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for _ in range(3):
        w.grad = torch.ones(2)
        step()
    assert [kind for kind, *_ in events] == ["before", "after"] * 3
    assert "torch._dynamo" in sys.modules


class Lookahead(torch.optim.Optimizer):
    """Holds another optimizer, and doesn't call torch's constructor, as published code has it."""

    def __init__(self, inner):
        self.optimizer, self.param_groups, self.state = inner, inner.param_groups, {}

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_an_optimizer_that_torch_has_no_hooks_on_is_refused():
    inner = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(UsageError, match="Lookahead has no hooks around its step: call"):
        StepHook(Lookahead(inner), lambda *_: None, lambda *_: None)
