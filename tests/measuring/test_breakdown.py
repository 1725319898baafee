"""Where the sharpness comes from, against the blocks of a dense Hessian."""

import math

import pytest
import torch

import stepscope
from cases import CASES, SMOOTH, case, dense, flat
from stepscope import UsageError
from stepscope.measuring import breakdown
from stepscope.measuring.breakdown import grouping, layer_of, within_layers
from stepscope.measuring.magnitudes import _rounded_up, magnitudes
from stepscope.objective import vectors


def blocks(c):
    """For each layer, the positions of its coordinates in the concatenated parameters."""
    places, start = {}, 0
    for name, p in c.model.named_parameters():
        if p.requires_grad:
            places.setdefault(layer_of(name), []).append(torch.arange(start, start + p.numel()))
            start += p.numel()
    return {layer: torch.cat(parts) for layer, parts in places.items()}


@pytest.mark.parametrize(
    ("name", "method"), [(name, "autograd") for name in CASES] + [(name, "difference") for name in SMOOTH]
)
def test_parts_against_the_dense_hessian(name, method, family_table):
    c = case(name)
    objective = c.objective()
    _, _, hessian = dense(name)
    direction = {n: torch.randn_like(p) ** 3 for n, p in objective.parameters.items()}
    m = stepscope.measure(objective, {"d": direction}, method, breakdown=True, within_layers=True)["d"]
    u = flat(c, direction) / flat(c, direction).norm()
    bar = (c.tolerance if method == "autograd" else m.numerical_error + 1e-7) * float(torch.linalg.matrix_norm(hessian))
    product = hessian @ u
    for layer, at in blocks(c).items():
        assert m.breakdown.layers[layer] == pytest.approx(float(u[at] @ product[at]), abs=bar), layer
    assert sum(m.breakdown.layers.values()) == pytest.approx(m.sharpness, rel=1e-8, abs=1e-8)
    if method == "autograd":
        residual = sum(m.breakdown.layers.values()) - float(u @ product)
        family_table.worst(name, "Σ shares", abs(residual) / float(torch.linalg.matrix_norm(hessian, 2)))
    within = sum(float(u[at] @ hessian[at][:, at] @ u[at]) for at in blocks(c).values())
    assert m.within_layer == pytest.approx(within, abs=2 * len(blocks(c)) * bar)
    assert m.cross_layer == pytest.approx(m.sharpness - within, abs=2 * len(blocks(c)) * bar)
    for fraction, part in m.breakdown.top.items():
        largest = u.abs().topk(int(fraction * len(u))).indices
        assert part["norm"] == pytest.approx(float(u[largest].square().sum()), abs=1e-9)
        assert part["sharpness"] == pytest.approx(float(u[largest] @ product[largest]), abs=bar)


def test_records_hold_the_parts():
    c = case("mlp")
    m = stepscope.measure(c.objective(), {"d": {"out.bias": torch.ones(3)}}, breakdown=True)["d"]
    record = m.record()
    assert record["layers"] == {"out": m.sharpness}
    assert set(record["top"]) == {"0.001", "0.01", "0.1"}
    plain = stepscope.measure(c.objective(), {"d": {"out.bias": torch.ones(3)}})["d"].record()
    assert (plain["layers"], plain["top"], plain["within_layer"]) == (None, None, None)


def test_layers_are_the_users_choice():
    c = case("layer norm")
    objective = c.objective()
    direction = {n: torch.ones_like(p) for n, p in objective.parameters.items()}
    table = {"": "rest", "in": "front", "norm": "front"}
    m = stepscope.measure(objective, {"d": direction}, breakdown=True, layer=table)["d"]
    assert set(m.breakdown.layers) == {"front", "rest"}
    assert set(within_layers(objective, direction, lambda name: name)) == set(objective.parameters)
    with pytest.raises(UsageError, match=r"norm\.weight belongs to no layer"):
        stepscope.measure(
            objective, {"d": direction}, breakdown=True, layer={"in": "a", "middle": "b", "out": "c", "un": "d"}
        )
    assert grouping(None, [])("a.b.weight") == "a.b"


def test_where_the_learning_rate_lands():
    """½·100·x² from x = 1 with SGD at lr 0.015: one step goes 1.5 times as far as the minimum."""
    w = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.ones(1, dtype=torch.float64))})
    objective = stepscope.Objective(w, lambda m, b: 50 * (m["x"] ** 2).sum(), [0], lambda b: 1)
    _, gradient = objective.gradient()
    step = stepscope.next_update(torch.optim.SGD(w.parameters(), lr=0.015), objective.parameters, gradient)
    m = stepscope.measure(objective, {"sgd": step}, landscape=True)["sgd"]
    assert m.lr_step == pytest.approx(1.5)
    assert m.overshoot == pytest.approx(1.5, rel=1e-6)
    assert m.lr_loss == pytest.approx(50 * 0.25)
    assert m.landscape.losses[m.landscape.steps.index(m.lr_step)] == m.lr_loss
    assert stepscope.measure(objective, {"sgd": step})["sgd"].lr_loss is None


