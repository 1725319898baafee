"""The same jobs by any scheduler: one command each, which may be killed at any moment, and given again."""

import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from made_data import data_of
from stepscope import cli
from stepscope.paper.experiments.jobs import jobs_of, perform
from stepscope.paper.reproduction.plan import directories, reproduction, run_reproduction
from stepscope.runs import open_part, parts_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """What is reproduced: all that is small."""
    folder = tmp_path_factory.mktemp("data")
    source = f"translation={data_of('translation', folder)}"
    return ["reproduce", "--scale", "smoke", "--only", "D", "--seeds", "1", "--source", source]


@pytest.fixture(scope="module")
def plan(arguments):
    sources = dict(word.split("=") for word in arguments if "=" in word)
    return reproduction("smoke", only="D", seeds=(0,), sources=sources)


@pytest.fixture(scope="module")
def serial(plan, tmp_path_factory):
    """The reference: all of it, one after another, in one process."""
    out = tmp_path_factory.mktemp("serial")
    assert run_reproduction(plan, out) == []
    return contents(out)


def contents(out):
    """The bytes of all records and heads, but for times."""
    found = {}
    for directory in sorted(out.glob("*/")):
        for name in ("run.json", "measurements.jsonl"):
            text = (directory / name).read_text() if (directory / name).exists() else ""
            found[directory.name, name] = re.sub(r'"(seconds|created)": ("[^"]*"|[\d.e-]+)', r'"\1": 0', text)
    return {place: text for place, text in found.items() if text}


def listed(arguments, out, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*arguments, "--out", str(out), "--list"])
    assert stop.value.code == 0
    return capsys.readouterr().out.splitlines()


def test_jobs_that_are_killed_at_random_and_given_again_make_the_same_records(arguments, serial, tmp_path, capsys):
    draw, out = random.Random(0), tmp_path / "out"
    lines = listed(arguments, out, capsys)
    assert len(lines) == len(set(lines)) == 5
    assert not out.exists()
    for line in draw.choices(lines, k=4):
        killed = subprocess.Popen(shlex.split(line), stderr=subprocess.DEVNULL)
        part = out.joinpath(*line.split()[-1].split("/")[:1], "parts", line.rpartition("/")[2], "measurements.jsonl")
        # Once something is written, or whatever is going on by then.
        limit = time.monotonic() + draw.uniform(3, 60)
        while time.monotonic() < limit and killed.poll() is None and not (part.exists() and part.stat().st_size):
            time.sleep(0.01)
        killed.kill()
        killed.wait()
    for file in out.glob("*/parts/*/measurements.jsonl"):
        file.write_bytes(file.read_bytes() + b'{"torn": ')
    command = "xargs -P 2 -I{} sh -c {}"
    left = listed(arguments, out, capsys)
    done = subprocess.run(command, shell=True, input="\n".join(left), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert listed(arguments, out, capsys) == []
    assert not list(out.glob("*/run.json")), "nothing is gathered yet"
    status = subprocess.run(
        [sys.executable, "-m", "stepscope", *arguments, "--out", str(out)], capture_output=True, text=True, check=False
    )
    assert status.returncode == 0, status.stderr
    assert contents(out) == serial
    assert not list(out.glob("*/parts"))


def test_a_job_that_is_done_or_taken_leaves_at_once(arguments, plan, tmp_path, capsys):
    [path, experiment] = next(iter(directories(plan, tmp_path).items()))
    job = jobs_of(experiment, path)[1]
    command = [*arguments, "--out", str(tmp_path), "--job", job.name]

    def call():
        with pytest.raises(SystemExit) as stop:
            cli.main(command)
        return stop.value.code, capsys.readouterr().err

    with open_part(path, job.part, experiment.record, experiment.configuration(), {}):
        assert call() == (0, f"{job.name}: another process is at it\n")
    perform(job, lambda part, text: None)
    [part] = parts_of(path)
    before = {file: file.read_bytes() for file in part.iterdir()}
    assert call()[0] == 0
    assert {file: file.read_bytes() for file in part.iterdir()} == before
    assert {json.loads(line)["trajectory"] for line in before[part / "measurements.jsonl"].splitlines()} == {"sgd"}
    command[-1] = "theory/none"
    assert call() == (
        2,
        "stepscope reproduce: error: no job 'theory/none' in this plan: --list prints those that are left\n",
    )


@pytest.mark.parametrize(("scheduler", "parameter"), [("submitit", "timeout_min=30"), ("ray", "num_cpus=1")])
def test_a_scheduler_runs_the_same_commands_and_one_dead_job_fails_one(
    scheduler, parameter, arguments, serial, tmp_path
):
    pytest.importorskip(scheduler)
    out = tmp_path / "out"
    command = [*arguments, "--out", str(out), "--executor", scheduler, "--jobs", "2", "--parameters", parameter]
    marked = []

    def call(disturb):
        status = subprocess.Popen([sys.executable, "-m", "stepscope", *command], stderr=subprocess.PIPE, text=True)
        disturb()
        return status.communicate()[1], status.returncode

    def kill():
        """One job, in the middle of what it does."""
        limit = time.monotonic() + 200
        while not marked:
            assert time.monotonic() < limit, "nothing was recorded"
            marked.extend(lock for lock in out.glob("theory/parts/*/.lock"))
        os.kill(holder_of(marked[0]), signal.SIGKILL)

    error, status = call(kill)
    assert status == 2
    assert "theory failed: " in error
    assert error.count("theory failed") == 1
    assert marked[0].parent.name in error
    assert contents(out) == {}, "it is gathered once it is complete, in the order of the plan"
    error, status = call(lambda: None)
    assert status == 0, error
    assert contents(out) == serial


def holder_of(lock):
    """The process that has a file open."""
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with contextlib.suppress(OSError):
                if link.readlink() == lock:
                    return int(link.parts[2])
    pytest.fail("nobody holds it")
