"""The convergence experiment end to end on a few sentences: complete, resumable, and fair to all optimizers."""

import dataclasses
import json
import math
import random
import re
from fractions import Fraction
from operator import itemgetter

import pytest
import torch

from made_data import data_of
from stepscope import Objective, UsageError
from stepscope.paper.experiments import convergence as module
from stepscope.paper.experiments.compared_optimizers import RULES, SETTINGS, contenders
from stepscope.paper.experiments.convergence import SEARCH_SEED, Training, convergence_experiment
from stepscope.paper.experiments.jobs import perform, run_all
from stepscope.paper.experiments.jobs import run as run_experiment
from stepscope.paper.experiments.search import Search
from stepscope.paper.records import LossRecord
from stepscope.paper.tasks.catalog import TASKS
from stepscope.runs import read_run

OPTIMIZERS = ("sgd", "sgd clip 10%")
SEARCH = Search(rates=3, extensions=1, rungs=((Fraction(1, 2), 2), (Fraction(1), 1)), climbs=1)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {kind: data_of(kind, folder) for kind in ("translation", "code")}


@pytest.fixture(scope="module")
def experiment(sources):
    whole = convergence_experiment("smoke", sources=sources, seeds=(0, 1))
    return dataclasses.replace(whole, optimizers=OPTIMIZERS, steps=4, every=2, search=SEARCH)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "convergence"
    return out, run_experiment(experiment, out)


def losses(records, **wanted):
    return {
        (r.task, r.optimizer, r.phase, r.lr, r.seed, r.step): r.loss
        for r in records
        if all(getattr(r, key) == value for key, value in wanted.items())
    }


@pytest.mark.slow
def test_every_optimizer_is_searched_and_trained_for_each_seed(run, experiment):
    out, count = run
    head, records = read_run(out, LossRecord)
    assert count == len(records) > 0
    finals = {(r.task, r.optimizer, r.seed, r.step) for r in records if r.phase == "final"}
    assert finals == {
        (t, o, s, k) for t in ("translation", "code") for o in OPTIMIZERS for s in (0, 1) for k in (0, 2, 4)
    }
    assert {r.seed for r in records if r.phase == "search"} == {SEARCH_SEED}
    assert {r.original for r in records if r.optimizer == "sgd clip 10%"} == {"sgd"}
    assert set(head["context"]["tasks"]) == {"translation", "code"}
    assert head["context"]["tasks"]["code"]["model"]["title"].startswith("GPT-Neo of ")
    assert all(len(task["source"]["sha256"]) == 64 for task in head["context"]["tasks"].values())


def test_finals_use_the_rate_that_was_lowest_after_a_full_training(run, experiment):
    _, records = read_run(run[0], LossRecord)
    for task in experiment.tasks:
        for optimizer in OPTIMIZERS:
            chosen = [r for r in records if (r.task, r.optimizer) == (task, optimizer)]
            ends = {r.lr: r.loss for r in chosen if r.phase == "search" and r.step == 4}
            assert {r.lr for r in chosen if r.phase == "final"} == {min(ends, key=ends.get)}


def test_all_start_from_the_same_weights_of_a_seed(run):
    _, records = read_run(run[0], LossRecord)
    starts = {}
    for r in records:
        if r.step == 0:
            starts.setdefault((r.task, r.seed), set()).add(r.loss)
    assert len(starts) == 6
    assert all(len(found) == 1 for found in starts.values())
    assert len({next(iter(found)) for found in starts.values()}) == 6


