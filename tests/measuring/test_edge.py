"""The critical multiple against closed forms and scans, and the loss as training runs it."""

import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cases import CASES, case
from stepscope import Objective, UsageError, edge, measure, next_update
from stepscope.directions import decay_part
from stepscope.runs import RecordedEdge
from traces import Log, fingerprint


def along(function, start=0.0, *, dtype=torch.float64):
    """An objective of one weight, and the step to the right by 1."""
    model = nn.ParameterDict({"w": nn.Parameter(torch.full((1,), start, dtype=dtype))})
    return Objective(model, lambda m, _: function(m["w"].sum()), [0], lambda _: 1), {"w": torch.ones(1)}


def scanned(objective, direction, points=32):
    """The critical multiple that a scan meets first outward from 1, by factors of ``2^(1/points)``, as an interval."""
    with objective.measuring(as_trained=True):
        start, last = objective.loss(), 1.0
        falls = objective.loss_at(direction, 1.0) < start
        for i in range(1, 10 * points):
            t = 2 ** ((i if falls else -i) / points)
            if (objective.loss_at(direction, t) < start) != falls:
                return min(last, t), max(last, t)
            last = t
    raise AssertionError("no critical multiple up to 1024")


def gradient_step(objective, rate):
    return {name: -rate * g for name, g in objective.gradient()[1].items()}


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 0.0199, 0.0201, 1.0])
@pytest.mark.parametrize("slope", ["gradient", None])
def test_on_a_quadratic_it_is_the_closed_form(rate, slope):
    objective = case("quadratic").objective()
    found = edge(objective, d := gradient_step(objective, rate), slope=slope)
    measured = measure(objective, {"d": d})["d"]
    closed = -2 * measured.slope / (measured.sharpness * measured.norm)
    assert closed == pytest.approx(2 / measured.edge_ratio)
    if found.status == "found":
        lower, upper = found.critical_bracket
        assert found.critical_multiple == pytest.approx(closed, rel=1e-6)
        assert lower < closed < upper <= lower * 17 / 16 * (1 + 1e-6)
    else:  # the loss still falls at the last of 8
        assert rate == 1e-5
        assert slope is None
        assert found.critical_bracket[0] >= 1000
    if slope:
        assert found.predicted_change == pytest.approx(measured.slope * measured.norm)
        assert found.trust_ratio == pytest.approx(1 - 1 / closed)
        assert found.directional_smoothness == pytest.approx(measured.sharpness)
    assert found.forwards <= 8


def test_on_a_linear_model_in_gradient_descent_it_is_two_over_rate_and_curvature():
    torch.manual_seed(0)
    x, y = torch.randn(32, 6, dtype=torch.float64), torch.randn(32, 1, dtype=torch.float64)
    model = nn.Linear(6, 1, dtype=torch.float64)
    objective = Objective(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), [(x, y)])
    rate = 0.3
    for _ in range(5):
        d = gradient_step(objective, rate)
        inputs = torch.cat([x, torch.ones(32, 1, dtype=torch.float64)], 1)
        u = torch.cat([d["weight"].flatten(), d["bias"]])
        curvature = 2 / 32 * (inputs @ u).square().sum() / u.square().sum()
        assert edge(objective, d).critical_multiple == pytest.approx(2 / (rate * float(curvature)), rel=1e-6)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p += d[name]


