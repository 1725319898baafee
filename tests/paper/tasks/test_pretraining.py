"""Pretraining on the spot: its rule, that it is kept, and that it sees nothing of what its task sees."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from made_data import data_of
from traces import equal

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from stepscope.errors import UsageError
from stepscope.paper.tasks import code, sentiment, text, translation
from stepscope.paper.tasks.batching import initialized
from stepscope.paper.tasks.catalog import TASKS
from stepscope.paper.tasks.pretraining import Lesson, Pretraining, pretrained_here, pretraining_told

SETTINGS = Pretraining(steps=20, batch_size=4, lr=0.1)
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


class Line(nn.Module):
    """Least squares, with a head that isn't kept."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x, y):
        return SimpleNamespace(loss=(self.head(self.body(x)) - y).square().mean())


def batches(seed):
    for number in itertools.count(seed % 7):
        yield {"x": X + number % 5, "y": X[:, :1]}


LESSON = Lesson(
    title="lines",
    model=lambda seed: initialized(Line, seed),
    kept=lambda model: model.body,
    batches=batches,
    held_out={"x": X, "y": X[:, :1]},
    optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0),
    digest="some",
)


def pretrain(seed=2, lesson=LESSON, **changes):
    return pretrained_here(lesson, replace(SETTINGS, **changes), seed)


def test_the_rate_rises_in_a_tenth_of_the_steps_and_falls_to_zero(cpu_only):
    rates = []

    class Spy(torch.optim.SGD):
        def step(self):
            rates.append(self.param_groups[0]["lr"])
            super().step()

    # In float64: the rounding of float32 is another one on each processor, and twenty steps enlarge it.
    def in_float64(batch):
        return {name: values.double() for name, values in batch.items()}

    drawn = []
    lesson = replace(
        LESSON,
        model=lambda seed: drawn.append(seed) or LESSON.model(seed).double(),
        batches=lambda seed: map(in_float64, batches(seed)),
        held_out=in_float64(LESSON.held_out),
        optimizer=lambda parameters: Spy(parameters, lr=0.0),
    )
    learned = pretrain(lesson=lesson)
    assert rates == pytest.approx([0.05, 0.1 * 0.95, *(0.1 * (1 - step / 20) for step in range(2, 20))])
    model = LESSON.model(drawn[0]).double()
    before = model(**lesson.held_out).loss.item()
    for rate, batch in zip(rates, lesson.batches(drawn[0]), strict=False):
        gradients = torch.autograd.grad(model(**batch).loss, list(model.parameters()))
        with torch.no_grad():
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p -= rate * gradient
    torch.testing.assert_close(learned.weights, dict(model.body.state_dict()))
    expected = {"steps": 20, "loss_before": before, "loss_after": model(**lesson.held_out).loss.item()}
    assert learned.record == pytest.approx(expected, rel=1e-9)
    assert not any(tensor.requires_grad for tensor in learned.weights.values())


@pytest.fixture
def cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def same(first, second):
    return equal(first.weights, second.weights) and first.record == second.record


def never(seed):
    pytest.fail("it is in the cache")


def test_it_is_kept_for_each_setting_and_seed(cache):
    first = pretrain()
    assert same(pretrain(lesson=replace(LESSON, batches=never)), first)
    [path] = (cache / "pretrained").glob("*.safetensors")
    for other in ({"steps": 8}, {"lr": 0.06}, {"seed": 3}):
        assert not equal(pretrain(**other).weights, first.weights)
    pretrain(examples=9)
    pretrain(lesson=replace(LESSON, digest="other"))
    assert len(list((cache / "pretrained").glob("*.safetensors"))) == 6
    path.write_bytes(path.read_bytes()[:-1] + b"\1")  # damage that the format itself doesn't show
    assert same(pretrain(), first)
    assert same(pretrain(lesson=replace(LESSON, batches=never)), first)


