"""A run directory survives what happens to run directories."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

import stepscope.runs.storage
from stepscope import Objective, measure
from stepscope.errors import UsageError
from stepscope.runs import (
    DirectionRecord,
    Record,
    RunDirectory,
    StepRecord,
    latest,
    read_run,
    read_steps,
    versions,
    write_atomically,
)
from stepscope.runs.storage import plain

CONFIGURATION = {
    "experiment": "trajectory",
    "steps": [20, 60],
    "seeds": (0,),
    "task": {"name": "translation"},
}


@dataclass(frozen=True, kw_only=True)
class Line(Record):
    """A record of the tests."""

    identity: ClassVar = ("step", "seed", "direction")
    renamed: ClassVar = {"gradient_loss": "loss"}

    step: int | None = None
    seed: int | None = None
    direction: str | None = None
    loss: float | None = None
    values: tuple[float | None, ...] | None = None


READERS = (lambda path: read_run(path, Line), lambda path: RunDirectory.open(path, Line, {}))
HOSTILE = "a\nb\u2028c\u0085\r</script>\x00é\ud800"


def one_line(error: pytest.ExceptionInfo[UsageError]) -> str:
    message = str(error.value)
    assert message.isprintable(), "an error is one line"
    return message


def test_everything_written_is_read_back(tmp_path):
    records = [Line(step=20, direction=HOSTILE, loss=-1.5), Line(step=60, direction="sgd")]
    with RunDirectory.open(tmp_path / "a" / "run", Line, CONFIGURATION, context={"source": {"name": "x"}}) as run:
        run.append(records[:1])
        run.append(records[1:])
        run.append([])
        assert run.records() == records
    stored, read = read_run(tmp_path / "a" / "run", Line)
    assert read == records
    assert stored["configuration"] == {**CONFIGURATION, "seeds": [0]}
    assert stored["schema_version"] == 2
    assert stored["context"]["source"] == {"name": "x"}
    assert stored["context"]["versions"]["torch"] == torch.__version__
    lines = (tmp_path / "a" / "run" / "measurements.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == [record.as_json() for record in records]
    assert lines[-1] == b""


def test_scalars_become_numbers_and_non_finite_ones_null(tmp_path):
    with RunDirectory.open(tmp_path / "run", Line, {}) as run:
        run.append(
            [
                Line(step=np.int64(7), loss=torch.tensor(1.5, requires_grad=True), values=(np.array([1.0, np.nan]))),
                Line(step=8, loss=float("inf"), values=(float("nan"), torch.tensor(0.5, dtype=torch.bfloat16))),
            ]
        )
    first, second = read_run(tmp_path / "run", Line)[1]
    assert (first, type(first.step)) == (Line(step=7, loss=1.5, values=(1.0, None)), int)
    assert second == Line(step=8, loss=None, values=(None, 0.5))
    assert b"NaN" not in (tmp_path / "run" / "measurements.jsonl").read_bytes()


@pytest.mark.parametrize("value", [object(), {1: 2}, 1j, torch.tensor(1j), {"a": [{"b": b"x"}]}])
def test_what_json_cannot_hold_is_refused_before_anything_is_made(tmp_path, value):
    with pytest.raises(UsageError, match=r"configuration.*cannot be written as JSON") as error:
        RunDirectory.open(tmp_path / "run", Line, {"key": value})
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_failed_append_changes_nothing(tmp_path, monkeypatch):
    with RunDirectory.open(tmp_path / "run", Line, {}) as run:
        run.append([Line(step=1)])
        with pytest.raises(UsageError, match="loss cannot be written"):
            run.append([Line(step=2), Line(loss=object())])

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("stepscope.runs.directory.os.fsync", full)
        with pytest.raises(UsageError, match=r"cannot write .*: No space left on device") as error:
            run.append([Line(step=3)])
        one_line(error)
        assert run.records() == [Line(step=1)]
    assert read_run(tmp_path / "run", Line)[1] == [Line(step=1)]


def test_resuming_continues_and_keeps_the_context(tmp_path):
    with RunDirectory.open(tmp_path / "run", Line, CONFIGURATION, context={"host": "first"}) as run:
        run.append([Line(step=20, seed=0)])
    created = read_run(tmp_path / "run", Line)[0]["created"]
    with RunDirectory.open(tmp_path / "run", Line, CONFIGURATION, context={"host": "second"}) as run:
        assert run.context["host"] == "first"
        run.append([Line(step=60, seed=0)])
    stored, records = read_run(tmp_path / "run", Line)
    assert stored["created"] == created
    assert [record.step for record in records] == [20, 60]


@pytest.mark.parametrize(
    "torn", [b'{"step": 60, "dire', b'{"step": 60}', b"\x00\x00\x00\n", b"[1]\n", b'{"s": "\xff"}\n']
)
def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path, torn):
    with RunDirectory.open(tmp_path / "run", Line, {}) as run:
        run.append([Line(step=20)])
    file = tmp_path / "run" / "measurements.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    assert read_run(tmp_path / "run", Line)[1] == [Line(step=20)]
    assert file.read_bytes() == whole + torn, "reading changes nothing"
    with RunDirectory.open(tmp_path / "run", Line, {}) as run:
        assert run.records() == [Line(step=20)]
        run.append([Line(step=60)])
    assert read_run(tmp_path / "run", Line)[1] == [Line(step=20), Line(step=60)]
    assert file.read_bytes().startswith(whole + b'{"step": 60,')


def test_a_broken_line_in_the_middle_is_named_and_kept(tmp_path):
    with RunDirectory.open(tmp_path / "run", Line, {}) as run:
        run.append([Line(step=1), Line(step=2), Line(step=3)])
    file = tmp_path / "run" / "measurements.jsonl"
    broken = file.read_bytes().replace(b'{"step": 2,', b'"step": 2,')
    file.write_bytes(broken)
    for reader in READERS:
        with pytest.raises(UsageError, match=r"measurements\.jsonl, line 2 is not a JSON object") as error:
            reader(tmp_path / "run")
        one_line(error)
    assert file.read_bytes() == broken


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"steps": [20]}, r"steps: \[20, 60\] there, \[20\] asked for"),
        ({"task": {"name": "code"}}, r'task\.name: "translation" there, "code" asked for'),
        ({"new": True}, "new: nothing there, true asked for"),
        ({"seeds": True}, r"seeds: 1 there, true asked for"),
    ],
)
def test_another_configuration_is_refused(tmp_path, asked, told):
    stored = {**CONFIGURATION, "seeds": 1}
    RunDirectory.open(tmp_path / "run", Line, stored).close()
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError, match=told) as error:
        RunDirectory.open(tmp_path / "run", Line, {**stored, **asked})
    assert "give another directory, or delete it" in one_line(error)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    RunDirectory.open(tmp_path / "run", Line, stored).close()  # the refusal left no lock


def test_long_differences_are_shortened(tmp_path):
    RunDirectory.open(tmp_path / "run", Line, dict.fromkeys("abcde", "x" * 1000)).close()
    with pytest.raises(UsageError) as error:
        RunDirectory.open(tmp_path / "run", Line, dict.fromkeys("abcde", "y" * 1000))
    assert len(one_line(error)) - len(str(tmp_path)) < 600


def test_of_two_long_lists_the_items_are_named_that_only_one_has(tmp_path):
    names = [f"a family with a long name, number {number}" for number in range(9)]
    RunDirectory.open(tmp_path / "run", Line, {"families": names}).close()
    with pytest.raises(
        UsageError, match=r'families: \["a family with a long name, number 7"\] there alone, \[\] asked'
    ):
        RunDirectory.open(tmp_path / "run", Line, {"families": [*names[:7], names[8]]})


def test_a_directory_with_other_things_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty and not a run directory") as error:
        RunDirectory.open(tmp_path, Line, {})
    one_line(error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_death_before_run_json_leaves_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.123.tmp").write_text("{")
    with RunDirectory.open(tmp_path, Line, {}) as run:
        run.append([Line(step=1)])
    assert read_run(tmp_path, Line)[1] == [Line(step=1)]


@pytest.mark.parametrize("name", ["file", "file/below", "n" * 300, "null\0"])
def test_a_path_that_cannot_be_a_directory(tmp_path, name):
    (tmp_path / "file").write_text("x")
    for reader in READERS:
        with pytest.raises(UsageError) as error:
            reader(tmp_path / name)
        one_line(error)
    assert (tmp_path / "file").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match=r"cannot create .*Permission denied"):
        RunDirectory.open(tmp_path / "run", Line, {})


def test_a_directory_made_in_vain_is_removed(tmp_path, monkeypatch):
    def full(path, content):
        raise UsageError("cannot write: No space left on device")

    monkeypatch.setattr("stepscope.runs.head.write_atomically", full)
    with pytest.raises(UsageError, match="No space"):
        RunDirectory.open(tmp_path / "a" / "b", Line, {})
    assert list(tmp_path.iterdir()) == []


def test_an_atomic_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    target = tmp_path / "deep" / "page.html"
    write_atomically(target, b"old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stepscope.runs.storage.os, "fsync", full)
    with pytest.raises(UsageError, match="No space left"):
        write_atomically(target, b"new")
    assert target.read_bytes() == b"old"
    assert [entry.name for entry in target.parent.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is damaged"),
        (b"[]", "was not written by stepscope"),
        (b'{"schema_version": 1}', "was not written by stepscope"),
        (
            b'{"schema_version": 99, "configuration": {}}',
            "schema version 99.* reads up to 2: upgrade stepscope",
        ),
    ],
)
def test_a_run_file_that_cannot_be_used(tmp_path, content, told):
    (tmp_path / "run.json").write_bytes(content)
    for reader in READERS:
        with pytest.raises(UsageError, match=told) as error:
            reader(tmp_path)
        one_line(error)
    assert (tmp_path / "run.json").read_bytes() == content


def test_what_is_not_a_run_directory_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"is not a run directory: it has no run.json$"):
        read_run(tmp_path, Line)
    none = r"cannot read .*missing: No such file or directory; give the directory that run_dir= or --out named$"
    with pytest.raises(UsageError, match=none):
        read_run(tmp_path / "missing", Line)
    assert list(tmp_path.iterdir()) == []


def test_who_names_a_run_that_is_not_there_is_told_those_that_are(tmp_path):
    for name in ("a", "runs/b", "other/c"):
        RunDirectory.open(tmp_path / name, Line, {}).close()
    for missing in ("missing", "missing/run"):
        with pytest.raises(UsageError, match="No such file or directory; give one of these: ") as error:
            read_run(tmp_path / missing, Line)
        one_line(error)
        assert str(error.value).endswith(f": {tmp_path / 'a'}, {tmp_path / 'runs' / 'b'}")
    with pytest.raises(UsageError, match=re.escape(f"; give {tmp_path / 'a'}") + "$"):
        read_run(tmp_path / "a" / "steps.jsonl", Line)


def test_who_names_the_folder_of_runs_or_a_file_of_one_is_told_the_run(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        RunDirectory.open(tmp_path / "runs" / name, Line, {}).close()
    named = ", ".join(str(tmp_path / "runs" / name) for name in "abcd")
    with pytest.raises(UsageError, match=re.escape(f"give one of those in it: {named} and 1 other") + "$") as error:
        read_run(tmp_path / "runs", Line)
    one_line(error)
    with pytest.raises(UsageError, match=re.escape(f"; give {tmp_path / 'runs' / 'a'}") + "$"):
        read_run(tmp_path / "runs" / "a" / "run.json", Line)


def test_a_run_without_measurements_can_be_read(tmp_path):
    RunDirectory.open(tmp_path, Line, {}).close()
    (tmp_path / "measurements.jsonl").unlink()
    assert read_run(tmp_path, Line)[1] == []


def test_a_closed_directory_takes_nothing(tmp_path):
    run = RunDirectory.open(tmp_path, Line, {})
    run.close()
    run.close()
    with pytest.raises(ValueError, match="is closed"):
        run.append([Line(step=1)])


WRITER = textwrap.dedent(
    """
    import sys
    from stepscope.runs import DirectionRecord, RunDirectory
    run = RunDirectory.open(sys.argv[1], DirectionRecord, {"steps": [1]})
    step = 0
    while True:
        run.append([DirectionRecord(trajectory="sgd", seed=0, step=step, direction=d * 2000) for d in "de"])
        step += 1
        if step == 5:
            print("writing", flush=True)
    """
)


def test_a_second_writer_is_refused_and_kill_9_leaves_a_whole_directory(tmp_path):
    source = Path(stepscope.runs.storage.__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"writing\n"
        with pytest.raises(UsageError, match=r"another process is writing to .*give another directory") as error:
            RunDirectory.open(tmp_path / "run", Line, {"steps": [1]})
        one_line(error)
        assert len(read_run(tmp_path / "run", Line)[1]) >= 10, "a reader needs no lock"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    records = read_run(tmp_path / "run", Line)[1]
    assert [record.step for record in records] == [index // 2 for index in range(len(records))]
    with RunDirectory.open(tmp_path / "run", Line, {"steps": [1]}) as run:
        assert run.records() == records
        run.append([Line(step=-1)])
    assert read_run(tmp_path / "run", Line)[1] == [*records, Line(step=-1)]


def test_a_second_writer_in_the_same_process_is_refused(tmp_path):
    with (
        RunDirectory.open(tmp_path, Line, {}),
        pytest.raises(UsageError, match="another process is writing"),
    ):
        RunDirectory.open(tmp_path, Line, {})
    RunDirectory.open(tmp_path, Line, {}).close()


def test_versions_name_no_machine(tmp_path):
    found = versions()
    assert {"stepscope", "python", "torch", "platform", "cpus", "torch_threads"} <= set(found)
    text = json.dumps(found)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text


@dataclass
class Measurement:
    step: int
    loss: float


def test_plain_takes_dataclasses():
    assert plain(Measurement(1, float("inf"))) == {"step": 1, "loss": None}


def test_a_run_is_overwritten_where_that_is_asked_for(tmp_path):
    with RunDirectory.open(tmp_path / "run", Line, {"a": 1}) as run:
        run.append([Line(step=1)])
    (tmp_path / "run" / "report.html").write_text("mine")
    with pytest.raises(UsageError, match="another configuration"):
        RunDirectory.open(tmp_path / "run", Line, {"a": 2})
    with RunDirectory.open(tmp_path / "run", Line, {"a": 2}, overwrite=True) as run:
        assert run.records() == []
        with pytest.raises(UsageError, match="another process is writing"):
            RunDirectory.open(tmp_path / "run", Line, {"a": 3}, overwrite=True)
        run.append([Line(step=5)])
    assert read_run(tmp_path / "run", Line)[0]["configuration"] == {"a": 2}
    assert [r.step for r in read_run(tmp_path / "run", Line)[1]] == [5]
    assert (tmp_path / "run" / "report.html").read_text() == "mine"


def test_the_steps_of_a_run_are_read_and_overwritten_with_it(tmp_path):
    RunDirectory.open(tmp_path, Line, {}).close()
    assert read_steps(tmp_path) == []
    made = [StepRecord(trajectory="SGD", seed=0, step=2, batch_loss=loss) for loss in (1.0, 2.0)]
    text = "".join(json.dumps(record.as_json()) + "\n" for record in made)
    (tmp_path / "steps.jsonl").write_text(text + '{"trajectory": "S')
    assert read_steps(tmp_path) == made[1:]
    RunDirectory.open(tmp_path, Line, {"b": 1}, overwrite=True).close()
    assert read_steps(tmp_path) == []


def test_what_is_no_run_is_never_overwritten(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    with pytest.raises(UsageError, match="not empty and not a run directory"):
        RunDirectory.open(tmp_path / "other", Line, {}, overwrite=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text('{"mine": 1}')
    with pytest.raises(UsageError, match="was not written by stepscope"):
        RunDirectory.open(tmp_path / "foreign", Line, {}, overwrite=True)
    assert (tmp_path / "foreign" / "run.json").read_text() == '{"mine": 1}'
    RunDirectory.open(tmp_path / "new", Line, {}, overwrite=True).close()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"step": "three"}', 'step is "three", not a whole number'),
        ('{"step": 1.5}', "step is 1.5, not a whole number"),
        ('{"step": true}', "step is true, not a whole number"),
        ('{"loss": false}', "loss is false, not a number"),
        ('{"loss": NaN}', "loss is NaN, not a finite number"),
        ('{"values": [1, -1e999]}', r"values\[1\] is -Infinity, not a finite number"),
        ('{"direction": ["a"]}', r'direction is \["a"\], not text'),
        ('{"values": [1, "x"]}', r'values\[1\] is "x", not a number'),
        ('{"values": 3}', "values is 3, not a list"),
    ],
)
def test_a_value_of_another_type_is_named_with_its_line(tmp_path, line, told):
    RunDirectory.open(tmp_path, Line, {}).close()
    (tmp_path / "measurements.jsonl").write_text(f'{{"step": 1}}\n{line}\n')
    for reader in READERS:
        with pytest.raises(UsageError, match=rf"measurements\.jsonl, line 2: {told}: repair or delete") as error:
            reader(tmp_path)
        one_line(error)


def test_a_field_without_a_default_must_be_there(tmp_path):
    RunDirectory.open(tmp_path, DirectionRecord, {}).close()
    (tmp_path / "measurements.jsonl").write_text('{"seed": 0, "step": 1, "direction": "sgd"}\n')
    with pytest.raises(UsageError, match="line 1: trajectory is missing"):
        read_run(tmp_path, DirectionRecord)


def test_names_of_version_1_and_names_of_later_versions(tmp_path):
    RunDirectory.open(tmp_path, Line, {}).close()
    run = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps(run | {"schema_version": 1}))
    (tmp_path / "measurements.jsonl").write_text('{"step": 1, "gradient_loss": 2, "of a later version": [1]}\n')
    assert read_run(tmp_path, Line)[1] == [Line(step=1, loss=2.0)]
    assert read_run(tmp_path, Line)[0]["schema_version"] == 1, "reading changes nothing"
    with RunDirectory.open(tmp_path, Line, {}) as continued:
        continued.append([Line(step=2)])
    head, records = read_run(tmp_path, Line)
    assert (head["schema_version"], head["created"]) == (2, run["created"])
    assert records == [Line(step=1, loss=2.0), Line(step=2)]


def test_what_was_measured_again_counts_once():
    assert latest([Line(step=9, loss=1.0), Line(step=6), Line(step=9, loss=3.0)]) == [
        Line(step=6),
        Line(step=9, loss=3.0),
    ]


def test_the_record_of_a_direction_has_each_number_of_a_measurement():
    model = torch.nn.Linear(2, 1)
    objective = Objective(model, lambda m, x: m(x).square().mean(), [torch.ones(3, 2)])
    direction = {name: -torch.ones_like(p) for name, p in model.named_parameters()}
    measured = measure(objective, {"down": direction}, landscape=True, breakdown=True)["down"].record()
    record = DirectionRecord.of(measured, trajectory="sgd", seed=0, step=1, direction="down")
    assert set(measured) <= set(record.as_json())
    assert {name: record.as_json()[name] for name in measured} == plain(measured)
    assert DirectionRecord.from_json(record.as_json()) == record