def test_full_batch_gradient_descent_sharpens_up_to_the_edge_and_stays_there():
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 20, dtype=torch.float64)[:, None]
    y = torch.cos(4 * torch.acos(x))
    model = nn.Sequential(nn.Linear(1, 20), nn.Tanh(), nn.Linear(20, 1)).double()
    objective = Objective(model, lambda m, b: F.mse_loss(m(b[0]), b[1]), [(x, y)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    multiples = {}
    for step in range(2001):
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        if step in (500, 1600, 1800, 2000):
            multiples[step] = edge(objective, next_update(optimizer, objective.parameters)).critical_multiple
        optimizer.step()
    assert multiples.pop(500) > 10
    assert list(multiples.values()) == pytest.approx([1, 1, 1], abs=0.05)  # arXiv 2103.00065


def test_what_weight_decay_adds_is_the_closed_form():
    curvature = torch.tensor([3.0, 1.0], dtype=torch.float64)
    model = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))})
    objective = Objective(model, lambda m, _: 0.5 * (curvature * m["w"] ** 2).sum(), [0], lambda _: 1)
    x, optimizer = model["w"].detach(), torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    objective.loss_fn(model, 0).backward()
    d, w = next_update(optimizer, objective.parameters), decay_part(optimizer, objective.parameters)
    found = edge(objective, d, slope="gradient", decay=w)
    # f(x + d) − f(x + d − w) = wᵀH(x + d) − ½wᵀHw, with w = −0.05·x
    end = x + d["w"]
    assert found.decay_slope == pytest.approx(-0.05 * float(curvature @ x**2))
    assert found.decay_change == pytest.approx(float(-0.05 * curvature @ (x * end) - 0.5 * 0.05**2 * curvature @ x**2))
    assert found.forwards <= 8
    assert edge(objective, d, decay=w).decay_slope is None
    assert edge(objective, d, slope="gradient", decay={}).decay_change == 0
    assert edge(objective, d, slope="gradient").decay_slope is None
    linear = Objective(nn.Linear(2, 1), lambda m, b: m(b).mean(), [torch.ones(3, 2)])
    with pytest.raises(UsageError, match="decay names 'bias', which the step doesn't move"):
        edge(linear, {"weight": torch.ones(1, 2)}, decay={"bias": torch.ones(1)})


@pytest.mark.parametrize("name", CASES)
def test_it_leaves_no_trace_and_says_what_it_evaluated(name):
    c = case(name)
    objective, before = c.objective(), fingerprint(c.model)
    found = edge(objective, d := gradient_step(objective, 0.3), slope="gradient")
    assert fingerprint(c.model) == before
    assert found.forwards <= 8
    for t, loss in zip(found.multiples, found.losses, strict=True):
        with objective.measuring(as_trained=True):
            assert objective.loss_at(d, t) == pytest.approx(loss, rel=1e-12)
    lower, upper = found.critical_bracket
    assert lower is None or found.losses[found.multiples.index(lower)] < found.loss
    assert upper is None or found.losses[found.multiples.index(upper)] > found.loss
    assert RecordedEdge(**found.record()).critical_multiple == found.critical_multiple


@pytest.mark.parametrize("factor", [0.07, 4.0])
@pytest.mark.parametrize("name", CASES)
def test_it_is_the_one_that_a_scan_meets(name, factor):
    objective = case(name).objective()
    d = gradient_step(objective, 0.3)
    first = edge(objective, d).critical_multiple
    d = {key: factor * first * t for key, t in d.items()}  # the critical multiple is near 1 / factor
    lower, upper = scanned(objective, d)
    for slope in ("gradient", None):
        found = edge(objective, d, slope=slope)
        assert lower * 16 / 17 < found.critical_multiple < upper * 17 / 16
        assert found.critical_bracket[0] < upper
        assert found.critical_bracket[1] > lower
        assert found.forwards <= 8


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.outer(self.inner(x).tanh())


def count_forwards_compiled_or_not():
    torch.manual_seed(0)
    model = Net()
    batch, frames = torch.randn(16, 4), []

    def backend(graph, _):
        frames.append(graph)
        return graph.forward

    in_place = copy.deepcopy(model)
    in_place.compile(backend=backend)
    for called in (model, torch.compile(model, backend=backend), in_place):
        torch.compiler.reset()
        frames.clear()
        log = Log()

        def loss(m, b, log=log):
            log()
            return (m(b) - 1).square().mean()

        objective = Objective(called, loss, [batch])
        d, before, calls = gradient_step(objective, 0.1), fingerprint(called), len(log)
        found = edge(objective, d)
        assert len(log) - calls == found.forwards <= 8
        assert fingerprint(called) == before
        assert found.status == "found"
        assert len(frames) == (called is not model)  # once for all points


def test_each_forward_is_counted_compiled_or_not():
    """In a process of its own: after hundreds of other tests, what was compiled wasn't always counted."""
    here = Path(__file__)
    script = "import sys; sys.path[:0] = sys.argv[1:]; import test_edge; test_edge.count_forwards_compiled_or_not()"
    subprocess.run([sys.executable, "-c", script, here.parent, here.parent.parent], check=True)