def test_no_global_randomness_and_gradients_may_be_off():
    first = pretrain()
    before = torch.get_rng_state()
    with torch.no_grad():
        other = pretrain(lesson=replace(LESSON, digest="same batches, other key"))
    assert torch.equal(torch.get_rng_state(), before)
    assert same(first, other)


def test_without_a_cache(tmp_path, monkeypatch):
    first = pretrain()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPSCOPE_CACHE", str(tmp_path / "file"))
    assert same(pretrain(), first)


def test_interrupted_it_leaves_nothing(cache):
    def stopped(seed):
        yield next(batches(seed))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(lesson=replace(LESSON, batches=stopped))
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_it_is_told_how_far_it_is(cache):
    told = []
    with pretraining_told(lambda step, steps: told.append((step, steps))):
        pretrain()
    assert told == [(step, 20) for step in range(20)]
    pretrain(seed=3)
    assert len(told) == 20, "told inside alone"


def test_divergence_is_said(cache):
    with pytest.raises(UsageError, match=r"pretraining diverged at step \d+: lower its lr, which is 1e\+30"):
        pretrain(lr=1e30)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


MODULES = {"translation": translation, "code": code, "sentiment": sentiment}


def repeating(kind, data):
    """Data that say a part of it twice, so that a half of it isn't simply other than the rest."""
    if kind == "code":
        line = "import os, sys  # a line of every program\n"
        return line * 40 + data + line * 40
    if kind == "translation":
        return data + "\n" + "\n".join(f"{line} encore" for line in data.splitlines()[::2])
    texts = [line.partition("\t")[2] + " and so on" * 30 for line in data.splitlines()[::2]]
    # The same where they are cut.
    return "\n".join([data, *(f"bad\t{text} no" for text in texts), *(f"good\t{text} yes" for text in texts)])


@pytest.fixture(params=MODULES)
def given(request, tmp_path, monkeypatch):
    """What a text task gives to train on, and to pretrain on."""
    kind, caught = request.param, {}
    real = text.text_task

    def spy(name, config, examples, **settings):
        if settings["lesson"]:
            caught.update(own=examples, lesson=settings["lesson"])
        return real(name, config, examples, **settings)

    monkeypatch.setattr(MODULES[kind], "text_task", spy)
    config = replace(TASKS[kind].scales["smoke"], start="pretrained")
    source = Path(data_of(kind, tmp_path))
    source.write_text(repeating(kind, source.read_text()))
    caught["task"] = TASKS[kind].make(config, source=str(source))
    caught["random"] = TASKS[kind].make(replace(config, start="random"), source=str(source))
    return kind, caught


def test_no_example_of_the_task_is_pretrained_on(given):
    kind, caught = given
    own = {tuple(side) for example in caught["own"] for side in example if isinstance(side, list)}
    learned = {tuple(side) for example in caught["lesson"].examples for side in parts(kind, example)}
    assert len(own) > 15
    assert len(learned) > 15
    assert own.isdisjoint(learned)


def parts(kind, example):
    return [side for side in example if side] if kind == "translation" else [example]


def test_both_starts_train_on_the_same_with_other_weights(given):
    _, caught = given
    first, second = caught["task"], caught["random"]
    pairs = zip(first.training_batches(), second.training_batches(), strict=True)
    assert all(equal(one, other) for one, other in itertools.islice(pairs, 20))
    assert all(map(equal, first.eval_batches, second.eval_batches))
    assert not equal(first.model.base_model.state_dict(), second.model.base_model.state_dict())
    assert second.initialisation == "random"
    assert second.pretraining is None


def test_how_far_it_was_pretrained_is_told(given):
    _, caught = given
    task = caught["task"]
    title = caught["lesson"].title
    assert task.initialisation == f"pretrained: 16 steps of {title}"
    assert task.pretraining["steps"] == 16
    assert task.pretraining["loss_after"] < task.pretraining["loss_before"]
    assert task.seeded(1).pretraining["loss_after"] != task.pretraining["loss_after"]
