"""Sharpness and slope against a dense float64 Hessian, by both methods, on models with the hard parts."""

import copy
import math

import pytest
import torch
from torch import nn

import stepscope
from cases import CASES, FAMILIES, SMOOTH, case, cast, dense, flat
from stepscope import Objective, UsageError
from stepscope.measuring import hessian_rows, measurement, slopes
from stepscope.measuring.curvature import curvature
from stepscope.objective import vectors


def some_directions(objective):
    _, gradient = objective.gradient()
    used = {name: objective.parameters[name] for name in gradient}
    one = next(iter(used))
    return {
        "sgd": {name: -0.01 * part for name, part in gradient.items()},
        "sign": {name: -part.sign() for name, part in gradient.items()},
        "random": {name: torch.randn_like(p) for name, p in objective.parameters.items()},
        "one tensor": {one: torch.randn_like(used[one])},
    }


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_dense_hessian(name, family_table):
    c = case(name)
    objective = c.objective()
    loss, gradient, hessian = dense(name)
    directions = some_directions(objective)
    measured = stepscope.measure(objective, directions, "autograd")
    scale = float(torch.linalg.matrix_norm(hessian, 2))
    for label, direction in directions.items():
        d = flat(c, direction)
        u = d / d.norm()
        m = measured[label]
        assert m.loss == pytest.approx(loss, rel=c.tolerance)
        assert m.sharpness == pytest.approx(float(u @ hessian @ u), abs=c.tolerance * scale), label
        assert m.slope == pytest.approx(float(flat(c, gradient) @ u), abs=c.tolerance)
        assert m.correlation == pytest.approx(float(flat(c, gradient) @ u / flat(c, gradient).norm()), abs=c.tolerance)
        assert m.norm == pytest.approx(float(d.norm()), rel=1e-12)
        assert m.numerical_error is None
        family_table.worst(name, "uᵀHu float64", abs(m.sharpness - float(u @ hessian @ u)) / scale)


class Products:
    """Adds up the products that a method makes."""

    def __init__(self):
        self.clear()

    def __call__(self, label, weight, u, product):
        total = self.of.setdefault(label, {})
        for name, tensor in product.items():
            total[name] = total.get(name, 0) + weight * tensor.detach()

    def clear(self):
        self.of = {}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_product_agrees_with_the_dense_hessian(name):
    """Each coordinate of ``Hu``, not its part along ``u`` alone."""
    c = case(name)
    objective, products = c.objective(), Products()
    _, _, hessian = dense(name)
    with objective.measuring():
        units = {
            label: vectors.UnitDirection.of(direction, objective.parameters)
            for label, direction in some_directions(objective).items()
        }
        curvature(objective, units, "autograd", products)
    scale = float(torch.linalg.matrix_norm(hessian, 2))
    for label, unit in units.items():
        error = flat(c, products.of[label]) * unit.length - hessian @ flat(c, unit.u)
        assert float(error.norm()) <= c.tolerance * scale, label


@pytest.mark.parametrize("name", FAMILIES)
def test_agrees_in_single_precision(name, family_table):
    """The default way of `measure`, on the model as users have it."""
    c = case(name, torch.float32)
    objective = c.objective()
    _, gradient, hessian = dense(name)
    scale = float(torch.linalg.matrix_norm(hessian, 2))
    directions = some_directions(objective)
    for label, m in stepscope.measure(objective, directions).items():
        u = flat(c, directions[label]) / flat(c, directions[label]).norm()
        assert m.method == "autograd"
        assert m.sharpness == pytest.approx(float(u @ hessian @ u), abs=1e-5 * scale), label
        assert m.correlation == pytest.approx(float(flat(c, gradient) @ u / flat(c, gradient).norm()), abs=1e-5)
        family_table.worst(name, "uᵀHu float32", abs(m.sharpness - float(u @ hessian @ u)) / scale)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_difference_agrees_within_its_own_bar(name, dtype):
    c = case(name, dtype)
    _, _, hessian = dense(name)
    objective = c.objective()
    for label, direction in some_directions(objective).items():
        m = stepscope.measure(objective, {label: direction}, "difference")[label]
        u = flat(c, direction)
        u = u / u.norm()
        exact = float(u @ hessian @ u)
        assert m.method == "difference"
        assert abs(m.sharpness - exact) <= m.numerical_error, (label, m.sharpness, exact, m.numerical_error)
        # A bar that covers everything would prove nothing.
        assert m.numerical_error < 0.01 * float(torch.linalg.matrix_norm(hessian, 2))


