"""The command line as a user meets it: the demo, and one clear line with status 2 for every mistake."""

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from made_data import data_of
from probed_runs import own
from processes import children_of
from stepscope import Probe, UsageError, cli
from stepscope.cli.progress import shown_progress
from stepscope.paper.experiments import trajectory
from stepscope.paper.experiments.command_lines import EXPERIMENTS
from stepscope.paper.experiments.compared_optimizers import RULES
from stepscope.paper.reproduction.plan import reproduction, run_reproduction
from synthetic_records import run_directory

NUMERATOR = "adafactor clip 50% (numerator)"
FEW = {"sgd", "adam", "adafactor", NUMERATOR}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "pairs.tsv"
    path.write_text("".join(f"the number {i} is here\tle nombre {i} est là\n" for i in range(60)))
    return str(path)


def call(*arguments, capsys):
    """Exit status, standard output, standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def called(arguments, out):
    """The run directory of a command, its arguments, exit status, and what it printed."""
    arguments = [*arguments, "--out", str(out)]
    text, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return out, arguments, stop.value.code, text.getvalue(), err.getvalue()


@pytest.fixture(scope="module", autouse=True)
def few_rules():
    """Of the optimizers that are compared: all are measured in the tests of the experiment."""
    with pytest.MonkeyPatch.context() as patch:
        for name in set(RULES) - FEW:
            patch.delitem(RULES, name)
        yield


@pytest.mark.parametrize(
    ("arguments", "threads"),
    [(["demo"], 1), (["run", "trajectory"], 1), (["run", "trajectory", "--scale", "gpu"], 3), (["run", "theory"], 1)],
)
def test_small_models_run_in_one_thread(arguments, threads, tmp_path, monkeypatch, capsys):
    """Two of them wait for one another where another process has a core."""
    seen = []

    def stopped(*_):
        seen.append(torch.get_num_threads())
        raise UsageError("seen")

    monkeypatch.setattr("stepscope.paper.experiments.jobs.run", stopped)
    torch.set_num_threads(3)
    try:
        assert call(*arguments, "--out", tmp_path / "run", capsys=capsys)[0] == 2
    finally:
        torch.set_num_threads(1)
    assert seen == [threads]


@pytest.fixture(scope="module")
def demo(pairs, tmp_path_factory):
    return called(["demo", "--scale", "smoke", "--source", pairs], tmp_path_factory.mktemp("demo") / "run")


def test_the_demo(demo):
    out, _, status, text, err = demo
    assert status == 0
    assert text.count("trajectory, step") == 4
    assert sum(line.strip().startswith(NUMERATOR) for line in text.splitlines()) == 4
    assert "With one seed, SGD " in text
    assert "16 new measurements" in text
    page = (out / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert NUMERATOR in page
    assert "100%" in err


def test_a_second_demo_says_that_it_is_complete(demo, capsys):
    status, text, _ = call(*demo[1], capsys=capsys)
    assert (status, "The run was complete already." in text) == (0, True)


def test_the_report_is_a_function_of_the_records(demo, tmp_path, capsys):
    status, text, _ = call("report", demo[0], "--out", tmp_path / "again.html", capsys=capsys)
    assert (status, text.strip()) == (0, str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_text() == (demo[0] / "report.html").read_text()


CONVERGENCE = ["run", "convergence", "--scale", "smoke", "--out", "{new}"]
REPRODUCE = ["reproduce", "--scale", "smoke", "--out", "{new}"]
MISTAKES = {
    "unknown letter": ([*REPRODUCE, "--only", "A", "X"], "no experiment 'X': choose of A, B, C, D"),
    "a reproduction in a file": (["reproduce", "--scale", "smoke", "--out", "{file}"], "cannot create"),
    "a reproduction where none can be": (
        ["reproduce", "--scale", "smoke", "--out", "/proc/x"],
        "cannot create /proc/x",
    ),
    "no seeds": ([*REPRODUCE, "--seeds", "0"], "--seeds 0: it is how many, at least 1"),
    "no runs at a time": ([*REPRODUCE, "--jobs", "0"], "0 jobs at a time: at least 1 is needed"),
    "unknown scale of a reproduction": (
        ["reproduce", "--scale", "huge"],
        "unknown scale 'huge': choose smoke or cpu or",
    ),
    "a source of no task of a reproduction": ([*REPRODUCE, "--source", "poetry=x"], "a source is given for poetry"),
    "unknown task of a trajectory": (["run", "trajectory", "--task", "poetry", "--out", "{new}"], "no task 'poetry'"),
    "no such start": (
        ["run", "trajectory", "--task", "code", "--start", "afresh", "--out", "{new}"],
        "start is 'afresh': choose pretrained or random",
    ),
    "no experiment": (["run"], "EXPERIMENT"),
    "unknown experiment": (["run", "alchemy"], "alchemy"),
    "unknown settings": ([*CONVERGENCE, "--as", "mine"], "unknown settings 'mine': choose text, code or ours"),
    "unknown task": ([*CONVERGENCE, "--tasks", "poetry"], "tasks are poetry: choose of translation, code"),
    "a source of no task of agreement": (
        ["run", "agreement", "--out", "{new}", "--source", "poetry=x"],
        "a source is given for poetry: choose of translation, code, sentiment, images",
    ),
    "unknown scale of theory": (["run", "theory", "--scale", "huge", "--out", "{new}"], "unknown scale 'huge'"),
    "no reviews": (
        ["run", "robustness", "--scale", "smoke", "--out", "{new}", "--source", "klingon"],
        "no source 'klingon'",
    ),
    "no jobs": ([*CONVERGENCE, "--jobs", "0"], "0 jobs at a time: at least 1 is needed"),
    "a source of no task": ([*CONVERGENCE, "--source", "my.py"], "--source my.py: give TASK=NAME or TASK=FILE"),
    "a source of another task": ([*CONVERGENCE, "--source", "images=x"], "a source is given for images"),
    "a source that is not there": (
        [*CONVERGENCE, "--tasks", "code", "--source", "code={new}.py"],
        "No such file or directory",
    ),
    "unknown scale": (["demo", "--scale", "huge"], "unknown scale 'huge': choose smoke or cpu"),
    "out is a file": (["demo", "--scale", "smoke", "--out", "{file}"], "is a file: give a directory"),
    "out cannot be made": (["demo", "--scale", "smoke", "--out", "{file}/below"], "cannot create"),
    "out is in /proc": (["demo", "--scale", "smoke", "--out", "/proc/nowhere"], "cannot create"),
    "out is somebody's": (["demo", "--scale", "smoke", "--out", "{folder}"], "is not empty and not a run directory"),
    "no such data": (["demo", "--scale", "smoke", "--out", "{new}", "--source", "{new}.tsv"], ".tsv"),
    "no such source": (["demo", "--scale", "smoke", "--out", "{new}", "--source", "klingon"], "klingon"),
    "a seed too large": (["demo", "--scale", "smoke", "--out", "{new}", "--seeds", str(2**70)], "to 2^63 - 1"),
    "a name too long": (["demo", "--scale", "smoke", "--out", "{new}", "--source", "x" * 5000], "File name too long"),
    "seeds": (["demo", "--scale", "smoke", "--out", "{new}", "--seeds", "1", "1"], "different whole numbers"),
    "not a seed": (["demo", "--seeds", "one"], "invalid int value"),
    "no run": (["report", "{new}"], "cannot read"),
    "not a run": (["report", "{folder}"], "is not a run directory"),
    "unknown option": (["demo", "--scael", "smoke"], "unrecognized arguments: --scael"),
    "unknown command": (["demos"], "invalid choice: 'demos'"),
    "no command": ([], "required: COMMAND"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_status_2(name, tmp_path, capsys):
    arguments, message = MISTAKES[name]
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    places = {key: tmp_path / key for key in ("file", "folder", "new")}
    status, out, err = call(*(a.format(**places) for a in arguments), capsys=capsys)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1
    assert out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_of_another_configuration(demo, capsys):
    out, arguments, *_ = demo
    before = {p: p.read_bytes() for p in out.iterdir()}
    status, _, err = call(*arguments, "--seeds", 7, capsys=capsys)
    assert status == 2
    assert "another configuration" in err
    assert "seeds" in err
    assert err.count("\n") == 1
    assert {p: p.read_bytes() for p in out.iterdir()} == before


def test_no_network_and_no_data(tmp_path, capsys, monkeypatch):
    """Every way out is closed: one line that gives each source's reason, at once, and nothing left behind."""

    def refuse(*_, **__):
        raise OSError("network is unreachable")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("STEPSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get, no dpkg
    status, _, err = call("demo", "--scale", "smoke", "--out", tmp_path / "run", capsys=capsys)
    assert status == 2
    assert err.count("\n") == 1
    assert [n for n in ("opus_books", "homeassistant", "<TAB>") if n not in err] == [], err
    assert not (tmp_path / "run").exists()


def test_interruption_is_status_130(pairs, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(trajectory, "measure", interrupted)
    status, _, err = call("demo", "--scale", "smoke", "--source", pairs, "--out", tmp_path / "run", capsys=capsys)
    assert (status, "give the same command again to go on" in err) == (130, True)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["demo", "--help"],
        ["report", "--help"],
        ["summary", "--help"],
        ["run", "--help"],
        *(["run", name, "--help"] for name in EXPERIMENTS),
        ["--version"],
    ],
)
def test_help_teaches_and_version_says(arguments, capsys):
    status, out, err = call(*arguments, capsys=capsys)
    assert (status, err) == (0, "")
    assert "stepscope" in out


