"""Whatever a rule keeps and wherever it keeps it, its next step is known before, and asking leaves no trace."""

import collections
import gc
import itertools
import signal
import weakref

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.weak import WeakIdKeyDictionary

from stepscope import PseudoUpdates, UsageError, next_update, vectors
from stepscope.clip_hook import clip_optimizer
from stepscope.made import ExpectedStep
from stepscope.optimizers import Lion
from traces import fingerprint


class Rule(torch.optim.Optimizer):
    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})
        self.prepare()

    @property
    def held(self):
        return [p for group in self.param_groups for p in group["params"]]

    def prepare(self):
        pass

    @torch.no_grad()
    def step(self, closure=None):
        for index, p in enumerate(self.held):
            self.one(index, p, self.param_groups[0]["lr"])


class MultipliedRates(Rule):
    def one(self, index, p, lr):
        p.add_(p.grad, alpha=-lr * getattr(p, "lr_mul", 1.0))


class MomentumOnParameters(Rule):
    def one(self, index, p, lr):
        if not hasattr(p, "momentum"):
            p.momentum = torch.zeros_like(p)
        p.momentum.mul_(0.9).add_(p.grad)
        p.add_(p.momentum, alpha=-lr)


class ByIdentity(Rule):
    def prepare(self):
        self.buffers = {}

    def one(self, index, p, lr):
        momentum = self.buffers.setdefault(id(p), torch.zeros_like(p))
        momentum.mul_(0.9).add_(p.grad)
        p.add_(momentum, alpha=-lr)


class StateByIdentity(Rule):
    def one(self, index, p, lr):
        momentum = self.state[id(p)].setdefault("momentum", torch.zeros_like(p))
        momentum.mul_(0.9).add_(p.grad)
        p.add_(momentum, alpha=-lr)


class InWeakDictionary(Rule):
    dictionary = WeakIdKeyDictionary

    def prepare(self):
        self.buffers = self.dictionary()

    def key(self, p):
        return p

    def one(self, index, p, lr):
        if self.key(p) not in self.buffers:
            self.buffers[self.key(p)] = torch.zeros_like(p)
        self.buffers[self.key(p)].mul_(0.9).add_(p.grad)
        p.add_(self.buffers[self.key(p)], alpha=-lr)


class Key:
    pass


class InPlainWeakDictionary(InWeakDictionary):
    dictionary = weakref.WeakKeyDictionary

    def prepare(self):
        super().prepare()
        self.keys = {id(p): Key() for p in self.held}

    def key(self, p):
        return self.keys[id(p)]


class InClosure(Rule):
    def prepare(self):
        buffers, count = {}, 0

        def momentum(index, p):
            nonlocal count
            count += 1
            kept = buffers.setdefault(index, torch.zeros_like(p, dtype=torch.float64))
            kept.mul_(0.9).add_(p.grad)
            return kept.to(p.dtype) / count**0.5

        self.momentum = momentum

    def one(self, index, p, lr):
        p.add_(self.momentum(index, p), alpha=-lr)


class OnClass(Rule):
    steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        type(self).steps += 1
        super().step()

    def one(self, index, p, lr):
        p.add_(p.grad, alpha=-lr / type(self).steps)


MOMENTA = {}
STEPS = 0


class InModule(Rule):
    @torch.no_grad()
    def step(self, closure=None):
        global STEPS
        STEPS += 1
        super().step()

    def one(self, index, p, lr):
        momentum = MOMENTA.setdefault(index, torch.zeros_like(p))
        momentum.mul_(0.9).add_(p.grad)
        p.add_(momentum, alpha=-lr / STEPS)


class Views(Rule):
    def prepare(self):
        self.views = [p.data.view(-1) for p in self.held]

    def one(self, index, p, lr):
        self.views[index].add_(p.grad.view(-1), alpha=-lr)


class FlatWeights(Rule):
    def prepare(self):
        self.flat = torch.cat([p.data.reshape(-1) for p in self.held])
        place = 0
        for p in self.held:
            p.data = self.flat[place : place + p.numel()].view_as(p)
            place += p.numel()

    @torch.no_grad()
    def step(self, closure=None):
        self.flat.mul_(0.99)
        self.flat.add_(torch.cat([p.grad.reshape(-1) for p in self.held]), alpha=-self.param_groups[0]["lr"])


