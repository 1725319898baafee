"""The same statistics at several scales: which rungs stand on the ladder, and which way they move."""

import json
from dataclasses import replace

import pytest

from claim_records import at, trajectory
from stepscope.errors import UsageError
from stepscope.paper.claims import BESIDE, claims_json, climbed, judge, ladder_table, learned, read_others
from stepscope.paper.claims.beside import Other
from stepscope.paper.claims.ladder import climbed_in_words, rungs_of
from stepscope.paper.report.ladder_charts import ladder, ladder_figure

LEAST_SHARP = "C1 code, every point"


def of_scale(scale, *runs):
    """The claims of runs, as if they were of a size."""
    return judge([
        type(run)(run.name, {**run.head, "configuration": {**run.head["configuration"], "scale": scale}}, run.records)
        for run in runs
    ])  # fmt: skip


def rungs(claims):
    return rungs_of(claims_json(claims))


def beside(*claims):
    return [Other(str(number), {}, rungs(each)) for number, each in enumerate(claims)]


def row(table, title):
    return dict(zip(table.headers, next(row for row in table.rows if row[0] == title), strict=True))


def test_a_part_moves_towards_the_claimed_side_or_away_and_surely_where_the_intervals_part():
    """Lion's sharpness is 3 of SGD's 8, and the claim is a ratio below one half."""
    own = of_scale("cpu", trajectory())
    for sharpness, moved in ((1.0, "towards"), (3.9, "away"), (3.0, "the same")):
        larger = of_scale("desk", trajectory(change=at("lion", sharpness=sharpness)))
        found = row(ladder_table(climbed(own, beside(larger))), LEAST_SHARP)
        assert found["random: with size"] == moved
        assert found["random, cpu"] == "0.375 [0.375, 0.375] ✓"
        # Of the adaptive ones Adam's is the sharpest where Lion's is not.
        assert found["random, desk"].startswith(f"{max(sharpness, 2.5) / 8:.3g} ")
    # More is claimed of the share of the largest tenth.
    less = of_scale("desk", trajectory(change=lambda r: {"top": {"0.1": replace(r.top["0.1"], sharpness=4.0)}}))
    found = row(ladder_table(climbed(own, beside(less))), "C6 code, 10% largest")
    assert found["random: with size"] == "away", found


def test_one_seed_moves_no_part_surely():
    own = of_scale("cpu", trajectory())
    larger = of_scale("desk", trajectory(change=at("lion", sharpness=1.0), seeds=(0,)))
    found = row(ladder_table(climbed(own, beside(larger))), LEAST_SHARP)
    assert (found["random: with size"], found["random, desk"]) == ("(towards)", "0.312 (one seed) ?")
    [sentence] = climbed_in_words(climbed(own, beside(larger)))
    assert sentence.endswith("away from it; without intervals, of one seed.")


def test_the_same_scale_is_no_rung_and_both_starts_have_their_columns():
    own = of_scale("cpu", trajectory(), trajectory(name="x", start="pretrained: here"))
    assert climbed(own, beside(of_scale("cpu", trajectory()))) == []
    assert ladder_table([]) is None
    larger = of_scale("desk", trajectory(), trajectory(name="x", start="pretrained: here"))
    table = ladder_table(climbed(own, beside(larger)))
    assert table.headers[2:6] == ("pretrained, cpu", "pretrained, desk", "random, cpu", "random, desk")
    assert table.headers[6:] == ("pretrained: with size", "random: with size")
    # A part that the larger one hasn't measured has no ladder.
    assert not any("translation" in title for title, *_ in table.rows)


def test_of_two_others_of_a_scale_the_first_counts():
    own = of_scale("cpu", trajectory())
    first, second = (of_scale("desk", trajectory(change=at("lion", sharpness=sharp))) for sharp in (3.5, 1.0))
    assert climbed(own, beside(first, second)) == climbed(own, beside(first))


def test_what_has_another_size_than_the_known_ones_is_no_rung(tmp_path):
    own, other = of_scale("mine", trajectory()), of_scale("cpu", trajectory())
    assert rungs(own) == []
    (tmp_path / BESIDE).mkdir()
    (tmp_path / BESIDE / "larger.json").write_text(json.dumps(claims_json(of_scale("larger", trajectory()))))
    assert "From scale" not in learned(own, read_others(tmp_path))
    assert ladder_table(climbed(own, beside(other))) is None


def test_what_stands_beside_makes_the_ladder_and_is_said_in_words(tmp_path):
    (tmp_path / BESIDE).mkdir()
    larger = of_scale("desk", trajectory(change=at("lion", sharpness=1.0)))
    (tmp_path / BESIDE / "desk.json").write_text(json.dumps(claims_json(larger)))
    own = of_scale("cpu", trajectory())
    [other] = read_others(tmp_path)
    assert other.rungs == rungs(larger)
    text = learned(own, [other])
    count = len(ladder_table(climbed(own, [other])).rows)
    assert (
        f"From scale cpu to desk, from random weights, of {count} parts of claims 2 move towards the paper's side and "
        "0 away from it; of 2 and 0 of these the intervals don't overlap." in text
    )
    assert "From scale" not in learned(own)


def test_the_figure_shows_multiples_of_thresholds():
    pytest.importorskip("altair")
    own, larger = (of_scale(scale, trajectory(change=at("lion", sharpness=sharp))) for scale, sharp in
                   (("cpu", 3.0), ("desk", -1.0)))  # fmt: skip
    specification = ladder(climbed(own, beside(larger))).to_dict()
    points = [row for rows in specification["datasets"].values() for row in rows]
    kept = {(p["part"], p["scale"]): p["kept"] for p in points if "scale" in p}
    assert kept[LEAST_SHARP, "cpu"] == pytest.approx(0.5 / (3 / 8), rel=1e-4)
    assert kept["C6 code, 10% largest", "cpu"] == pytest.approx(0.75 / 0.5, rel=1e-4)
    assert ladder_figure([]).specification() is None
    with pytest.raises(UsageError, match="several scales"):
        ladder([])
