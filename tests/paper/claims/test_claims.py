"""All twelve verdicts: the one rule, what is missing, tables and JSON, and what is stored with the documentation."""

import json
import math
from pathlib import Path

import pytest

from claim_records import (
    SEEDS,
    at,
    claim,
    convergence,
    everything,
    trajectory,
)
from stepscope.paper.claims.claims import claims_json, claims_table, departures_table, judge, parts_table
from stepscope.paper.claims.losses import finals_of, pairs_of
from stepscope.paper.claims.verdicts import Claim, Part, Threshold
from stepscope.paper.runs import Run, read_runs
from stepscope.paper.statistics import MeanInterval, mean_interval

ALL = [f"C{number}" for number in range(1, 13)]
STORED = Path(__file__).parents[3] / "docs" / "reproduction"


@pytest.mark.parametrize(
    ("relation", "low", "high", "verdict"),
    [
        ("<", 0.1, 0.4, "holds"), ("<", 0.6, 0.9, "does not hold"), ("<", 0.4, 0.6, "cannot tell"),
        (">", 0.6, 0.9, "holds"), (">", 0.1, 0.4, "does not hold"), (">", 0.4, 0.6, "cannot tell"),
        # What only touches the threshold isn't below or above it; "at most" and "at least" have it on their side.
        ("<", 0.1, 0.5, "cannot tell"), ("≤", 0.1, 0.5, "holds"), (">", 0.5, 0.9, "cannot tell"),
        ("≥", 0.5, 0.9, "holds"), ("≤", 0.5, 0.9, "cannot tell"), ("≥", 0.1, 0.5, "cannot tell"),
        ("<", 0.5, 0.5, "cannot tell"), ("≥", 0.5, 0.5, "holds"),
        ("<", -math.inf, math.inf, "cannot tell"), ("≥", -math.inf, math.inf, "cannot tell"),
    ],
)  # fmt: skip
def test_the_rule(relation, low, high, verdict):
    assert Threshold(relation, 0.5).verdict(MeanInterval((low + high) / 2, low, high)) == verdict


def test_a_claim_needs_all_of_its_parts():
    """One task that can't be told leaves it open, one that doesn't hold decides."""
    held, failed = trajectory("code"), trajectory("translation", at("lion", sharpness=7.0))
    unclear = trajectory("sentiment", seeds=(0,))
    assert [claim("C1", *some).verdict for some in ([held], [held, unclear], [held, unclear, failed])] == [
        "holds", "cannot tell", "does not hold",
    ]  # fmt: skip
    found = claim("C1", held, unclear, failed)
    assert found.statistic == (
        "translation 0.875 [0.875, 0.875]; code 0.375 [0.375, 0.375]; sentiment 0.375 (one seed); 1 of 3 holds, "
        "1 does not"
    )
    assert found.threshold == "largest ratio to SGD of an adaptive method at any point < 0.5"


def test_nothing_measured_is_twelve_times_cannot_tell():
    claims = judge([])
    assert [each.id for each in claims] == ALL
    assert {(each.verdict, each.statistic) for each in claims} == {("cannot tell", "not measured")}
    assert parts_table(claims).rows == departures_table(claims).rows == ()


def test_all_hold_where_everything_was_made_so():
    assert [(each.id, each.verdict) for each in judge(everything())] == [(name, "holds") for name in ALL]


def test_one_seed_never_gives_a_verdict():
    claims = judge(everything(seeds=(0,)))
    assert [each.verdict for each in claims] == ["cannot tell"] * 12
    assert all(each.parts for each in claims)
    assert all(one.remark.startswith("one seed") and len(one.values) == 1 for each in claims for one in each.parts)


@pytest.mark.parametrize("name", ALL)
def test_two_equal_seeds_are_a_point_and_give_one(name):
    """Copies of one seed: no spread at all."""
    copied = []
    for run in everything(seeds=(0,)):
        asked = {**run.head["configuration"], "seeds": [0, 1]}
        copied.append(
            Run(run.name, {**run.head, "configuration": asked}, [r | {"seed": s} for s in (0, 1) for r in run.records])
        )
    assert claim(name, *copied).verdict == "holds"