def test_the_largest_among_equals():
    """Of 1000 coordinates under f = ½Σwᵢ²: a part of them as large as their number says, also where magnitudes tie."""
    w = torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(1000, dtype=torch.float64))})
    objective = stepscope.Objective(w, lambda m, b: 0.5 * (m["w"] ** 2).sum(), [0], lambda b: 1)
    sign, two, few = torch.ones(1000), torch.zeros(1000), torch.zeros(1000)
    two[:2] = torch.tensor([1.0, 2.0])
    few[:50] = 0.1
    directions = {"sign": {"w": sign}, "two": {"w": two}, "few": {"w": few}}
    found = stepscope.measure(objective, directions, breakdown=True)
    expected = {
        "sign": {0.001: 0.001, 0.01: 0.01, 0.1: 0.1},
        "two": {0.001: 0.8, 0.01: 1.0, 0.1: 1.0},
        "few": {0.001: 0.02, 0.01: 0.2, 0.1: 1.0},
    }
    for label, parts in expected.items():
        for fraction, part in parts.items():
            assert found[label].breakdown.top[fraction] == pytest.approx({"norm": part, "sharpness": part}), label


def test_magnitudes_count_every_coordinate_once():
    d = {"a": torch.tensor([0.0, 1.0, -10.0, 1e-30]), "b": torch.tensor([[1e3, -1e-3]])}
    found = magnitudes(d)
    rms = math.sqrt((1 + 100 + 1e6 + 1e-6) / 6)
    bins = [math.floor(4 * math.log10(x / rms)) for x in (1.0, 10.0, 1e-30, 1e3, 1e-3)]
    expected = [bins.count(k) for k in range(min(bins), max(bins) + 1)]
    assert (found.zeros, found.lowest, found.counts) == (1, min(bins), expected)


def test_magnitudes_are_the_same_in_pieces(monkeypatch):
    d = {"a": torch.randn(7, 9), "b": torch.randn(100) * (torch.rand(100) > 0.4), "c": torch.tensor(2.0)}
    whole = magnitudes(d)
    for size in (1, 5, 63):
        monkeypatch.setattr(vectors, "PIECE", size)
        assert magnitudes(d) == whole
    assert whole.zeros + sum(whole.counts) == 164


@pytest.mark.parametrize("length", [1.0, 0.1, 1 / 3, 7e-9])
def test_magnitudes_of_a_sign_are_one_bin(length):
    """Whatever rounding does to them: they are all as large as the root mean square."""
    for count in (2, 3, 8, 1000):
        found = magnitudes({"w": length * torch.ones(count), "v": -length * torch.ones(3, 5)})
        assert (found.lowest, found.counts) == (0, [count + 15])


def test_what_rounding_moves_below_an_edge_stays_in_its_bin():
    y = 1 - 1e-9  # with z, the root mean square is 1
    z = math.sqrt(3 - 0.01 - y**2)
    found = magnitudes({"w": torch.tensor([0.1, y, z], dtype=torch.float64)})
    assert (found.lowest, found.counts) == (-4, [1, 0, 0, 0, 2])


def test_edges_in_single_precision_part_the_same_numbers():
    """Of the numbers of single precision, those from the rounded edge on aren't below the exact one."""
    edges = torch.rand(200, dtype=torch.float64) + 0.5
    rounded = _rounded_up(edges.tolist(), torch.zeros(1))
    below = torch.nextafter(rounded, torch.zeros(200))
    assert bool((rounded.double() >= edges).all() and (below.double() < edges).all())


def test_without_a_measured_minimum_there_is_no_overshoot():
    w = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.ones(1, dtype=torch.float64))})
    falling = stepscope.Objective(w, lambda m, b: m["x"].sum(), [0], lambda b: 1)
    m = stepscope.measure(falling, {"d": {"x": torch.tensor([-1.0])}}, landscape=True)["d"]
    assert m.best_step > 0
    assert m.overshoot is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("values", ["all different", "few magnitudes", "mostly zero", "one magnitude", "forty decades"])
def test_counts_and_largest_against_a_sort(dtype, values, monkeypatch):
    """The same histogram as one by one, and the coordinates that a sort finds; also in views and in many pieces."""
    monkeypatch.setattr(vectors, "PIECE", 1000)
    made = {
        "all different": lambda x: x,
        "few magnitudes": lambda x: (4 * x).round() / 4,
        "mostly zero": lambda x: x * (torch.rand_like(x) > 0.97),
        "one magnitude": torch.sign,
        "forty decades": lambda x: x * 10 ** (40 * torch.rand_like(x) - 20),
    }[values]
    d = {"a": made(torch.randn(90, 70, dtype=dtype)).T, "b": made(torch.randn(3, 30, 20, dtype=dtype))[:, ::2]}
    product = {"b": torch.randn_like(d["b"]), "a": torch.randn(70, 90, dtype=dtype)}
    x, y = (torch.cat([t["a"].flatten(), t["b"].flatten()]).double() for t in (d, product))

    relative = x[x != 0].abs() / (x.norm() / math.sqrt(len(x)))
    bins = (4 * relative.log10() + 1e-6).floor().long()
    counted = magnitudes(d)
    assert counted.zeros == int((x == 0).sum())
    assert counted.lowest == int(bins.min())
    assert counted.counts == torch.bincount(bins - bins.min()).tolist()

    unit = vectors.UnitDirection.of(d, d)
    observer = breakdown.BreakdownObserver({"d": unit})
    observer("d", 0.25 / unit.length**2, unit.vector, product)
    observer("d", 0.75 / unit.length**2, unit.vector, product)
    x = torch.cat([t.flatten() for t in unit.u.values()]).double()
    for fraction, largest in observer.result("d").top.items():
        count = int(fraction * len(x))
        threshold = x.abs().sort(descending=True).values[count]
        above, tied = x.abs() > threshold, x.abs() == threshold
        weights = above + tied.double() * (count - int(above.sum())) / int(tied.sum())
        assert largest["norm"] == pytest.approx(float(weights @ x**2), rel=1e-12)
        assert largest["sharpness"] == pytest.approx(float(weights @ (x * y)), rel=1e-10, abs=1e-12)
