"""Figures of coordinates draw what the records hold, whatever is missing from them."""

from __future__ import annotations

import pytest

pytest.importorskip("altair")

from stepscope.report.magnitude_charts import concentration, concentration_over_steps, magnitudes
from synthetic_records import record


def rows_of(chart):
    """The rows of each layer."""
    spec = chart.to_dict()
    return [spec["datasets"][part["data"]["name"]] for part in spec.get("layer", [spec])]


def histogram(counts, lowest=-1, zeros=0, per_decade=2):
    return {"zeros": zeros, "lowest": lowest, "per_decade": per_decade, "counts": counts}


def carried(direction, seed, sharpness, part, step=1):
    top = {"0.01": {"norm": 0.5, "sharpness": part}, "0.1": {"norm": 0.9, "sharpness": sharpness}}
    return record("sgd", step, direction, seed=seed, sharpness=sharpness, top=top)


def test_counts_are_means_over_seeds_in_the_middle_of_their_bins():
    records = [
        record("sgd", 1, "sgd", seed=0, magnitudes=histogram([4, 0, 8])),
        record("sgd", 1, "sgd", seed=1, magnitudes=histogram([6], lowest=1)),
        record("sgd", 1, "adam", magnitudes=histogram([5])),
        record("sgd", 1, "muon", magnitudes=histogram([99])),
        record("sgd", 1, "own sgd", magnitudes=histogram([3])),
        record("sgd", 2, "sgd", magnitudes=histogram([99])),
        record("adam", 1, "sgd", magnitudes=histogram([99])),
    ]
    (rows,) = rows_of(magnitudes(records, "sgd", 1))
    found = [(row["direction"], pytest.approx(row["magnitude"], rel=1e-4), row["count"]) for row in rows]
    # Bins of half a decade that begin at 10^-0.5: -1 → 10^-0.25, 0 → 10^0.25, 1 → 10^0.75; none is no 0 but a gap.
    assert found == [
        ("own sgd", 10**-0.25, 3.0),
        ("sgd", 10**-0.25, 2.0),
        ("sgd", 10**0.25, None),
        ("sgd", 10**0.75, 7.0),
        ("adam", 10**-0.25, 5.0),
    ]


def test_the_histogram_says_what_it_leaves_out_and_names_only_what_it_draws():
    records = [
        record("sgd", 1, "sgd", magnitudes=histogram([30], zeros=10)),
        record("sgd", 1, "muon", magnitudes=histogram([5])),
    ]
    spec = magnitudes(records, "sgd", 1).to_dict()
    assert spec["title"]["subtitle"] == ["One seed. Left out, the part of the coordinates that is exactly 0: sgd 0.25."]
    assert spec["encoding"]["color"]["legend"]["values"] == ["sgd"]
    assert spec["encoding"]["color"]["scale"]["domain"] == ["sgd", "muon"], "the look is that of the other charts"


def test_shares_are_parts_of_the_whole_with_medians_over_seeds():
    records = [carried("sgd", seed, 8.0, part) for seed, part in enumerate((2.0, 4.0, 16.0))]
    lines, points = rows_of(concentration(records, "sgd", 1))
    assert {(row["largest"], row["share"]) for row in lines} == {(1.0, 0.5), (10.0, 1.0)}
    assert [row["share"] for row in points if row["largest"] == 1.0] == [0.25, 0.5, 2.0]
    lines, _ = rows_of(concentration(records, "sgd", 1, "norm"))
    assert {(row["largest"], row["share"]) for row in lines} == {(1.0, 0.5), (10.0, 0.9)}


def test_a_sharpness_that_is_not_positive_has_no_shares():
    records = [carried("sgd", 0, 8.0, 4.0), carried("adam", 0, -8.0, -4.0), carried("muon", 0, 0.0, 1.0)]
    for rows in rows_of(concentration(records, "sgd", 1)):
        assert {row["direction"] for row in rows} == {"sgd"}
    assert {row["direction"] for row in rows_of(concentration(records, "sgd", 1, "norm"))[0]} == {"sgd", "adam", "muon"}


def test_shares_far_outside_are_cut_off_and_counted():
    records = [carried("sgd", 0, 1.0, 50.0), carried("adam", 0, 1.0, -50.0)]
    spec = concentration(records, "sgd", 1).to_dict()
    assert spec["layer"][0]["encoding"]["y"]["scale"]["domain"] == [-0.25, 1.25]
    assert "2 of 4 points lie outside" in spec["title"]["subtitle"][-1]


def test_shares_over_steps():
    records = [carried("sgd", 0, 8.0, 2.0 * step, step) for step in (1, 2, 3)]
    lines, points = rows_of(concentration_over_steps(records, "sgd"))
    assert [(row["step"], row["share"]) for row in lines] == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert len(points) == 3
