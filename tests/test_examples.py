"""Every example runs, is short, and prints numbers that it measured."""

import os
import re
import runpy
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(path.name for path in FOLDER.glob("*.py"))


def test_there_are_some():
    assert len(EXAMPLES) >= 12


@pytest.fixture(autouse=True)
def _own_accelerator():
    """Accelerate has one state for a process, and an example is to find none that a test left."""
    state = pytest.importorskip("accelerate.state")
    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()
    yield
    state.AcceleratorState._reset_state(True)
    state.GradientState._reset_state()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore", "error::RuntimeWarning")
@pytest.mark.parametrize("name", EXAMPLES)
def test_it_runs(name, tmp_path, monkeypatch, capsys):
    assert len((FOLDER / name).read_text().splitlines()) < 40
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / name), run_name="__main__")
    printed = capsys.readouterr().out
    if name == "learning_rate.py":
        said = re.findall(r"^lr=\S+ loss (\S+): (\w+)$", printed, re.MULTILINE)
        losses, kinds = [float(loss) for loss, _ in said], [kind for _, kind in said]
        assert losses[2] == min(losses)
        assert kinds[:2] == ["step_too_short"] * 2
        assert kinds[2] in ("healthy", "cannot_tell")  # its interval ends near the threshold
        assert kinds[3] == "step_too_long"  # as the README shows
    elif name == "edge.py":
        multiples = [float(line.split()[3]) for line in printed.splitlines()[1:]]
        assert multiples == sorted(multiples, reverse=True)  # a longer step is nearer to the edge
        assert multiples[-1] > 1
    elif name == "fsdp2.py":
        losses = [float(loss) for loss in re.findall(r"own AdamW: loss (\S+), slope", printed)]
        assert losses[0] > losses[-1]
    elif name == "noise.py":
        small, large = re.findall(r"of 10 steps (\d+) lower .* and (\d+) that", printed)
        assert int(small[0]) > int(small[1])  # a step fits its own batch better than others
        assert int(large[1]) > int(small[1])
    elif name == "no_descent.py":
        assert _signs(printed) == {
            "none": ["--", "--"], "labels": ["--", "++"], "decay": ["++", "++"], "reversal": ["-+", "-+"],
        }  # fmt: skip
    elif name == "clipping.py":
        losses = [float(loss) for loss in re.findall(r"held-out loss (\S+)", printed)]
        assert losses[0] == min(losses[:3])
        assert losses[5] == min(losses[3:])  # a clipped gradient bears a larger rate
        assert "best decrease" in printed
    elif name == "muon_vs_adam.py":
        rows = re.findall(r"(adam|muon) .* (\S+) = (\S+) \+ (\S+)", printed)
        assert [name for name, *_ in rows] == ["adam"] * 4 + ["muon"] * 4
        for _, whole, within, between in rows:
            assert float(within) + float(between) == pytest.approx(float(whole), abs=2e-4)
    elif name == "trackers.py":  # without a name it prints what it would log
        assert re.findall(r"'stepscope/own Adam/sharpness': .* (\d+)$", printed, re.MULTILINE) == ["20", "40", "60"]
        assert "stepscope/critical_multiple" in printed
    else:
        values = re.findall(r"(?:sharpness|uᵀHu =) (-?\d[\d.e-]*)", printed)
        assert len(values) >= 3
        assert any(float(value) != 0 for value in values)
    assert list(tmp_path.iterdir()) == []  # nothing is left lying about


def _signs(printed):
    """Of each cause the signs of slope and change: on the step's own batch, and on other examples."""
    signs = {}
    for cause, slope, change in re.findall(r"^(\w+), .*: slope (.).*, change (.)", printed, re.MULTILINE):
        signs.setdefault(cause, []).append(slope + change)
    return signs


SBATCH = """#!/bin/sh
# Runs at once what Slurm would, each element of an array in a shell of its own.
array=1-1
for word in "$@"; do
    case $word in
    --array=*) array=${word#--array=} ;;
    --dependency=*) echo "$word" >> dependencies.txt ;;
    esac
    wrapped=$word
done
for SLURM_ARRAY_TASK_ID in $(seq 1 "${array#1-}"); do
    export SLURM_ARRAY_TASK_ID
    sh -c "$wrapped"
done
echo "7;cluster"
"""
STEPSCOPE = """#!/bin/sh
case "$*" in
*--list)
    [ -e another ] || printf '%s\\n' "touch 'one line'" "touch another"
    [ ! -e another ] || [ -e "what these made possible" ] || echo "touch 'what these made possible'"
    echo "false # fails whenever it is tried"
    ;;
*) echo "$@" > gathered.txt ;;
esac
"""


def test_the_array_of_slurm_runs_every_line_and_then_what_gathers(tmp_path):
    for name, text in (("sbatch", SBATCH), ("stepscope", STEPSCOPE)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", str(FOLDER / "slurm.sh"), "some runs", "--scale", "smoke", "--only", "C", "D"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} >= {"one line", "another", "what these made possible"}
    assert (tmp_path / "gathered.txt").read_text() == "reproduce --scale smoke --only C D --out some runs\n"
    assert (tmp_path / "dependencies.txt").read_text() == 3 * "--dependency=afterany:7\n"
    assert len((FOLDER / "slurm.sh").read_text().splitlines()) < 40
