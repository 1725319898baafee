"""Figures of robust smoothness and of theory draw what the records hold."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from experiment_records import bound, correlation, removal
from stepscope import UsageError
from stepscope.paper.records import CoordinatePoints, Margins, Rank
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


def bounded(seed, *, least=0.1, median=0.5, violations=0):
    margins = Margins(violations=violations, least_margin=least, median_margin=median)
    return bound(seed, clipped=margins, plain=margins)


def coordinates(gradient, diagonal, *, seed=0, group="code, all", rho=0.5, low=0.1, **place):
    gradient, diagonal = tuple(gradient), tuple(diagonal)
    points = CoordinatePoints(gradient=gradient, diagonal=diagonal, row_norm=diagonal)
    return correlation(group, seed, low, 0.9, diagonal=Rank(rho=rho, low=low, high=0.9), points=points, **place)


def test_smoothness_is_a_median_with_its_range_and_its_control():
    records = [removal("attention", 4.0, ratio, seed) for seed, ratio in enumerate((1.5, 3.0, 6.0))]
    others = [removal("attention", 4.0, ratio) for ratio in (None, 0.0)]
    others.append(removal("attention", 4.0, 99.0, trajectory="adam"))
    _, rows, *_ = rows_of(smoothness_over_steps([*records, *others], "sgd"))
    (row,) = rows
    assert (row["ratio"], row["low"], row["high"], row["count"], row["random"]) == (3.0, 1.5, 6.0, 3, 1.06)


def test_cuts_are_in_order_whichever_was_measured_first():
    spec = smoothness_over_steps([removal("attention", cut, 3.0) for cut in (4.0, 2.5, 10.0, 2.0)], "sgd").to_dict()
    assert spec["layer"][3]["encoding"]["shape"]["scale"]["domain"] == ["2", "2.5", "4", "10"]
    assert spec["layer"][1]["encoding"]["xOffset"]["sort"] == [f"attention, {cut}" for cut in ("2", "2.5", "4", "10")]


def test_margins_are_the_least_of_all_and_the_middle_of_the_medians():
    records = [
        bounded(seed, least=least, median=median) for seed, (least, median) in enumerate(((0.3, 0.4), (-0.2, 0.6)))
    ]
    _, rows, *_ = rows_of(bound_margins(records))
    assert [(row["bound"], row["least"], row["median"]) for row in rows] == [
        ("with clipping", -0.2, 0.5),
        ("without", -0.2, 0.5),
    ]
    told = bound_margins([bounded(0, violations=3)]).to_dict()["title"]["subtitle"][0]
    assert "40 draws, 6 violations" in told


def test_coordinates_are_points_by_seed_without_zeros():
    records = [
        coordinates([-0.5, 0.0, 2.0], [1.0, 1.0, -3.0], rho=0.25),
        coordinates([1.0], [1.0], seed=1, rho=0.75),
        coordinates([9.0], [9.0], step=2),
        coordinates([9.0], [9.0], trajectory="adam"),
        coordinates([9.0], [9.0], group="code, tokens"),
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
    records = [coordinates([1.0], [1.0], rho=0.3, low=-0.1), coordinates([1.0], [1.0], seed=1, rho=0.6)]
    chart = correlations([*records, coordinates([1.0], [1.0], seed=2, rho=None), bound(0)])
    assert [row["rho"] for row in rows_of(chart)[1]] == [0.3, 0.6]
    assert "1 of 2 95% intervals lie wholly above 0" in str(chart.to_dict()["title"]["subtitle"])


DRAWS = [  # what draws, a record that it draws, and what is missing where nothing was measured
    (lambda records: smoothness_over_steps(records, "sgd"), removal(EVIL, 4.0, 3.0), {"ratio": None}),
    (bound_margins, bound(0, group=EVIL), {"clipped": None, "plain": None}),
    (
        lambda records: curvature_against_gradient(records, EVIL, "sgd", 1),
        coordinates([1.0, 2.0], [1.0, 3.0], group=EVIL),
        {"points": None},
    ),
    (correlations, coordinates([1.0], [1.0], group=EVIL), {"diagonal": Rank()}),
]


@pytest.mark.parametrize(("draw", "record", "missing"), DRAWS)
def test_what_was_not_measured_is_said(draw, record, missing):
    for records in ([], [replace(record, **missing)]):
        with pytest.raises(UsageError, match=r"^no .* measured"):
            draw(records)


@pytest.mark.parametrize(("draw", "record"), [case[:2] for case in DRAWS])
def test_figures_are_vectors_and_closed_to_names(draw, record, tmp_path):
    assert save(draw([record]), tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    page = save(draw([record]), tmp_path / "figure.html").read_text().replace(vega_script(), "")
    assert "<img" not in page
