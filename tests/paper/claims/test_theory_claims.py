"""The claims on curvature, from records that were made up so that the answer is known."""

import pytest

from claim_records import claim, part, robustness, theory


def smoother(first, rest):
    """Ratios in attention at cut 4: of one point a seed, and of the seven others."""

    def change(r):
        if (r["group"], r["cut"]) != ("attention", 4.0):
            return {}
        return {"ratio": (first if (r["trajectory"], r["step"], r["batch"]) == ("sgd", 1, 0) else rest)[r["seed"]]}

    return change


def test_robust_smoothness_by_hand():
    run = robustness(smoother((1.9, 1.8, 1.7), (3.0, 3.5, 4.0)))
    assert part("C10", "attention, median", run).values == {0: 3.0, 1: 3.5, 2: 4.0}
    least = part("C10", "attention, every batch and step", run)
    assert least.values == {0: 1.9, 1: 1.8, 2: 1.7}
    # 1.8 ± 4.30 · 0.1/√3 = 1.55 to 2.05
    assert least.verdict == "cannot tell"
    assert least.remark == "3.0% to 4.0% of the coordinates removed, as many at random: at most 1.05 times smoother"
    assert claim("C10", robustness(smoother((1.5, 1.5, 1.5), (3.0, 3.0, 3.0)))).verdict == "does not hold"
    assert claim("C10", robustness(smoother((2.0, 2.0, 2.0), (2.0, 2.0, 2.0)))).verdict == "holds"
    beside = part("C10", "feed-forward, median", run)
    assert (beside.deciding, beside.verdict) == (False, "does not hold")


def correlated(task, scope, of="diagonal"):
    def make(*rhos):
        return lambda r: {of: {"rho": rhos[r["seed"]]}} if (r.get("task"), r.get("scope")) == (task, scope) else {}

    return make


def test_correlations_by_hand():
    """0.4 + seed/10 + the mean of 1 and 30 hundredths."""
    found = claim("C11", theory())
    assert [one.name for one in found.deciding] == ["classifier, all", "translation, all", "translation, shared"]
    assert part("C11", "translation, shared", theory()).values == pytest.approx({0: 0.555, 1: 0.655, 2: 0.755})


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (correlated("translation", "shared")(-0.2, -0.21, -0.22), "does not hold"),
        (correlated("translation", "shared")(-0.2, 0.1, 0.2), "cannot tell"),
        (correlated("classifier", "")(-0.2, -0.21, -0.22), "does not hold"),
        (correlated("classifier", "inside")(-0.2, -0.21, -0.22), "holds"),  # a part of a small model
        (correlated("translation", "", "row_norm")(-0.2, -0.21, -0.22), "holds"),  # beside
        (correlated("translation", "")(0.2, None, 0.2), "holds"),  # two seeds are left
    ],
)
def test_correlations_are_judged_by_the_diagonal(change, verdict):
    assert claim("C11", theory(change)).verdict == verdict


def violated(*counts):
    def change(r):
        own = (r.get("family"), r.get("fraction")) == ("quadratic", 1.0)
        return {"block": {"violations": counts[r["seed"]], "least_margin": -0.5}} if own else {}

    return change


def test_one_violation_in_any_bound_is_counted():
    found = part("C12", "all losses", theory(violated(0, 0, 2)))
    assert found.values == {0: 0, 1: 0, 2: 2}
    # 2/3 ± 4.30 · 2/3: by the mean it couldn't be told, but a bound has no exceptions.
    assert found.verdict == "does not hold"
    assert found.remark == "1,200 draws, least margin -0.5 of the guaranteed decrease; violated in 1 of 3 seeds"
    assert claim("C12", theory(violated(2, 2, 2))).verdict == "does not hold"
    assert part("C12", "all losses", theory()).remark == "1,200 draws, least margin 0.1 of the guaranteed decrease"
