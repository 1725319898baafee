"""Models that second derivatives don't come for free on: each a right result, or a refusal with the remedy."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import stepscope
from stepscope import Objective, Probe, UsageError
from traces import Log


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


class Attention(nn.Module):
    """One layer of attention, by a kernel of one's own choice."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.inside, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = self.inside(x).unflatten(-1, (2, 12)).transpose(1, 2).chunk(3, -1)
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(2)).mean(1)


def by_flash_kernel(q, k, v):
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v)


def by_flash_operator(q, k, v):
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0]


def in_half_precision_only(q, k, v):
    if q.dtype != torch.bfloat16:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    return F.scaled_dot_product_attention(q, k, v)


def measured(model, batch, method="auto"):
    direction = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    return stepscope.measure(Objective(model, loss_fn, [batch]), {"d": direction}, method)["d"]


@pytest.mark.parametrize("attend", [by_flash_kernel, by_flash_operator])
def test_flash_attention_only(attend):
    batch = (torch.randn(5, 6, 8), torch.randint(0, 3, (5,)))
    model, same = Attention(attend), Attention(F.scaled_dot_product_attention)
    same.load_state_dict(model.state_dict())
    m, exact = measured(model, batch), measured(same, batch)
    assert (m.method, exact.method) == ("difference", "autograd")
    assert "flash_attention" in m.method_reason
    assert m.sharpness == pytest.approx(exact.sharpness, abs=m.numerical_error)
    assert m.numerical_error < 0.1 * abs(exact.sharpness)
    probe = Probe(model, torch.optim.Adam(model.parameters()), loss_fn, [batch], quiet=True)
    assert (probe.check.method, probe.check.suspicions) == ("difference", ())


def test_half_precision_only_is_refused_with_the_remedy():
    batch = (torch.randn(5, 6, 8).bfloat16(), torch.randint(0, 3, (5,)))
    model = Attention(in_half_precision_only).bfloat16()
    loss_fn(model, batch).backward()  # it trains
    with pytest.raises(UsageError, match=r"doesn't run in float32.*attn_implementation='sdpa'"):
        measured(model, batch)
    single = Attention(in_half_precision_only)
    # In float32 it is the model's own error.
    with pytest.raises(
        UsageError, match=r"micro-batch 0 can't be computed \(RuntimeError: FlashAttention only"
    ) as refused:
        measured(single, (batch[0].float(), batch[1]))
    assert isinstance(refused.value.__cause__, RuntimeError)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.reentrant = reentrant

    def forward(self, x):
        def one(x):
            return torch.tanh(self.first(x))

        def two(x):
            return F.dropout(torch.tanh(self.second(x)), 0.2)

        if self.reentrant is None:
            return self.out(two(one(x)))
        # The inputs of the first need no gradient: a reentrant checkpoint gives its parameters none then.
        x = checkpoint(one, x, use_reentrant=self.reentrant)
        return self.out(checkpoint(two, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_are_measured_as_the_function_that_they_compute(reentrant):
    batch = (torch.randn(5, 4), torch.randint(0, 3, (5,)))
    model, same = Checkpointed(reentrant), Checkpointed(None)
    same.load_state_dict(model.state_dict())
    assert measured(model, batch).sharpness == measured(same, batch).sharpness
    x = torch.ones(2, requires_grad=True)
    after = checkpoint(torch.tanh, x, use_reentrant=True)
    assert type(after.grad_fn).__name__ == "CheckpointFunctionBackward"  # they are back


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_scripted_model():
    eager = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    scripted = torch.jit.script(eager)
    batch = (torch.randn(5, 4), torch.randint(0, 3, (5,)))
    for _ in range(3):
        loss_fn(scripted, batch).backward()  # it is optimized at its second call
    assert measured(scripted, batch).sharpness == pytest.approx(measured(eager, batch).sharpness, rel=1e-4)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_probe_refuses_scripted_modules_for_they_compute_otherwise_after_some_calls():
    """Also as a teacher: torch.jit's executor profiles the first calls of each."""
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)))
    batch = (torch.randn(5, 4), torch.randint(0, 3, (5,)))
    with pytest.raises(UsageError, match="model is scripted"):
        Probe(scripted, torch.optim.SGD(scripted.parameters()), loss_fn, [batch], quiet=True)
    model = nn.Linear(4, 3)
    distilled = lambda m, b: (m(b[0]) - scripted(b[0]).detach()).square().mean()  # noqa: E731
    with pytest.raises(UsageError, match="scripted is scripted"):
        Probe(model, torch.optim.SGD(model.parameters()), distilled, [batch], quiet=True).measure()
    before = {name: tensor.clone() for name, tensor in scripted.state_dict().items()}
    measured(scripted, batch)
    assert all(torch.equal(tensor, before[name]) for name, tensor in scripted.state_dict().items())
    assert scripted.training