def test_a_final_is_what_training_by_hand_gives(run, experiment, sources):
    _, records = read_run(run[0], LossRecord)
    task = TASKS["code"].make(experiment.tasks["code"], seed=1, source=sources["code"])
    lr = next(r.lr for r in records if (r.task, r.optimizer, r.phase) == ("code", "sgd clip 10%", "final"))
    optimizer = RULES["sgd clip 10%"].build(list(task.model.parameters()), lr)
    batches = task.training_batches()
    for _ in range(4):
        optimizer.zero_grad()
        task.model(**next(batches)).loss.backward()
        optimizer.step()
    expected = Objective(task.model, None, task.eval_batches).loss()
    found = losses(records, task="code", optimizer="sgd clip 10%", phase="final", seed=1, step=4)
    assert list(found.values()) == [pytest.approx(expected, rel=1e-6)]


@pytest.mark.parametrize("kept", [7, 45])
def test_a_run_that_was_cut_off_goes_on_to_the_same_losses(run, experiment, tmp_path, kept):
    """In the first search, while jobs beside it came to their end, or later, with jobs that had not begun."""
    out = tmp_path / "cut"
    out.mkdir()
    (out / "run.json").write_bytes((run[0] / "run.json").read_bytes())
    lines = (run[0] / "measurements.jsonl").read_bytes().splitlines(keepends=True)
    job = itemgetter("task", "optimizer")
    beside = [line for line in lines[kept:] if kept == 7 and job(json.loads(line)) != job(json.loads(lines[0]))]
    left = [*lines[:kept], *beside]
    (out / "measurements.jsonl").write_bytes(b"".join(left) + b'{"torn": ')
    assert run_experiment(experiment, out) == len(lines) - len(left)
    assert losses(read_run(out, LossRecord)[1]) == losses(read_run(run[0], LossRecord)[1])
    assert beside or (out / "measurements.jsonl").read_bytes() == b"".join(lines), "in the same order too"


def test_a_training_that_diverges_is_recorded_and_not_chosen(experiment, tmp_path, monkeypatch):
    wild = dataclasses.replace(RULES["sgd"], first_lr=1e12)
    monkeypatch.setitem(RULES, "sgd", wild)
    alone = dataclasses.replace(experiment, optimizers=("sgd",), tasks={"code": experiment.tasks["code"]})
    run_experiment(alone, tmp_path / "run")
    records = read_run(tmp_path / "run", LossRecord)[1]
    lost = [r for r in records if r.diverged]
    assert lost
    assert all(r.loss is None for r in lost)
    assert {r.seed for r in records if r.phase == "final" and r.step == 4} == {0, 1}
    assert run_experiment(alone, tmp_path / "run") == 0


def test_a_search_that_diverged_stays_so_when_it_is_repeated(experiment, tmp_path):
    """A loss that was too high at a rung's end alone isn't looked at there again: the resumed run has to remember."""
    alone = dataclasses.replace(experiment, optimizers=("sgd",), tasks={"code": experiment.tasks["code"]})
    unit, task = alone.units()[0], alone.make_task("code", alone.sources["code"])
    known = []
    for lr in (0.25, 1.0, 4.0, 16.0):
        training = Training(alone, unit, task, "search", lr, SEARCH_SEED)
        training.diverged = True
        known += training.advance(2, lambda: None)
    found = [record for records in alone.measure(unit, task, known, lambda *_: None) for record in records]
    again = [r for r in found if r.phase == "search" and r.step == 4 and r.lr in (0.25, 1.0)]
    assert len(again) == 2
    assert all(record.diverged for record in again)


def test_a_rate_that_diverges_on_a_seed_is_lowered_for_all(experiment, tmp_path, monkeypatch):
    """The weights of seed 1 are lost at once above a rate that the search knows nothing of."""
    limit = {}

    class Fragile(module.Training):
        def _record(self, step, loss):
            record = super()._record(step, loss)
            if self.phase == "final":
                best = limit.setdefault(unit_of(record), self.lr)
                if self._seed == 1 and step and self.lr > best / 3:
                    self.diverged = True
                    return dataclasses.replace(record, loss=None, diverged=True)
            return record

    def unit_of(record):
        return record.task, record.optimizer

    monkeypatch.setattr(module, "Training", Fragile)
    alone = dataclasses.replace(experiment, optimizers=("sgd",), tasks={"code": experiment.tasks["code"]})
    run_experiment(alone, tmp_path / "run")
    records = read_run(tmp_path / "run", LossRecord)[1]
    finals = [r for r in records if r.phase == "final"]
    best = max(r.lr for r in finals)
    assert {r.lr for r in finals} == {best, best / 2, best / 4}
    assert {(r.seed, r.diverged) for r in finals if r.lr == best / 4} == {(0, False), (1, False)}
    assert run_experiment(alone, tmp_path / "run") == 0


