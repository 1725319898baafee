"""Which directory a training's records go to, whatever lies there already."""

import subprocess
import sys

import pytest

from stepscope import UsageError
from stepscope.probe.run_directories import open_run
from stepscope.runs import DirectionRecord

LINE = DirectionRecord(trajectory="sgd", seed=0, step=1, direction="adam", sharpness=3.5)


def used(path, configuration=None, **settings):
    with open_run(path, configuration or {}, {}, **settings) as run:
        run.append([LINE])
    return run.path.name


def test_the_newest_is_the_last_also_where_older_ones_are_gone(tmp_path):
    assert [used(tmp_path / "a") for _ in range(4)] == ["a", "a-2", "a-3", "a-4"]
    for name in ("a", "a-2"):
        for file in (tmp_path / name).iterdir():
            file.unlink()
        (tmp_path / name).rmdir()
    (tmp_path / "a-9").mkdir()  # no run: empty
    (tmp_path / "a-x").mkdir()
    assert used(tmp_path / "a", step=1) == "a-4"
    assert used(tmp_path / "a") == "a-5"


def test_a_run_in_which_nothing_was_measured_is_used_again_unless_it_is_another(tmp_path):
    for _ in range(2):
        open_run(tmp_path / "a", {"b": 1}, {}).close()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert used(tmp_path / "a", {"b": 2}) == "a-2"
    with pytest.raises(UsageError, match="a-2 holds a run with another configuration"):
        open_run(tmp_path / "a", {"b": 3}, {}, step=1)


def test_two_processes_at_once(tmp_path):
    code = "import sys; from stepscope.probe.run_directories import open_run\n"
    code += "run = open_run(sys.argv[1], {}, {}); print(run.path.name, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "a\n"
        for settings in ({"step": 1}, {"overwrite": True}):
            with pytest.raises(UsageError, match="another process is writing to"):
                open_run(tmp_path / "a", {}, {}, **settings)
        assert used(tmp_path / "a") == "a-2"
        other.stdin.close()


def test_what_is_no_run_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="not empty and not a run directory"):
        open_run(tmp_path / "a", {}, {})
    with pytest.raises(UsageError, match="is a file"):
        open_run(tmp_path / "a" / "thesis.txt", {}, {})
    with pytest.raises(UsageError, match="cannot create"):
        open_run("/proc/x/run", {}, {})
    with pytest.raises(UsageError, match="cannot create"):
        open_run("a\0b", {}, {})
