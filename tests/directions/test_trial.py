"""Whatever a rule keeps and wherever it keeps it, its next step is known before, and asking leaves no trace."""

import collections
import functools
import gc
import itertools
import signal
import weakref

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.weak import WeakIdKeyDictionary

from stepscope import PseudoUpdates, UsageError, next_update
from stepscope.clipping.hook import clip_optimizer
from stepscope.directions.optimizers import Lion
from stepscope.probe.step_check import ExpectedStep
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
    """State that no walk can see: a cache of C holds it."""

    def prepare(self):
        held = self.held
        self.buffer = functools.cache(lambda index: torch.zeros_like(held[index]))
        for index in range(len(held)):
            self.buffer(index)

    def one(self, index, p, lr):
        momentum = self.buffer(index)
        momentum.mul_(0.9).add_(p.grad)
        p.add_(momentum, alpha=-lr)


class Slotted:
    __slots__ = ("momenta",)


class Scheduled(Rule):
    def prepare(self):
        self.rates = iter([0.1 / step for step in range(1, 100)])

    @torch.no_grad()
    def step(self, closure=None):
        self.rate = next(self.rates)
        super().step()

    def one(self, index, p, lr):
        p.add_(p.grad, alpha=-self.rate)


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
        Rebinding, BehindPointers, Subclass, Scheduled, InOtherObjects, Lookahead,
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
    return [
        (torch.randn(9, 6, generator=generator), torch.randint(0, 3, (9,), generator=generator)) for _ in range(count)
    ]


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
        optimizer._optimizer_step_post_hooks.clear()
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
        parameters = {
            n: p for n, p in model.named_parameters() if any(p is q for q in optimizer.param_groups[0]["params"])
        }
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


def loaded(dtype=torch.float32, size=1000):
    generator = torch.Generator().manual_seed(3)
    w = nn.Parameter(torch.randn(size, generator=generator).to(dtype))
    w.grad = torch.randn(size, generator=generator).to(dtype)
    return w


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_the_rounding_of_weights_is_no_part_of_it(dtype, settings):
    w = loaded(dtype)
    found = next_update(torch.optim.SGD([w], lr=1e-7, **settings), {"w": w})["w"]
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(found.double(), -1e-7 * w.grad.double(), rtol=1e-6, atol=0)


def newton_schulz(gradient):
    """As Muon does: in bfloat16, whatever the weights are."""
    x = gradient.bfloat16() / gradient.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


class Rotating(Rule):
    """Decomposes its gradient in float32, as SOAP does: where values are close, float64 finds other vectors."""

    def one(self, index, p, lr):
        left, _, right = torch.linalg.svd(torch.eye(*p.shape) + 1e-7 * p.grad, full_matrices=False)
        p.add_(left @ p.grad @ right, alpha=-lr)


class Orthogonal(Rule):
    def one(self, index, p, lr):
        p.mul_(1 - 0.1 * lr)
        p.add_(newton_schulz(p.grad), alpha=-lr)


@pytest.mark.parametrize("rule", [Orthogonal, Rotating])
@pytest.mark.parametrize("lr", [1e-1, 1e-6])
def test_what_a_rule_rounds_inside_is_rounded_as_it_does(rule, lr):
    torch.manual_seed(0)
    w = nn.Parameter(torch.zeros(24, 24))
    w.grad = torch.randn(24, 24)
    optimizer = rule([w], lr=lr)
    found = next_update(optimizer, {"w": w})["w"]
    optimizer.step()  # from zero, so its weights round nothing
    assert float((found - w.detach()).norm()) < 1e-6 * float(found.norm())


def test_a_wrapped_step_is_the_step_that_is_asked_about():
    w = loaded()
    optimizer = torch.optim.SGD([w], lr=0.5)
    inner, calls = optimizer.step, []

    def step(closure=None):
        calls.append(1)
        w.grad.mul_(2)
        inner()

    optimizer.step = step
    gradient, version = w.grad.clone(), w.grad._version
    found = next_update(optimizer, {"w": w})["w"]
    torch.testing.assert_close(found, -gradient, rtol=1e-6, atol=0)
    assert calls == []  # as it was
    assert (w.grad._version, optimizer.step) == (version, step)
    assert torch.equal(w.grad, gradient)


