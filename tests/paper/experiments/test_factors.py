"""One factor at a time: each run differs by it alone, and the table sets it beside the reproduction's trajectories."""

import dataclasses

import pytest

from claim_records import at, trajectory
from made_data import data_of
from stepscope import UsageError
from stepscope.paper.claims import ALONG_TRAJECTORIES, factor_tables, judge
from stepscope.paper.experiments.factors import FACTORS_BY_NAME, factor_experiment
from stepscope.paper.experiments.jobs import run as run_experiment
from stepscope.paper.experiments.run_files import read
from stepscope.paper.experiments.trajectory import trajectory_experiment
from stepscope.paper.reproduction.plan import prepare_directory, reproduction
from stepscope.paper.reproduction_runs import Run

WHAT = {
    "random-start": {"task.start"},
    "hot-sgd": {"training_lr"},
    "vocabulary": {"task.vocabulary"},
    "batch": {"task.batch_size"},
    "padding-labels": {"released"},
    "short-texts": {"released"},
    "equal-weights": {"released"},
}


def flat(configuration):
    task = {f"task.{name}": value for name, value in configuration["task"].items()}
    return {**configuration, **task, "task": None}


@pytest.mark.parametrize("factor", FACTORS_BY_NAME)
@pytest.mark.parametrize("kind", ["translation", "code"])
def test_a_factor_changes_itself_alone(kind, factor):
    base = trajectory_experiment("cpu", kind)
    if kind == "translation" and factor in ("padding-labels", "short-texts"):
        with pytest.raises(UsageError, match=f"no factor '{factor}' of the task 'translation'"):
            factor_experiment("cpu", kind, factor)
        return
    ours, theirs = flat(factor_experiment("cpu", kind, factor).configuration()), flat(base.configuration())
    # Of their own these have few points and directions, and a name; no departure is the same as an empty list of them.
    own = {"experiment", "steps", "directions", "factor"}
    changed = {name for name in ours if ours[name] != theirs.get(name, ())} - own
    wide = {"code": {"task.hidden"}, "translation": {"task.d_model", "task.d_ff", "task.d_kv"}}[kind]
    assert changed == WHAT.get(factor, wide)
    assert set(ours["steps"]) < set(theirs["steps"])
    assert "signsgd" in ours["directions"] or kind == "code"


def test_they_are_made_where_they_are_asked_for_beside_the_trajectories(tmp_path):
    assert not [planned for planned in reproduction("cpu") if planned.entry.name == "factors"]
    plan = reproduction("cpu", only="E")
    assert len(plan) == len({planned.run_name for planned in plan}) == 2 * len(FACTORS_BY_NAME) - 2
    assert {planned.seeds for planned in plan} == {(0, 1, 2)}
    prepare_directory([*plan, *reproduction("cpu", only="A")], tmp_path)


def test_a_run_of_a_factor_is_measured_and_goes_on(tmp_path):
    source = data_of("code", tmp_path)
    experiment = factor_experiment("smoke", "code", "padding-labels", source=source)
    few = dataclasses.replace(experiment, directions=("sgd", "adam"), training_lr={"adam": 2e-4}, steps=(2,))
    assert run_experiment(few, tmp_path / "run") == 2
    assert run_experiment(few, tmp_path / "run") == 0
    head, records = read(tmp_path / "run")
    assert {record.direction for record in records} == {"sgd", "adam"}
    assert 0 < head["context"]["model"]["embedding"] < 1
    assert head["configuration"]["released"] == ["short-texts", "padding-labels"]


def factor(name, change=lambda r: {}, **given):
    run = trajectory("code", change, name=f"factors-code-{name}", start="pretrained: here", **given)
    return Run(run.name, {**run.head, "configuration": {**run.head["configuration"], "experiment": "factors",
                                                        "factor": name}}, run.records)  # fmt: skip


def test_the_table_has_a_row_a_factor_between_the_two_starts():
    began = trajectory("code", start="pretrained: here", name="trajectory-code-pretrained", steps=(10, 30, 60))
    random = trajectory("code", at("lion", sharpness=7.0), name="trajectory-code-random", steps=(10, 30, 60))
    runs = [began, random, factor("vocabulary"), factor("batch", at("lion", sharpness=6.0))]
    (table,) = factor_tables(runs, ALONG_TRAJECTORIES)
    assert table.headers[:5] == ("factor", "parameters", "embedding", "C1 every point < 0.5",
                                 "C1 median of the points < 0.5")  # fmt: skip
    assert [(row[0], row[3]) for row in table.rows] == [
        ("(as it is)", "0.375 [0.375, 0.375] ✓"),
        ("vocabulary", "0.375 [0.375, 0.375] ✓"),
        ("batch", "0.75 [0.75, 0.75] ✗"),
        ("(random-start and hot-sgd)", "0.875 [0.875, 0.875] ✗"),
    ]
    assert not any(header.startswith("C2") for header in table.headers), "the paper doesn't claim it of code"
    assert factor_tables(runs[:2], ALONG_TRAJECTORIES) == []


def test_factors_are_no_part_of_the_verdicts():
    runs = [factor("batch", at("lion", sharpness=9.0))]
    assert [judged.parts for judged in judge(runs) if judged.id in ("C1", "C9")] == [(), ()]
