"""Trackers that are installed: what a training logged to them is read back, and what the loop logs itself stays."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stepscope import Probe

EXAMPLE = Path(__file__).parents[2] / "examples" / "trackers.py"
MULTIPLE, OWN = "stepscope/critical_multiple", "stepscope/own Adam/sharpness"


TRACKIO = """
import json, trackio
from trackio.sqlite_storage import SQLiteStorage
run = trackio.Api().runs("stepscope")[0]
print(json.dumps([SQLiteStorage.get_logs("stepscope", run.name), list(run.alerts())]))
"""


def run(arguments, folder):
    """In a process of its own: a tracker writes the rest where it ends."""
    environment = {**os.environ, "TRACKIO_DIR": str(folder / "trackio"), "WANDB_DIR": str(folder)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "log function failed" not in done.stderr
    return done.stdout


def run_example(name, folder):
    return run([str(EXAMPLE), name], folder)


def train(log, own_log, steps=12):
    """A loop that counts its own steps from 0, as many do."""
    model, data = nn.Linear(3, 1), torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Probe(
        model,
        optimizer,
        lambda m, b: (m(b) - b).square().mean(),
        [data],
        every=4,
        max_overhead=None,
        log=log,
        quiet=True,
    ) as probe:
        for step in range(steps):
            optimizer.zero_grad()
            loss = probe.loss_fn(model, data)
            loss.backward()
            optimizer.step()
            own_log({"loss": loss.item()}, step=step)
    return probe


def wandb_rows(folder):
    """What an offline run holds: records of protobuf in a log of LevelDB's form, read to its end."""
    messages = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, whole, rows = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = messages.Record.FromString(whole)
            whole = b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({item.key or "/".join(item.nested_key): float(item.value_json) for item in items})
    return rows


@pytest.mark.slow
def test_wandb(tmp_path):
    pytest.importorskip("wandb")
    run_example("wandb", tmp_path)
    rows = wandb_rows(tmp_path)
    assert [row["stepscope/step"] for row in rows if OWN in row] == [20, 40, 60]
    assert len([row for row in rows if MULTIPLE in row]) >= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_the_rows_of_a_loop_that_counts_from_zero(tmp_path):
    wandb = pytest.importorskip("wandb")
    with wandb.init(project="stepscope", mode="offline", dir=tmp_path) as run:
        probe = train(run.log, run.log)
    wandb.teardown()  # the file is complete only now
    rows = wandb_rows(tmp_path)
    assert [row["_step"] for row in rows if "loss" in row] == list(range(12))
    ratios = {row["stepscope/step"] for row in rows if "stepscope/trust_ratio" in row}
    assert ratios == {r["step"] for r in probe.step_records if r["batch_slope"]}


@pytest.mark.slow
def test_trackio_and_its_alerts(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    run_example("trackio", tmp_path)
    logs, alerts = json.loads(run(["-c", TRACKIO], tmp_path))
    assert [values["step"] for values in logs if OWN in values] == [20, 40, 60]
    assert len([values for values in logs if MULTIPLE in values]) >= 3
    assert [alert["title"] for alert in alerts][-1].startswith("Whether the learning rate is right")


@pytest.mark.slow
def test_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run_example("tensorboard", tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "runs"))
    events.Reload()
    assert [event.step for event in events.Scalars(OWN)] == [20, 40, 60]
    assert len(events.Scalars(MULTIPLE)) >= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")  # what `mlflow-skinny` lacks
    run_example("mlflow", tmp_path)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs(["0"])
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, OWN)] == [20, 40, 60]
    assert len(client.get_metric_history(run.info.run_id, MULTIPLE)) >= 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_accelerate(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accelerator = pytest.importorskip("accelerate").Accelerator(cpu=True, log_with="tensorboard", project_dir=tmp_path)
    accelerator.init_trackers("stepscope")
    probe = train(accelerator.log, accelerator.log)
    accelerator.end_training()
    events = accumulator.EventAccumulator(str(tmp_path / "stepscope"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(12))
    multiples = [r["step"] for r in probe.step_records if (r["edges"] or {}).get("evaluation")]
    assert [event.step for event in events.Scalars(MULTIPLE)] == multiples