class FlatGradients(Rule):
    def prepare(self):
        self.flat = torch.zeros(sum(p.numel() for p in self.held))
        place = 0
        for p in self.held:
            p.grad = self.flat[place : place + p.numel()].view_as(p)
            place += p.numel()

    @torch.no_grad()
    def step(self, closure=None):
        self.flat.mul_(0.5)  # a rule may write to its gradients
        super().step()

    def one(self, index, p, lr):
        p.add_(p.grad, alpha=-lr)


class MasterWeights(Rule):
    def one(self, index, p, lr):
        master = self.state[p].setdefault("master", p.detach().double())
        master.add_(p.grad, alpha=-lr)
        p.copy_(master)


class HalfMomentum(Rule):
    def one(self, index, p, lr):
        momentum = self.state[p].setdefault("momentum", torch.zeros_like(p, dtype=torch.bfloat16))
        momentum.mul_(0.9).add_(p.grad)
        p.add_(momentum, alpha=-lr)


class Langevin(Rule):
    def prepare(self):
        self.generator = torch.Generator().manual_seed(5)

    def one(self, index, p, lr):
        noise = torch.randn_like(p) + torch.randn(p.shape, generator=self.generator)
        p.add_(p.grad + noise, alpha=-lr)
        p.add_(torch.rand(()), alpha=1e-3)


class Rebinding(Rule):
    """Gives its weights new memory, which nobody can follow: the difference of the weights is left."""

    def one(self, index, p, lr):
        p.data = p.data - lr * p.grad


class BehindPointers(Rule):
    """As a kernel of its own writes: by the address of the memory."""

    def one(self, index, p, lr):
        p.detach().numpy()[...] -= lr * p.grad.numpy()


class Subclass(Rule):
    """State that is a tensor subclass, such as the quantized one of torchao."""

    def prepare(self):
        self.momenta = {}

    def one(self, index, p, lr):
        if p not in self.momenta:
            self.momenta[p] = TwoTensor(torch.zeros_like(p), torch.zeros_like(p))
        momentum = self.momenta[p]
        momentum.mul_(0.9).add_(p.grad)
        p.add_(momentum.a + momentum.b, alpha=-lr / 2)


class OutOfSight(Rule):
    """State that no walk can see: an iterator of C holds it."""

    def prepare(self):
        self.buffers = itertools.cycle([torch.zeros_like(p) for p in self.held])

    def one(self, index, p, lr):
        momentum = next(self.buffers)
        momentum.mul_(0.9).add_(p.grad)
        p.add_(momentum, alpha=-lr)


class Slotted:
    __slots__ = ("momenta",)


class InOtherObjects(Rule):
    def prepare(self):
        self.kept = Slotted()
        self.kept.momenta = collections.deque(torch.zeros_like(p) for p in self.held)

    def one(self, index, p, lr):
        momentum = 0.9 * self.kept.momenta.popleft() + p.grad
        self.kept.momenta.append(momentum)
        p.add_(momentum, alpha=-lr)


class Lookahead(Rule):
    def __init__(self, parameters):
        self.inner = torch.optim.AdamW(parameters, lr=1e-2)
        self.calls = []
        self.inner.register_step_pre_hook(lambda *_: self.calls.append(1))
        super().__init__(self.inner.param_groups)

    @torch.no_grad()
    def step(self, closure=None):
        before = [p.detach().clone() for p in self.held]
        self.inner.step()
        for p, start in zip(self.held, before, strict=True):
            p.lerp_(start, 0.5)


def adamw(**settings):
    return lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, **settings)


