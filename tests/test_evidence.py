"""Tables of robust smoothness and of theory, from records that were made up."""

import pytest

from stepscope.report import GRIDS, print_grids, render_report

EVIL = "</script><img src=x onerror=alert(1)>[red]"


def removal(group, cut, ratio, seed=0):
    return {"group": group, "cut": cut, "seed": seed, "ratio": ratio, "fraction": 0.04, "random_ratio": 1 + ratio / 100}


def bound(seed, **details):
    margins = {"violations": 0, "least_margin": 0.5, "median_margin": 0.7}
    record = {"seed": seed, "family": "quadratic", "fraction": 0.1, "draws": 40, "clipped": margins, "plain": margins}
    counts = {"guarantees_more": 10, "decreases_more": 20, "disagreements": 0}
    return record | counts | {"block": None} | details


def correlation(group, seed, low, high):
    found = {"rho": (low + high) / 2, "low": low, "high": high}
    return {"group": group, "seed": seed, "diagonal": found, "row_norm": {"rho": None, "low": None, "high": None}}


def test_robust_smoothness_is_told_by_group_and_cut():
    records = [removal("attention", 4.0, ratio, seed) for seed, ratio in enumerate((1.5, 3.0, 6.0))]
    (grid,) = GRIDS["robustness"]([*records, removal("all", 2.0, 1.0) | {"ratio": None}])
    assert grid.rows == (("attention, cut 4", "3", "3", "1.5…6", "2/3", "4.0%", "1.06"),)
    assert grid.title == "Robust smoothness, 3 seeds"


def test_violations_and_margins_of_all_bounds_count():
    broken = {"violations": 3, "least_margin": -0.25, "median_margin": 0.1}
    (grid,) = GRIDS["theory"]([bound(0), bound(1, block=broken, disagreements=2)])
    assert grid.rows == (("quadratic, clip 10%", "80", "3", "-0.25", "25.0%", "50.0%", "2"),)


def test_correlations_count_intervals_above_zero():
    records = [correlation("code, all", 0, 0.2, 0.4), correlation("code, all", 1, -0.1, 0.3)]
    (grid,) = GRIDS["theory"](records)
    assert grid.rows == (("code, all", "2", "0.10…0.30", "1/2", "-", "0/0"),)


@pytest.mark.parametrize("name", GRIDS)
def test_nothing_measured_is_no_table(name):
    assert GRIDS[name]([]) == []


@pytest.mark.parametrize(
    ("name", "record"), [("robustness", removal(EVIL, 4.0, 3.0)), ("theory", correlation(EVIL, 0, 0.1, 0.2))]
)
def test_names_do_no_harm(name, record, capsys):
    pytest.importorskip("altair")
    run = {"configuration": {"experiment": name}, "context": {}}
    assert "<img src=x" not in render_report(run, [record])
    print_grids(GRIDS[name]([record]))
    assert "[red]" in capsys.readouterr().out.replace("\n", "").replace(" ", "")