def test_a_schedulers_counters_stay():
    w = loaded()
    optimizer = torch.optim.SGD([w], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    before = dict(vars(optimizer)), dict(vars(scheduler))
    next_update(optimizer, {"w": w})
    assert (dict(vars(optimizer)), dict(vars(scheduler))) == before
    assert not getattr(optimizer, "_opt_called", False)


class Raising(Rule):
    def prepare(self):
        self.steps = 0

    def one(self, index, p, lr):
        self.steps += 1
        p.add_(1)
        p.grad.zero_()
        self.state[p]["seen"] = True
        self.generous = p.data = torch.zeros_like(p)
        raise self.error


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_a_step_that_raises_leaves_nothing(error):
    model = net()
    parameters = dict(model.named_parameters())
    for x, y in batches(1):
        nn.functional.cross_entropy(model(x), y).backward()
    optimizer = Raising(model.parameters())
    optimizer.error = error
    before, attributes = fingerprint(model, optimizer), dict(vars(optimizer))
    with pytest.raises(type(error)):
        next_update(optimizer, parameters)
    assert (fingerprint(model, optimizer), dict(vars(optimizer))) == (before, attributes)
    assert len(optimizer.state) == 0


def test_ctrl_c_waits_until_all_is_as_it_was(capsys):
    class Pressed(Rule):
        def one(self, index, p, lr):
            p.add_(1)
            signal.raise_signal(signal.SIGINT)
            print("went on")

    w = loaded()
    optimizer, before = Pressed([w]), w.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        next_update(optimizer, {"w": w})
    assert capsys.readouterr().out == "went on\n"
    assert torch.equal(w, before)


def test_what_waits_for_gradients_still_does():
    """`DistributedDataParallel` hangs its hooks on the nodes that accumulate gradients."""
    model = net()
    parameters, calls = dict(model.named_parameters()), []
    nodes = [p.expand_as(p).grad_fn.next_functions[0][0] for p in parameters.values()]
    for node in nodes:
        node.register_hook(lambda *_: calls.append("node"))
    for p in parameters.values():
        p.register_post_accumulate_grad_hook(lambda _: calls.append("after"))
    optimizer = torch.optim.AdamW(model.parameters())
    for x, y in batches(2):
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        next_update(optimizer, parameters)
        PseudoUpdates(parameters, {"live": optimizer}).step({n: p.grad for n, p in parameters.items()}, capture=True)
        calls.clear()
        loss.backward()  # through a graph from before: nothing that it holds has changed
        assert collections.Counter(calls) == {"node": 4, "after": 4}


class Curvature(Rule):
    @torch.enable_grad()
    def one(self, index, p, lr):
        (h,) = torch.autograd.grad(p.grad.sum(), p)
        p.data.add_(h, alpha=-lr)


@pytest.mark.filterwarnings("ignore:Using backward\\(\\) with create_graph")
def test_a_rule_that_differentiates_its_gradients_is_refused_and_the_graph_stays():
    w = loaded()
    w.grad = None
    w.pow(3).sum().backward(create_graph=True)
    gradient, optimizer = w.grad, Curvature([w])
    for ask in (
        lambda: next_update(optimizer, {"w": w}),
        lambda: PseudoUpdates({"w": w}, {"live": optimizer}).peek({"w": w.grad}),
    ):
        with pytest.raises(UsageError, match=r"needs the graph of its gradients \(create_graph\)"):
            ask()
    assert w.grad is gradient
    assert w.grad.grad_fn is not None
    optimizer.step()  # the graph has not been freed
    plain = next_update(torch.optim.SGD([w], lr=1.0), {"w": w})["w"]
    assert torch.equal(plain, -gradient.detach())
    w.grad = None


def test_sparse_gradients_are_as_they_were():
    model = nn.Embedding(10, 3, sparse=True)
    model(torch.tensor([1, 4, 4])).square().sum().backward()
    gradient, values = model.weight.grad, model.weight.grad._values().clone()

    class Scales(Rule):
        def one(self, index, p, lr):
            p.grad._values().mul_(2)
            p.add_(p.grad, alpha=-lr)

    for optimizer in (Scales(model.parameters()), torch.optim.SparseAdam(model.parameters())):
        found = next_update(optimizer, {"weight": model.weight})["weight"]
        assert int((found != 0).any(1).sum()) == 2
        assert model.weight.grad is gradient
        assert torch.equal(gradient._values(), values)


def test_a_frozen_parameter_is_neither_copied_nor_moved(capsys):
    w, frozen = loaded(), loaded(size=7)
    frozen.requires_grad_(False)
    frozen.grad, before = None, frozen.data_ptr()

    class Decays(Rule):
        def one(self, index, p, lr):
            print(p.data_ptr() == before)
            p.mul_(1 - lr)

    start = frozen.clone()
    found = next_update(Decays([w, frozen]), {"w": w})
    torch.testing.assert_close(found["w"], -0.1 * w.detach(), rtol=1e-6, atol=0)
    assert capsys.readouterr().out == "False\nTrue\n"
    assert torch.equal(frozen, start)
    assert (frozen.data_ptr(), frozen._version) == (before, 0)


def test_weights_that_are_replaced_in_coarse_precision_are_flagged():
    w = loaded(torch.bfloat16)
    with pytest.warns(RuntimeWarning, match="'Rebinding' writes to its weights in ways that can't be followed"):
        found = next_update(Rebinding([w], lr=1e-2), {"w": w})["w"]
    w.data, before = w.data - 1e-2 * w.grad, w.detach().float()
    assert torch.equal(found, w.detach().float() - before)


def test_an_operation_of_the_users_own_is_followed_by_its_result():
    """Its kernel may take a float64 tensor for a float32 one."""
    with torch.library._scoped_library("stepscope_test", "FRAGMENT") as library:
        library.define("descend_(Tensor(a!) w, Tensor g, float lr) -> ()")
        seen = []

        def descend_(w, g, lr):
            seen.append(w.dtype)
            w.detach().numpy()[...] -= lr * g.numpy()

        library.impl("descend_", descend_, "CPU")

        class Custom(Rule):
            def one(self, index, p, lr):
                torch.ops.stepscope_test.descend_(p, p.grad, lr)

        w = loaded()
        before = w.detach().clone()
        found = next_update(Custom([w]), {"w": w})["w"]
        torch.testing.assert_close(found, -0.1 * w.grad, rtol=1e-4, atol=1e-6)
        assert torch.equal(w, before)
        assert seen == [torch.float32]


def test_nothing_of_the_size_of_the_parameters_stays():
    model = net()
    parameters = dict(model.named_parameters())
    for x, y in batches(1):
        nn.functional.cross_entropy(model(x), y).backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()

    def living():
        return sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        next_update(optimizer, parameters)
        before = living()
        for _ in range(3):
            next_update(optimizer, parameters)
        assert living() == before
    finally:
        gc.enable()


def test_a_clip_counts_no_step_that_was_only_looked_at():
    handles = []

    def make(parameters):
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        handles.append(clip_optimizer(optimizer, 0.5, target="first_moment"))
        handles.append(clip_optimizer(optimizer, 0.5, target="update"))
        return optimizer

    w = loaded()
    updates = PseudoUpdates({"w": w}, {"clipped": make})
    for step in range(3):
        assert [h.stats().steps for h in handles] == [step, step]
        last = [h.last_threshold for h in handles]
        peeked = updates.peek({"w": w.grad})["clipped"]["w"]
        assert all(h.last_threshold is threshold for h, threshold in zip(handles, last, strict=True))
        assert int((peeked.abs() > 0.999 * peeked.abs().max()).sum()) >= 500
        updates.step({"w": w.grad})


def test_a_second_life_does_not_hear_of_the_first():
    w = loaded()
    optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.9)
    updates = PseudoUpdates({"w": w}, {"live": optimizer})
    optimizer.param_groups[0]["lr"] = 7.0
    optimizer.step()
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    found = updates.step({"w": w.grad}, capture=True)["live"]["w"]
    torch.testing.assert_close(found, -0.5 * w.grad, rtol=1e-6, atol=0)
    assert optimizer.param_groups[0]["lr"] == 7.0
    assert len(optimizer.param_groups) == 2
    later = updates.step({"w": w.grad}, capture=True)["live"]["w"]
    torch.testing.assert_close(later, -0.95 * w.grad, rtol=1e-6, atol=0)


