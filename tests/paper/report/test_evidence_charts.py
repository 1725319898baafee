"""Figures of robust smoothness and of theory draw what the records hold."""

from __future__ import annotations

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from stepscope import UsageError
from stepscope.paper.report.evidence_charts import (
    bound_margins,
    correlations,
    curvature_against_gradient,
    smoothness_over_steps,
)
from stepscope.report.vega import save, vega_script

EVIL = "</script><img src=x onerror=alert(1)>[red]"


def rows_of(chart):
    """The rows of each layer."""
    spec = chart.to_dict()
    return [spec["datasets"][part["data"]["name"]] for part in spec.get("layer", [spec])]


def removal(ratio, *, step=1, cut=4.0, seed=0, random=1.05, group="attention", trajectory="sgd"):
    where = {"trajectory": trajectory, "step": step, "group": group, "cut": cut, "seed": seed, "batch": 0}
    return {**where, "ratio": ratio, "random_ratio": random}


def bound(seed, group="quadratic, clip 10%", *, least=0.1, median=0.5, violations=0):
    parts = {"violations": violations, "least_margin": least, "median_margin": median}
    return {"seed": seed, "group": group, "draws": 40, "clipped": parts, "plain": parts, "block": None}


def correlation(gradient, diagonal, *, seed=0, group="code, all", trajectory="sgd", step=1, rho=0.5, low=0.1):
    where = {"seed": seed, "group": group, "trajectory": trajectory, "step": step, "scope": ""}
    found = {"rho": rho, "low": low, "high": 0.9}
    return {**where, "diagonal": found, "points": {"gradient": gradient, "diagonal": diagonal, "row_norm": diagonal}}


def test_smoothness_is_a_median_with_its_range_and_its_control():
    records = [removal(ratio, seed=seed, random=1 + ratio / 100) for seed, ratio in enumerate((1.5, 3.0, 6.0))]
    others = [removal(99.0, trajectory="adam"), removal(None), removal(0.0)]
    _, rows, *_ = rows_of(smoothness_over_steps([*records, *others], "sgd"))
    (row,) = rows
    assert (row["ratio"], row["low"], row["high"], row["count"], row["random"]) == (3.0, 1.5, 6.0, 3, 1.06)


def test_cuts_are_in_order_whichever_was_measured_first():
    spec = smoothness_over_steps([removal(3.0, cut=cut) for cut in (4.0, 2.5, 10.0, 2.0)], "sgd").to_dict()
    assert spec["layer"][3]["encoding"]["shape"]["scale"]["domain"] == ["2", "2.5", "4", "10"]
    assert spec["layer"][1]["encoding"]["xOffset"]["sort"] == [f"attention, {cut}" for cut in ("2", "2.5", "4", "10")]


def test_margins_are_the_least_of_all_and_the_middle_of_the_medians():
    records = [
        bound(seed, least=least, median=median) for seed, (least, median) in enumerate(((0.3, 0.4), (-0.2, 0.6)))
    ]
    _, rows, *_ = rows_of(bound_margins(records))
    assert [(row["bound"], row["least"], row["median"]) for row in rows] == [
        ("with clipping", -0.2, 0.5),
        ("without", -0.2, 0.5),
    ]
    told = bound_margins([bound(0, violations=3)]).to_dict()["title"]["subtitle"][0]
    assert "40 draws, 6 violations" in told


def test_coordinates_are_points_by_seed_without_zeros():
    records = [
        correlation([-0.5, 0.0, 2.0], [1.0, 1.0, -3.0], rho=0.25),
        correlation([1.0], [1.0], seed=1, rho=0.75),
        correlation([9.0], [9.0], step=2),
        correlation([9.0], [9.0], trajectory="adam"),
        correlation([9.0], [9.0], group="code, tokens"),
    ]
    chart = curvature_against_gradient(records, "code, all", "sgd", 1)
    (rows,) = rows_of(chart)
    assert [(row["gradient"], row["diagonal"], row["seed"]) for row in rows] == [
        (0.5, 1.0, "0"), (2.0, 3.0, "0"), (1.0, 1.0, "1"),
    ]  # fmt: skip
    first, second = chart.to_dict()["title"]["subtitle"]
    assert "by seed: 0.25, 0.75." in first
    assert "1 coordinates" in second


def test_correlations_are_marks_and_their_intervals_are_counted():
    records = [correlation([1.0], [1.0], rho=0.3, low=-0.1), correlation([1.0], [1.0], seed=1, rho=0.6)]
    chart = correlations([*records, correlation([1.0], [1.0], seed=2, rho=None), bound(0)])
    assert [row["rho"] for row in rows_of(chart)[1]] == [0.3, 0.6]
    assert "1 of 2 95% intervals lie wholly above 0" in str(chart.to_dict()["title"]["subtitle"])


DRAWS = [
    lambda records: smoothness_over_steps(records, "sgd"),
    bound_margins,
    lambda records: curvature_against_gradient(records, EVIL, "sgd", 1),
    correlations,
]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("records", [[], [{}], [{"points": 3, "diagonal": None, "clipped": 1, "ratio": "x"}]])
def test_what_was_not_measured_is_said(draw, records):
    with pytest.raises(UsageError, match=r"^no .* measured"):
        draw(records)


@pytest.mark.parametrize("draw", DRAWS)
def test_figures_are_vectors_and_closed_to_names(draw, tmp_path):
    records = [removal(3.0, group=EVIL), bound(0, EVIL), correlation([1.0, 2.0], [1.0, 3.0], group=EVIL)]
    assert save(draw(records), tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    page = save(draw(records), tmp_path / "figure.html").read_text().replace(vega_script(), "")
    assert "<img" not in page
