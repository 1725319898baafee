"""A training in a screenful: of a probe, of a demo, of one that goes on, and of hostile names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from probed_runs import call, hostile_training, own, probed_run, steps_of
from stepscope.report import run_summary
from stepscope.runs import StepRecord, Training, read_training
from synthetic_records import hostile_run, run_directory, synthetic_records


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    """Lines as they are, whatever terminal the tests run in."""
    monkeypatch.setenv("COLUMNS", "1000")


def test_a_probed_training_says_what_was_trained_what_it_shows_and_its_last_directions(tmp_path, capsys):
    run = probed_run(tmp_path / "run", own(10) + own(20), steps_of())
    shown = call("summary", run, capsys=capsys)
    first, second, empty, finding = shown.splitlines()[:4]
    assert first == "Net of 1,200 parameters, trained by SGD at a learning rate of 0.2 (now 0.1), batches of 64"
    assert second.startswith(
        "last measured at step 24 of 100, its batch's loss 2.76; 20 steps measured on their own batch, 2 beside"
    )
    assert (empty, "probably at least three times too large" in finding) == ("", True)
    assert "8 of 20 measured" in shown
    assert "SGD trajectory, step 20" in shown
    assert "step 10" not in shown


def test_its_json_has_the_same(tmp_path, capsys):
    run = probed_run(tmp_path / "run", own(10) + own(20, layers={"a": 1.0}), steps_of())
    told = json.loads(call("summary", run, "--json", capsys=capsys))
    assert told["trained"]["peak_learning_rates"] == [0.2]
    assert (told["trained"]["step"], told["trained"]["length"], told["trained"]["full_measurements"]) == (24, 100, 2)
    assert told["findings"][0]["kind"] == "step_too_long"
    assert [(record["step"], record["direction"], "layers" in record) for record in told["directions"]] == [
        (20, "own SGD", False),
        (20, "sgd", False),
    ]
    assert [step["step"] for step in told["steps"]] == [5, 8, 10, 13, 16, 19, 21, 24]
    assert [step.get("critical_multiple") for step in told["steps"]] == [1.5, None, 1.5, *[None] * 5]


def test_a_training_that_goes_on_has_a_torn_last_line_and_no_length(tmp_path, capsys):
    run = probed_run(tmp_path / "run", steps=[replace(step, steps=None) for step in steps_of(3)])
    with (run / "steps.jsonl").open("ab") as file:
        file.write(b'{"trajectory": "SGD", "se')
    lines = call("summary", run, capsys=capsys).splitlines()
    assert (
        lines[1]
        == "last measured at step 7, its batch's loss 2.93; 3 steps measured on their own batch, none beside others"
    )
    assert any("all 3 measured" in line for line in lines)


def test_nothing_was_measured_yet(tmp_path, capsys):
    assert "nothing was measured yet" in call("summary", probed_run(tmp_path / "run"), capsys=capsys)


def test_a_demo_has_a_sentence_and_no_findings(tmp_path, capsys):
    run = run_directory(tmp_path / "run", synthetic_records())
    summed = run_summary(read_training(run))
    assert summed.findings == ()
    assert summed.lines[0] == "T5, 2 layers on English and French sentence pairs"
    assert summed.lines[2].startswith("With one seed, SGD had the largest")
    assert [table.title for table in summed.tables] == ["sgd trajectory, step 120", "adam trajectory, step 120"]
    assert "muon" in call("summary", run, capsys=capsys)


def test_names_reach_a_terminal_without_what_it_would_act_on(tmp_path, capsys):
    assert "\x1b" not in call("summary", hostile_run(tmp_path / "run"), capsys=capsys)


def test_names_of_ten_thousand_letters_leave_room_for_the_rest(tmp_path, capsys):
    said = call("summary", hostile_training(tmp_path / "run"), capsys=capsys)
    assert len(said.splitlines()) < 150
    assert "x" * 201 not in said
    assert "x" * 20 in said


def test_a_run_of_another_kind_is_a_line(tmp_path, capsys):
    run = run_directory(tmp_path / "run", [], configuration={"experiment": "theory"})
    said = call("summary", run, capsys=capsys, status=2)
    assert said.count("\n") == 1
    assert "is a run of theory" in said


def test_steps_without_numbers_have_a_table():
    bare = StepRecord(trajectory="SGD", seed=0, step=1)
    (table,) = run_summary(Training({"configuration": {}, "context": {}}, [], [bare])).tables
    assert table.rows == (("1", "", *["–"] * 4),)


def test_charts_become_files(tmp_path, capsys):
    """The first letters say of which kind each is."""
    run = run_directory(tmp_path / "run", synthetic_records(steps=(20,), trajectories=("sgd",))[:2])
    for suffix, start in {"pdf": b"%PDF", "svg": b"<svg", "png": b"\x89PNG"}.items():
        files = call("figures", run, "--format", suffix, "--out", tmp_path / suffix, capsys=capsys).split()
        assert any("landscape" in file for file in files)
        assert {Path(file).read_bytes()[: len(start)] for file in files} == {start}
    short = probed_run(tmp_path / "short", steps=steps_of())
    assert "what-came-true" in call("figures", short, "--format", "svg", capsys=capsys)
    empty = probed_run(tmp_path / "empty")
    assert "has nothing to draw yet" in call("figures", empty, capsys=capsys, status=2)
