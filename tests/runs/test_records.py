"""A run directory survives what happens to run directories."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import stepscope.runs.storage
from stepscope.errors import UsageError
from stepscope.runs.directory import RunDirectory, number, plain, read_run, versions, write_atomically

CONFIGURATION = {
    "experiment": "trajectory",
    "steps": [20, 60],
    "seeds": (0,),
    "task": {"name": "translation"},
}
HOSTILE = "a\nb\u2028c\u0085\r</script>\x00é\ud800"


def one_line(error: pytest.ExceptionInfo[UsageError]) -> str:
    message = str(error.value)
    assert message.isprintable(), "an error is one line"
    return message


def test_everything_written_is_read_back(tmp_path):
    records = [{"step": 20, "direction": HOSTILE, "sharpness": -1.5}, {"step": 60, "direction": "sgd"}]
    with RunDirectory.open(tmp_path / "a" / "run", CONFIGURATION, context={"source": {"name": "x"}}) as run:
        run.append(records[:1])
        run.append(records[1:])
        run.append([])
        assert run.records() == records
    stored, read = read_run(tmp_path / "a" / "run")
    assert read == records
    assert stored["configuration"] == {**CONFIGURATION, "seeds": [0]}
    assert stored["schema_version"] == 1
    assert stored["context"]["source"] == {"name": "x"}
    assert stored["context"]["versions"]["torch"] == torch.__version__
    lines = (tmp_path / "a" / "run" / "measurements.jsonl").read_bytes().split(b"\n")
    assert [json.loads(line) for line in lines[:-1]] == records
    assert lines[-1] == b""


def test_scalars_become_numbers_and_non_finite_ones_null(tmp_path):
    with RunDirectory.open(tmp_path / "run", {}) as run:
        run.append(
            [
                {
                    "tensor": torch.tensor(1.5, requires_grad=True),
                    "half": torch.tensor(0.5, dtype=torch.bfloat16),
                    "inf": torch.tensor(float("inf")),
                    "nan": float("nan"),
                    "numpy": np.float32(0.25),
                    "int": np.int64(7),
                    "bool": np.bool_(True),
                    "list": (np.array([1.0, np.nan]), torch.arange(2)),
                }
            ]
        )
    (record,) = read_run(tmp_path / "run")[1]
    assert record == {
        "tensor": 1.5,
        "half": 0.5,
        "inf": None,
        "nan": None,
        "numpy": 0.25,
        "int": 7,
        "bool": True,
        "list": [[1.0, None], [0, 1]],
    }
    assert type(record["int"]) is int
    assert record["bool"] is True
    assert b"NaN" not in (tmp_path / "run" / "measurements.jsonl").read_bytes()


@pytest.mark.parametrize("value", [object(), {1: 2}, 1j, torch.tensor(1j), {"a": [{"b": b"x"}]}])
def test_what_json_cannot_hold_is_refused_before_anything_is_made(tmp_path, value):
    with pytest.raises(UsageError, match=r"configuration.*cannot be written as JSON") as error:
        RunDirectory.open(tmp_path / "run", {"key": value})
    one_line(error)
    assert not (tmp_path / "run").exists()


def test_a_failed_append_changes_nothing(tmp_path, monkeypatch):
    with RunDirectory.open(tmp_path / "run", {}) as run:
        run.append([{"step": 1}])
        with pytest.raises(UsageError, match=r"record\.x cannot be written"):
            run.append([{"step": 2}, {"x": object()}])

        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("stepscope.runs.directory.os.fsync", full)
        with pytest.raises(UsageError, match=r"cannot write .*: No space left on device") as error:
            run.append([{"step": 3}])
        one_line(error)
        assert run.records() == [{"step": 1}]
    assert read_run(tmp_path / "run")[1] == [{"step": 1}]


def test_resuming_continues_and_keeps_the_context(tmp_path):
    with RunDirectory.open(tmp_path / "run", CONFIGURATION, context={"host": "first"}) as run:
        run.append([{"step": 20, "seed": 0}])
    created = read_run(tmp_path / "run")[0]["created"]
    with RunDirectory.open(tmp_path / "run", CONFIGURATION, context={"host": "second"}) as run:
        assert run.context["host"] == "first"
        run.append([{"step": 60, "seed": 0}])
    stored, records = read_run(tmp_path / "run")
    assert stored["created"] == created
    assert [record["step"] for record in records] == [20, 60]


@pytest.mark.parametrize(
    "torn", [b'{"step": 60, "dire', b'{"step": 60}', b"\x00\x00\x00\n", b"[1]\n", b'{"s": "\xff"}\n']
)
def test_a_torn_last_line_is_left_out_and_then_cut_off(tmp_path, torn):
    with RunDirectory.open(tmp_path / "run", {}) as run:
        run.append([{"step": 20}])
    file = tmp_path / "run" / "measurements.jsonl"
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    assert read_run(tmp_path / "run")[1] == [{"step": 20}]
    assert file.read_bytes() == whole + torn, "reading changes nothing"
    with RunDirectory.open(tmp_path / "run", {}) as run:
        assert run.records() == [{"step": 20}]
        run.append([{"step": 60}])
    assert file.read_bytes() == whole + b'{"step": 60}\n'


def test_a_broken_line_in_the_middle_is_named_and_kept(tmp_path):
    with RunDirectory.open(tmp_path / "run", {}) as run:
        run.append([{"step": 1}, {"step": 2}, {"step": 3}])
    file = tmp_path / "run" / "measurements.jsonl"
    broken = file.read_bytes().replace(b'{"step": 2}', b'{"step": 2')
    file.write_bytes(broken)
    for reader in (read_run, lambda path: RunDirectory.open(path, {})):
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
    RunDirectory.open(tmp_path / "run", stored).close()
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(UsageError, match=told) as error:
        RunDirectory.open(tmp_path / "run", {**stored, **asked})
    assert "give another directory (--out), or delete it" in one_line(error)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
    RunDirectory.open(tmp_path / "run", stored).close()  # the refusal left no lock


def test_long_differences_are_shortened(tmp_path):
    RunDirectory.open(tmp_path / "run", dict.fromkeys("abcde", "x" * 1000)).close()
    with pytest.raises(UsageError) as error:
        RunDirectory.open(tmp_path / "run", dict.fromkeys("abcde", "y" * 1000))
    assert len(one_line(error)) - len(str(tmp_path)) < 600


def test_a_directory_with_other_things_is_refused_untouched(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty and not a run directory") as error:
        RunDirectory.open(tmp_path, {})
    one_line(error)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_death_before_run_json_leaves_is_no_obstacle(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / ".run.json.123.tmp").write_text("{")
    with RunDirectory.open(tmp_path, {}) as run:
        run.append([{"step": 1}])
    assert read_run(tmp_path)[1] == [{"step": 1}]


@pytest.mark.parametrize("name", ["file", "file/below", "n" * 300, "null\0"])
def test_a_path_that_cannot_be_a_directory(tmp_path, name):
    (tmp_path / "file").write_text("x")
    for reader in (read_run, lambda path: RunDirectory.open(path, {})):
        with pytest.raises(UsageError) as error:
            reader(tmp_path / name)
        one_line(error)
    assert (tmp_path / "file").read_text() == "x"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UsageError, match=r"cannot create .*Permission denied"):
        RunDirectory.open(tmp_path / "run", {})


def test_a_directory_made_in_vain_is_removed(tmp_path, monkeypatch):
    def full(path, content):
        raise UsageError("cannot write: No space left on device")

    monkeypatch.setattr("stepscope.runs.directory.write_atomically", full)
    with pytest.raises(UsageError, match="No space"):
        RunDirectory.open(tmp_path / "a" / "b", {})
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
            "schema version 99.* reads up to 1: upgrade stepscope",
        ),
    ],
)
def test_a_run_file_that_cannot_be_used(tmp_path, content, told):
    (tmp_path / "run.json").write_bytes(content)
    for reader in (read_run, lambda path: RunDirectory.open(path, {})):
        with pytest.raises(UsageError, match=told) as error:
            reader(tmp_path)
        one_line(error)
    assert (tmp_path / "run.json").read_bytes() == content


def test_what_is_not_a_run_directory_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"is not a run directory: it has no run.json"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match=r"cannot read .*missing: No such file or directory"):
        read_run(tmp_path / "missing")
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_measurements_can_be_read(tmp_path):
    RunDirectory.open(tmp_path, {}).close()
    (tmp_path / "measurements.jsonl").unlink()
    assert read_run(tmp_path)[1] == []


def test_a_closed_directory_takes_nothing(tmp_path):
    run = RunDirectory.open(tmp_path, {})
    run.close()
    run.close()
    with pytest.raises(ValueError, match="is closed"):
        run.append([{"step": 1}])


WRITER = textwrap.dedent(
    """
    import sys
    from stepscope.runs import RunDirectory
    run = RunDirectory.open(sys.argv[1], {"steps": [1]})
    step = 0
    while True:
        run.append([{"step": step, "direction": "d" * 2000}, {"step": step, "direction": "e" * 2000}])
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
            RunDirectory.open(tmp_path / "run", {"steps": [1]})
        one_line(error)
        assert len(read_run(tmp_path / "run")[1]) >= 10, "a reader needs no lock"
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    records = read_run(tmp_path / "run")[1]
    assert [record["step"] for record in records] == [index // 2 for index in range(len(records))]
    with RunDirectory.open(tmp_path / "run", {"steps": [1]}) as run:
        assert run.records() == records
        run.append([{"step": "last"}])
    assert read_run(tmp_path / "run")[1] == [*records, {"step": "last"}]


def test_a_second_writer_in_the_same_process_is_refused(tmp_path):
    with (
        RunDirectory.open(tmp_path, {}),
        pytest.raises(UsageError, match="another process is writing"),
    ):
        RunDirectory.open(tmp_path, {})
    RunDirectory.open(tmp_path, {}).close()


def test_versions_name_no_machine(tmp_path):
    found = versions()
    assert {"stepscope", "python", "torch", "platform", "cpus", "torch_threads"} <= set(found)
    text = json.dumps(found)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text


def test_number_is_finite_or_none():
    record = {"int": 2, "nan": float("nan"), "bool": True, "text": "1", "null": None}
    assert [number(record, key) for key in (*record, "absent")] == [2.0, None, None, None, None, None]


@dataclasses.dataclass
class Measurement:
    step: int
    loss: float


def test_plain_takes_dataclasses():
    assert plain(Measurement(1, float("inf"))) == {"step": 1, "loss": None}


def test_a_run_is_overwritten_where_that_is_asked_for(tmp_path):
    with RunDirectory.open(tmp_path / "run", {"a": 1}) as run:
        run.append([{"step": 1}])
    (tmp_path / "run" / "report.html").write_text("mine")
    with pytest.raises(UsageError, match="another configuration"):
        RunDirectory.open(tmp_path / "run", {"a": 2})
    with RunDirectory.open(tmp_path / "run", {"a": 2}, overwrite=True) as run:
        assert run.records() == []
        with pytest.raises(UsageError, match="another process is writing"):
            RunDirectory.open(tmp_path / "run", {"a": 3}, overwrite=True)
        run.append([{"step": 5}])
    assert read_run(tmp_path / "run")[0]["configuration"] == {"a": 2}
    assert [r["step"] for r in read_run(tmp_path / "run")[1]] == [5]
    assert (tmp_path / "run" / "report.html").read_text() == "mine"


def test_what_is_no_run_is_never_overwritten(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes").write_text("mine")
    with pytest.raises(UsageError, match="not empty and not a run directory"):
        RunDirectory.open(tmp_path / "other", {}, overwrite=True)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "run.json").write_text('{"mine": 1}')
    with pytest.raises(UsageError, match="was not written by stepscope"):
        RunDirectory.open(tmp_path / "foreign", {}, overwrite=True)
    assert (tmp_path / "foreign" / "run.json").read_text() == '{"mine": 1}'
    RunDirectory.open(tmp_path / "new", {}, overwrite=True).close()