def test_a_step_that_was_compiled_runs_as_it_is_written():
    pytest.importorskip("torch._dynamo")
    w = loaded()
    optimizer = torch.optim.SGD([w], lr=0.5)
    traced = []

    def backend(graph, inputs):
        traced.append(graph)
        return graph

    optimizer.step = torch.compile(optimizer.step, backend=backend)
    found = next_update(optimizer, {"w": w})["w"]
    torch.testing.assert_close(found, -0.5 * w.grad, rtol=1e-6, atol=0)
    assert traced == []
    torch._dynamo.reset()


def test_a_rule_may_draw_its_weights():
    class Draws(Rule):
        def one(self, index, p, lr):
            p.mul_(0.5).normal_().mul_(lr)

    w = loaded()
    optimizer = Draws([w])
    found, before = next_update(optimizer, {"w": w})["w"], w.detach().clone()
    optimizer.step()
    torch.testing.assert_close(found, w.detach() - before, rtol=1e-5, atol=1e-6)


def test_a_fused_kernel_moves_its_state_once():
    w = loaded(torch.float64)
    optimizer = torch.optim.AdamW([w], lr=1e-2, fused=True, amsgrad=True)
    for _ in range(3):
        found, before = next_update(optimizer, {"w": w})["w"], w.detach().clone()
        optimizer.step()
        torch.testing.assert_close(found, w.detach() - before, rtol=1e-9, atol=1e-12)
        w.grad = w.grad.roll(1)


