"""The house: one-way imports, a light import, examples in docstrings that run, documentation that names what exists."""

import doctest
import importlib
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools.config.expand import read_attr

import stepscope
from probed_runs import own
from synthetic_records import run_directory

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(stepscope.__path__, "stepscope.") if not m.name.endswith("__main__")]


def test_each_layer_imports_only_what_stands_below_it():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", ["Makefile", ".ci/run"])
def test_of_the_environment_only_python_is_run(file):
    """The scripts beside it name its path in their first line, which may be too long, or hold a space."""
    assert set(re.findall(r"(?:\.venv|\$\(VENV\))/bin/(\S+)", (ROOT / file).read_text())) == {"python"}


def test_examples_in_docstrings_run():
    results = {name: doctest.testmod(importlib.import_module(name)) for name in MODULES}
    assert [name for name, result in results.items() if result.failed] == []
    assert sum(result.attempted for result in results.values()) > 100


def test_the_version_is_written_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    attribute = project["tool"]["setuptools"]["dynamic"]["version"]["attr"]
    assert read_attr(attribute, {"": "src"}, ROOT) == stepscope.__version__
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)


def test_pages_and_figures_are_not_in_git():
    """They are made from the records: `stepscope report --figures docs/reproduction`."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    made = [name for name in listed.stdout.splitlines() if name.endswith((".pdf", ".html"))]
    assert [name for name in made if "/templates/" not in name] == []


def test_every_public_function_at_the_top_has_an_example():
    for name in stepscope.__all__:
        thing = getattr(stepscope, name)
        if callable(thing) and not isinstance(thing, type):
            assert ">>>" in thing.__doc__, name


def in_a_fresh_process(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_importing_the_library_loads_torch_when_a_name_is_used():
    code = """
import sys, stepscope
before = "torch" in sys.modules
from stepscope import Probe
print(before, "torch" in sys.modules, Probe.__module__.partition(".")[0])
"""
    assert in_a_fresh_process(code).stdout == "False True stepscope\n"


def test_help_and_wrong_arguments_load_no_torch():
    code = """
import contextlib, io, sys
from stepscope import cli
from stepscope.paper.experiments.command_lines import EXPERIMENTS
helps = [[], ["demo"], ["run"], ["reproduce"], ["report"], ["findings"], ["summary"], ["compare"], ["figures"]]
helps += (["run", name] for name in [*EXPERIMENTS, "calibration"])
wrong = [["demos"], ["run", "thoery"], ["demo", "--seeds", "x"], ["report"], ["findings"], ["summary"], ["compare"]]
statuses = []
for arguments in [*([*one, "--help"] for one in helps), ["--version"], *wrong]:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            cli.main(arguments)
    except SystemExit as stop:
        statuses.append(stop.code)
loaded = {"torch", "transformers", "rich"} & set(sys.modules)
print(len(helps) + 1, statuses.count(0), statuses.count(2), sorted(loaded))
"""
    assert in_a_fresh_process(code).stdout == "17 17 7 []\n"


@pytest.mark.parametrize("command", ["report", "figures", "summary", "findings"])
@pytest.mark.parametrize("experiment", ["probe", "trajectory"])
def test_what_is_told_of_records_of_directions_takes_no_torch(command, experiment, tmp_path):
    pytest.importorskip("altair")
    code = """
import sys
from stepscope import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as stop:
    print(stop.code, "torch" in sys.modules)
"""
    run = run_directory(tmp_path / "run", own(5), configuration={"experiment": experiment})
    done = in_a_fresh_process(code, command, str(run))
    assert done.stdout.endswith("0 False\n"), done.stderr


def test_the_top_leads_to_its_rooms_and_shows_its_public_names_alone():
    """Each room is asked for first: nothing else has loaded it."""
    code = """
import sys
for room in ("clipping", "directions", "errors", "judging", "measuring", "objective", "probe"):
    for name in [name for name in sys.modules if name.partition(".")[0] == "stepscope"]:
        del sys.modules[name]
    import stepscope
    print(getattr(stepscope, room).__name__ == f"stepscope.{room}")
print(sorted(dir(stepscope)) == sorted([*stepscope.__all__, "__version__"]))
from stepscope import *
print(all(name in globals() for name in stepscope.__all__), not hasattr(stepscope, "measures"))
"""
    done = in_a_fresh_process(code)
    assert (set(done.stdout.split()), len(done.stdout.split()), done.stderr) == ({"True"}, 10, "")


def test_importing_the_library_loads_no_page_and_a_probe_writes_its_page_without_the_paper(tmp_path):
    pytest.importorskip("altair")
    code = """
import os, sys, torch, stepscope
os.environ["STEPSCOPE_CACHE"] = sys.argv[1] + ".cache"
def rooms():
    return {name.split(".")[1] for name in sys.modules if name.startswith("stepscope.")}
print(sorted(rooms() & {"report", "paper", "cli", "integrations"}))
import vl_convert
vl_convert.javascript_bundle = lambda *_, **__: "the script"  # takes seconds
model = torch.nn.Linear(2, 1); optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loss_fn = lambda model, batch: model(batch).square().mean()
with stepscope.Probe(model, optimizer, loss_fn, [torch.ones(4, 2)], every=1, max_overhead=None, quiet=True) as probe:
    loss_fn(model, torch.ones(4, 2)).backward(); optimizer.step()
probe.report(sys.argv[1])
print(sorted(rooms() & {"paper", "cli", "integrations"}))
"""
    done = in_a_fresh_process(code, str(tmp_path / "page.html"))
    assert (done.stdout, done.stderr) == ("[]\n[]\n", "")
    assert "the script" in (tmp_path / "page.html").read_text()


def test_the_tree_shows_the_rooms():
    """What a newcomer sees first: the rooms of docs/architecture.md, and a few files."""
    package = Path(stepscope.__file__).parent
    rooms = {each.name for each in package.iterdir() if (each / "__init__.py").exists()}
    assert rooms == {
        "objective", "clipping", "directions", "measuring", "runs", "judging", "report", "probe", "integrations",
        "paper", "calibration", "cli",
    }  # fmt: skip
    assert {each.name for each in package.glob("*.py*")} == {
        "__init__.py", "__main__.py", "cache.py", "errors.py", "shown.py",
    }  # fmt: skip


def test_importing_needs_torch_alone():
    """Also of optional parts' packages: a missing extra must be an error of the call, not of the import."""
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"rich", "altair", "jinja2", "vl_convert", "transformers", "tokenizers",
                                      "datasets", "huggingface_hub", "safetensors", "filelock", "scipy"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
import torch
before = set(sys.modules)
import stepscope, stepscope.cli, stepscope.report
import stepscope.paper.tasks.translation, stepscope.paper.experiments.trajectory
import stepscope.paper.tasks.sentiment, stepscope.paper.experiments.robustness
import stepscope.paper.tasks.images
import stepscope.paper.experiments.theory, stepscope.paper.claims
from stepscope.errors import MissingExtraError
try:
    stepscope.cli.main(["demo"])
except SystemExit as stop:
    print(stop.code)
"""
    done = in_a_fresh_process(code)
    assert (done.stdout, done.stderr) == (
        "2\n",
        "stepscope demo: error: rich is not installed: pip install 'stepscope[paper]'\n",
    )
