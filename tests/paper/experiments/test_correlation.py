"""Gradient and Hessian coordinates against the dense reference, samples that are uniform, and planted correlations."""

import dataclasses
import json
import math
from collections import Counter

import pytest
import torch

from cases import case, dense, flat
from stepscope import UsageError
from stepscope.paper.experiments.correlation import (
    CoordinateValues,
    coordinate_values,
    correlation_record,
    scope_coordinates,
    scope_size,
)
from stepscope.paper.records import CorrelationRecord, Rank

PLACE = CorrelationRecord(seed=0, group="all", diagonal=Rank(), row_norm=Rank())


@pytest.mark.parametrize("name", ["layer norm", "t5 gelu", "gpt-neo", "batch norm"])
def test_values_are_those_of_the_dense_hessian(name):
    """Tied, frozen and unused parameters, and batches of unlike numbers of tokens."""
    c = case(name)
    objective = c.objective()
    _, gradient, hessian = dense(name)
    every = scope_coordinates(objective.parameters)
    chosen = scope_coordinates(objective.parameters, count=40, seed=1)
    place = torch.tensor([every.index(each) for each in chosen])
    found = coordinate_values(objective, chosen)
    scale = c.tolerance * float(hessian.abs().max())
    torch.testing.assert_close(found.gradient, flat(c, gradient).abs()[place], rtol=0, atol=c.tolerance)
    torch.testing.assert_close(found.diagonal, hessian.diagonal().abs()[place], rtol=0, atol=scale)
    torch.testing.assert_close(found.row_norm, hessian.norm(dim=1)[place], rtol=0, atol=10 * scale)


def test_an_unused_parameter_has_zeros():
    objective = case("mlp").objective()
    found = coordinate_values(objective, [("unused", 0), ("unused", 1), ("out.bias", 2)])
    assert found.gradient[:2].tolist() == found.diagonal[:2].tolist() == found.row_norm[:2].tolist() == [0.0, 0.0]
    assert float(found.row_norm[2]) > 0


PARAMETERS = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(4), "b.empty": torch.zeros(0), "c": torch.zeros(1)}


def test_all_coordinates_of_a_scope_in_order():
    every = [("a.weight", i) for i in range(6)] + [("b.weight", i) for i in range(4)] + [("c", 0)]
    assert scope_coordinates(PARAMETERS) == scope_coordinates(PARAMETERS, count=11) == every
    assert scope_coordinates(PARAMETERS, "b") == every[6:10]
    assert (scope_size(PARAMETERS), scope_size(PARAMETERS, "b")) == (11, 4)


def test_a_sample_is_uniform_and_without_replacement():
    counts = Counter()
    for seed in range(2000):
        sample = scope_coordinates(PARAMETERS, count=4, seed=seed)
        assert len(set(sample)) == 4
        counts.update(sample)
    # Each of the 11 is in a sample with probability 4/11: five standard deviations of 2,000.
    expected, spread = 2000 * 4 / 11, math.sqrt(2000 * 4 / 11 * 7 / 11)
    assert set(counts) == set(scope_coordinates(PARAMETERS))
    assert all(abs(count - expected) < 5 * spread for count in counts.values())
    assert scope_coordinates(PARAMETERS, count=4, seed=1) == scope_coordinates(PARAMETERS, count=4, seed=1)


@pytest.mark.parametrize(
    ("scope", "count", "message"), [("d", None, "begins with 'd'"), ("b.e", 5, "begins with"), ("", 1, "at least 2")]
)
def test_wrong_scopes(scope, count, message):
    with pytest.raises(UsageError, match=message):
        scope_coordinates(PARAMETERS, scope, count)


def values(gradient, diagonal, row_norm):
    return CoordinateValues(*(torch.tensor(v, dtype=torch.float64) for v in (gradient, diagonal, row_norm)))


def test_a_record_by_hand():
    record = correlation_record(PLACE, values([1, 2, 3, 4, 0], [10, 20, 40, 30, 0], [4, 3, 2, 1, 0]), resamples=50)
    assert (record.coordinates, record.left_out) == (4, 1)
    assert record.diagonal.rho == pytest.approx(0.8)  # 1 − 6·2/60
    assert dataclasses.astuple(record.row_norm) == pytest.approx((-1.0, -1.0, -1.0))
    assert sorted(record.points.gradient) == [1, 2, 3, 4]
    pairs = dict(zip(record.points.gradient, record.points.diagonal, strict=True))
    assert pairs == {1: 10, 2: 20, 3: 40, 4: 30}


def test_only_what_the_loss_does_not_depend_on_is_left_out():
    """A stationary coordinate with curvature stays, and so does a linear one with a gradient."""
    record = correlation_record(PLACE, values([0, 3, 0, 2], [5, 0, 0, 1], [5, 0, 0, 1]), resamples=50)
    assert (record.coordinates, record.left_out) == (3, 1)


def test_nothing_to_correlate():
    record = correlation_record(PLACE, values([0, 3], [0, 1], [0, 1]), resamples=50)
    assert record.diagonal == record.row_norm == Rank()


def test_points_are_a_part_of_the_values():
    x = torch.rand(1000, dtype=torch.float64) + 1e-5
    points = correlation_record(PLACE, CoordinateValues(x, 2 * x, 3 * x), resamples=20).points
    assert {len(values) for values in dataclasses.astuple(points)} == {200}
    assert torch.tensor(points.row_norm) == pytest.approx(3 * torch.tensor(points.gradient).numpy(), rel=1e-3)
    assert len(json.dumps(dataclasses.asdict(points))) < 8000
    assert len(set(points.gradient)) > 190


def test_on_a_quadratic_the_correlation_is_that_of_its_numbers():
    """½Σhᵢxᵢ² with |gᵢ| = hᵢ|xᵢ|: only one h differs, so all others are tied."""
    c = case("quadratic")
    objective = c.objective()
    found = coordinate_values(objective, scope_coordinates(objective.parameters))
    mean = (1 + 2 + 4) / 3
    torch.testing.assert_close(found.gradient, mean * (c.model.h * c.model.x.detach()).abs())
    torch.testing.assert_close(found.diagonal, mean * c.model.h)
    torch.testing.assert_close(found.row_norm, found.diagonal)