def test_it_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "stepscope", "demo", "--help"], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert "--scale smoke" in done.stdout


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with shown_progress() as progress:
        progress(0.5, "half")
    assert "━" in capsys.readouterr().err


def test_the_readme_names_only_options_that_exist(capsys):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    _, shown, _ = call("demo", "--help", capsys=capsys)
    named = set(re.findall(r"stepscope demo[^\n`]*?(--[a-z-]+)", readme))
    assert named
    assert all(option in shown for option in named)


def test_no_home_and_no_cache(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STEPSCOPE_CACHE", "~nobody-of-that-name/x")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, _, err = call(
        "demo", "--scale", "smoke", "--out", tmp_path / "run", "--source", "homeassistant", capsys=capsys
    )
    assert (status, err.count("\n")) == (2, 1)
    assert "set STEPSCOPE_CACHE" in err


def test_a_training_of_which_only_its_own_steps_were_measured_has_a_page(tmp_path, capsys):
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def loss_fn(model, batch):
        return model(batch).square().mean()

    batch, run = torch.ones(4, 3), tmp_path / "run"
    with Probe(model, optimizer, loss_fn, [batch], every=10**9, steps=20, run_dir=run, quiet=True) as probe:
        for _ in range(20):
            optimizer.zero_grad()
            probe.loss_fn(model, batch).backward()
            optimizer.step()
        probe.report(tmp_path / "own.html")
    assert probe.step_records
    assert not probe.records
    assert call("report", run, capsys=capsys)[0] == 0
    for page in ((run / "report.html").read_text(), (tmp_path / "own.html").read_text()):
        assert "Linear, trained by SGD" in page
        assert "Nothing measured yet" not in page


