"""An experiment defined here, in one place, is on the command line, in the plan and on the pages, and goes on.

What `run` promises for any experiment is tested with it too.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from types import MappingProxyType

import pytest

from stepscope import UsageError, cli
from stepscope.paper.experiments.along_trajectories import AlongTrajectories
from stepscope.paper.experiments.command_lines import EXPERIMENTS, Entry, add_seeds, add_source
from stepscope.paper.experiments.experiment import described
from stepscope.paper.experiments.jobs import run
from stepscope.paper.tasks.small import small_task
from stepscope.report import Figure, Table
from stepscope.runs import Record, read_run


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyRecord(Record):
    """The loss before one step of a training."""

    identity = ("trajectory", "seed", "step")
    renamed = MappingProxyType({"value": "loss"})

    trajectory: str
    seed: int
    step: int
    loss: float | None = None


def records_of(path):
    return read_run(path, ToyRecord)[1]


def add_options(command):
    add_source(command)
    add_seeds(command, 0)


TOY = Entry("toy", "T", "does a toy learn?", "Trains a toy.", add_options, f"{__name__}:ToyExperiment")


@dataclasses.dataclass(frozen=True)
class ToyExperiment(AlongTrajectories[ToyRecord]):
    """The loss along short trainings of a small classifier."""

    entry = TOY
    record = ToyRecord

    source: str = "auto"
    seeds: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = (1, 4, 6)
    rates: tuple[float, ...] = (0.5, 0.01)

    def data_sources(self):
        return {"classifier": self.source}

    def make_task(self, name, source):
        try:
            digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()
        except OSError as error:
            raise UsageError(f"no toy data: {error}") from error
        task = small_task(name)
        return dataclasses.replace(task, source=dataclasses.replace(task.source, sha256=digest))

    def context(self, tasks):
        return described(tasks["classifier"], "Toy")

    def learning_rates(self, task):
        return dict(zip(("sgd", "adam"), self.rates, strict=True))

    def units(self):
        return [unit for seed in self.seeds for unit in self.trainings("classifier", seed)]

    def wanted(self, unit):
        return [ToyRecord(trajectory=unit.optimizer, seed=unit.seed, step=step) for step in self.steps]

    def measure_at(self, point, missing, progress):
        progress(0.0, "the loss")
        yield [dataclasses.replace(record, loss=point.objectives[0].loss()) for record in missing]

    @classmethod
    def tables(cls, records):
        rows = tuple((f"{r.trajectory} at {r.step}", f"{r.loss:.6f}") for r in records)
        return [Table("Toy losses", ("training", "loss"), rows, "As measured.", "losses")] if rows else []

    @classmethod
    def figures(cls, records):
        def draw():
            import altair

            values = [{"step": r.step, "loss": r.loss} for r in records]
            return altair.Chart(altair.Data(values=values)).mark_line().encode(x="step:Q", y="loss:Q")

        return [Figure("curve", "toy losses while training", draw)]

    @classmethod
    def from_options(cls, options):
        return cls(options.scale, options.source, tuple(options.seeds))

    @classmethod
    def of_reproduction(cls, asked):
        return [cls(asked.scale, "toy.txt", asked.seeds)]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(EXPERIMENTS, "toy", TOY)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy.txt").write_text("one two")
    return "toy.txt"


@pytest.fixture
def experiment(data):
    return ToyExperiment("smoke", data)


def call(*arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    return stop.value.code, *capsys.readouterr()


def test_it_is_on_the_command_line_with_its_table_and_page(data, tmp_path, capsys):
    assert "does a toy learn?" in call("run", "--help", capsys=capsys)[1]
    assert "Trains a toy." in call("run", "toy", "--help", capsys=capsys)[1]
    status, text, _ = call("run", "toy", "--scale", "smoke", "--source", data, capsys=capsys)
    assert status == 0
    loss = f"{records_of('runs/toy-smoke')[0].loss:.6f}"
    page = Path("runs/toy-smoke/report.html").read_text()
    for shown in (text, page):
        assert "Toy losses" in shown
        assert loss in shown
    assert "6 new records" in text
    assert 'class="chart"' in page
    status, text, _ = call("run", "toy", "--scale", "smoke", "--source", data, capsys=capsys)
    assert (status, "The run was complete already." in text) == (0, True)


def test_it_is_in_the_plan_and_on_the_page_of_a_reproduction(data, tmp_path, capsys):
    status, text, _ = call("reproduce", "--scale", "smoke", "--dry-run", capsys=capsys)
    assert (status, "T toy" in text) == (0, True)
    status, *_ = call("reproduce", "--scale", "smoke", "--only", "T", "--seeds", 2, "--out", "all", capsys=capsys)
    assert status == 0
    assert len(records_of("all/toy")) == 12
    page = Path("all/report.html").read_text()
    assert "Toy losses" in page
    assert "12 measurements." in page
    assert Path("all/figures/toy-curve.pdf").read_bytes().startswith(b"%PDF")
    assert len(Path("all/tables/toy-losses.csv").read_text().splitlines()) == 13


def test_interrupted_between_records_it_goes_on_to_the_same(experiment, monkeypatch, capsys):
    run(experiment, "whole")
    measured = []

    def interrupted(self, point, missing, progress):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(point.step)
        yield from ordinary(self, point, missing, progress)

    ordinary = ToyExperiment.measure_at
    monkeypatch.setattr(ToyExperiment, "measure_at", interrupted)
    status, _, err = call(
        "run", "toy", "--scale", "smoke", "--source", experiment.source, "--out", "part", capsys=capsys
    )
    assert (status, "give the same command again" in err) == (130, True)
    monkeypatch.setattr(ToyExperiment, "measure_at", ordinary)
    [part] = Path("part/parts").iterdir()
    kept = (part / "measurements.jsonl").read_bytes()
    assert run(experiment, "part") == 4
    assert Path("part/measurements.jsonl").read_bytes().startswith(kept)
    assert records_of("part") == records_of("whole")


@pytest.mark.parametrize("kept", [0, 2, 3, 5])
def test_a_torn_line_is_measured_again_and_nothing_else(experiment, kept):
    run(experiment, "run")
    whole, file = records_of("run"), Path("run/measurements.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
    assert run(experiment, "run") == 6 - kept
    assert records_of("run") == whole


def test_a_run_of_version_1_is_read_shown_and_continued_to_the_same(experiment, capsys):
    run(experiment, "whole")
    shutil.copytree("whole", "old")
    head, file = json.loads(Path("old/run.json").read_text()), Path("old/measurements.jsonl")
    Path("old/run.json").write_text(json.dumps(head | {"schema_version": 1}))
    file.write_text("".join(file.read_text().replace('"loss"', '"value"').splitlines(keepends=True)[:4]))
    assert records_of("old") == records_of("whole")[:4]
    assert call("report", "old", capsys=capsys)[0] == 0
    assert f"{records_of('whole')[3].loss:.6f}" in Path("old/report.html").read_text()
    assert run(experiment, "old") == 2
    assert records_of("old") == records_of("whole")
    assert file.read_text().count('"value"') == 4, "what was written stays"
    assert json.loads(Path("old/run.json").read_text()) == head


def test_a_complete_run_loads_nothing(experiment, monkeypatch):
    run(experiment, "run")
    monkeypatch.setattr(ToyExperiment, "make_task", lambda *_: pytest.fail("nothing has to be loaded"))
    assert run(experiment, "run") == 0


def test_another_configuration_and_other_data_are_refused(experiment):
    run(experiment, "run")
    with pytest.raises(UsageError, match=r"another configuration .*seeds"):
        run(dataclasses.replace(experiment, seeds=(1,)), "run")
    Path("run/measurements.jsonl").unlink()
    Path(experiment.source).write_text("three")
    with pytest.raises(UsageError, match="the data of run have changed since it began"):
        run(experiment, "run")


def test_no_data_leaves_nothing_behind(experiment, tmp_path):
    with pytest.raises(UsageError, match="no toy data"):
        run(dataclasses.replace(experiment, source="missing"), tmp_path / "deep" / "run")
    assert not (tmp_path / "deep").exists()


def test_one_unit_that_fails_stops_no_other(experiment):
    wild = dataclasses.replace(experiment, rates=(1e300, 0.01))
    with pytest.raises(UsageError, match=r"on the sgd trajectory, step \d \(lr 1e\+300\): it has diverged"):
        run(wild, "run")
    assert {record.trajectory for record in records_of("run")} == {"sgd", "adam"}
    assert [record.step for record in records_of("run") if record.trajectory == "adam"] == [1, 4, 6]


def test_several_processes_measure_the_same(experiment):
    two = dataclasses.replace(experiment, seeds=(0, 1))
    assert run(two, "one") == run(two, "two", processes=2) == 12
    one, other = (sorted(map(repr, records_of(name))) for name in ("one", "two"))
    assert one == other
    with pytest.raises(UsageError, match="at least 1 is needed"):
        run(two, "three", processes=0)


def test_progress_grows_to_the_end(experiment):
    told = []
    run(experiment, "run", lambda part, text: told.append((part, text)))
    parts = [part for part, _ in told]
    assert parts == sorted(parts)
    assert (parts[0], parts[-1]) == (0.0, 1.0)
    assert any("sgd trajectory, step 4: the loss" in text for _, text in told)
    Path("run/measurements.jsonl").write_bytes(Path("run/measurements.jsonl").read_bytes().splitlines(True)[0])
    told.clear()
    run(experiment, "run", lambda part, text: told.append((part, text)))
    assert [part for part, _ in told] == sorted(part for part, _ in told)
