"""Other reproductions beside one: other seeds, another size; and what is learned of all, in words."""

import json

import pytest

from claim_records import at, everything, trajectory
from stepscope import UsageError
from stepscope.paper.claims import BESIDE, claims_json, claims_table, judge, learned, read_others

HOLDS, FAILS, UNCLEAR = "holds", "does not hold", "cannot tell"
SHARP = at("lion", sharpness=9.0)


def measured(change=lambda r: {}, **given):
    return [trajectory(task, change, **given) for task in ("translation", "code")]


def put(directory, name, claims):
    (directory / BESIDE).mkdir(exist_ok=True)
    (directory / BESIDE / f"{name}.json").write_text(json.dumps(claims_json(claims)))


def first_row(claims, directory):
    table = claims_table(claims, read_others(directory))
    return dict(zip(table.headers, table.rows[0], strict=True))


def test_a_verdict_that_other_seeds_change_is_unstable(tmp_path):
    claims = judge(measured())
    put(tmp_path, "again", judge(measured(lambda r: SHARP(r) | {"seed": r.seed + 3})))
    assert first_row(claims, tmp_path)["random"] == HOLDS, "it has none of the seeds that it asks for, and says nothing"
    again = [
        type(run)(run.name, {**run.head, "configuration": {**run.head["configuration"], "seeds": [3, 4, 5]}},
                  run.records)
        for run in measured(lambda r: SHARP(r) | {"seed": r.seed + 3})
    ]  # fmt: skip
    put(tmp_path, "again", judge(again))
    row = first_row(claims, tmp_path)
    assert row["random"] == f"{HOLDS} (unstable: {FAILS} with other seeds)"
    assert "again, random" not in row
    assert "Other seeds changed verdicts of C1" in learned(claims, read_others(tmp_path))


def test_the_same_seeds_and_other_settings_are_no_repetition_and_have_columns(tmp_path):
    claims = judge(measured())
    put(tmp_path, "same", judge(measured(SHARP)))
    put(tmp_path, "larger", judge([*measured(SHARP), *measured(name="trajectory-x", start="pretrained: here")]))
    row = first_row(claims, tmp_path)
    assert (row["random"], row["same, random"], row["larger, random"]) == (HOLDS, FAILS, FAILS)
    assert "larger, pretrained" not in row, "what this one hasn't measured can't stand beside it"


def test_a_file_that_holds_no_claims_is_refused(tmp_path):
    (tmp_path / BESIDE).mkdir()
    part = claims_json(judge([trajectory()]))[0]["parts"][0]
    without_ends = json.dumps([{"id": "C1", "judgments": [], "departures": [], "parts": [part | {"interval": []}]}])
    for text in ("", "{}", "[{}]", '[{"id": "C1", "judgments": [{}], "departures": []}]', without_ends):
        (tmp_path / BESIDE / "x.json").write_text(text)
        if text == "{}":
            assert read_others(tmp_path)[0].says == {}
            continue
        with pytest.raises(UsageError, match="holds no judged claims"):
            read_others(tmp_path)


def test_what_is_learned_names_what_the_start_and_the_reading_turn():
    began = measured(start="pretrained: here")
    runs = [
        *(type(run)(f"{run.name}-random", run.head, run.records) for run in measured(at("lion", place=("adam", 60),
                                                                                        sharpness=9.0))),
        *(type(run)(f"{run.name}-pretrained", run.head, run.records) for run in began),
    ]  # fmt: skip
    text = learned(judge(runs))
    assert "From pretrained weights C1, C2, C3, C4, C5 and C6 hold." in text
    assert "From random weights C2, C3, C4, C5 and C6 hold; C1 does not hold." in text
    assert "The start matters to C1: from pretrained weights it holds, from random ones it does not hold." in text
    assert "Read as the median of the points, C1 holds from random weights." in text
    assert "Whatever the weights, C12 holds." in learned(judge(everything()))
