"""Clipping the user's own optimizer: each row against gradients clipped by hand, and different from no clip at all."""

import copy
import functools

import pytest
import torch
from torch import nn

import stepscope
from stepscope import UsageError, clip_optimizer
from stepscope.clipping.hook import clipped
from stepscope.directions.optimizers import Adafactor, Lion, muon_with_adamw

SHAPES = ((6, 5), (7,), (4, 3))
FRACTION = 0.3


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def gradients(steps, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    return [[scale * torch.randn(shape, generator=generator) ** 3 for shape in SHAPES] for _ in range(steps)]


def clip_by_hand(tensors, fraction=FRACTION):
    """By a full sort, in place."""
    magnitudes = torch.cat([t.abs().reshape(-1) for t in tensors]).sort(descending=True).values
    threshold = magnitudes[int(fraction * len(magnitudes) + 1e-9)]
    for t in tensors:
        t.clamp_(-threshold, threshold)
    return float(threshold)


def run(make, clip, steps=6, between=lambda optimizer, index: None, step=lambda optimizer: optimizer.step()):
    """Weights after some steps: `clip` is ``None``, ``"hook"``, or ``"hand"``."""
    weights = parameters()
    optimizer = make(weights)
    handle = clip_optimizer(optimizer, FRACTION) if clip == "hook" else None
    for index, given in enumerate(gradients(steps)):
        given = [g.clone() for g in given]
        if clip == "hand":
            clip_by_hand(given)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        for p, g in zip(weights, given, strict=True):
            p.grad = g if any(p is q for q in held) else None
        step(optimizer)
        optimizer = between(optimizer, index) or optimizer
    return torch.cat([p.detach().reshape(-1) for p in weights]), handle


def check(make, **settings):
    plain, _ = run(make, None, **settings)
    by_hand, _ = run(make, "hand", **settings)
    by_hook, handle = run(make, "hook", **settings)
    assert torch.equal(by_hook, by_hand)
    assert not torch.allclose(by_hook, plain)  # the step changed
    return handle


def by_hand_hook(optimizer, *_):
    clip_by_hand([p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None])


RULES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd foreach": lambda p: torch.optim.SGD(p, lr=0.1, foreach=True),
    "sgd fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1.0),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.1),
    "our adafactor": lambda p: Adafactor(p),
    "lion with weight decay": lambda p: Lion(p, lr=0.1, weight_decay=0.1),
    "two groups": lambda p: torch.optim.Adam([{"params": p[:1]}, {"params": p[1:], "lr": 0.2}], lr=0.1),
}


@pytest.mark.parametrize("name", RULES)
def test_any_optimizer(name):
    handle = check(RULES[name])
    assert handle.stats().steps == 6


def test_a_removed_clip_clips_no_more():
    weights = parameters()
    optimizer = torch.optim.SGD(weights, lr=1.0)
    handle = clip_optimizer(optimizer, FRACTION)
    handle.remove()
    handle.remove()
    [given] = gradients(1)
    before = [p.detach().clone() for p in weights]
    for p, g in zip(weights, given, strict=True):
        p.grad = g
    optimizer.step()
    assert all(torch.equal(p.detach(), b - g) for p, b, g in zip(weights, before, given, strict=True))
    assert (handle.last_threshold, handle.stats().steps) == (None, 0)


def test_schedulers():
    def with_schedule(p):
        optimizer = torch.optim.Adam(p, lr=0.1)
        optimizer.schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return optimizer

    check(with_schedule, between=lambda optimizer, index: optimizer.schedule.step())


def test_state_dicts_go_into_and_out_of_an_unclipped_optimizer():
    def swap(optimizer, index):
        if index == 2:
            state = copy.deepcopy(optimizer.state_dict())
            fresh = torch.optim.Adam([p for g in optimizer.param_groups for p in g["params"]], lr=9.0)
            fresh.load_state_dict(state)  # out of the clipped one
            assert fresh.state_dict()["param_groups"] == state["param_groups"]
            optimizer.load_state_dict(fresh.state_dict())  # and into it: it replaces param_groups

    check(RULES["adam"], between=swap)