def test_a_loss_that_holds_derivatives():
    """A penalty on the slope of w₁·tanh(w₀x): against its closed form (w₀w₁(1 − tanh²(w₀x)))²."""
    w = nn.ParameterDict({"w": nn.Parameter(torch.tensor([0.7, -1.3], dtype=torch.float64))})
    x = torch.randn(9, dtype=torch.float64)

    def penalty(model, batch):
        batch = batch.clone().requires_grad_()
        (slope,) = torch.autograd.grad(
            (model["w"][1] * torch.tanh(model["w"][0] * batch)).sum(), batch, create_graph=True
        )
        return slope.square().mean()

    def closed(w):
        return (w[0] * w[1] * (1 - torch.tanh(w[0] * x) ** 2)).square().mean()

    hessian = torch.autograd.functional.hessian(closed, w["w"].detach())
    u = torch.tensor([3.0, 4.0], dtype=torch.float64) / 5
    m = stepscope.measure(Objective(w, penalty, [x]), {"d": {"w": 10 * u}}, landscape=True)["d"]
    assert m.method == "autograd"
    assert m.sharpness == pytest.approx(float(u @ hessian @ u), rel=1e-10)
    assert m.loss == pytest.approx(float(closed(w["w"].detach())), rel=1e-12)


def test_recurrent_layers_do_without_cudnn():
    """Its kernels have no second derivative; seen here without a GPU by the flag."""
    seen = Log()

    def loss(model, batch):
        seen(torch.backends.cudnn.enabled)
        return model(batch)[0].square().mean()

    before = torch.backends.cudnn.enabled
    Objective(nn.LSTM(3, 4), loss, [torch.randn(5, 2, 3)]).loss()
    Objective(nn.Linear(3, 4), lambda m, b: loss(lambda x: [m(x)], b), [torch.randn(5, 3)]).loss()
    assert seen.notes() == [False, before]
    assert torch.backends.cudnn.enabled == before