@pytest.mark.parametrize("name", ALL)
def test_seeds_that_are_not_finished_do_not_count(name):
    """The last record of the last seed is missing everywhere: two seeds are left, then none."""

    def without(run, seeds):
        kept = list(run.records)
        for seed in seeds:
            for direction in {
                str(r.get("direction") or r.get("optimizer") or (r.get("group"), r.get("cut"))) for r in kept
            }:
                last = [
                    r
                    for r in kept
                    if r["seed"] == seed
                    and direction == str(r.get("direction") or r.get("optimizer") or (r.get("group"), r.get("cut")))
                ][-1]
                kept.remove(last)
        return Run(run.name, run.head, kept)

    two = claim(name, *(without(run, [2]) for run in everything()))
    assert {tuple(one.values) for one in two.parts} == {(0, 1)}
    assert all("seed 2 is not finished" in one.remark for one in two.parts)
    none = claim(name, *(without(run, SEEDS) for run in everything()))
    assert (none.verdict, {tuple(one.values) for one in none.parts}) == ("cannot tell", {()})
    assert all("not measured" in one.remark and "not finished" in one.remark for one in none.parts)


def test_a_run_of_which_nothing_is_recorded_yet():
    empty = [Run(run.name, run.head, []) for run in everything()]
    assert [each.verdict for each in judge(empty)] == ["cannot tell"] * 12


EVIL = "</script><img src=x onerror=alert(1)>[red]\x1b[31m"


def test_json_has_all_numbers():
    found = claims_json(judge(everything()))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    first = found[0]
    assert list(first) == [
        "id", "statement", "verdict", "threshold", "statistic", "seeds", "scale", "parts", "departures",
    ]  # fmt: skip
    assert (first["seeds"], first["scale"], len(first["parts"])) == ([0, 1, 2], "cpu", 3)
    assert first["parts"][0] == {
        "name": "translation", "deciding": True,
        "statistic": "largest ratio to SGD of an adaptive method at any point", "threshold": "< 0.5",
        "verdict": "holds", "seeds": [0, 1, 2], "values": [0.375] * 3, "mean": 0.375, "interval": [0.375, 0.375],
        "runs": ["trajectory-translation"], "scale": "cpu",
        "remark": "largest of lion, 0.375 (sgd trajectory, step 60, seed 2); SGD the sharpest of the unclipped at 12 "
        "of 12 points",
    }  # fmt: skip
    one = claims_json(judge([trajectory(seeds=(4,))]))[0]["parts"][0]
    assert (one["seeds"], one["values"], one["interval"]) == ([4], [0.375], [None, None])


def test_tables_have_a_row_a_claim_and_a_row_a_part():
    claims = judge(everything())
    table, parts = claims_table(claims), parts_table(claims)
    assert [row[0] for row in table.rows] == ALL
    assert {row[4] for row in table.rows} == {"3"}
    assert len(parts.rows) == sum(len(each.parts) for each in claims)
    for each in (table, parts, departures_table(claims)):
        assert {len(row) for row in each.rows} == {len(each.headers)}
    beside = [row[1] for row in parts.rows if row[0] == "C3" and "gradient" in row[1]]
    assert beside[0] == "(translation, adam clip 50% (gradient))"
    mixed = claims_table(judge([trajectory("code"), trajectory("translation", seeds=(0,))]))
    assert mixed.rows[0][4] == "0 to 3"  # sentiment wasn't measured
    assert table.title == "The paper's claims, scale cpu"


@pytest.mark.parametrize("name", ["C1", "C2", "C3", "C4", "C5", "C6"])
def test_a_transformer_without_a_run_keeps_the_claim_open(name):
    """Otherwise the run of a task that speaks against a claim could turn it round by failing."""
    whole = next(each for each in judge(everything()) if each.id == name)
    alone = next(each for each in judge([trajectory("sentiment")]) if each.id == name)
    assert (whole.verdict, alone.verdict) == ("holds", "cannot tell")
    absent = [part for part in alone.parts if not part.runs]
    assert [(part.name, part.remark) for part in absent] == [("translation", "not measured"), ("code", "not measured")]