def test_an_iterator_that_cannot_be_copied_is_not_read():
    class Cycled(Rule):
        def prepare(self):
            self.rates = itertools.cycle([0.1, 0.2])

        def one(self, index, p, lr):
            p.add_(p.grad, alpha=-next(self.rates))

    w = loaded()
    optimizer = Cycled([w])
    with pytest.raises(UsageError, match="rates is an iterator, and what it gives can't be given again"):
        next_update(optimizer, {"w": w})
    assert next(optimizer.rates) == 0.1


def test_a_view_that_torch_lets_nobody_differentiate_is_followed():
    """As heavyball's SOAP keeps them: made without gradients, of what is then written to with them."""

    class Viewing(Rule):
        def prepare(self):
            base = torch.ones(1500, requires_grad=True).clone()
            with torch.no_grad():
                self.momentum = base[:1000]
            base.mul_(2)

        def one(self, index, p, lr):
            self.momentum.add_(p.grad)
            p.add_(self.momentum, alpha=-lr)

    w = loaded()
    optimizer = Viewing([w])
    before = optimizer.momentum.data.clone()
    for _ in range(2):
        torch.testing.assert_close(next_update(optimizer, {"w": w})["w"], -0.1 * (2 + w.grad), rtol=1e-6, atol=1e-8)
    assert torch.equal(optimizer.momentum.data, before)


class CountedOnItsClass(torch.optim.Optimizer):
    """Its class has no counter before its first step."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        kind = type(self)
        kind.steps = getattr(kind, "steps", 0) + 1
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=1.0 / kind.steps)


def test_an_attribute_that_a_class_gets_in_a_step_goes_again():
    w = loaded()
    rule = CountedOnItsClass([w])
    torch.testing.assert_close(next_update(rule, {"w": w})["w"], -w.grad)
    assert not hasattr(CountedOnItsClass, "steps")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("SGD", {}),
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
        ("Adam", {"amsgrad": True, "weight_decay": 0.1}),
        ("AdamW", {"maximize": True}),
        ("NAdam", {}),
        ("RAdam", {}),
        ("Adamax", {"weight_decay": 0.1}),
        ("RMSprop", {"centered": True, "momentum": 0.9}),
        ("Adagrad", {}),
        ("Adadelta", {"weight_decay": 0.1}),
        ("ASGD", {"t0": 2.0}),
        ("Rprop", {}),
        ("Adafactor", {}),
    ],
)
def test_the_step_is_the_same_to_the_bit_whether_by_lists_or_one_by_one(rule, settings, dtype):
    torch.manual_seed(0)
    # The first two together are one part of the list, and the third is more than a part.
    x = {n: nn.Parameter(torch.randn(s).to(dtype)) for n, s in {"a": (50, 7), "b": (9,), "c": (400, 400)}.items()}
    optimizer = getattr(torch.optim, rule)(x.values(), lr=1e-3, **settings)
    for last in (False, False, True):
        for p in x.values():
            p.grad = torch.randn_like(p)
        if not last:
            optimizer.step()
    as_chosen = next_update(optimizer, x)
    assert optimizer.param_groups[0]["foreach"] is None
    optimizer.param_groups[0]["foreach"] = False
    for name, one_by_one in next_update(optimizer, x).items():
        assert torch.equal(as_chosen[name], one_by_one)


@pytest.mark.parametrize("rule", [torch.optim.SGD, torch.optim.Adam])
def test_a_fused_shadow_gets_gradients_in_the_order_of_its_weights(rule):
    """Fused kernels of a CPU go through memory, whatever the strides."""
    w = {"w": nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))}
    gradients = [{"w": torch.randn(4, 3, 2, 2)} for _ in range(3)]
    shadows = PseudoUpdates(w, {f: lambda p, f=f: rule(p, lr=0.1, fused=f) for f in (False, True)})
    for gradient in gradients[:2]:
        shadows.step(gradient)
    found = shadows.peek(gradients[2]), shadows.step(gradients[2], capture=True)
    for directions in found:
        torch.testing.assert_close(directions[True], directions[False])


def test_a_captured_step_is_the_one_that_a_shadow_takes():
    class Counting(Rule):
        steps = 0

        def one(self, index, p, lr):
            self.steps += 1
            p.add_(p.grad, alpha=-lr * self.steps)

    w = {"w": nn.Parameter(torch.zeros(3))}
    shadows = PseudoUpdates(w, {"counting": Counting})
    found = [shadows.step({"w": torch.ones(3)}, capture=capture) for capture in (True, False, True)]
    assert [float(directions["counting"]["w"][0]) for directions in (found[0], found[2])] == pytest.approx([-0.1, -0.3])
