"""The optimizers against closed forms, other implementations, and each other's properties."""

import lion_pytorch
import pytest
import torch
from torch import nn

from stepscope import UsageError
from stepscope.directions.optimizers import ACClip, Adafactor, Lion, NormalizedSGD, SignSGD, muon_with_adamw

OURS = {
    "lion": Lion,
    "signsgd": SignSGD,
    "normalized": NormalizedSGD,
    "acclip": ACClip,
    "lion clipped": lambda p, **k: Lion(p, clip_fraction=0.5, **k),
}


def run(factory, steps=25, dtype=torch.float32, seed=0, **settings):
    """Weights after some steps on fixed random gradients."""
    generator = torch.Generator().manual_seed(seed)
    x = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((5, 3), (7,), (2, 2, 2))]
    optimizer = factory(x, **settings)
    for _ in range(steps):
        for p in x:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype) * 3
        optimizer.step()
    return [p.detach() for p in x]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_lion_equals_lion_pytorch_bit_for_bit(decay, foreach):
    ours = run(Lion, lr=1e-2, betas=(0.95, 0.98), weight_decay=decay, foreach=foreach)
    theirs = run(lion_pytorch.Lion, lr=1e-2, betas=(0.95, 0.98), weight_decay=decay)
    assert same(ours, theirs)


@pytest.mark.parametrize("name", OURS)
def test_properties_that_all_share(name):
    rule = OURS[name]
    plain = run(rule, lr=1e-2)
    assert not same(plain, run(rule, steps=0, lr=1e-2))
    assert same(plain, run(rule, lr=1e-2, foreach=True))
    start = run(rule, steps=0, lr=1e-2)
    up = run(rule, lr=1e-2, maximize=True)
    for s, a, b in zip(start, plain, up, strict=True):
        torch.testing.assert_close(a - s, s - b, rtol=0, atol=1e-5)
    decayed = run(rule, steps=1, lr=1e-2, weight_decay=0.5)
    for s, a, b in zip(start, run(rule, steps=1, lr=1e-2), decayed, strict=True):
        torch.testing.assert_close(a - b, 1e-2 * 0.5 * s, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OURS)
def test_state_dict_round_trip(name):
    def with_reload(p, **settings):
        optimizer = OURS[name](p, **settings)
        step, count = optimizer.step, iter(range(100))

        def reloading():
            if next(count) == 10:
                fresh = OURS[name](p, **settings)
                fresh.load_state_dict(optimizer.state_dict())
                optimizer.__dict__.update(fresh.__dict__)
            step()

        optimizer.step = reloading
        return optimizer

    assert same(run(OURS[name], lr=1e-2), run(with_reload, lr=1e-2))


def test_a_closure_is_evaluated_once_with_gradients_on():
    x = nn.Parameter(torch.tensor([2.0]))
    optimizer, calls = SignSGD([x], lr=0.5), []

    def closure():
        optimizer.zero_grad()
        loss = x.square().sum()
        loss.backward()
        calls.append(loss.item())
        return loss.detach()

    assert float(optimizer.step(closure)) == 4.0
    assert (calls, x.item()) == ([4.0], 1.5)


def test_normalized_sgd_has_root_mean_square_one_in_every_tensor():
    start, after = run(NormalizedSGD, steps=0, lr=0.1), run(NormalizedSGD, steps=1, lr=0.1)
    for a, b in zip(start, after, strict=True):
        assert float((b - a).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-5)


def test_zero_gradients_move_nothing():
    for rule in OURS.values():
        x = nn.Parameter(torch.ones(3))
        x.grad = torch.zeros(3)
        rule([x], lr=1.0).step()
        assert x.tolist() == [1.0, 1.0, 1.0]


def test_lion_with_a_clip_in_the_place_of_the_sign():
    x = nn.Parameter(torch.zeros(4))
    x.grad = torch.tensor([40.0, -30.0, 20.0, -10.0])
    Lion([x], lr=1.0, clip_fraction=0.5).step()
    torch.testing.assert_close(x.detach(), torch.tensor([-2.0, 2.0, -2.0, 1.0]))


def test_adafactor_equals_torchs():
    ours = run(Adafactor, lr=1e-2, dtype=torch.float64)
    theirs = run(torch.optim.Adafactor, lr=1e-2, eps=(1e-15, 1e-3), dtype=torch.float64)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_adafactor_clips_the_numerator_alone():
    """One vector: v̂ = g² at the first step, so u = clip(g)/|g|, then divided by its RMS where that exceeds one."""
    g = torch.tensor([4.0, -2.0, 1.0, 0.5], dtype=torch.float64)
    x = nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64))
    x.grad = g.clone()
    Adafactor([x], lr=1e-2, clip_fraction=0.5).step()
    torch.testing.assert_close(2.0 - x.detach(), 1e-2 * 2.0 * g.clamp(-1, 1) / g.abs())