class Foretold:
    """A training whose losses a formula gives: the best rate is 1/4, seed 1 bears half of it, and nothing bears 16."""

    def __init__(self, experiment, unit, task, phase, lr, seed, *, bracketed=None):
        self.lr, self.phase, self.diverged, self._step = lr, phase, False, 0
        self._every, self._limit = experiment.every, 0.15 if seed == 1 else 10.0
        self._facts = {"phase": phase, "lr": lr, "seed": seed, "bracketed": bracketed, "task": unit.task}
        self._facts |= {"run": f"{phase} {lr} {seed}", "optimizer": unit.optimizer}

    def advance(self, end, stepped):
        records = [] if self._step else [self._record(0, 20.0)]
        while self._step < end and not self.diverged:
            self._step += 1
            if self._step % self._every == 0 or self._step == end:
                self.diverged = self.lr > self._limit
                loss = math.log2(self.lr * 4) ** 2 + 1 / self._step
                records += [] if self.diverged else [self._record(self._step, loss)]
        return [*records, self._record(end, None)] if self.diverged else records

    def _record(self, step, loss):
        return LossRecord(**self._facts, step=step, loss=loss, diverged=loss is None)


@pytest.mark.parametrize("search", [SEARCH, Search()])
def test_what_is_trained_next_is_a_function_of_the_records(search, monkeypatch):
    """Whoever looks for a rate may die after any record, also amid those of one training: the rest is the same."""
    monkeypatch.setattr(module, "Training", Foretold)
    whole = convergence_experiment("smoke", seeds=(0, 1, 2))
    experiment = dataclasses.replace(whole, optimizers=("sgd",), steps=8, every=2, search=search)
    unit = experiment.units()[0]

    def rest(known):
        return [r for records in experiment.measure(unit, object(), known, lambda *_: None) for r in records]

    records = rest([])
    assert {r.lr for r in records if r.phase == "final"} == {0.25, 0.125}, "seed 1 doesn't bear the best"
    assert any(r.diverged for r in records if r.phase == "search")
    assert not experiment.missing(unit, records)
    for count in range(len(records)):
        assert experiment.missing(unit, records[:count])
        assert rest(records[:count]) == records[count:], count


@pytest.mark.parametrize("search", [SEARCH, Search()])
@pytest.mark.parametrize("seed", range(5))
def test_trainings_in_any_order_by_any_process_are_those_of_one(search, seed, monkeypatch):
    """Some by themselves, each dying now and then, and some by a process that makes them all and dies."""
    monkeypatch.setattr(module, "Training", Foretold)
    whole = convergence_experiment("smoke", seeds=(0, 1, 2))
    experiment = dataclasses.replace(whole, optimizers=("sgd",), steps=8, every=2, search=search)
    unit, draw = experiment.units()[0], random.Random(seed)

    def made(one, known):
        return [r for records in experiment.measure(one, object(), known, lambda *_: None) for r in records]

    alone, known, turns = made(unit, []), [], 0
    while left := [one for one in experiment.pieces(unit, known) if experiment.missing(one, known)]:
        one = unit if draw.random() < 0.2 else draw.choice(left)
        found, turns = made(one, known), turns + 1
        known += found[: draw.randint(1, min(len(found), 10))]
    assert turns > 5
    assert not experiment.missing(unit, known)
    assert experiment.in_order(known) == alone