def test_added_groups_are_clipped_with_the_others():
    weights = parameters()
    optimizer = torch.optim.SGD(weights[:1], lr=1.0)
    handle = clip_optimizer(optimizer, FRACTION)
    optimizer.add_param_group({"params": weights[1:]})
    before = [p.detach().clone() for p in weights]
    [given] = gradients(1)
    for p, g in zip(weights, given, strict=True):
        p.grad = g.clone()
    optimizer.step()
    threshold = clip_by_hand(given)
    assert all(torch.equal(p.detach(), b - g) for p, b, g in zip(weights, before, given, strict=True))
    assert float(handle.last_threshold) == threshold


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_step():
    def compiled(optimizer):
        if not hasattr(optimizer, "compiled_step"):
            optimizer.compiled_step = torch.compile(lambda: optimizer.step(), backend="eager")
        optimizer.compiled_step()

    check(RULES["sgd"], step=compiled)


def closure_run(make, clip):
    """Rosenbrock-like, with the optimizer calling the closure as it likes."""
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(20))
    optimizer = make([w])
    if clip == "hook":
        clip_optimizer(optimizer, FRACTION)

    def closure():
        optimizer.zero_grad()
        loss = ((w[1:] - w[:-1] ** 2) ** 2).sum() + ((1 - w) ** 2).sum()
        loss.backward()
        if clip == "hand":
            clip_by_hand([w.grad])
        return loss

    for _ in range(3):
        optimizer.step(closure)
    return w.detach().clone()


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=5), lambda p: torch.optim.SGD(p, lr=1e-3)]
)
def test_closures_are_clipped_at_every_evaluation(make):
    plain, by_hand, by_hook = (closure_run(make, clip) for clip in (None, "hand", "hook"))
    assert torch.equal(by_hook, by_hand)
    assert not torch.allclose(by_hook, plain)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("target", ["grad", "first_moment", "update"])
