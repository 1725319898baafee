"""The calibration: balanced draws, resumable jobs, trainings by a stand-in for the probe, and errors of known cases."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from stepscope.calibration import study, training
from stepscope.calibration.analysis import BY_RATIO, Tried, calibrated, cases_of, errors_of
from stepscope.calibration.fresh_tasks import FRESH
from stepscope.calibration.jobs import ALL_TASKS, RATES, SETS, Curve, Job, curves
from stepscope.calibration.splits import splits
from stepscope.calibration.tables import tables_of
from stepscope.calibration.tasks import TASKS
from stepscope.calibration.training import TrainingRecord, train
from stepscope.errors import UsageError
from stepscope.judging import judge_rate
from stepscope.runs import StepRecord


class StandIn:
    """Measures every step on its own batch, as the formulas say."""

    def __init__(self, model, optimizers, loss_fn, steps):
        self.model, self.optimizers, self.loss, self.steps = model, optimizers, loss_fn, steps
        self.begun, self.records = None, []

    def loss_fn(self, model, batch):
        self.finish()
        before = [p.detach().clone() for p in model.parameters()]
        loss = self.loss(model, batch)
        gradient = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        self.begun = batch, before, gradient, loss.item()
        return loss

    def finish(self):
        """The step has been made."""
        if self.begun is None:
            return
        (batch, before, gradient, loss), self.begun = self.begun, None
        moved = zip(self.model.parameters(), before, gradient, strict=True)
        slope = sum(float(((p.detach() - x).double() * g).sum()) for p, x, g in moved)
        with torch.no_grad():
            change = float(self.loss(self.model, batch)) - loss
        rates = tuple(group["lr"] for optimizer in self.optimizers for group in optimizer.param_groups)
        place = {"trajectory": "own", "seed": 0, "step": len(self.records) + 1, "steps": self.steps}
        terms = {"batch_loss": loss, "batch_change": change, "batch_slope": slope}
        self.records.append(StepRecord(**place, **terms, lr=rates).as_json())

    @property
    def step_records(self):
        self.finish()
        return self.records


@contextmanager
def stand_in(model, optimizers, loss_fn, batch, steps):
    yield StandIn(model, optimizers, loss_fn, steps)


@pytest.fixture
def short(monkeypatch):
    """Trainings of few steps, on few held-out examples."""
    monkeypatch.setattr(training, "HELD_OUT", 8)
    for name, task in ALL_TASKS.items():
        monkeypatch.setitem(ALL_TASKS, name, replace(task, steps=40 if name == "regression" else 3))


def test_any_part_of_the_plan_is_balanced_over_tasks():
    plan = curves()
    assert len(plan) == len(set(plan)) == 1200
    assert set(Counter(curve.task for curve in plan[:30]).values()) == {3}
    for field in ("optimizer", "schedule", "seed", "variant"):
        counts = Counter(getattr(curve, field) for curve in plan[:200])
        whole = Counter(getattr(curve, field) for curve in plan)
        assert all(abs(counts[value] / 200 - whole[value] / 1200) < 0.1 for value in whole)


def test_rates_are_a_root_of_ten_apart():
    rates = [job.rate for job in curves()[0].jobs()]
    assert [round(math.log10(b / a), 2) for a, b in itertools.pairwise(rates)] == [0.5] * (len(RATES) - 1)


@pytest.mark.parametrize("task", [name for name in TASKS if not name.startswith("fine")])
@pytest.mark.parametrize(("optimizer", "variant"), [("muon", "plain"), ("lion", "dropout"), ("sgd", "bfloat16")])
def test_each_task_trains(task, optimizer, variant, short):
    """At a small rate the loss stays finite; each step is measured; what is stored is read back."""
    record = train(Job(Curve(task, optimizer, "cosine", 4, variant, 0), 1e-4), stand_in)
    assert math.isfinite(record.final)
    assert len(record.probed) == record.steps == ALL_TASKS[task].steps
    assert 3e4 < record.parameters < 3e6
    assert TrainingRecord.from_json(json.loads(json.dumps(record.as_json()))) == record


@pytest.mark.parametrize("task", [name for name in FRESH if name not in ("continued", "fine-tuned longer")])
@pytest.mark.parametrize(("optimizer", "variant"), [("muon", "dropout"), ("adamw", "bfloat16")])
def test_each_fresh_task_trains(task, optimizer, variant, short):
    record = train(Job(Curve(task, optimizer, "wsd", 4, variant, 0), 1e-4), stand_in)
    assert math.isfinite(record.final)
    assert len(record.probed) == record.steps
    assert 5e3 < record.parameters < 5e5


def test_other_tasks_have_a_plan_of_their_own():
    assert len(ALL_TASKS) == sum(map(len, SETS.values()))
    for name, tasks in SETS.items():
        plan = curves(name)
        assert {curve.task for curve in plan} == {curve.task for curve in plan[: len(tasks)]} == set(tasks)
    assert min(task.steps for task in SETS["long"].values()) >= 2000


def test_a_training_is_repeatable_and_finds_its_verdict(short):
    """A hundredth of the middle rate is too small, a hundred times it too large or thrown off, whatever the task."""
    curve = Curve("regression", "sgd", "constant", 64, "plain", 0)
    slow, again, fast = (train(curve.jobs()[place], stand_in) for place in (0, 0, -1))
    assert slow == again
    assert judge_rate(slow.step_records()).kind == "step_too_short"
    assert judge_rate(fast.step_records()).kind in ("step_too_long", "cannot_tell")


def test_trainings_that_were_done_are_not_done_again_and_claimed_ones_are_left(tmp_path, monkeypatch, short):
    filelock = pytest.importorskip("filelock")
    done = []
    monkeypatch.setattr(study, "train", lambda job, attach: done.append(job.name) or made(job, 1.0))
    first = curves()[0].jobs()
    (tmp_path / "trainings").mkdir()
    with filelock.FileLock(tmp_path / "trainings" / f"{first[0].name}.lock"):
        records, count = study.run_study(tmp_path, 2, lambda part, text: None)
    assert (len(records), count) == (17, 17)
    records, count = study.run_study(tmp_path, 2, lambda part, text: None)
    assert (len(records), count, done[-1]) == (18, 1, first[0].name)
    assert study.read_study(tmp_path / "trainings.jsonl") == records
    with pytest.raises(UsageError, match="at least 1"):
        study.run_study(tmp_path, 0, lambda part, text: None)
    with pytest.raises(UsageError, match="cannot read"):
        study.read_study(tmp_path / "nothing")


# Errors, from made trainings


def made(job, ratio, final=1.0):
    """A training whose steps bring about a part of the predicted change: a hundred times the loss, or half of it."""
    size = 1.0 if ratio < 0.5 else 1 / 200
    slopes = [(step, -size * (1 + step % 3)) for step in range(5, 25)]
    terms = [(float(step), 1.0, 2.0, ratio * slope, slope, 0.0) for step, slope in slopes]
    return TrainingRecord(**vars(job.curve), rate=job.rate, parameters=1, steps=100, final=final, probed=tuple(terms))


def made_curve(curve, ratios, best=4):
    jobs = zip(curve.jobs(), ratios, strict=True)
    return [made(job, ratio, 1 + abs(place - best) / 10) for place, (job, ratio) in enumerate(jobs)]


IDEAL = (0.999, 0.998, 0.99, 0.95, 0.85, 0.7, 0.45, 0.3, 0.1)
MISLED = (0.3, 0.999, 0.95, 0.9, 0.3, 0.999, 0.9, 0.3, 0.1)


def test_errors_of_known_cases():
    one, two = Curve("bytes", "sgd", "cosine", 4, "plain", 0), Curve("words", "sgd", "cosine", 4, "plain", 0)
    errors = errors_of(cases_of([*made_curve(one, IDEAL), *made_curve(two, MISLED)]))
    assert errors.right == (9, 12)
    assert (errors.small_found, errors.large_found) == ((1, 2), (1, 2))
    assert (errors.best_short, errors.best_long) == ((0, 2), (1, 2))
    assert errors.inverted == (2, 16)


def test_a_curve_without_its_best_rate_inside_tells_nothing():
    curve = Curve("bytes", "sgd", "cosine", 4, "plain", 0)
    assert cases_of(made_curve(curve, IDEAL, best=0)) == cases_of(made_curve(curve, IDEAL)[1:]) == []
    assert [case.distance for case in cases_of(made_curve(curve, IDEAL, best=3))] == list(range(-3, 6))


def test_confidence_counts_what_was_said():
    table = calibrated(cases_of(made_curve(Curve("bytes", "sgd", "cosine", 4, "plain", 0), IDEAL)))
    assert table.verdicts["straight"] == {"5": (0, 0), "10": (0, 0), "20": (3, 3)}
    assert table.verdicts["bent"]["20"] == table.verdicts["healthy"]["20"] == (3, 3)
    assert table.trainings == {"SGD": 9}


def test_what_is_said_by_the_outlook_is_counted_by_itself():
    """A fall by two fifths of the loss is predicted at each rate, and half of it comes true."""
    slow = [
        replace(record, probed=tuple((step, 1.0, 2.0 - step / 250, -ratio / 125, -1 / 125, 0.0) for step in steps))
        for record, ratio in zip(made_curve(curves()[0], IDEAL), IDEAL, strict=True)
        for steps in [[float(step) for step in range(5, 25)]]
    ]
    cases = cases_of(slow)
    table = calibrated(cases)
    assert table.verdicts["straight"]["20"] == (3, 3)
    assert table.verdicts["little_ahead"]["20"] == (1, 2)
    alone = Tried("alone", BY_RATIO)
    assert (errors_of(cases).best_short, errors_of(cases, alone).best_short) == ((1, 1), (0, 1))


def test_thresholds_are_fixed_on_half_of_the_tasks_all_ways():
    records = []
    for task in list(TASKS)[:4]:
        records += made_curve(Curve(task, "sgd", "cosine", 4, "plain", 0), IDEAL)
    found = list(splits(cases_of(records)))
    assert len(found) == 6
    assert all(split.errors.small_found == split.errors.large_found == (2, 2) for split in found)
    assert all(0.95 <= split.fixed[0] < 0.99 and 0.45 < split.fixed[1] <= 0.7 for split in found)


@pytest.mark.parametrize("tasks", SETS)
def test_each_stored_training_is_there_once_and_each_curve_is_whole(tasks):
    """Of a curve with a training twice nothing would be counted."""
    name = "trainings" if tasks == "study" else tasks
    records = study.read_study(Path(__file__).parents[2] / "docs" / "calibration" / f"{name}.jsonl")
    found = study.complete_curves(records)
    assert len(records) == len(RATES) * len(found) > 0
    assert all([record.rate for record in of] == [job.rate for job in curve.jobs()] for curve, of in found.items())
    assert {curve.task for curve in found} <= set(SETS[tasks])


def test_tables_of_a_study_and_of_nothing():
    curve = Curve("bytes", "sgd", "cosine", 4, "plain", 0)
    full, empty = tables_of(made_curve(curve, IDEAL)), tables_of([])
    assert full[0].rows[0][:4] == ("1/100", "1", "0.999", "100%")
    assert [row[0] for row in full[0].rows] == ["1/100", "1/30", "1/10", "1/3", "1", "3", "10", "30", "100"]
    for tables in (full, empty):
        assert all(len(row) == len(table.headers) for table in tables for row in table.rows)