@pytest.mark.slow
def test_trainings_as_jobs_of_their_own_make_the_files_of_one_process(run, experiment, tmp_path):
    out, draw = tmp_path / "convergence", random.Random(0)

    def execute(jobs, receive):
        for number, job in draw.sample(list(enumerate(jobs)), len(jobs)):
            perform(job, lambda part, text, number=number: receive(number, (part, text)))

    def files(folder):
        names = ("run.json", "measurements.jsonl")
        return [re.sub(r'"created": "[^"]*"', "", (folder / name).read_text()) for name in names]

    told = []
    gained, failures = run_all({out: experiment}, execute, lambda part, _: told.append(part), apart=True)
    assert (gained, failures) == (run[1], [])
    assert files(out) == files(run[0])
    assert told == sorted(told)
    assert told[-1] <= 1
    assert run_all({out: experiment}, execute, apart=True) == (0, [])


def test_the_codes_setting_gives_no_mask(sources):
    experiment = convergence_experiment("smoke", settings="code", sources=sources)
    task = experiment.make_task("translation", sources["translation"]).seeded(5)
    assert not experiment.masked
    for batch in (next(task.training_batches()), *task.eval_batches):
        assert set(batch) == {"input_ids", "labels"}
    masked = TASKS["translation"].make(experiment.tasks["translation"], seed=5, source=sources["translation"])
    for name, value in next(masked.training_batches()).items():
        if name != "attention_mask":
            assert torch.equal(next(task.training_batches())[name], value)


def test_settings_are_what_they_say():
    assert set(contenders("text")) - set(contenders("code")) == {
        "adam clip 50% (gradient)",
        "adafactor clip 50% (gradient)",
    }
    assert {"acclip", "sgd clip by norm"} <= set(contenders("ours"))
    for names in map(contenders, SETTINGS):
        assert all(RULES[name].original in (None, *names) for name in names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": "huge"}, "unknown scale 'huge'"),
        ({"scale": "smoke", "settings": "mine"}, "unknown settings 'mine': choose text, code or ours"),
        ({"scale": "smoke", "tasks": ("poetry",)}, "tasks are poetry: choose of translation, code"),
        ({"scale": "smoke", "tasks": ()}, "tasks are none"),
        ({"scale": "smoke", "start": "afresh"}, "start is 'afresh': choose pretrained or random"),
        ({"scale": "smoke", "seeds": (SEARCH_SEED,)}, "is the one that learning rates are looked for with"),
        ({"scale": "smoke", "seeds": (0, 0)}, "give different whole numbers"),
        ({"scale": "smoke", "sources": {"images": "x"}}, "a source is given for images"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UsageError, match=message):
        convergence_experiment(**arguments)


def test_jobs_take_the_source_that_was_found(experiment, sources, tmp_path, monkeypatch):
    """What `auto` finds is settled once: a later answer would be other data than run.json says."""
    asked = []
    real = TASKS["code"].make

    def make(config, *, seed, source):
        asked.append(source)
        found = real(config, seed=seed, source=sources["code"])
        named = dataclasses.replace(found.source, name="standard-library")
        return dataclasses.replace(found, source=named)

    monkeypatch.setitem(TASKS, "code", dataclasses.replace(TASKS["code"], make=make))
    config = experiment.tasks["code"]
    quick = Search(rates=1, extensions=0, rungs=((Fraction(1), 1),), climbs=0)
    auto = dataclasses.replace(
        experiment, tasks={"code": config}, sources={"code": "auto"}, optimizers=("sgd",), steps=2, search=quick
    )
    run_experiment(auto, tmp_path / "run")
    assert asked == ["auto"]
    (tmp_path / "run" / "measurements.jsonl").unlink()
    run_experiment(auto, tmp_path / "run")
    assert asked == ["auto", "standard-library"]
