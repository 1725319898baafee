"""Optimizers that round or decompose matrices inside: the direction is the step that they make; and directions of
half-precision models keep their digits."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stepscope import next_update

STEPS = 30


def _pytorch_optimizer(name, **settings):
    package = pytest.importorskip("pytorch_optimizer")
    return lambda parameters: package.load_optimizer(name)(parameters, **settings)


def _package_muon(parameters):
    package = pytest.importorskip("pytorch_optimizer")
    return package.load_optimizer("muon")([{"params": list(parameters), "use_muon": True}], lr=0.3)


def _heavyball(name, **settings):
    heavyball = pytest.importorskip("heavyball")
    heavyball.utils.compile_mode = None
    return lambda parameters: getattr(heavyball, name)(parameters, **settings)


RULES = {
    "torch Muon": lambda: lambda parameters: torch.optim.Muon(parameters, lr=0.3),
    "Muon": lambda: _package_muon,
    "SOAP": lambda: _pytorch_optimizer("soap", lr=0.03, precondition_frequency=4),
    "SPlus": lambda: _pytorch_optimizer("splus", lr=0.3, inverse_steps=5),
    "Shampoo": lambda: _pytorch_optimizer("shampoo", lr=0.1),
    "scalable Shampoo": lambda: _pytorch_optimizer("scalableshampoo", lr=0.03, start_preconditioning_step=5),
    "Kron": lambda: _pytorch_optimizer("kron", lr=0.1),
    "GaLore": lambda: _pytorch_optimizer("galore", lr=0.03),
    "Adafactor": lambda: lambda parameters: torch.optim.Adafactor(parameters, lr=0.03),
    "Adam": lambda: lambda parameters: torch.optim.Adam(parameters, lr=0.03),
    "heavyball SOAP": lambda: _heavyball("SOAP", lr=0.03),
    "heavyball Muon": lambda: _heavyball("Muon", lr=0.03),
    "heavyball PSGDKron": lambda: _heavyball("PSGDKron", lr=0.03),
}


def _length(tensors):
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


@pytest.fixture
def _eager():
    """Heavyball compiles its steps, which the tests have no time for."""
    import torch._dynamo

    before = torch._dynamo.config.disable
    torch._dynamo.config.disable = True
    yield
    torch._dynamo.config.disable = before


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.usefixtures("_eager")
@pytest.mark.filterwarnings("ignore")
def test_the_direction_is_the_step_on_training_gradients(name, seed):
    make = RULES[name]()
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(16, 24, bias=False), nn.Tanh(), nn.Linear(24, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False)
    )
    parameters = dict(model.named_parameters())
    optimizer = make(model.parameters())
    errors, roundings = [], []
    for step in range(STEPS):
        n = (2, 4, 16)[step % 3]  # gradients of low rank are the hard ones
        x, y = torch.randn(n, 16), torch.randint(0, 4, (n,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        found = next_update(optimizer, parameters)
        before = {n: p.detach().double() for n, p in parameters.items()}
        optimizer.step()
        made = {n: p.detach().double() - before[n] for n, p in parameters.items()}
        length = _length(made.values())
        if length == 0:
            assert _length(found.values()) == 0
            continue
        errors.append(_length([found[n].double() - made[n] for n in made]) / length)
        # A coordinate's rounding is evenly spread over ± half a unit in the last place.
        roundings.append(torch.finfo(torch.float32).eps / math.sqrt(12) * _length(before.values()) / length)
    assert len(errors) >= STEPS - 10
    assert max(roundings) < 1e-5, "the rate is too small for the rounding of the weights to stay below the tolerance"
    assert max(errors) <= 1e-5, f"error {max(errors):.2g} (median {sorted(errors)[len(errors) // 2]:.2g})"


@pytest.mark.parametrize("rate", [1e-3, 1e-6, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_directions_of_half_precision_models_keep_their_digits(dtype, rate):
    model = nn.Linear(16, 8).to(dtype)
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    expected = {n: -rate * p.grad.double() for n, p in parameters.items()}
    found = next_update(optimizer, parameters)
    error = _length([found[n].double() - expected[n] for n in expected]) / _length(expected.values())
    assert error <= 1e-3
    assert {d.dtype for d in found.values()} == {torch.float32}