def test_a_kink_shows_in_the_difference_bar_and_in_the_finite_sharpness():
    """|w| at 1e-4 of its kink: no curvature at the point, one of 1/h over a segment of half-length h across it."""
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1e-5, 1.0], dtype=torch.float64))})
    objective = Objective(x, lambda m, b: m["w"][0].abs() + m["w"][1], [0], lambda b: 1)
    d = {"d": {"w": torch.tensor([1.0, 0.0])}}
    exact, finite = (
        stepscope.measure(objective, d, method, segment=True)["d"] for method in ("autograd", "difference")
    )
    assert exact.sharpness == 0.0
    assert exact.sharpness_finite == pytest.approx(1 / exact.finite_step)
    assert finite.numerical_error > abs(finite.sharpness)


def test_closed_form_of_the_motivating_example():
    """½Σhᵢxᵢ²: along e₁ the curvature is 100, along the others 1, along the normalized gradient Σhᵢ³xᵢ²/Σhᵢ²xᵢ²."""
    c = case("quadratic")
    mean = (1 + 2 + 4) / 3
    h, x = c.model.h, c.model.x.detach()
    bad, good = torch.zeros(12, dtype=torch.float64), torch.zeros(12, dtype=torch.float64)
    bad[0], good[5] = -1e-7, 3e5
    m = stepscope.measure(c.objective(), {"bad": {"x": bad}, "good": {"x": good}, "sgd": {"x": -h * x}}, landscape=True)
    assert m["bad"].sharpness == pytest.approx(100 * mean, rel=1e-12)
    assert m["good"].sharpness == pytest.approx(mean, rel=1e-12)
    assert m["sgd"].sharpness == pytest.approx(mean * float((h**3 * x**2).sum() / (h**2 * x**2).sum()), rel=1e-12)
    assert m["sgd"].sharpness_finite == pytest.approx(m["sgd"].sharpness, rel=1e-9)
    assert m["sgd"].predicted_step == pytest.approx(-m["sgd"].slope / m["sgd"].sharpness)
    assert m["sgd"].predicted_decrease == pytest.approx(m["sgd"].slope ** 2 / 2 / m["sgd"].sharpness)
    assert m["sgd"].best_step == pytest.approx(m["sgd"].predicted_step, rel=1e-6)
    assert m["sgd"].best_decrease == pytest.approx(m["sgd"].predicted_decrease, rel=1e-9)
    # Curvature is 1, 2 and 4 times the same over the micro-batches: a standard error of √(7/9)·… by hand.
    spread = math.sqrt(3 / 2 * sum(((s - mean) / 3) ** 2 for s in (1, 2, 4)))
    assert m["good"].sharpness_stderr == pytest.approx(spread, rel=1e-9)


def test_directions_of_any_length_have_the_same_sharpness():
    c = case("layer norm")
    c.model.float()
    objective = Objective(c.model, c.loss_fn, cast(c.batches, torch.float32))
    _, gradient = objective.gradient()
    lengths = {f"{s}": {n: s * g for n, g in gradient.items()} for s in (1e-18, 1e-9, 1.0, 1e12)}
    found = [m.sharpness for m in stepscope.measure(objective, lengths).values()]
    assert found == pytest.approx([found[2]] * 4, rel=1e-5)