def test_names_pass_through_as_they_are():
    run = convergence(tasks=(EVIL,))
    named = [Run(EVIL, run.head, run.records), trajectory("code", name=EVIL, start=EVIL)]
    claims = judge(named)
    assert f"{EVIL}, sgd clip 10%" in [row[1] for row in parts_table(claims).rows]
    assert json.loads(json.dumps(claims_json(claims)))[0]["parts"][0]["name"] == EVIL
    assert any(EVIL in row[0] for row in departures_table(claims).rows)


def test_stored_runs_end_to_end():
    runs = read_runs(STORED)
    claims = {each.id: each for each in judge(runs)}
    by_name = {run.name: run.records for run in runs}
    # Against the records themselves, by another way than the claims'.
    attention = [r for r in by_name["robustness"] if r["group"] == "attention" and r["cut"] == 4]
    least = [min(r["ratio"] for r in attention if r["seed"] == seed) for seed in (0, 1, 2)]
    found = next(one for one in claims["C10"].parts if one.name == "attention, every batch and step")
    assert list(found.values.values()) == least
    assert found.interval == mean_interval(least)
    drawn = [r for r in by_name["theory"] if "draws" in r]
    broken = sum(r[name]["violations"] for r in drawn for name in ("clipped", "plain", "block") if r[name])
    assert f"{sum(r['draws'] for r in drawn):,} draws" in claims["C12"].parts[0].remark
    assert claims["C12"].verdict == ("holds" if broken == 0 else "cannot tell")
    whole = [r["diagonal"]["rho"] for r in by_name["theory"] if r.get("group") == "translation, all"]
    assert next(one for one in claims["C11"].parts if one.name == "translation, all").interval.mean == pytest.approx(
        sum(whole) / len(whole)
    )
    said = {"faster": "holds", "slower": "does not hold", "cannot tell": "cannot tell"}
    pairs = {
        f"{pair.variant.task}, {pair.variant.optimizer}": said[pair.verdict]
        for pair in pairs_of(finals_of(by_name["convergence"]))
        if "%" in pair.variant.optimizer
    }
    assert {one.name: one.verdict for one in claims["C7"].parts} == pairs
    assert len(pairs) == 12
    json.dumps(claims_json(list(claims.values())), allow_nan=False)


def test_of_many_parts_a_line_names_the_least_and_the_greatest():
    def part(name, value):
        return Part(name, "ratio", Threshold("<", 0.5), (), {0: value, 1: value})

    parts = tuple(part(name, value) for name, value in (("a", 0.3), ("b", 0.9), ("c", 0.1), ("d", 0.2)))
    assert Claim("C1", "", parts, ()).statistic == "c 0.1 [0.1, 0.1] to b 0.9 [0.9, 0.9]; 3 of 4 hold, 1 does not"
    few = Claim("C1", "", parts[:2], ()).statistic
    assert few == "a 0.3 [0.3, 0.3]; b 0.9 [0.9, 0.9]; 1 of 2 holds, 1 does not"


def test_what_is_claimed_always_is_refuted_by_one_seed_and_never_from_one_alone():
    always = Threshold("≤", 0.0, always=True)
    verdicts = [
        Part("a", "", always, (), values).verdict for values in ({0: 0, 1: 0}, {0: 0, 1: 5}, {0: 5}, {0: 0}, {})
    ]
    assert verdicts == ["holds", "does not hold", "cannot tell", "cannot tell", "cannot tell"]


def test_the_stored_verdicts_are_those_of_the_stored_records():
    stored = json.loads((STORED / "claims.json").read_text())
    assert json.loads(json.dumps(claims_json(judge(read_runs(STORED))))) == stored


def test_the_stored_sharpness_agrees_with_the_second_path():
    """To the three digits that tables show, of the largest at each point; every task has a point."""
    (run,) = (run for run in read_runs(STORED) if run.experiment == "agreement")
    tasks = {record["task"] for record in run.records}
    assert tasks == {"translation", "code", "sentiment", "images", "images-pretrained"}
    for task in tasks:
        found = [record for record in run.records if record["task"] == task]
        assert len(found) == 17
        largest = max(abs(record["independent"]) for record in found)
        assert all(abs(r["sharpness"] - r["independent"]) < 1e-3 * largest for r in found), task
