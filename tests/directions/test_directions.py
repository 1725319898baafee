"""Directions equal what the optimizers really do next, at any learning rate, and asking changes nothing."""

import copy
import threading

import pytest
import torch
from torch import nn

from stepscope import UsageError
from stepscope.clipping.hook import clipped
from stepscope.directions.optimizers import Adafactor, Lion, NormalizedSGD, SignSGD, muon_with_adamw
from stepscope.directions.updates import PseudoUpdates, next_update
from stepscope.objective import vectors
from traces import fingerprint

SHAPES = {"matrix": (6, 4), "vector": (5,), "square": (4, 4)}

OPTIMIZERS = {
    "sgd": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, dampening=0.9),
    "sgd weight decay": lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, weight_decay=0.1),
    "adam": lambda p, lr: torch.optim.Adam(p, lr=lr),
    "adam foreach": lambda p, lr: torch.optim.Adam(p, lr=lr, foreach=True),
    "adam fused": lambda p, lr: torch.optim.Adam(p, lr=lr, fused=True),
    "adamw": lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.1, amsgrad=True),
    "adafactor": lambda p, lr: torch.optim.Adafactor(p, lr=lr, eps=(1e-15, 1e-3)),
    "our adafactor": lambda p, lr: Adafactor(p, lr=lr, clip_fraction=0.5),
    "muon": lambda p, lr: muon_with_adamw(lr, lr)(p),
    "lion": lambda p, lr: Lion(p, lr=lr, weight_decay=0.1),
    "signsgd": lambda p, lr: SignSGD(p, lr=lr),
    "normalized sgd": lambda p, lr: NormalizedSGD(p, lr=lr),
    "sgd clipped": clipped(lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9), 0.1),
    "adam update clipped": clipped(lambda p: torch.optim.Adam(p, lr=1e-3), 0.5, "update"),
    "adam first moment clipped": clipped(lambda p: torch.optim.Adam(p, lr=1e-3), 0.5, "first_moment"),
}


def factory(name, lr):
    made = OPTIMIZERS[name]
    return made if "clipped" in name else (lambda p: made(p, lr))


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    return {n: nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for n, s in SHAPES.items()}


def gradients(step):
    generator = torch.Generator().manual_seed(100 + step)
    return {n: torch.randn(s, generator=generator) * 10.0 ** (step % 3) for n, s in SHAPES.items()}


def really_steps(name, lr, trajectory, steps):
    """What the optimizer itself does at the last step, run in float64 throughout on the same points and gradients."""
    x = weights(torch.float64)
    parts = factory(name, lr)(list(x.values()))
    parts = parts if isinstance(parts, list) else [parts]
    for step in range(steps):
        for n, p in x.items():
            p.data = trajectory[step][n].double()
            p.grad = gradients(step)[n].double()
        for part in parts:
            part.step()
    return {n: p.detach() - trajectory[steps - 1][n].double() for n, p in x.items()}


@pytest.mark.parametrize("lr", [1e-1, 1e-3, 1e-5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_what_the_optimizer_does_next(name, lr):
    x = weights()
    updates = PseudoUpdates(x, {name: factory(name, lr)})
    trajectory = []
    for step in range(5):
        trajectory.append({n: p.detach().clone() for n, p in x.items()})
        directions = updates.step(gradients(step), capture=step == 4)
        for p in x.values():  # something else moves the weights
            p.data.mul_(0.99)
    exact = really_steps(name, lr, trajectory, 5)
    error = vectors.norm({n: directions[name][n].double() - exact[n] for n in x})
    # What clips the update takes it as the difference of the weights that is made.
    rounding = 2e-7 * vectors.norm(trajectory[4]) if name == "adam update clipped" else 0.0
    assert error < 1e-6 * vectors.norm(exact) + rounding


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if "clipped" not in n and n != "muon"])
def test_next_update_of_a_live_optimizer(name):
    x = weights()
    optimizer = OPTIMIZERS[name](list(x.values()), 1e-3)
    for step in range(4):
        for n, p in x.items():
            p.grad = gradients(step)[n]
        if step < 3:
            optimizer.step()
    model = nn.ParameterDict(x)
    before = fingerprint(model, optimizer)
    promised = next_update(optimizer, x, gradients(3))
    assert fingerprint(model, optimizer) == before
    start = {n: p.detach().clone() for n, p in x.items()}
    optimizer.step()
    happened = {n: p.detach().double() - start[n].double() for n, p in x.items()}
    rounding = 3e-7 * vectors.norm(start)
    assert vectors.norm({n: promised[n].double() - happened[n] for n in x}) < rounding + 1e-6 * vectors.norm(happened)
    assert rounding < 0.1 * vectors.norm(happened)