def test_negative_sharpness_gets_the_robust_one():
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))})
    objective = Objective(
        x, lambda m, b: b * (m["w"][0] ** 4 - m["w"][0] ** 2 + m["w"][1]), [torch.tensor(2.0)], lambda b: 1
    )
    m = stepscope.measure(objective, {"d": {"w": torch.tensor([3.0, 0.0])}, "flat": {"w": torch.tensor([0.0, -1.0])}})
    assert m["d"].sharpness == pytest.approx(-4.0)
    step = m["d"].finite_step
    assert m["d"].sharpness_robust == pytest.approx(2 * (16 * step**2 - 2), rel=1e-12)
    assert m["d"].predicted_step is None
    assert m["d"].predicted_decrease is None
    assert m["flat"].sharpness == 0.0
    assert m["flat"].sharpness_robust is None


class _FirstOrderOnly(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x**2


def test_auto_falls_back_where_there_is_no_second_derivative_and_says_why():
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([[1.0, 2.0], [0.5, 0.25]], dtype=torch.float64))})
    objective = Objective(x, lambda m, b: torch.cdist(m["w"], m["w"] ** 2).sum(), [0], lambda b: 1)
    direction = {"d": {"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}}
    m = stepscope.measure(objective, direction)["d"]
    assert m.method == "difference"
    assert "double backward isn't possible" in m.method_reason
    same = Objective(x, lambda m, b: (m["w"][:, None] - m["w"] ** 2).norm(dim=-1).sum(), [0], lambda b: 1)
    assert m.sharpness == pytest.approx(stepscope.measure(same, direction)["d"].sharpness, abs=m.numerical_error)
    with pytest.raises(UsageError, match='use method="difference"'):
        stepscope.measure(objective, direction, "autograd")


def test_a_custom_function_is_not_trusted_unasked():
    """Its backward may be no function of anything differentiable, and then its curvature is lost without an error."""
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))})
    objective = Objective(x, lambda m, b: _FirstOrderOnly.apply(m["w"]).sum(), [0], lambda b: 1)
    m = stepscope.measure(objective, {"d": {"w": torch.tensor([1.0, 0.0])}})["d"]
    assert m.method == "difference"
    assert "_FirstOrderOnly" in m.method_reason
    assert m.sharpness == pytest.approx(6.0, abs=m.numerical_error)


def test_weight_norm_is_measured_by_differences():
    """Double backward through weight_norm is wrong in torch without an error."""
    model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    batch = (torch.randn(4, 3, dtype=torch.float64), torch.randint(0, 2, (4,)))
    objective = Objective(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [batch])
    _, gradient = objective.gradient()
    m = stepscope.measure(objective, {"d": gradient})["d"]
    assert (m.method, "weight_norm" in m.method_reason) == ("difference", True)
    g, v = (objective.parameters[f"parametrizations.weight.original{i}"].detach() for i in (0, 1))
    by_hand = nn.ParameterDict({"g": nn.Parameter(g), "v": nn.Parameter(v), "b": nn.Parameter(model.bias.detach())})

    def loss(m, b):
        return nn.functional.cross_entropy(b[0] @ (m["g"] * m["v"] / m["v"].norm(dim=1, keepdim=True)).T + m["b"], b[1])

    names = dict(zip(("b", "g", "v"), ("bias", *sorted(n for n in gradient if n != "bias")), strict=True))
    same = Objective(by_hand, loss, [batch])
    exact = stepscope.measure(same, {"d": {n: gradient[names[n]] for n in names}}, "autograd")["d"].sharpness
    assert m.sharpness == pytest.approx(exact, abs=m.numerical_error)


def test_other_errors_of_the_model_are_not_swallowed():
    x = nn.Linear(2, 1)

    def loss(m, b):
        raise RuntimeError("out of memory")

    objective = Objective(x, loss, [torch.ones(1, 2)])
    with pytest.raises(RuntimeError, match="out of memory"):
        curvature(objective, {"d": vectors.UnitDirection.of({"bias": torch.ones(1)}, objective.parameters)})


def test_unknown_method():
    with pytest.raises(UsageError, match="choose auto, autograd or difference"):
        stepscope.measure(case("mlp").objective(), {"d": {"out.bias": torch.ones(3)}}, "magic")