def test_gradient_scalers(fused, target):
    """A fraction is the same of scaled gradients; a skipped step leaves nothing behind."""
    found = []
    for scaled, clips in ((False, True), (True, True), (False, False)):
        weights = parameters()
        optimizer = torch.optim.Adam(weights, lr=0.1, fused=fused)
        if clips:
            clip_optimizer(optimizer, FRACTION, target=target)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        given = gradients(5)
        for index, step in enumerate(given):
            optimizer.zero_grad()
            loss = sum((p * g).sum() for p, g in zip(weights, step, strict=True))
            if scaled and index == 2:
                scaler.scale(loss * float("inf")).backward()  # one more step, which is skipped
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
                loss = sum((p * g).sum() for p, g in zip(weights, step, strict=True))
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        found.append(torch.cat([p.detach().reshape(-1) for p in weights]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[2], found[0], atol=1e-3)


def test_accelerate():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    found = []
    for where in ("before", "after", None):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        if where == "before":
            handle = clip_optimizer(optimizer, FRACTION)
        model, optimizer = accelerator.prepare(model, optimizer)
        if where == "after":
            handle = clip_optimizer(optimizer, FRACTION)
        for _ in range(6):
            with accelerator.accumulate(model):
                accelerator.backward(model(torch.randn(8, 4)).pow(4).mean())
                optimizer.step()
                optimizer.zero_grad()
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        assert handle.stats().steps == 3
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_the_trainer_of_transformers(tmp_path):
    from integrations.test_transformers import trainer_of

    found = []
    for clip in ("hook", "hand", None):
        trainer = trainer_of("gpt-2", tmp_path, max_steps=3)
        trainer.create_optimizer()
        if clip == "hook":
            handle = clip_optimizer(trainer.optimizer, FRACTION)
        elif clip == "hand":
            trainer.optimizer.register_step_pre_hook(by_hand_hook)
        trainer.train()
        found.append(torch.cat([p.detach().reshape(-1) for p in trainer.model.parameters()]))
    assert handle.stats().steps == 3
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_lightning_always_passes_a_closure(tmp_path):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning_loop import Module, data

    class Clipped(Module):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            if clip == "hook":
                self.handle = clip_optimizer(optimizer, FRACTION)
            return optimizer

        def on_before_optimizer_step(self, optimizer):
            if clip == "hand":
                by_hand_hook(optimizer)

    found = []
    for clip in ("hook", "hand", None):
        torch.manual_seed(0)
        module = Clipped()
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        with pytest.warns():  # of few workers
            lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet).fit(
                module, torch.utils.data.DataLoader(data(24, 1), 8)
            )
        found.append(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
        if clip == "hook":
            assert module.handle.stats().steps == 3
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_an_optimizer_for_each_parameter_in_the_backward_pass():
    """Each holds one tensor, so the fraction is that tensor's."""
    found = []
    for clip in ("hook", "hand", None):
        weights = parameters()
        for p in weights:
            optimizer = torch.optim.SGD([p], lr=1.0)
            if clip == "hook":
                clip_optimizer(optimizer, FRACTION)

            def step(p, optimizer=optimizer, clip=clip):
                if clip == "hand":
                    clip_by_hand([p.grad])
                optimizer.step()
                optimizer.zero_grad()

            p.register_post_accumulate_grad_hook(step)
        [given] = gradients(1)
        sum((p * g).sum() for p, g in zip(weights, given, strict=True)).backward()
        found.append(torch.cat([p.detach().reshape(-1) for p in weights]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_sparse_gradients():
    """Of the coordinates that they hold, as those of a dense gradient that aren't zero."""
    found = []
    for sparse, clip in ((True, "hook"), (False, "hook"), (False, "hand"), (False, None)):
        torch.manual_seed(0)
        table = nn.Embedding(10, 4, sparse=sparse)
        optimizer = torch.optim.SGD(table.parameters(), lr=1.0)
        if clip == "hook":
            clip_optimizer(optimizer, FRACTION, zeros="ignore")
        (table(torch.tensor([1, 4, 4, 7])) ** 3).sum().backward()
        if clip == "hand":
            rows = table.weight.grad[[1, 4, 7]]
            clip_by_hand([rows])
            table.weight.grad[[1, 4, 7]] = rows
        optimizer.step()
        found.append(table.weight.detach().clone())
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[2])
    assert not torch.allclose(found[2], found[3])


def test_refusals():
    z = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer = torch.optim.SGD([z], lr=1.0)
    clip_optimizer(optimizer, 0.5)
    z.grad = torch.ones(2, dtype=torch.complex64)
    with pytest.raises(UsageError, match="complex"):
        optimizer.step()
    sgd = torch.optim.SGD(parameters(), lr=1.0)
    with pytest.raises(UsageError, match="between 0 and 1"):
        clip_optimizer(sgd, 1.5)
    for setting in ("scope", "target", "zeros"):
        with pytest.raises(UsageError, match=f"unknown {setting} 'all': choose"):
            clip_optimizer(sgd, 0.5, **{setting: "all"})
    with pytest.raises(UsageError, match="SGD has no first moment"):
        clip_optimizer(sgd, 0.5, target="first_moment")
    with pytest.raises(UsageError, match="LBFGS moves the parameters"):
        clip_optimizer(torch.optim.LBFGS(parameters()), 0.5, target="update")
    with pytest.raises(UsageError, match=r"not a torch\.optim\.Optimizer"):
        clip_optimizer("adam", 0.5)
    with pytest.raises(UsageError, match="gives a list can't be clipped as one"):
        clipped(muon_with_adamw(), 0.5)(parameters())


def test_nonfinite_gradients():
    w = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([w], lr=1.0)
    handle = clip_optimizer(optimizer, 0.5)
    w.grad = torch.tensor([1.0, float("nan"), 3.0, 4.0])
    optimizer.step()
    assert handle.stats().nonfinite == 1
    assert w.detach()[2:].tolist() == [-3.0, -4.0]  # left alone
    handle.remove()
    clip_optimizer(optimizer, 0.5, error_if_nonfinite=True)
    before = w.detach().clone()
    w.grad = torch.tensor([1.0, float("inf"), 3.0, 4.0])
    with pytest.raises(RuntimeError, match="error_if_nonfinite"):
        optimizer.step()
    torch.testing.assert_close(w.detach(), before, equal_nan=True)


def test_a_step_without_gradients_is_not_counted():
    """Distributed checkpointing makes one with zeros, so that states are there to be loaded into."""
    weights = parameters()
    optimizer = torch.optim.Adam(weights, lr=0.1)
    handle = clip_optimizer(optimizer, 0.5)
    optimizer.step()
    for p in weights:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    stats = handle.stats()
    assert (stats.steps, stats.without_gradient, stats.thresholds) == (0, 2, ())


def test_an_embeddings_gradient_is_not_wiped_out():
    """97% of it is zero: the threshold is the smallest magnitude that isn't, or that of the fraction of the rest."""
    w = nn.Parameter(torch.zeros(1000))
    optimizer = torch.optim.SGD([w], lr=1.0)
    for zeros, expected in (("keep", 1.0), ("ignore", 15.0)):
        handle = clip_optimizer(optimizer, 0.5, zeros=zeros)
        w.grad = torch.zeros(1000)
        w.grad[:30] = torch.arange(1.0, 31.0)
        optimizer.step()
        assert float(handle.last_threshold) == expected
        assert w.grad[:30].tolist() == [min(float(i), expected) for i in range(1, 31)]
        handle.remove()


@pytest.mark.parametrize("target", ["grad", "first_moment", "update"])
def test_scopes(target):
    weights = parameters()
    groups = [{"params": weights[:1]}, {"params": weights[1:]}]
    thresholds = {}
    for scope in ("global", "group", "tensor"):
        [given] = gradients(1)
        optimizer = torch.optim.Adam(groups, lr=0.1)
        handle = clip_optimizer(optimizer, FRACTION, scope=scope, target=target)
        for p, g in zip(weights, given, strict=True):
            p.grad = g.clone()
        optimizer.step()
        thresholds[scope] = handle.stats().thresholds
        if target != "update":
            parts = {"global": [given], "group": [given[:1], given[1:]], "tensor": [[g] for g in given]}[scope]
            original = [g.clone() for g in given]
            assert thresholds[scope] == tuple(clip_by_hand(part) for part in parts)
            # The first moment is that of the clipped gradient; the gradient itself is only clipped for "grad".
            left = given if target == "grad" else original
            assert all(torch.equal(p.grad, g) for p, g in zip(weights, left, strict=True))
            moments = [optimizer.state[p]["exp_avg"] for p in weights]
            torch.testing.assert_close(moments, [0.1 * g for g in given])
    assert [len(thresholds[scope]) for scope in ("global", "group", "tensor")] == [1, 2, 3]


@pytest.mark.parametrize("scope", ["global", "group", "tensor"])
def test_scopes_of_the_update(scope):
    weights = parameters()
    [given] = gradients(1)
    optimizer = torch.optim.SGD([{"params": weights[:1]}, {"params": weights[1:], "lr": 2.0}], lr=1.0)
    clip_optimizer(optimizer, FRACTION, scope=scope, target="update")
    before = [p.detach().clone() for p in weights]
    for p, g in zip(weights, given, strict=True):
        p.grad = g.clone()
    optimizer.step()
    changes = [-given[0], *(-2.0 * g for g in given[1:])]
    plain = [c.clone() for c in changes]
    for part in {"global": [changes], "group": [changes[:1], changes[1:]], "tensor": [[c] for c in changes]}[scope]:
        clip_by_hand(part)
    for p, b, c in zip(weights, before, changes, strict=True):
        torch.testing.assert_close(p.detach() - b, c, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(c, q) for c, q in zip(changes, plain, strict=True))


def numerators(kind, x, gradients, *, betas, fraction):
    """The paper's clip in float64: the first moment and NAdam's own gradient term see clip(g), the second moment g."""
    x = x.double().clone()
    m, v, product = torch.zeros_like(x), torch.zeros_like(x), 1.0
    for t, g in enumerate(gradients, 1):
        g = g.double()
        c = g.clone()
        clip_by_hand([c], fraction)
        m = betas[0] * m + (1 - betas[0]) * c
        if kind == "Adamax":
            v = torch.maximum(betas[1] * v, g.abs() + 1e-8)
            x -= 1e-2 / (1 - betas[0] ** t) * m / v
            continue
        v = betas[1] * v + (1 - betas[1]) * g**2
        mhat = m / (1 - betas[0] ** t)
        denominator = (v / (1 - betas[1] ** t)).sqrt() + 1e-8
        if kind == "NAdam":
            mu, following = (betas[0] * (1 - 0.5 * 0.96 ** (s * 4e-3)) for s in (t, t + 1))
            product *= mu
            mhat = (1 - mu) / (1 - product) * c + following / (1 - product * following) * m
        if kind == "RAdam":
            infinity = 2 / (1 - betas[1]) - 1
            length = infinity - 2 * t * betas[1] ** t / (1 - betas[1] ** t)
            if length <= 5:
                x -= 1e-2 * mhat
                continue
            rectified = ((length - 4) * (length - 2) * infinity / ((infinity - 4) * (infinity - 2) * length)) ** 0.5
            denominator = (v.sqrt() + 1e-8) / (1 - betas[1] ** t) ** 0.5 / rectified
        x -= 1e-2 * mhat / denominator
    return x


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [(kind, way) for kind in ("Adam", "AdamW", "NAdam", "RAdam", "Adamax") for way in ("single", "foreach")]
    + [("Adam", "fused"), ("AdamW", "fused")],
)
def test_the_papers_adam_over_100_steps(kind, implementation):
    betas = (0.9, 0.999)
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(120, generator=generator)
    steps = [torch.randn(120, generator=generator) ** 3 for _ in range(100)]
    expected = numerators(kind, start, steps, betas=betas, fraction=0.5)
    unclipped = numerators(kind, start, steps, betas=betas, fraction=0.0)
    weights = [nn.Parameter(part.clone().double()) for part in start.split(40)]
    settings = {"weight_decay": 0.0} if kind == "AdamW" else {}
    settings |= {"single": {"foreach": False}}.get(implementation, {implementation: True})
    optimizer = getattr(torch.optim, kind)(weights, lr=1e-2, betas=betas, **settings)
    clip_optimizer(optimizer, 0.5, target="first_moment")
    for g in steps:
        for p, part in zip(weights, g.split(40), strict=True):
            p.grad = part.clone().double()
        optimizer.step()
    found = torch.cat([p.detach() for p in weights])
    moved = float((expected - start.double()).norm())
    assert float((found - expected).norm()) < 1e-6 * moved
    assert float((expected - unclipped).norm()) > 0.05 * moved


def test_steps_on_trial_do_not_mix_with_those_that_are_made():
    """A probe on a clipped optimizer: others step between the hooks of the real step."""
    found = []
    for probed, clips in ((False, True), (True, True), (False, False)):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if clips:
            clip_optimizer(optimizer, FRACTION, target="update")
        batches = [torch.randn(8, 4) for _ in range(3)]
        square = lambda m, b: m(b).square().mean()  # noqa: E731
        if probed:
            directions = {"clipped": clipped(functools.partial(torch.optim.SGD, lr=0.1), 0.5, "update")}
            stepscope.Probe(
                model, optimizer, square, batches, every=1, directions=directions, max_overhead=None, quiet=True
            )
        for batch in batches:
            optimizer.zero_grad()
            square(model, batch).backward()
            optimizer.step()
        found.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam", "Adamax"])
def test_an_outlier_does_not_drown_the_first_moment(kind, dtype):
    """A gradient of 10⁶ with a threshold of 1: the moment is that of 1, to the last digit of its type."""
    w = nn.Parameter(torch.zeros(4, dtype=dtype))
    optimizer = getattr(torch.optim, kind)([w], lr=1e-3, weight_decay=0.0)
    clip_optimizer(optimizer, 0.25, target="first_moment")
    expected, size = 0.0, 0.0
    for _ in range(3):
        w.grad = torch.tensor([1e6, 1.0, -0.5, 0.25], dtype=dtype)
        optimizer.step()
        expected = 0.9 * expected + 0.1
        size = max(0.999 * size, 1e6) if kind == "Adamax" else 0.999 * size + 0.001 * 1e12
        assert w.grad[0] == torch.tensor(1e6, dtype=dtype)  # the gradient is the user's again
    tolerance = 10 * torch.finfo(dtype).eps
    state = optimizer.state[w]
    assert float(state["exp_avg"][0]) == pytest.approx(expected, rel=tolerance)
    assert float(state["exp_inf" if kind == "Adamax" else "exp_avg_sq"][0]) == pytest.approx(size, rel=tolerance)


@pytest.mark.parametrize("settings", [{"weight_decay": 0.3}, {"maximize": True}, {"amsgrad": True}])
@pytest.mark.parametrize("kind", ["Adam", "AdamW"])
def test_first_moments_with_other_settings(kind, settings):
    """Against the same rule written out in double precision."""
    w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, -4.0], dtype=torch.float64))
    optimizer = getattr(torch.optim, kind)([w], lr=0.1, **({"weight_decay": 0.0} | settings))
    clip_optimizer(optimizer, 0.5, target="first_moment")
    x, m, v, most = w.detach().clone(), 0.0, 0.0, torch.zeros(4, dtype=torch.float64)
    sign, decay = -1.0 if "maximize" in settings else 1.0, settings.get("weight_decay", 0.0)
    for t in range(1, 6):
        g = torch.tensor([4.0, -3.0, 2.0, -1.0], dtype=torch.float64) / t
        w.grad = g.clone()
        optimizer.step()
        c = g.clone()
        clip_by_hand([c], 0.5)
        coupled = decay * x if kind == "Adam" else 0.0
        x = x * (1 - 0.1 * decay) if kind == "AdamW" else x
        m = 0.9 * m + 0.1 * (sign * c + coupled)
        v = 0.999 * v + 0.001 * (sign * g + coupled) ** 2
        most = torch.maximum(most, v)
        size = (most if "amsgrad" in settings else v) / (1 - 0.999**t)
        x = x - 0.1 * (m / (1 - 0.9**t)) / (size.sqrt() + 1e-8)
    torch.testing.assert_close(w.detach(), x, rtol=1e-12, atol=1e-12)