RULES = {
    kind.__name__: kind
    for kind in (
        MultipliedRates, MomentumOnParameters, ByIdentity, StateByIdentity, InWeakDictionary, InPlainWeakDictionary,
        InClosure, OnClass, InModule, Views, FlatWeights, FlatGradients, MasterWeights, HalfMomentum, Langevin,
        Rebinding, BehindPointers, Subclass, InOtherObjects, Lookahead,
    )
} | {
    "AdamW foreach": adamw(foreach=True),
    "AdamW loop": adamw(foreach=False, amsgrad=True),
    "AdamW fused": adamw(fused=True, amsgrad=True),
    "AdamW maximizing": adamw(maximize=True),
    "Adam, rate in a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3), foreach=False),
    "Adafactor": torch.optim.Adafactor,
    "ASGD": torch.optim.ASGD,
    "Rprop": torch.optim.Rprop,
    "NAdam": torch.optim.NAdam,
    "Lion": lambda p: Lion(p, lr=1e-3, weight_decay=0.1),
    "Muon": lambda p: torch.optim.Muon([x for x in p if x.dim() == 2], lr=1e-2),
}  # fmt: skip
UNFOLLOWED = {"OutOfSight"}  # its second life would be that of the first


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    model[0].weight.lr_mul = 5.0
    return model


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(9, 6, generator=generator), torch.randint(0, 3, (9,), generator=generator)) for _ in range(count)]


def prepared(make):
    global STEPS
    OnClass.steps = STEPS = 0
    MOMENTA.clear()
    model = net()
    return model, make(list(model.parameters()))


def training(make, ask, steps=6):
    """Trains; before each step asks. Gives what is left behind."""
    model, optimizer = prepared(make)
    torch.manual_seed(7)
    for x, y in batches(steps):
        optimizer.zero_grad(set_to_none=not isinstance(optimizer, FlatGradients))
        nn.functional.cross_entropy(model(x), y).backward()
        ask(model, optimizer)
        optimizer.step()
    attributes = [p.momentum for p in model.parameters() if hasattr(p, "momentum")]
    kept = [*model.parameters(), *attributes, *MOMENTA.values(), torch.rand(3)]
    return [t.detach().clone() for t in kept], OnClass.steps, STEPS, list(vars(optimizer))


@pytest.mark.parametrize("name", [*RULES, "OutOfSight"])
def test_the_next_step_is_known_and_asking_leaves_no_trace(name):
    make = RULES.get(name, OutOfSight)
    calls = []

    def ask(model, optimizer):
        parameters = dict(model.named_parameters())
        before = fingerprint(model, optimizer)
        d = next_update(optimizer, parameters)
        assert fingerprint(model, optimizer) == before
        state = torch.get_rng_state()
        expected = ExpectedStep(parameters, d)
        optimizer.register_step_post_hook(lambda *_: check(expected, parameters, state))

    def check(expected, parameters, state):
        if not calls or calls[-1] is not expected:
            calls.append(expected)
            made = expected.compared_with(parameters)
            assert made.error <= 1e-6 + 3 * made.rounding
            assert made.rounding < 1e-3

    def asks_once(model, optimizer):
        for handles in (optimizer._optimizer_step_post_hooks,):
            handles.clear()
        ask(model, optimizer)

    found, plain = training(make, asks_once), training(make, lambda *_: None)
    assert len(calls) == 6
    assert found[1:] == plain[1:]
    assert all(torch.equal(a, b) for a, b in zip(found[0], plain[0], strict=True))


@pytest.mark.parametrize("name", RULES)
def test_a_second_life_goes_as_the_first(name):
    """It sees the same weights and gradients as the training, so it is where the training is, at each step."""
    lives = []

    def ask(model, optimizer):
        parameters = {n: p for n, p in model.named_parameters() if any(p is q for q in optimizer.param_groups[0]["params"])}
        g = {n: p.grad for n, p in parameters.items()}
        before = fingerprint(model, optimizer)
        if not lives:
            lives.append(PseudoUpdates(parameters, {"live": optimizer}))
        expected = next_update(optimizer, parameters)
        found = lives[0].step(g, capture=True)["live"]
        assert fingerprint(model, optimizer) == before
        if name != "Langevin":  # that draws from where the training is, and from its own generator
            assert all(torch.equal(found[n], expected[n]) for n in g)

    found, plain = training(RULES[name], ask), training(RULES[name], lambda *_: None)
    assert all(torch.equal(a, b) for a, b in zip(found[0], plain[0], strict=True))