def test_vectors():
    a = {"x": torch.full((1000,), 1e-20), "y": torch.tensor([2.0])}
    assert vectors.norm({"x": a["x"]}) == pytest.approx(1e-20 * math.sqrt(1000))
    assert vectors.dot(a, {"y": torch.tensor([3.0]), "z": torch.ones(2)}) == 6.0
    u = vectors.UnitDirection.of({"x": a["x"]}, {"x": torch.zeros(1000, dtype=torch.float64)}).u
    assert vectors.norm(u) == pytest.approx(1.0, rel=1e-6)
    assert u["x"].dtype == torch.float64


def test_the_robust_sharpness_lies_ahead():
    """w⁴ + w³ − w²: the mean curvature from 0 to 2h, whose middle is h, differs from that at −h, by both methods."""
    x = nn.ParameterDict(
        {"w": nn.Parameter(torch.zeros(1, dtype=torch.float64)), "v": nn.Parameter(torch.ones(1).double())}
    )
    objective = Objective(x, lambda m, b: (m["w"] ** 4 + m["w"] ** 3 - m["w"] ** 2 + m["v"]).sum(), [0], lambda b: 1)
    for method in ("autograd", "difference"):
        m = stepscope.measure(objective, {"d": {"w": torch.ones(1)}}, method)["d"]
        h = m.finite_step
        assert m.sharpness_robust == pytest.approx(16 * h**2 + 6 * h - 2, rel=1e-9)


def test_extrapolation_removes_the_truncation():
    """Along t⁴ + t² the plain difference at h/2 is off by h²; Richardson's isn't."""
    x = nn.ParameterDict(
        {"w": nn.Parameter(torch.zeros(1, dtype=torch.float64)), "v": nn.Parameter(torch.full((1,), 1e3).double())}
    )
    objective = Objective(x, lambda m, b: (m["w"] ** 4 + m["w"] ** 2 + m["v"]).sum(), [0], lambda b: 1)
    m = stepscope.measure(objective, {"d": {"w": torch.ones(1)}}, "difference")["d"]
    assert m.sharpness == pytest.approx(2.0, abs=1e-9)


def test_at_a_stationary_point_there_is_no_correlation():
    x = nn.ParameterDict({"w": nn.Parameter(torch.zeros(2, dtype=torch.float64))})
    objective = Objective(x, lambda m, b: (m["w"] ** 2).sum(), [0], lambda b: 1)
    m = stepscope.measure(objective, {"d": {"w": torch.ones(2)}})["d"]
    assert (m.correlation, m.slope, m.sharpness) == (0.0, 0.0, pytest.approx(2.0))


def test_a_custom_function_of_a_later_micro_batch_is_found():
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))})

    def loss(m, b):
        return _FirstOrderOnly.apply(m["w"]).sum() if b else (m["w"] ** 2).sum()

    objective = Objective(x, loss, [0, 1], lambda b: 1)
    direction = {"d": {"w": torch.tensor([1.0, 0.0])}}
    m = stepscope.measure(objective, direction, breakdown=True)["d"]
    assert m.method == "difference"
    assert m.sharpness == pytest.approx((2 + 6) / 2, abs=m.numerical_error)
    assert sum(m.breakdown.layers.values()) == pytest.approx(
        (2 + 6) / 2, rel=1e-4
    )  # nothing of the first attempt is left
    assert "taken at its word" in stepscope.measure(objective, direction, "autograd")["d"].method_reason


def test_weight_norm_called_directly_is_found():
    x = nn.ParameterDict({"v": nn.Parameter(torch.randn(3, 4).double()), "g": nn.Parameter(torch.rand(3, 1).double())})
    objective = Objective(
        x, lambda m, b: (torch._weight_norm(m["v"], m["g"], 0) @ b).square().sum(), [torch.ones(4).double()]
    )
    same = Objective(
        x,
        lambda m, b: (m["g"] * m["v"] / m["v"].norm(dim=1, keepdim=True) @ b).square().sum(),
        [torch.ones(4).double()],
    )
    direction = {"d": {"v": torch.randn(3, 4), "g": torch.randn(3, 1)}}
    m = stepscope.measure(objective, direction)["d"]
    assert m.method == "difference"
    assert m.sharpness == pytest.approx(stepscope.measure(same, direction)["d"].sharpness, abs=m.numerical_error)
    with pytest.raises(UsageError, match="weight_norm is wrong"):
        stepscope.measure(objective, direction, "autograd")


