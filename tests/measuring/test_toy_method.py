"""A curvature method is one function, and one row in the table of methods."""

import pytest
import torch

from stepscope import Objective, UsageError, measure
from stepscope.measuring.curvature import METHODS
from stepscope.measuring.curvature_terms import Curvature
from stepscope.objective import vectors


def by_losses(objective, units, observe=None):
    """``uᵀHu`` by second differences of the loss, which are exact on quadratics up to rounding."""
    loss, gradient = objective.gradient()
    terms = Curvature("toy", loss=loss, gradient=gradient, reason="losses are enough")
    for label, unit in units.items():
        vector, square = unit.vector, unit.length**2
        sharpness = (objective.loss_at(vector, 1.0) - 2 * loss + objective.loss_at(vector, -1.0)) / square
        terms.sharpness[label] = [sharpness] * len(objective.batches)
        terms.numerical_error[label] = 1e-9
        if observe is not None:
            observe(label, 1 / square, vector, {name: sharpness * x for name, x in vector.items()})
    return terms


@pytest.fixture
def quadratic():
    """``½ Σ hᵢxᵢ²`` with curvatures 1 and 100 on its axes, as the mean of two micro-batches."""
    model = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.tensor([3.0, 4.0], dtype=torch.float64))})
    batches = [torch.tensor([0.5, 150.0]), torch.tensor([1.5, 50.0])]
    return Objective(model, lambda m, h: 0.5 * (h * m["x"] ** 2).sum(), batches, lambda _: 1)


def test_a_toy_method_measures_from_its_row_to_the_record(quadratic, monkeypatch):
    monkeypatch.setitem(METHODS, "toy", by_losses)
    axes = {"first": {"x": torch.tensor([-2.0, 0.0])}, "second": {"x": torch.tensor([0.0, -2.0])}}
    measured = measure(quadratic, axes, method="toy", landscape=True, breakdown=True, within_layers=True)
    assert [measured[label].sharpness for label in axes] == pytest.approx([1.0, 100.0])
    record = measured["second"].record()
    assert (record["method"], record["method_reason"], record["numerical_error"]) == ("toy", "losses are enough", 1e-9)
    assert record["layers"] == {"x": pytest.approx(100.0)}
    assert record["within_layer"] == pytest.approx(100.0)
    assert record["best_step"] == pytest.approx(4.0)


def test_the_split_within_layers_takes_the_same_method(monkeypatch):
    calls = []

    def counted(objective, units, observe=None):
        calls.append({label: vectors.norm(unit.u) for label, unit in units.items()})
        return by_losses(objective, units, observe)

    monkeypatch.setitem(METHODS, "toy", counted)
    model = torch.nn.ParameterDict({"x": torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))})
    saddle = Objective(model, lambda m, h: -(h * m["x"] ** 2).sum(), [torch.ones(1)])
    measured = measure(saddle, {"d": {"x": torch.ones(1)}}, method="toy", within_layers=True)["d"]
    assert (measured.within_layer, measured.sharpness_robust) == pytest.approx((-2.0, -2.0))
    assert calls == [{"d": 1.0}, {"x": 1.0}]


def test_a_method_without_a_row_is_refused_with_the_names_that_have_one(quadratic):
    with pytest.raises(UsageError, match="unknown method 'toy': choose auto, autograd or difference"):
        measure(quadratic, {"d": {"x": torch.ones(2)}}, method="toy")
