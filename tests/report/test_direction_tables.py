"""The paper's tables hold what was measured, with its spread, its sign and its marks."""

from __future__ import annotations

import pytest

from stepscope.report import concentration_tables, decrease_tables, sharpness_tables
from stepscope.report.direction_tables import top_shares
from synthetic_records import record


def test_sharpness_is_a_ratio_with_spread_sign_and_mark():
    records = [
        record("sgd", step, name, seed=seed, sharpness=value, sharpness_robust=robust)
        for step, seed, name, value, robust in (
            (20, 0, "sgd", 8.0, None), (20, 0, "adam", -2.0, None),
            (20, 1, "sgd", 4.0, None), (20, 1, "adam", -3.0, None),
            (5, 0, "sgd", -2.0, 8.0), (5, 0, "muon", 4.0, None),
            (30, 0, "sgd", -2.0, None),
        )
    ]  # fmt: skip
    tables = sharpness_tables([*records, record("adam", 20, "sgd", sharpness=1e9)])
    assert [table.name for table in tables] == ["sharpness-sgd", "sharpness-adam"]
    table = tables[0]
    assert table.headers == ("direction", "step 5† (1 of 2 seeds)", "step 20", "step 30‡ (1 of 2 seeds)")
    assert table.rows == (
        ("sgd", "−0.250", "1.00 ± 0.00", "−1.00"),
        ("adam", "–", "−0.500 ± 0.354", "–"),
        ("muon", "0.500", "–", "–"),
    )
    assert table.title == "Directional sharpness / |SGD's|: weights moved by sgd"
    assert "eq. 4" in table.note
    assert "‡" in table.note
    assert "†" not in tables[1].note


def test_without_sgd_the_title_says_that_numbers_are_absolute():
    table = sharpness_tables([record("sgd", 1, "adam", sharpness=4.0)])[0]
    assert table.title == "Directional sharpness: weights moved by sgd"
    assert table.rows == (("adam", "4.00"),)


def test_decreases_are_in_units_of_the_loss():
    records = [record("sgd", 1, "adam", seed=seed, best_decrease=value) for seed, value in enumerate((0.5, 1.5))]
    assert decrease_tables([*records, record("sgd", 1, "sgd", sharpness=1.0)])[0].rows == (("adam", "1.00 ± 0.707"),)


def test_what_the_largest_coordinates_carry():
    records = [
        record("sgd", 1, "sgd", seed=seed, sharpness=8.0, top={"0.1": {"norm": 0.5, "sharpness": part}})
        for seed, part in enumerate((-4.0, 2.0, 88.0))
    ]
    records.append(record("sgd", 1, "adam", sharpness=-1.0, top={"0.1": {"norm": 0.25, "sharpness": -1.0}}))
    tables = concentration_tables([*records, record("sgd", 2, "sgd", sharpness=1.0)])
    assert [table.name for table in tables] == ["concentration-sgd-step-1"]
    assert tables[0].headers == ("direction", "squared norm in 10%", "sharpness in 10%")
    assert tables[0].rows == (("sgd", "50.0%", "25.0%"), ("adam", "25.0%", "–"))


@pytest.mark.parametrize("top", [None, {}, {"x": {}}, {"0.1": {"norm": None}}, {"0": {"norm": 1.0}}])
def test_parts_that_are_not_there_are_no_shares(top):
    assert top_shares(record("sgd", 1, "sgd", sharpness=1.0, top=top), "norm") == {}


def test_nothing_measured_is_no_table():
    assert sharpness_tables([record("sgd", 1, "sgd")]) == decrease_tables([]) == concentration_tables([]) == []