def test_a_loss_that_ends_near_has_no_finite_sharpness():
    """−log(w) at 1e-4: beyond −w there is nothing, though the gradient 1/w is finite there."""
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([1e-4, 1.0], dtype=torch.float64))})
    objective = Objective(x, lambda m, b: -m["w"][0].log(), [0], lambda b: 1)
    for options in ({"landscape": True}, {"segment": True}):
        m = stepscope.measure(objective, {"d": {"w": torch.tensor([1.0, 0.0])}}, **options)["d"]
        assert m.sharpness == pytest.approx(1e8)
        assert (m.sharpness_finite, m.loss_slope, m.gradient_agrees) == (None, None, None)
    edge = Objective(x, lambda m, b: (m["w"][0] - 1e-3).neg().sqrt(), [0], lambda b: 1)
    m = stepscope.measure(edge, {"d": {"w": torch.tensor([1.0, 0.0])}})["d"]
    assert m.sharpness < 0
    assert m.sharpness_robust is None


def test_small_values_are_multiplied_in_double_precision():
    tiny = {"x": torch.full((2,), 1e-23)}
    assert vectors.dot(tiny, tiny) == pytest.approx(2e-46)
    assert vectors.dot({"x": torch.tensor([300.0]).half()}, {"x": torch.tensor([300.0]).half()}) == 90000.0


def coordinates_of(objective, count=None):
    every = [(name, i) for name, p in objective.parameters.items() for i in range(p.numel())]
    return every if count is None else [every[i] for i in torch.randperm(len(every))[:count].tolist()]


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_dense_hessian(name):
    """Layer norm, tied, frozen and unused parameters, batches of unlike numbers of tokens; more rows than are held."""
    c = case(name)
    objective = c.objective()
    _, _, hessian = dense(name)
    place = {coordinate: i for i, coordinate in enumerate(coordinates_of(objective))}
    chosen = coordinates_of(objective, 40)
    rows = list(hessian_rows(objective, chosen))
    assert len(rows) == len(chosen) == min(40, len(place))
    scale = float(hessian.abs().max())
    for coordinate, row in zip(chosen, rows, strict=True):
        torch.testing.assert_close(flat(c, row), hessian[place[coordinate]], rtol=0, atol=c.tolerance * scale)


def test_all_rows_make_a_symmetric_matrix():
    c = case("layer norm")
    objective = c.objective()
    matrix = torch.stack([flat(c, row) for row in hessian_rows(objective, coordinates_of(objective))])
    torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(matrix, dense("layer norm")[2], rtol=0, atol=1e-10)


def test_between_rows_the_model_is_as_it_was_found():
    c = case("batch norm")
    before = {name: value.clone() for name, value in c.model.state_dict().items()}
    random = torch.get_rng_state()
    rows = hessian_rows(c.objective(), [("0.weight", 1), ("5.bias", 0)])
    for _ in rows:
        assert all(module.training for module in c.model.modules())
        assert all(torch.equal(value, before[name]) for name, value in c.model.state_dict().items())
        assert all(p.grad is None for p in c.model.parameters())
        assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("coordinate", "message"),
    [(("inside.bias", 0), "not a trainable parameter"), (("out.bias", 3), "3 coordinates: there is none at 3")],
)
def test_coordinates_that_there_are_not(coordinate, message):
    with pytest.raises(UsageError, match=message):
        list(hessian_rows(case("mlp").objective(), [coordinate]))


def test_rows_are_refused_where_double_backward_is_wrong_or_missing():
    model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)).double()
    batch = (torch.randn(4, 3, dtype=torch.float64), torch.randint(0, 2, (4,)))
    objective = Objective(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), [batch])
    with pytest.raises(UsageError, match="weight_norm is wrong"):
        list(hessian_rows(objective, [("bias", 0)]))
    x = nn.ParameterDict({"w": nn.Parameter(torch.tensor([[1.0, 2.0], [0.5, 0.25]], dtype=torch.float64))})
    for loss, message in (
        (lambda m, b: torch.cdist(m["w"], m["w"] ** 2).sum(), "double backward isn't possible"),
        (lambda m, b: _FirstOrderOnly.apply(m["w"]).sum(), "_FirstOrderOnly is a custom autograd function"),
    ):
        with pytest.raises(UsageError, match=message):
            list(hessian_rows(Objective(x, loss, [0], lambda b: 1), [("w", 0)]))