def test_two_clips_on_one_optimizer_do_not_add_up():
    """A notebook's cell that is run again."""
    for targets in (("first_moment", "first_moment"), ("first_moment", "grad"), ("grad", "grad")):
        w = nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.Adam([w], lr=0.1)
        for target in targets:
            clip_optimizer(optimizer, 0.25, target=target)
        given = w.grad = torch.tensor([100.0, 3.0, 2.0, 1.0])
        optimizer.step()
        torch.testing.assert_close(optimizer.state[w]["exp_avg"], torch.tensor([0.3, 0.3, 0.2, 0.1]))
        if "grad" not in targets:
            assert w.grad is given


def test_a_step_that_raises_leaves_nothing_shifted():
    found = []
    for fails in (False, True):
        w = nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.Adam([w], lr=0.1)
        clip_optimizer(optimizer, 0.25, target="first_moment")

        def refuse(*_, fails=fails, calls=[]):  # noqa: B006
            calls.append(1)
            if fails and len(calls) == 1:
                raise RuntimeError("not now")

        optimizer.register_step_pre_hook(refuse)
        for _ in range(2):
            w.grad = torch.tensor([100.0, 3.0, 2.0, 1.0])
            if fails and not found[1:] and not optimizer.state:
                with pytest.raises(RuntimeError, match="not now"):
                    optimizer.step()
            optimizer.step()
        found.append((w.detach().clone(), optimizer.state[w]["exp_avg"], optimizer.state[w]["exp_avg_sq"]))
    torch.testing.assert_close(found[0], found[1])