DAMAGES = {
    "a line of another shape": b'{"a": 1}\n',
    "no single seed": b'{"trajectory": "sgd", "seed": [0], "step": 2, "direction": "sgd"}\n',
    "no landscape": b'{"trajectory": "sgd", "seed": 0, "step": 2, "direction": "sgd", "landscape": {"steps": 5}}\n',
    "not JSON": b'{"trajectory": \n{"trajectory": "sgd"}\n',
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_records_give_a_page_or_a_line(name, demo, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_bytes((demo[0] / "run.json").read_bytes())
    (run / "measurements.jsonl").write_bytes(DAMAGES[name] + (demo[0] / "measurements.jsonl").read_bytes())
    status, out, err = call("report", run, capsys=capsys)
    assert (status, err) == (0, "") if out else (status, err.count("\n")) == (2, 1)


def test_output_that_nobody_reads_loses_nothing(demo, pairs, tmp_path):
    out = shutil.copytree(demo[0], tmp_path / "run")
    (out / "report.html").unlink()
    records = (out / "measurements.jsonl").read_bytes().splitlines(keepends=True)
    (out / "measurements.jsonl").write_bytes(b"".join(records[:-1]))  # one is measured again
    code = f"""
from stepscope.cli import main
from stepscope.paper.experiments.compared_optimizers import RULES
for name in set(RULES) - {FEW}:
    del RULES[name]
main()
"""
    arguments = [sys.executable, "-c", code, "demo", "--scale", "smoke", "--source", pairs, "--out", str(out)]
    command = f"{shlex.join(arguments)} | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert len((out / "measurements.jsonl").read_bytes().splitlines()) == len(records)
    assert (out / "report.html").exists()


@pytest.mark.parametrize("scale", ["smoke", "cpu", "desk", "gpu", "paper"])
def test_a_dry_run_prints_the_plan_and_does_nothing(scale, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    status, out, err = call("reproduce", "--scale", scale, "--dry-run", capsys=capsys)
    assert (status, err) == (0, "")
    for name in (
        "trajectory-code-pretrained",
        "code-random",
        "agreement",
        "convergence",
        "robustness",
        "theory",
    ):
        assert name in out
    assert ("GiB of memory, measured" if scale in ("smoke", "cpu") else "were not measured") in " ".join(out.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory):
    """A part of a reproduction by the command line, in one process: its arguments, status, and what it printed."""
    folder = tmp_path_factory.mktemp("reproduction")
    source = f"sentiment={data_of('sentiment', folder)}"
    arguments = ["reproduce", "--scale", "smoke", "--only", "C", "--source", source, "--seeds", "2", "--jobs", "1"]
    return called(arguments, folder / "out")


def test_a_reproduction(reproduced):
    out, _, status, text, err = reproduced
    assert status == 0
    assert "Plan" in err
    assert "The paper's claims, scale smoke" in text
    claims = json.loads((out / "claims.json").read_text())
    assert [claim["id"] for claim in claims] == [f"C{number}" for number in range(1, 13)]
    assert claims[0]["judgments"][0]["statistic"] == "not measured"
    assert claims[9]["judgments"][0]["seeds"] == [0, 1]
    assert all(claim["scale"] in ("", "smoke") for claim in claims)
    assert "C10" in (out / "report.html").read_text()
    assert {path.suffix for path in (out / "tables").iterdir()} == {".csv", ".tex"}
    assert list((out / "figures").glob("robustness-*.pdf"))


def test_the_reports_of_a_reproduction_are_a_function_of_its_records(reproduced, capsys):
    out = reproduced[0]
    before = {name: (out / name).read_text() for name in ("claims.json", "report.html")}
    (out / "claims.json").unlink()
    status, text, _ = call("report", out, capsys=capsys)
    assert (status, "The paper's claims" in text) == (0, True)
    assert {name: (out / name).read_text() for name in before} == before
    assert "not drawn this time; --figures draws all" in text
    status, text, _ = call("report", out, "--figures", capsys=capsys)
    assert (status, "--figures" in text) == (0, False)
    assert {name: (out / name).read_text() for name in before} == before
    status, _, err = call("report", out, "--out", "page.html", capsys=capsys)
    assert (status, "leave out --out" in err) == (2, True)
    status, _, err = call("report", out / "robustness", "--figures", capsys=capsys)
    assert (status, "leave out --figures" in err) == (2, True)


@pytest.mark.parametrize("option", [(), ("--watch",)])
def test_a_folder_of_probes_is_no_reproduction(option, tmp_path, capsys):
    for name in ("probe", "probe-2"):
        run_directory(tmp_path / name, own(5), configuration={"experiment": "probe"})
    status, _, err = call("report", tmp_path, *option, capsys=capsys)
    assert (status, "give one of those in it" in err) == (2, True)
    assert {path.name for path in tmp_path.iterdir()} == {"probe", "probe-2"}


def test_another_reproduction_beside_one(reproduced, tmp_path, capsys):
    """Its verdicts stay in the folder, so that the next report has them too."""
    out = tmp_path / "out"
    (out / "robustness").mkdir(parents=True)
    for name in ("run.json", "measurements.jsonl"):
        (out / "robustness" / name).write_bytes((reproduced[0] / "robustness" / name).read_bytes())
    other = tmp_path / "other"
    other.symlink_to(out)
    status, _, err = call("report", out, "--beside", other, capsys=capsys)
    assert (status, "it is the reproduction itself" in err) == (2, True)
    assert call("report", out, "--beside", reproduced[0], capsys=capsys)[0] == 0
    header = (out / "tables" / "claims.csv").read_text().splitlines()[0]
    assert header == f'claim,statement,pretrained,random,"{reproduced[0].name}, random",statistic,seeds'
    assert call("report", out, capsys=capsys)[0] == 0
    assert (out / "tables" / "claims.csv").read_text().splitlines()[0] == header
    status, _, err = call("report", out / "robustness", "--beside", out, capsys=capsys)
    assert (status, "leave out --beside" in err) == (2, True)


def test_a_failed_run_is_said_and_the_rest_reported(reproduced, tmp_path, capsys):
    """Another configuration in one directory: one line, status 2, and the reports of what is there."""
    other = [argument if argument != "2" else "3" for argument in reproduced[1]]
    status, out, err = call(*other, capsys=capsys)
    assert status == 2
    assert "robustness failed: " in err
    assert "another configuration" in err
    assert "1 of 1 runs failed" in err
    assert "The paper's claims" in out


def test_the_trajectory_of_another_task(tmp_path, capsys):
    source = data_of("code", tmp_path)
    arguments = ["run", "trajectory", "--task", "code", "--scale", "smoke", "--source", source]
    status, out, _ = call(*arguments, "--out", tmp_path / "run", capsys=capsys)
    assert status == 0
    assert "16 new measurements" in out
    assert "Model: GPT-Neo of" in out


@pytest.mark.slow
def test_a_killed_reproduction_goes_on(tmp_path):
    """SIGKILL amid two jobs side by side: their workers end, and each goes on from what it had recorded."""
    source = [f"{kind}={data_of(kind, tmp_path)}" for kind in ("sentiment", "translation")]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "stepscope", "reproduce", "--scale", "smoke", "--only", "C", "D", "--jobs", "2"]
    command += ["--source", source[0], "--source", source[1], "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def measured():
        return {file: file.read_bytes() for file in out.glob("*/parts/*/measurements.jsonl") if file.stat().st_size}

    limit = time.monotonic() + 240
    while len(measured()) < 2:
        assert time.monotonic() < limit, "nothing was recorded"
        assert first.poll() is None
        time.sleep(0.02)
    workers = children_of(first.pid)
    assert len(workers) >= 2
    first.kill()
    first.wait()
    limit = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.monotonic() < limit, "workers outlive their parent"
        time.sleep(0.1)
    before = {line for content in measured().values() for line in content.splitlines(keepends=True)}
    plan = reproduction("smoke", only="CD", seeds=(0,), sources=dict(each.split("=") for each in source))
    assert run_reproduction(plan, out) == []
    whole = [line for run in out.iterdir() for line in (run / "measurements.jsonl").read_bytes().splitlines(True)]
    assert {line for line in before if line.endswith(b"\n")} <= set(whole)
    lines = (out / "robustness" / "measurements.jsonl").read_bytes().splitlines()
    assert len(lines) == len(set(lines)) == 2 * 2 * 3 * 3 * 3
    assert not list(out.glob("*/parts"))


def test_a_terminal_that_lacks_a_sign_gets_something_like_it(tmp_path, monkeypatch):
    """As on a machine whose locale isn't UTF-8; Python itself would end with a `UnicodeEncodeError`."""
    inside = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(inside, "ascii"))
    with pytest.raises(SystemExit):
        cli.main(["findings", str(tmp_path / "\N{MINUS SIGN}1\N{HORIZONTAL ELLIPSIS}\N{SNOWMAN}")])
    sys.stderr.flush()
    assert b"-1...?" in inside.getvalue()