class Rooted(nn.Module):
    """``Σ |x|^1.5`` with a coordinate at zero: its gradient is finite there, its second derivative isn't."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(torch.tensor([0.0, 1.0], dtype=torch.float64))

    def forward(self):
        return self.x.abs().pow(1.5).sum()


def test_where_double_backward_gives_nan_differences_are_taken():
    objective = Objective(Rooted(), lambda m, _: m(), [torch.ones(1)])
    direction = {"d": {"x": torch.tensor([1e-9, 1.0], dtype=torch.float64)}}
    found = stepscope.measure(objective, direction)["d"]
    assert (found.method, "infinite or NaN" in found.method_reason) == ("difference", True)
    assert found.sharpness == pytest.approx(0.75, rel=1e-4)
    with pytest.raises(UsageError, match='use method="difference"'):
        stepscope.measure(objective, direction, "autograd")


def test_the_error_bar_of_the_finite_sharpness_covers_rounding_where_the_loss_is_small():
    """A cross-entropy near zero is rounded in proportion to its logits, not to itself."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    batch = torch.randn(32, 8), torch.randint(0, 4, (32,))

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0].to(model[0].weight.dtype)), batch[1])

    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    given = 0
    for step in range(401):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        if step in (50, 100, 400):
            directions = {
                "sign": {name: -parameter.grad.sign() for name, parameter in model.named_parameters()},
                "random": {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()},
            }
            measured = stepscope.measure(Objective(model, loss_fn, [batch]), directions, landscape=True)
            exact = stepscope.measure(
                Objective(copy.deepcopy(model).double(), loss_fn, [batch]), directions, landscape=True
            )
            for label, m in measured.items():
                assert m.gradient_agrees
                if m.sharpness_finite is not None:
                    assert abs(m.sharpness_finite - exact[label].sharpness_finite) <= m.sharpness_finite_error
                    given += 1
        optimizer.step()
    assert given > 0


def test_a_landscape_sees_no_descent_within_the_measured_rounding(monkeypatch):
    c = case("mlp")
    _, gradient = c.objective().gradient()
    direction = {"sgd": {name: -tensor for name, tensor in gradient.items()}}
    assert stepscope.measure(c.objective(), direction, landscape=True)["sgd"].landscape.status == "bracketed"
    monkeypatch.setattr(measurement, "rounding_of_losses", lambda *_: 1e3)
    measured = stepscope.measure(c.objective(), direction, landscape=True)["sgd"]
    assert (measured.landscape.status, measured.sharpness_finite) == ("no descent", None)


@pytest.mark.parametrize(("third", "narrower", "takes_gradients"), [(10.0, 1, 0), (1e4, 8, 0), (1e6, 1, 1)])
def test_a_third_derivative_is_no_other_gradient(third, narrower, takes_gradients, monkeypatch):
    """``f = x + x²/2 + cx³`` at 0: on the whole segment the loss has another mean slope than at its middle."""
    taken = []
    by_gradients = slopes.segment_of_gradients
    monkeypatch.setattr(slopes, "segment_of_gradients", lambda *a: taken.append(a) or by_gradients(*a))
    w = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))})
    objective = Objective(w, lambda m, b: (m["x"] + m["x"] ** 2 / 2 + third * m["x"] ** 3).sum() + 1, [0], lambda b: 1)
    m = stepscope.measure(objective, {"d": {"x": -torch.ones(1)}}, landscape=True)["d"]
    assert m.gradient_agrees
    assert len(taken) == takes_gradients
    assert m.loss_slope == pytest.approx(-1 - third * (m.finite_step / narrower) ** 2, rel=1e-9)
    assert m.sharpness_finite == pytest.approx(1, rel=1e-6)
