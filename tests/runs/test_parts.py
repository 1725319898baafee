"""A run that several processes make: none of its records is lost, none is there twice, whoever dies when."""

import json
import shutil
from dataclasses import dataclass

import pytest

from stepscope.errors import UsageError
from stepscope.runs import (
    DirectoryInUseError,
    Record,
    RunDirectory,
    check_whole,
    gather,
    open_part,
    parts_of,
    read_run,
    read_whole,
)

CONFIGURATION = {"steps": [1, 2]}


@dataclass(frozen=True, kw_only=True)
class Loss(Record):
    identity = ("seed", "step")
    seed: int
    step: int


def written(path, name, *steps, **context):
    with open_part(path, name, Loss, CONFIGURATION, context) as part:
        part.append([Loss(seed=int(name), step=step) for step in steps])
    return part.path


@pytest.fixture
def run(tmp_path):
    """One whose second part was written first."""
    path = tmp_path / "run"
    written(path, "1", 1, 2, pretraining=[{"seed": 1}], model={"size": 3})
    written(path, "0", 1, 2, pretraining=[{"seed": 0}])
    return path


ALL = [Loss(seed=seed, step=step) for seed in (0, 1) for step in (1, 2)]


def places(records):
    return [(record.seed, record.step) for record in records]


def test_parts_are_read_as_the_run(run):
    head, records = read_whole(run, Loss)
    assert records == ALL
    assert head["configuration"] == CONFIGURATION
    assert head["context"]["pretraining"] == [{"seed": 0}, {"seed": 1}]
    assert head["context"]["model"] == {"size": 3}


def test_gathered_it_is_the_run_that_one_process_makes(run, tmp_path):
    before = read_whole(run, Loss)
    assert gather(run, Loss, CONFIGURATION) == 4
    assert sorted(file.name for file in run.iterdir()) == [".lock", "measurements.jsonl", "run.json"]
    for head, records in (read_whole(run, Loss), read_run(run, Loss)):
        assert records == ALL
        assert {**head, "created": 0} == {**before[0], "created": 0}
    with RunDirectory.open(tmp_path / "one", Loss, CONFIGURATION) as one:
        one.append(ALL)
    assert (tmp_path / "one" / "measurements.jsonl").read_bytes() == (run / "measurements.jsonl").read_bytes()
    assert gather(run, Loss, CONFIGURATION) == 0


def test_a_part_that_is_written_to_is_left_alone(run):
    with open_part(run, "1", Loss, CONFIGURATION, {}) as held:
        with pytest.raises(DirectoryInUseError), open_part(run, "1", Loss, CONFIGURATION, {}):
            pass
        assert gather(run, Loss, CONFIGURATION) == 2
        held.append([Loss(seed=1, step=3)])
        assert places(read_whole(run, Loss)[1]) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert gather(run, Loss, CONFIGURATION) == 3
    head, records = read_run(run, Loss)
    assert places(records) == [(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)]
    assert head["context"]["pretraining"] == [{"seed": 0}, {"seed": 1}]


def test_what_two_parts_hold_is_the_runs_once_and_in_the_order_that_is_wanted(tmp_path):
    with RunDirectory.open(tmp_path, Loss, CONFIGURATION) as old:
        old.append([Loss(seed=5, step=1)])
    written(tmp_path, "0", 1, 2)
    with open_part(tmp_path, "9", Loss, CONFIGURATION, {}) as part:
        part.append([Loss(seed=0, step=2), Loss(seed=0, step=3)])
    assert gather(tmp_path, Loss, CONFIGURATION, lambda records: sorted(records, key=lambda r: -r.step)) == 3
    assert places(read_run(tmp_path, Loss)[1]) == [(5, 1), (0, 3), (0, 2), (0, 1)]


@pytest.mark.parametrize("torn", [0, 20, 60])
def test_a_process_that_dies_while_it_gathers_loses_nothing(run, tmp_path, torn):
    """What it had written of the records, and of a line, stands beside parts that it had not deleted."""
    shutil.copytree(run, tmp_path / "copy")
    gather(tmp_path / "copy", Loss, CONFIGURATION)
    whole = (tmp_path / "copy" / "measurements.jsonl").read_bytes()
    shutil.copy(tmp_path / "copy" / "run.json", run)
    (run / "measurements.jsonl").write_bytes(whole[:torn])
    assert sorted(places(read_whole(run, Loss)[1])) == places(ALL)
    gather(run, Loss, CONFIGURATION)
    assert (run / "measurements.jsonl").read_bytes() == whole


def test_what_was_begun_without_parts_goes_on_with_them(tmp_path):
    with RunDirectory.open(tmp_path, Loss, CONFIGURATION, context={"model": "a"}) as old:
        old.append(ALL[:1])
    written(tmp_path, "0", 1, 2, model="b")
    assert gather(tmp_path, Loss, CONFIGURATION) == 1
    head, records = read_run(tmp_path, Loss)
    assert (head["context"]["model"], records) == ("a", ALL[:2])


def test_parts_of_another_run_are_refused(run):
    assert check_whole(run, CONFIGURATION)
    assert not check_whole(run.parent / "other", CONFIGURATION)
    with pytest.raises(UsageError, match="another configuration"):
        check_whole(run, {"steps": [3]})
    with pytest.raises(UsageError, match="another configuration"):
        gather(run, Loss, {"steps": [3]})
    file = parts_of(run)[0] / "measurements.jsonl"
    file.write_text(json.dumps({"seed": 0}) + "\n")
    with pytest.raises(UsageError, match="line 1: step is missing"):
        read_whole(run, Loss)