def test_a_difference_of_float32_weights_would_be_wrong():
    """The reason for mirrors: at lr 1e-5 the rounding of the weights is a large part of SGD's change."""
    x = weights()
    sgd = torch.optim.SGD(list(x.values()), lr=1e-7)
    g = gradients(0)
    promised = next_update(sgd, x, g)
    exact = {n: -1e-7 * part for n, part in g.items()}
    subtracted = {n: (p.detach() - 1e-7 * g[n]) - p.detach() for n, p in x.items()}
    assert vectors.norm({n: promised[n] - exact[n] for n in x}) < 1e-6 * vectors.norm(exact)
    assert vectors.norm({n: subtracted[n] - exact[n] for n in x}) > 0.1 * vectors.norm(exact)


def test_a_scheduled_optimizer_is_not_stepped():
    """A scheduler puts a `step` on the object that is bound to the original."""
    x = weights()
    optimizer = torch.optim.SGD(list(x.values()), lr=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    before = {n: p.detach().clone() for n, p in x.items()}
    promised = next_update(optimizer, x, gradients(0))
    assert all(torch.equal(before[n], p) for n, p in x.items())
    torch.testing.assert_close(promised["vector"], -0.5 * gradients(0)["vector"])


def test_the_gradients_that_backward_left_are_taken():
    x, g = weights(), gradients(0)
    optimizer = torch.optim.SGD(list(x.values()), lr=0.5)
    with pytest.raises(UsageError, match=r"after backward\(\)"):
        next_update(optimizer, x)
    for n, p in x.items():
        p.grad = g[n]
    assert all(torch.equal(next_update(optimizer, x)[n], next_update(optimizer, x, g)[n]) for n in x)


def test_hooks_of_a_live_optimizer_are_not_run():
    x = weights()
    optimizer, calls = torch.optim.SGD(list(x.values()), lr=1.0), []
    optimizer.register_step_pre_hook(lambda *a: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *a: calls.append("post"))
    next_update(optimizer, x, gradients(0))
    PseudoUpdates(x, {"live": optimizer}).step(gradients(0), capture=True)
    assert calls == []


def test_a_live_optimizer_is_followed_from_its_state():
    x = weights()
    optimizer = torch.optim.Adam(list(x.values()), lr=1e-2)
    for step in range(3):
        for n, p in x.items():
            p.grad = gradients(step)[n]
        optimizer.step()
    followers = PseudoUpdates(x, {"live": optimizer, "fresh": lambda p: torch.optim.Adam(p, lr=1e-2)})
    found = followers.step(gradients(3), capture=True)
    expected = next_update(optimizer, x, gradients(3))
    assert all(torch.equal(found["live"][n], expected[n]) for n in x)
    assert not torch.equal(found["fresh"]["matrix"], found["live"]["matrix"])


class Rude(torch.optim.Optimizer):
    """Writes to gradients and weights behind autograd's back, as older optimizers do."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.data.add_(p.data).mul_(-1)
                p.data.add_(p.grad.data)


def test_optimizers_do_not_disturb_each_other_or_the_run():
    x, g = weights(), gradients(0)
    kept = {n: part.clone() for n, part in g.items()}
    sgd = OPTIMIZERS["sgd"]
    both = PseudoUpdates(x, {"rude": Rude, "sgd": lambda p: sgd(p, 0.1)})
    alone = PseudoUpdates(x, {"sgd": lambda p: sgd(p, 0.1)})
    before = {n: p.detach().clone() for n, p in x.items()}
    for step in range(3):
        a = both.step(gradients(step), capture=True)
        b = alone.step(gradients(step), capture=True)
        assert all(torch.equal(a["sgd"][n], b["sgd"][n]) for n in x)
    both.step(g)
    assert all(torch.equal(kept[n], g[n]) for n in g)
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in x.items())


def test_capturing_does_not_advance_the_state_twice():
    x = weights()
    often, once = (PseudoUpdates(x, {"adam": torch.optim.Adam}) for _ in range(2))
    for step in range(4):
        a = often.step(gradients(step), capture=True)
        b = once.step(gradients(step), capture=step == 3)
    assert all(torch.equal(a["adam"][n], b["adam"][n]) for n in x)


def test_parameters_without_gradient_stay():
    x, g = weights(), gradients(0)
    del g["vector"]
    updates = PseudoUpdates(x, {"adamw": lambda p: torch.optim.AdamW(p, weight_decay=0.5)})
    assert set(updates.step(g, capture=True)["adamw"]) == {"matrix", "square"}


def test_bfloat16_weights_have_an_unrounded_direction():
    x = {n: nn.Parameter(p.detach().bfloat16()) for n, p in weights().items()}
    updates = PseudoUpdates(x, {"sgd": lambda p: torch.optim.SGD(p, lr=1e-6)})
    g = {n: part.bfloat16() for n, part in gradients(0).items()}
    found = updates.step(g, capture=True)["sgd"]["matrix"]
    torch.testing.assert_close(found.float(), -1e-6 * g["matrix"].float(), rtol=1e-2, atol=0)


class OnlyFloat32(torch.optim.SGD):
    def step(self, closure=None):
        assert all(p.dtype == torch.float32 for g in self.param_groups for p in g["params"]), "float32 kernels only"
        return super().step(closure)


def test_optimizers_that_refuse_float64_are_not_asked_to():
    x = weights()
    found = PseudoUpdates(x, {"odd": lambda p: OnlyFloat32(p, lr=0.1)}).step(gradients(1), capture=True)
    torch.testing.assert_close(found["odd"]["vector"], -0.1 * gradients(1)["vector"], rtol=1e-6, atol=0)


def test_mistakes_get_one_clear_line():
    x, other = weights(), weights()
    with pytest.raises(UsageError, match="isn't a trainable parameter of the model"):
        PseudoUpdates(x, {"stranger": torch.optim.SGD(list(other.values()), lr=1.0)})
    with pytest.raises(UsageError, match="SGD holds none of the parameters"):
        next_update(torch.optim.SGD(list(other.values()), lr=1.0), x, gradients(0))
    with pytest.raises(UsageError, match="neither a factory nor an optimizer"):
        PseudoUpdates(x, {"text": "adam"})
    with pytest.raises(UsageError, match=r"gave a int, not a torch\.optim\.Optimizer"):
        PseudoUpdates(x, {"odd": lambda p: [3]})
    with pytest.raises(UsageError, match="needs a closure"):
        PseudoUpdates(x, {"lbfgs": torch.optim.LBFGS}).step(gradients(0), capture=True)


def test_a_second_life_shares_no_tensor_with_the_first():
    x = weights()
    optimizer = torch.optim.Adam(list(x.values()), lr=1e-2)
    for n, p in x.items():
        p.grad = gradients(0)[n]
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    updates = PseudoUpdates(x, {"live": optimizer})
    for step in range(3):
        updates.step(gradients(step), capture=True)
    for key, value in optimizer.state_dict()["state"].items():
        for name, tensor in value.items():
            assert torch.equal(tensor, state["state"][key][name])


@pytest.mark.parametrize("kind", [{}, {"foreach": True}, {"fused": True}])
def test_scalar_parameters_are_exact_too(kind):
    x = {"scale": nn.Parameter(torch.tensor(2.0)), "w": nn.Parameter(torch.ones(3))}
    g = {"scale": torch.tensor(0.5), "w": torch.tensor([1.0, -2.0, 3.0])}
    updates = PseudoUpdates(x, {"adam": lambda p: torch.optim.Adam(p, lr=1e-6, **kind)})
    updates.step(g)
    found = updates.step(g, capture=True)["adam"]
    torch.testing.assert_close(found["scale"], torch.tensor(-1e-6), rtol=1e-5, atol=0)


def test_frozen_parameters_in_the_optimizer_are_passed_over():
    """`SGD(model.parameters())` with some of them frozen is the usual way to fine-tune."""
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    model[0].bias.requires_grad_(False)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(2):
        model(torch.ones(4, 3)).sum().backward()
        optimizer.step()
    before = fingerprint(model, optimizer)
    found = next_update(optimizer, trainable)
    followed = PseudoUpdates(trainable, {"live": optimizer}).step(
        {n: p.grad for n, p in trainable.items()}, capture=True
    )
    assert fingerprint(model, optimizer) == before
    assert set(found) == set(followed["live"]) == set(trainable)
    start = model[1].weight.detach().clone()
    optimizer.step()
    torch.testing.assert_close(model[1].weight - start, found["1.weight"], rtol=1e-4, atol=1e-6)


def test_gradients_are_checked():
    x, g = weights(), gradients(0)
    updates = PseudoUpdates(x, {"sgd": lambda p: torch.optim.SGD(p, lr=1.0)})
    assert set(updates.step({**g, "vector": None}, capture=True)["sgd"]) == {"matrix", "square"}
    with pytest.raises(UsageError, match="names 'vektor'"):
        updates.step({"vektor": g["vector"]}, capture=True)
    with pytest.raises(UsageError, match=r"the gradient of vector has shape \(4,\), the parameter \(5,\)"):
        updates.step({"vector": torch.ones(4)}, capture=True)


def test_a_rule_may_keep_the_gradient():
    class Keeps(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {})

        @torch.no_grad()
        def step(self, closure=None):
            for p in self.param_groups[0]["params"]:
                last = self.state[p].get("last", torch.zeros_like(p))
                p.add_(p.grad - last, alpha=-1.0)
                self.state[p]["last"] = p.grad

    x = {"w": nn.Parameter(torch.zeros(1))}
    updates = PseudoUpdates(x, {"keeps": Keeps})
    found = [float(updates.step({"w": torch.tensor([g])}, capture=True)["keeps"]["w"]) for g in (1.0, 3.0, 10.0)]
    assert found == [-1.0, -2.0, -7.0]


class Noisy(torch.optim.SGD):
    """Langevin-like: draws at each step."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad + torch.randn_like(p), alpha=-group["lr"])


def test_a_rule_that_draws_leaves_the_random_state():
    w = nn.Parameter(torch.ones(4))
    gradient = {"w": torch.ones(4)}
    state = torch.get_rng_state()
    updates = PseudoUpdates({"w": w}, {"noisy": lambda p: Noisy(p, lr=0.1)})
    captured = updates.step(gradient, capture=True)["noisy"]["w"]
    own = Noisy([w], lr=0.1)
    predicted = next_update(own, {"w": w}, gradient)["w"]
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(captured, predicted)


def test_a_frozen_parameter_with_a_gradient_left_on_it_is_not_moved():
    w, frozen = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    adam = torch.optim.AdamW([w, frozen], lr=0.1)
    w.grad, frozen.grad = torch.ones(2), torch.ones(3)
    adam.step()
    frozen.requires_grad_(False)
    before = frozen.detach().clone()
    predicted = next_update(adam, {"w": w}, {"w": torch.ones(2)})
    assert torch.equal(frozen, before)
    assert set(predicted) == {"w"}


def test_a_rule_may_hold_its_parameters_in_a_function_and_what_cannot_be_copied():
    class Held(torch.optim.Optimizer):
        def __init__(self, parameters, lr):
            parameters = list(parameters)
            super().__init__(parameters, {"lr": lr})
            self.lock = threading.Lock()
            self.apply = lambda: [p.data.add_(p.grad, alpha=-lr) for p in parameters]

        def step(self, closure=None):
            with self.lock:
                self.apply()

    w = nn.Parameter(torch.ones(2))
    w.grad = torch.ones(2)
    before = w.data_ptr()
    assert next_update(Held([w], 0.5), {"w": w})["w"].tolist() == [-0.5, -0.5]
    assert (w.tolist(), w.data_ptr()) == ([1.0, 1.0], before)


def test_hooks_on_every_optimizer_are_for_steps_that_are_made():
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    seen = []
    handle = register_optimizer_step_pre_hook(lambda optimizer, *_: seen.append(optimizer))
    try:
        w = nn.Parameter(torch.ones(2))
        w.grad = torch.ones(2)
        sgd = torch.optim.SGD([w], lr=0.1)
        next_update(sgd, {"w": w})
        PseudoUpdates({"w": w}, {"adam": torch.optim.Adam}).step({"w": w.grad}, capture=True)
        assert seen == []
        sgd.step()
        assert seen == [sgd]
    finally:
        handle.remove()


def test_peeking_takes_no_step():
    w = nn.Parameter(torch.ones(2))
    updates = PseudoUpdates({"w": w}, {"sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)})
    gradient = {"w": torch.ones(2)}
    first, again = updates.peek(gradient), updates.peek(gradient)
    assert torch.equal(first["sgd"]["w"], again["sgd"]["w"])
    updates.step(gradient)
    assert updates.peek(gradient)["sgd"]["w"].tolist() == pytest.approx([-0.19, -0.19])


def test_optimizers_that_share_the_parameters_out_have_their_own_parts():
    w = {"matrix": nn.Parameter(torch.randn(4, 4)), "bias": nn.Parameter(torch.randn(4))}
    for p in w.values():
        p.grad = torch.randn(p.shape)
    parts = [next_update(optimizer, w) for optimizer in muon_with_adamw()(list(w.values()))]
    assert [set(part) for part in parts] == [{"matrix"}, {"bias"}]
    together = PseudoUpdates(w, {"muon": muon_with_adamw()}).step({n: p.grad for n, p in w.items()}, capture=True)
    assert all(torch.equal((parts[0] | parts[1])[name], d) for name, d in together["muon"].items())