def test_under_autocast_it_is_the_loss_of_training_and_no_cached_weight():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 4))
    batch = (torch.randn(64, 16), torch.randint(0, 4, (64,)))
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [batch])
    d = gradient_step(objective, 1.0)
    exact = edge(objective, d)
    with torch.autocast("cpu", torch.bfloat16):
        before = fingerprint(model)
        found = edge(objective, d)
        assert fingerprint(model) == before
        with torch.no_grad():
            assert found.loss == objective.loss_fn(model, batch).item() != exact.loss
    assert exact.noise < 1e-5 < found.noise < 0.01
    assert found.critical_multiple == pytest.approx(exact.critical_multiple, rel=0.05)


def test_half_precision_weights_move_as_a_step_of_training_moves_them():
    torch.manual_seed(0)
    model = nn.Linear(8, 1).bfloat16()
    objective = Objective(model, lambda m, b: m(b).float().square().mean(), [torch.randn(8, 8).bfloat16()])
    d = {name: torch.randn(p.shape) * 1e-3 for name, p in model.named_parameters()}
    found = edge(objective, d)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(p.float() + d[name])
    with objective.measuring(as_trained=True):
        assert found.losses[found.multiples.index(1.0)] == objective.loss()


@pytest.mark.parametrize(
    ("function", "status", "bracket"),
    [
        (lambda w: w, "no descent", (None, 0.125)),
        (lambda w: -w, "beyond the last", (1000, None)),
        (lambda w: 0 * w, "within noise", (None, None)),
        (lambda w: torch.where(w > 3, torch.nan, -w), "found", (3, 3)),
        (lambda w: 1e9 + (w - 2) ** 2 * 1e-15, "within noise", (None, None)),
        (lambda w: (w - 0.02).abs(), "found", (0.04, 0.04)),
    ],
)
def test_what_is_met_is_said(function, status, bracket):
    found = edge(*along(function))
    assert found.status == status
    for end, expected, below in zip(found.critical_bracket, bracket, (True, False), strict=True):
        assert (end is None) == (expected is None)
        if end is not None and status == "found":
            assert end <= expected if below else end >= expected
    if status == "beyond the last":
        assert found.critical_bracket[0] >= 1000
    if status == "no descent":
        assert found.critical_bracket[1] <= 0.125


def test_after_an_error_ahead_all_is_as_before():
    def loss(model, batch):
        if model.weight.sum() > 1:
            raise ValueError("too large")
        return model(batch).sum()

    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(0.5)
    objective, before = Objective(model, loss, [torch.ones(1, 1)]), fingerprint(model)
    with pytest.raises(ValueError, match="too large"):
        edge(objective, {"weight": torch.ones(1, 1)})
    assert fingerprint(model) == before


def test_an_objective_with_a_dtype_is_evaluated_in_it():
    torch.manual_seed(0)
    model, batch = nn.Linear(8, 1), torch.randn(8, 8)
    objective = Objective(model, lambda m, b: m(b).square().mean(), [batch], dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        found = edge(objective, {"weight": torch.full((1, 8), 0.01)})
    expected = (batch.double() @ model.weight.detach().double().T + model.bias.detach()).square().mean()
    assert found.loss == pytest.approx(expected.item(), rel=1e-12)


def test_slopes_of_micro_batches_give_the_signal_to_noise():
    objective = case("quadratic").objective()
    d = gradient_step(objective, 1e-3)
    each = [float(s) for s in (-1.0, -2.0, -4.0)]
    found = edge(objective, d, slope=each)
    assert found.predicted_change == pytest.approx(-7 / 3)
    assert found.slope_stderr == pytest.approx(torch.tensor(each).std().item() / math.sqrt(3))
    assert found.signal_to_noise == pytest.approx(7 / 3 / found.slope_stderr)


def test_mistakes_are_one_line():
    objective, d = along(lambda w: w * w, start=1.0)
    with pytest.raises(UsageError, match="slope has 2 values for 1 micro-batches"):
        edge(objective, d, slope=[1.0, 2.0])
    for slope in ("other", math.nan, [None]):
        with pytest.raises(UsageError, match=r"slope is .*: give a finite number"):
            edge(objective, d, slope=slope)
    with pytest.raises(UsageError, match="inside measuring"), objective.measuring():
        edge(objective, d)
    with pytest.raises(UsageError, match="the loss is nan"):
        edge(*along(lambda w: w * math.nan))
