"""Robust smoothness: the removal rule against dense matrices, its control, its errors."""

import json

import pytest
import torch
import torch.nn.functional as F
from test_gauss_newton_matrix import matrix_of, tiny
from torch import nn

from cases import case
from stepscope import Objective, UsageError
from stepscope.measuring import gauss_newton_matrix
from stepscope.measuring.smoothness import removals, robust_smoothness
from traces import fingerprint


def without(matrix, drop):
    """The matrix without the rows and columns of some coordinates."""
    return matrix[~drop][:, ~drop]


def top(matrix):
    return float(torch.linalg.eigvalsh(matrix)[-1])


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("cut", [4, 2.5, 2, 1])
def test_removal_agrees_with_a_dense_construction(classes, cut):
    model, batch = tiny(classes)
    objective = Objective(model, None, [batch])
    matrix = matrix_of(gauss_newton_matrix.gauss_newton(objective))
    columns = matrix.diagonal().sqrt()
    drop = columns >= cut * columns.mean()
    [found] = robust_smoothness(objective, cuts=[cut], draws=0)
    assert 0 < int(drop.sum()) < len(columns)
    assert (found.coordinates, found.removed) == (len(columns), int(drop.sum()))
    assert found.before == pytest.approx(top(matrix), rel=1e-12)
    assert found.after == pytest.approx(top(without(matrix, drop)), rel=1e-10)
    assert found.ratio == pytest.approx(found.before / found.after)
    assert found.fraction == found.removed / found.coordinates
    assert found.random == ()
    assert found.random_ratio is None


def test_the_mean_is_of_the_chosen_coordinates():
    model, batch = tiny(2)
    objective = Objective(model, None, [batch])
    chosen = ["first.weight", "head.weight"]
    matrix = matrix_of(gauss_newton_matrix.gauss_newton(objective, chosen))
    columns = matrix.diagonal().sqrt()
    drop = columns >= 2 * columns.mean()
    [found] = robust_smoothness(objective, chosen, cuts=[2], draws=0)
    assert (found.coordinates, found.removed) == (24, int(drop.sum()))
    assert found.after == pytest.approx(top(without(matrix, drop)), rel=1e-10)


def test_columns_at_the_cut_are_removed():
    """Norms 3, 1, 1, 1, 1, 1: of their mean, 4/3, the first is 2.25 times."""
    rows = {"a": [torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0, 1.0])]}
    matrix = gauss_newton_matrix.GaussNewton(rows, 1)
    at, above = removals(matrix, cuts=[2.25, 2.2501], draws=0, seed=0)
    assert (at.removed, above.removed) == (1, 0)
    assert (at.before, at.after) == pytest.approx((14.0, 5.0))
    assert above.ratio == 1.0


def test_random_removal_takes_as_many_and_any_of_them():
    """Orthogonal rows of one coordinate each: what is left of the norm tells which were taken."""
    values = torch.arange(1.0, 41.0)
    matrix = gauss_newton_matrix.GaussNewton(
        {"a": list(torch.diag(values)[:, :15]), "b": list(torch.diag(values)[:, 15:])}, 1
    )
    [found] = removals(matrix, cuts=[1.9], draws=200, seed=3)  # 38.95 is 1.9 times the mean
    assert found.removed == 2
    assert found.after == 38.0**2
    # The largest goes with probability 2/40, the two largest with 2/(40·39): the norm is then 39² or 38².
    assert set(found.random) <= {40.0**2, 39.0**2, 38.0**2}
    # 200 draws of probability 0.05, mean 10 and standard deviation 3.1: within four of them.
    assert 1 <= sum(value < 40.0**2 for value in found.random) <= 22
    [again] = removals(matrix, cuts=[1.9], draws=200, seed=3)
    [other] = removals(matrix, cuts=[1.9], draws=200, seed=4)
    assert again == found
    assert other.random != found.random


def test_a_cut_does_not_depend_on_the_other_cuts():
    model, batch = tiny(5)
    objective = Objective(model, None, [batch])
    together = robust_smoothness(objective, cuts=[4, 2], seed=7)
    assert [robust_smoothness(objective, cuts=[cut], seed=7)[0] for cut in (4, 2)] == together
    assert all(each.before >= value > 0 for each in together for value in (*each.random, each.after))


def test_nothing_left_has_no_ratio():
    rows = {"a": [torch.tensor([2.0, 2.0])]}
    [found] = removals(gauss_newton_matrix.GaussNewton(rows, 1), cuts=[1], draws=1, seed=0)
    assert (found.removed, found.after, found.ratio, found.random_ratio) == (2, 0.0, None, None)


def test_a_record_is_json():
    model, batch = tiny(2)
    [found] = robust_smoothness(Objective(model, None, [batch]), draws=2)
    record = json.loads(json.dumps(found.record()))
    assert record["ratio"] == found.ratio
    assert record["spectral_norm_random"] == list(found.random)
    assert record["random_ratio"] == pytest.approx(2 * found.before / sum(found.random))


def test_a_planted_coordinate_is_found():
    """One input a hundred times the others: what it feeds is removed, and the rest is smooth."""
    torch.manual_seed(5)
    x = torch.randn(8, 20, dtype=torch.float64)
    x[:, 3] *= 100
    model = nn.Linear(20, 2, bias=False).double()
    model.weight.data *= 0.001
    labels = torch.randint(0, 2, (8,))
    objective = Objective(model, lambda m, b: F.cross_entropy(m(b[0]), b[1]), [(x, labels)])
    [found] = robust_smoothness(objective, logits_fn=lambda m, b: m(b[0]))
    assert found.removed == 2
    assert found.ratio > 100
    assert found.random_ratio < 2


def test_leaves_no_trace():
    c = case("bert")
    before = fingerprint(c.model)
    robust_smoothness(c.objective(), "*.attention.*.weight")
    assert fingerprint(c.model) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cuts": []}, r"cuts are \[\]: give finite numbers above 0"),
        ({"cuts": [4, 0]}, r"cuts are \[4, 0\]"),
        ({"cuts": [float("nan")]}, r"cuts are \[nan\]"),
        ({"draws": -1}, "draws is -1"),
        ({"parameters": "unused"}, "matrix is zero here"),
    ],
)
def test_mistakes(settings, message):
    model, batch = tiny(2)
    with pytest.raises(UsageError, match=message):
        robust_smoothness(Objective(model, None, [batch]), **settings)


def test_certain_predictions():
    model, batch = tiny(2)
    with torch.no_grad():
        model.head.bias[0] = 1e5
    with pytest.raises(UsageError, match="every prediction is certain up to rounding"):
        robust_smoothness(Objective(model, None, [batch]))