def test_muon_takes_matrices_and_adamw_the_rest():
    parameters = [nn.Parameter(torch.ones(s)) for s in ((3, 3), (3,), (2, 2, 2))]
    muon, adamw = muon_with_adamw()(parameters)
    assert [len(part.param_groups[0]["params"]) for part in (muon, adamw)] == [1, 2]
    assert len(muon_with_adamw()([parameters[1]])) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1.0}, "rate is ≥ 0"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"momentum": 1.0}, r"\[0, 1\)"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        SignSGD([nn.Parameter(torch.ones(1))], **settings)


def test_sparse_gradients_are_refused():
    x = nn.Parameter(torch.ones(2, 2))
    x.grad = torch.eye(2).to_sparse()
    with pytest.raises(UsageError, match="sparse"):
        SignSGD([x]).step()


def test_adafactor_in_float32_where_gradients_are_zero():
    """ε₁ = 1e-30 squared underflows: rows without gradient must stay, not become NaN."""
    x = nn.Parameter(torch.ones(3, 4))
    x.grad = torch.zeros(3, 4)
    x.grad[0] = 1.0
    Adafactor([x]).step()
    assert x[1:].tolist() == [[1.0] * 4] * 2
    assert torch.isfinite(x).all()
    x.grad.zero_()
    Adafactor([x]).step()
    assert torch.isfinite(x).all()


def test_adafactor_takes_relative_steps_like_torchs():
    """With lr 1 the step is 1/√t, not lr."""
    ours = run(Adafactor, dtype=torch.float64, lr=1.0)
    theirs = run(torch.optim.Adafactor, dtype=torch.float64, lr=1.0, eps=(1e-15, 1e-3))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_clip_fractions_are_of_the_whole_model():
    for rule in (lambda p: Lion(p, lr=1.0, clip_fraction=0.5), lambda p: Adafactor(p, clip_fraction=0.5)):
        a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        a.grad, b.grad = torch.tensor([100.0, 90.0]), torch.tensor([1.0, 2.0])
        rule([a, b]).step()
        moved = 1 - a.detach()
        torch.testing.assert_close(moved[0] * (1 if rule([a]).defaults.get("d") is None else 100 / 90), moved[1])


def test_clipping_survives_a_copy():
    import copy

    x = nn.Parameter(torch.ones(2))
    for optimizer in (Lion([x], clip_fraction=0.5), Adafactor([x], clip_fraction=0.5)):
        twin = copy.deepcopy(optimizer)
        twin.param_groups[0]["params"][0].grad = torch.ones(2)
        twin.step()
        assert twin.defaults["clip_fraction"] == 0.5
    with pytest.raises(UsageError, match="clip_fraction is 5"):
        Lion([x], clip_fraction=5)


def test_adafactor_has_a_smallest_scale():
    """Parameters at zero move by ε₂·ρ, not by nothing."""
    x = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    x.grad = torch.ones(4, dtype=torch.float64)
    Adafactor([x], lr=1e-2).step()
    torch.testing.assert_close(x.detach(), torch.full((4,), -1e-2 * 1e-3, dtype=torch.float64))


def test_acclip_is_the_algorithm_that_was_published():
    """Zhang et al. (2020), Algorithm 2 with α = 1, written out coordinate by coordinate in float64."""
    generator = torch.Generator().manual_seed(3)
    x = [nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64)) for _ in range(2)]
    expected = [p.detach().tolist() for p in x]
    moments, thresholds = [[0.0] * 6, [0.0] * 6], [[0.0] * 6, [0.0] * 6]
    optimizer = ACClip(x, lr=0.3, betas=(0.9, 0.99), eps=1e-5)
    clipped = 0
    for _ in range(30):
        for k, p in enumerate(x):
            # Heavy tails, so that the clip acts.
            p.grad = torch.randn(6, generator=generator, dtype=torch.float64) ** 5
            for i, g in enumerate(p.grad.tolist()):
                moments[k][i] = 0.9 * moments[k][i] + (1 - 0.9) * g
                thresholds[k][i] = 0.99 * thresholds[k][i] + (1 - 0.99) * abs(g)
                factor = min(thresholds[k][i] / (abs(moments[k][i]) + 1e-5), 1.0)
                clipped += factor < 1
                expected[k][i] -= 0.3 * factor * moments[k][i]
        optimizer.step()
    assert 0 < clipped < 360
    for p, values in zip(x, expected, strict=True):
        torch.testing.assert_close(p.detach(), torch.tensor(values, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_acclip_of_nothing_moves_nothing():
    w = nn.Parameter(torch.ones(3))
    w.grad = torch.zeros(3)
    ACClip([w], lr=1.0, eps=0.0).step()
    assert w.tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(UsageError, match="eps is -1"):
        ACClip([w], eps=-1.0)