class Straight(nn.Module):
    """Weights rounded to eighths, with the gradient of a rule that doesn't round."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(6, 7), nn.Linear(7, 3)

    def forward(self, x):
        w = self.first.weight
        return self.out(torch.tanh(F.linear(x, w + ((8 * w).round() / 8 - w).detach(), self.first.bias)))


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


class Adversarial(nn.Module):
    """A part of it sees the gradient reversed."""

    def __init__(self):
        super().__init__()
        self.first, self.out, self.domain = nn.Linear(6, 7), nn.Linear(7, 3), nn.Linear(7, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        return self.out(x) + self.domain(Reversed.apply(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [Straight, Adversarial])
def test_a_gradient_that_is_not_the_losss_own_is_said(kind, dtype, caplog):
    model = kind().to(dtype)
    batch = (torch.randn(5, 6, dtype=dtype), torch.randint(0, 3, (5,)))
    with caplog.at_level("WARNING", "stepscope"):
        probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn, [batch], quiet=True)
        assert probe.check.repeatable
    assert (probe.check.gradient_agrees, len(probe.check.suspicions)) == (False, 1)
    assert "the gradient isn't that of the loss" in caplog.text
    objective = Objective(model, loss_fn, [batch])
    _, gradient = objective.gradient()
    found = stepscope.measure(objective, {"g": gradient}, landscape=True)["g"]
    assert stepscope.measure(objective, {"g": gradient})["g"].gradient_agrees is False
    h, norm = found.finite_step, found.norm
    closed = (objective.loss_at(gradient, h / norm) - objective.loss_at(gradient, -h / norm)) / (2 * h)
    assert found.gradient_agrees is False
    assert found.loss_slope == pytest.approx(closed, rel=1e-3)
    assert abs(found.loss_slope - found.slope) > 0.02 * abs(found.slope)


def test_a_kink_within_the_segment_is_no_other_gradient():
    """``|w − 1.0003|`` at 1, with a segment of ±0.001: its slope changes from −1 to 1, and its mean is −0.3."""
    w = nn.ParameterDict({"w": nn.Parameter(torch.ones(1, dtype=torch.float64))})
    objective = Objective(w, lambda m, _: (m["w"] - 1.0003).abs().sum(), [torch.ones(1)])
    for options in ({"landscape": True}, {"segment": True}):
        found = stepscope.measure(objective, {"d": {"w": torch.ones(1)}}, **options)["d"]
        assert (found.slope, found.loss_slope) == pytest.approx((-1.0, -0.3))
        assert found.gradient_agrees
    assert stepscope.measure(objective, {"d": {"w": torch.ones(1)}})["d"].gradient_agrees


def test_a_third_derivative_is_no_other_gradient():
    """At an inflection the slopes of both halves of the segment are larger than that between them."""
    w = nn.ParameterDict({"w": nn.Parameter(torch.ones(1, dtype=torch.float64))})
    objective = Objective(w, lambda m, _: ((m["w"] - 1) + 1e5 * (m["w"] - 1) ** 3).sum(), [torch.ones(1)])
    for options in ({"landscape": True}, {}):
        measured = stepscope.measure(objective, {"d": {"w": -torch.ones(1)}}, **options)["d"]
        assert (measured.slope, measured.sharpness) == pytest.approx((-1.0, 0.0), abs=1e-9)
        assert measured.gradient_agrees


def test_a_kernel_that_a_training_insists_on_may_not_know_the_function_that_is_measured():
    """As flash attention, which knows half precision alone, where float32 is measured. On a CPU it knows no dropout."""
    model, batch = (
        Attention(partial(F.scaled_dot_product_attention, dropout_p=0.5)),
        (torch.randn(5, 7, 8), torch.ones(5).long()),
    )
    expected = Objective(model, loss_fn, [batch]).loss()
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        assert Objective(model, loss_fn, [batch]).loss() == pytest.approx(expected, rel=1e-6)
        assert not torch.backends.cuda.math_sdp_enabled()


@pytest.mark.parametrize(("factor", "fused"), [(1.0, True), (1.1, False)])
def test_losses_alone_use_fused_attention_where_it_is_the_same_function(factor, fused):
    """A fused kernel may compute another function than the math kernel, which is differentiated: by a factor here."""
    used = Log()

    def attend(q, k, v):
        flash = torch.backends.cuda.flash_sdp_enabled()
        used((torch.is_grad_enabled(), flash))
        return F.scaled_dot_product_attention(q * factor if flash else q, k, v)

    def by_math(q, k, v):
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v)

    model, batch = Attention(attend), (torch.randn(5, 7, 8), torch.randint(0, 3, (5,)))
    objective = Objective(model, loss_fn, [batch])
    _, gradient = objective.gradient()
    measured = stepscope.measure(objective, {"g": gradient}, landscape=True)["g"]
    assert (True, True) not in used.notes()
    assert used.notes()[-1] == (False, fused)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert measured.gradient_agrees
    same = Attention(by_math)
    same.load_state_dict(model.state_dict())
    exact = Objective(same, loss_fn, [batch])
    losses = [exact.loss_at(gradient, step / measured.norm) for step in measured.landscape.steps]
    assert measured.landscape.losses == pytest.approx(losses, rel=1e-6)
