"""Trainings before and after a change: pairing by step and seed, what differs, and what must not be compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from probed_runs import CONFIGURATION, EDGE, call, own, probed_run, steps_of
from stepscope import UsageError
from stepscope.report import compare
from stepscope.runs import Training
from synthetic_records import run_directory, synthetic_records

EVALUATION = {"sha256": "a"}


def training(directions=(), steps=(), *, configuration=CONFIGURATION, **context):
    context = {"source": {"title": "ten batches"}, "evaluation": EVALUATION, **context}
    return Training({"configuration": configuration, "context": context}, list(directions), list(steps))


def shown(comparison):
    return {each.quantity.name: each for each in comparison.compared}


def test_values_are_paired_by_step():
    """What one of them alone has measured doesn't count."""
    one = training(steps=[replace(step, batch_loss=float(step.step)) for step in steps_of(10)])
    other = training(steps=[replace(step, batch_loss=11.5) for step in steps_of(20) if step.step % 2])
    loss = shown(compare({"one": one, "other": other}))["loss of its batch"]
    assert [step for *_, step in loss.places] == [5, 7, 9, 11, 13]
    assert loss.reduced == [13, 11.5]
    assert loss.lower == [0, 1]
    assert (loss.at, loss.steps) == ("step 13", "5–13")


def test_values_are_paired_by_trajectory_and_seed_where_a_run_has_several():
    records = synthetic_records(seeds=(0, 1))
    halved = [replace(record, sharpness=record.sharpness / 2, seed=record.seed + 1) for record in records]
    compared = shown(compare({"a": training(records), "b": training(halved)}))["sharpness along its step"]
    assert set(compared.places) == {(name, 1, step) for name in ("sgd", "adam") for step in (20, 60, 120)}
    assert compared.reduced[1] != compared.reduced[0]


def test_of_another_optimizer_the_own_step_is_compared():
    other = [
        replace(record, trajectory="Lion", direction=record.direction.replace("SGD", "Lion")) for record in own(10)
    ]
    other = [replace(record, sharpness=1.0) for record in other]
    compared = shown(compare({"a": training(own(10)), "b": training(other)}))["sharpness along its step"]
    assert (compared.values, compared.lower) == (((2.0,), (1.0,)), [0, 1])


@pytest.mark.parametrize(
    ("change", "compared"),
    [
        ({}, {"loss of its batch", "critical multiple", "sharpness along its step"}),
        ({"evaluation": {"sha256": "b"}}, {"loss of its batch"}),
        ({"source": {"title": "others"}}, {"loss of its batch"}),
        ({"configuration": CONFIGURATION | {"model": "Other"}}, {"critical multiple"}),
        ({"configuration": CONFIGURATION | {"parameters": 7}}, {"critical multiple"}),
        ({"configuration": CONFIGURATION | {"optimizer": "Adam"}}, {"loss of its batch", "sharpness along its step"}),
    ],
)
def test_what_has_other_examples_or_another_model_is_said_and_not_compared(change, compared):
    comparison = compare({"a": training(own(10), steps_of()), "b": training(own(10), steps_of(), **change)})
    assert compared <= set(shown(comparison))
    refused = {line.partition(":")[0] for line in comparison.refusals}
    assert refused.isdisjoint(shown(comparison))
    assert bool(refused) == ((change.keys() != {"configuration"} and bool(change)) or len(compared) == 1)


def test_no_common_step_is_said():
    steps = steps_of()
    comparison = compare({"a": training(steps=steps[:5]), "b": training(steps=steps[5:])})
    assert comparison.compared == ()
    assert "loss of its batch: no step was measured in all of them" in comparison.refusals


def test_an_edge_beyond_all_that_was_tried_counts_as_far():
    """A median of those that were found alone would be too small."""

    def edges(*multiples):
        status = {math.inf: "beyond the last", -math.inf: "no descent"}
        found = [
            replace(EDGE, critical_multiple=m if math.isfinite(m) else None, status=status.get(m, "found"))
            for m in multiples
        ]
        return training(
            steps=[replace(step, edges={"evaluation": edge}) for step, edge in zip(steps_of(3), found, strict=True)]
        )

    comparison = compare({"a": edges(2.0, math.inf, math.inf), "b": edges(3.0, 1.0, -math.inf)})
    multiple = shown(comparison)["critical multiple"]
    assert (multiple.reduced, multiple.lower) == ([math.inf, 1.0], [0, 2])
    assert comparison.as_json()["compared"][1]["reduced"] == [None, 1.0]
    (row,) = [row for row in comparison.tables()[-1].rows if row[0] == "critical multiple"]
    assert row == ("critical multiple", "beyond the last", "1.00, lower at 2 of 3", "median", "5–7")


def test_what_differs_is_named():
    """Of long lists, what isn't in both."""
    names = [f"direction {n}" for n in range(30)]
    one = training(steps=steps_of(), configuration=CONFIGURATION | {"directions": names, "parameters": 20_000})
    other = training(
        steps=[replace(step, peak_lr=(0.4,), steps=50) for step in steps_of()],
        configuration=CONFIGURATION | {"directions": names[1:], "parameters": 20_000},
        versions={"torch": "3"},
    )
    assert compare({"a": one, "b": other}).differences == {
        "peak learning rate": ("0.2", "0.4"),
        "steps of the training": ("100", "50"),
        "directions": ("direction 0", "–"),
        "versions torch": ("–", "3"),
    }


def test_one_run_is_refused():
    with pytest.raises(UsageError, match="give two or more"):
        compare({"a": training()})


def test_the_command_compares_run_directories(tmp_path, capsys):
    before = probed_run(tmp_path / "before", own(10), steps_of(ratio=0.3))
    after = probed_run(tmp_path / "after", own(10), steps_of(ratio=0.8))
    text = " ".join(call("compare", before, after, capsys=capsys).split())
    assert "What differs" not in text
    assert "learning rate too large no sign of an error" in text
    told = json.loads(call("compare", before, after, "--json", capsys=capsys))
    assert [run["learning_rate"] for run in told["runs"]] == ["step_too_long", "healthy"]
    assert [run["run"] for run in told["runs"]] == ["before", "after"]
    assert told["compared"][0]["lower_than_the_first"] == [0, 0]
    again = call("compare", before, tmp_path / "." / "before", capsys=capsys, status=2)
    assert ("is given twice" in again, again.count("\n")) == (True, 1)


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path, capsys):
    runs = [run_directory(tmp_path / name / "run", synthetic_records(steps=(20,))) for name in "ab"]
    told = json.loads(call("compare", *runs, "--json", capsys=capsys))
    assert [run["run"] for run in told["runs"]] == [str(run) for run in runs]