def test_updates_are_clipped_whatever_becomes_of_the_gradients():
    w = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([w], lr=1.0, momentum=0.9)
    optimizer.register_step_post_hook(lambda optimizer, *_: optimizer.zero_grad())  # before the clip's
    handle = clip_optimizer(optimizer, 0.25, target="update")
    w.grad = torch.tensor([100.0, 3.0, 2.0, 1.0])
    optimizer.step()
    assert w.tolist() == [-3.0, -3.0, -2.0, -1.0]
    before = w.detach().clone()
    w.grad = torch.zeros(4)  # the momentum goes on
    optimizer.step()
    torch.testing.assert_close(w.detach() - before, torch.tensor([-2.7, -2.7, -1.8, -0.9]))
    assert handle.stats().steps == 2


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_skips_is_no_error(fused):
    w = nn.Parameter(torch.ones(4))
    optimizer = torch.optim.Adam([w], lr=0.1, fused=fused)
    clip_optimizer(optimizer, 0.25, error_if_nonfinite=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((w * float("inf")).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [1.0] * 4
    assert getattr(optimizer, "grad_scale", None) is None


def test_a_subclass_may_make_other_states():
    class Mine(torch.optim.Adam):
        pass

    with pytest.raises(UsageError, match="Mine has no first moment that is known here"):
        clip_optimizer(Mine(parameters()), 0.5, target="first_moment")
