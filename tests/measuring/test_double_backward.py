"""What double backward holds in memory: one direction, one product and one graph at a time."""

import weakref

import torch

from cases import case
from stepscope.measuring.curvature import curvature
from stepscope.objective import UnitDirection, vectors


def test_no_unit_vector_and_no_product_outlives_its_direction():
    """When a unit vector is made, the tensors of the direction before are gone: memory doesn't grow with directions."""
    objective = case("mlp").objective()
    before, labels = [], []

    class Watched(vectors.UnitVectors):
        def __getitem__(self, label):
            assert [ref for ref in before if ref() is not None] == []
            return super().__getitem__(label)

    def observe(label, weight, u, product):
        labels.append(label)
        before.extend(weakref.ref(tensor) for tensor in (*u.values(), *product.values()))

    with objective.measuring():
        directions = [{n: torch.randn_like(p) for n, p in objective.parameters.items()} for _ in range(3)]
        units = {str(k): UnitDirection.of(d, objective.parameters) for k, d in enumerate(directions)}
        curvature(objective, Watched(units), "autograd", observe)
    assert labels == [*"012"] * len(objective.batches)
