"""What double backward holds in memory: one direction, one product and one graph at a time."""

import weakref

import pytest
import torch

from cases import case
from stepscope.measuring.curvature import curvature
from stepscope.objective import UnitDirection


def test_no_unit_vector_and_no_product_outlives_its_direction():
    """When a unit vector is made, the tensors of the direction before are gone: memory doesn't grow with directions."""
    objective = case("mlp").objective()
    before, labels = [], []

    class Watched(UnitDirection):
        @property
        def vector(self):
            assert [ref for ref in before if ref() is not None] == []
            return super().vector

    def observe(label, weight, vector, product):
        labels.append(label)
        before.extend(weakref.ref(tensor) for tensor in (*vector.values(), *product.values()))

    with objective.measuring():
        # Of another dtype than the parameters, so that the vectors are made.
        directions = [{n: torch.randn_like(p).half() for n, p in objective.parameters.items()} for _ in range(3)]
        units = {str(k): Watched.of(d, objective.parameters) for k, d in enumerate(directions)}
        curvature(objective, units, "autograd", observe)
    assert labels == [*"012"] * len(objective.batches)


def test_a_direction_that_is_as_the_parameters_are_is_not_copied():
    parameters, d = {"w": torch.zeros(3, 2)}, torch.randn(3, 2)
    others = {
        "another dtype": d.double(),
        "another layout": torch.randn(2, 3).T,
        "too short for products in its dtype": 1e-30 * d,
    }
    unit = UnitDirection.of({"w": d}, parameters)
    assert unit.vector["w"].data_ptr() == d.data_ptr()
    assert unit.length == unit.norm == pytest.approx(float(d.norm()))
    for other, tensor in others.items():
        unit = UnitDirection.of({"w": tensor}, parameters)
        assert unit.length == 1, other
        assert torch.equal(unit.vector["w"], unit.u["w"]), other


def test_extreme_lengths_change_nothing():
    objective = case("mlp", torch.float32).objective()
    d = {n: torch.randn_like(p) for n, p in objective.parameters.items()}
    with objective.measuring():
        units = {
            f"{s:g}": UnitDirection.of({n: s * t for n, t in d.items()}, objective.parameters)
            for s in (1e-30, 1e-9, 1.0, 1e9, 1e30)
        }
        sharpness = curvature(objective, units, "autograd").sharpness
    for label, values in sharpness.items():
        assert values == pytest.approx(sharpness["1"], rel=1e-4), label
