"""The probe in a training loop: it measures the truth and changes nothing, whatever goes wrong."""

import logging
import math
import os
import random
import re
import shutil
import time

import pytest
import torch
from torch import nn

import stepscope
from classes import data, loss_fn
from stepscope import Objective, Probe, UsageError
from stepscope.probe import measurer as module
from stepscope.runs import DirectionRecord, read_run
from traces import fingerprint, outcome, same


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 3))


OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p),
}


def train(optimizer_of, attach=None, *, steps=12, scaler=False, closure=False, accumulate=1, scheduled=False):
    """Trains and gives the whole state at the end; `attach(model, optimizer)` puts a probe on."""
    model = net().train()
    optimizer = optimizer_of(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20) if scheduled else None
    scale = torch.amp.GradScaler("cpu", init_scale=64.0) if scaler else None
    torch.manual_seed(5)
    probe = attach(model, optimizer) if attach else None
    for index, batch in enumerate(data(steps * accumulate)):

        def backward(batch=batch):
            loss = loss_fn(model, batch) / accumulate
            (scale.scale(loss) if scale else loss).backward()
            return loss

        if index % accumulate == 0:
            optimizer.zero_grad()
        if closure:

            def fresh(batch=batch):
                optimizer.zero_grad()
                loss = loss_fn(model, batch)
                loss.backward()
                return loss

            optimizer.step(fresh)
            continue
        backward()
        if (index + 1) % accumulate:
            continue
        if scale:
            scale.step(optimizer)
            scale.update()
        else:
            optimizer.step()
        if schedule:
            schedule.step()
    return outcome(model, optimizer), probe


def attached(**settings):
    given = {"every": 3, "max_overhead": None, "quiet": True, **settings}
    return lambda model, optimizer: Probe(model, optimizer, loss_fn, data(2, seed=9), **given)


LOOPS = {
    "plain": {},
    "scaler": {"scaler": True},
    "closure": {"closure": True},
    "accumulation": {"accumulate": 3},
    "scheduler": {"scheduled": True},
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_training_is_bit_identical(name, loop):
    plain, _ = train(OPTIMIZERS[name], **LOOPS[loop])
    probed, probe = train(OPTIMIZERS[name], attached(), **LOOPS[loop])
    assert same(plain, probed)
    assert {r["step"] for r in probe.records} == {3, 6, 9, 12}
    assert len(probe.records) == 4 * 4


def test_it_measures_the_step_that_is_then_taken():
    """The own direction is what step() does next, and its sharpness that of the real change."""
    seen = {}

    def attach(model, optimizer):
        probe = attached(every=1)(model, optimizer)

        def before(*_):
            seen["start"] = {n: p.detach().double().clone() for n, p in model.named_parameters()}

        def after(*_):
            d = {n: p.detach().double() - seen["start"][n] for n, p in model.named_parameters()}
            seen.setdefault("norms", []).append(stepscope.objective.vectors.norm(d))

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(after)
        return probe

    _, probe = train(OPTIMIZERS["adamw"], attach, steps=5)
    own = [r for r in probe.records if r["direction"] == "own AdamW"]
    assert [r["lr_step"] for r in own] == pytest.approx(seen["norms"], rel=1e-4)
    assert all(r["lr"] == [1e-2] for r in own)


@pytest.mark.parametrize("where", ["before", "middle", "interrupt"])
def test_training_is_identical_when_measuring_fails(where, monkeypatch, caplog):
    plain, _ = train(OPTIMIZERS["adamw"])
    real, calls = module.measure_units, []

    def failing(objective, units, *rest, **named):
        calls.append(1)
        if where == "middle":
            with objective.measuring(), objective.displaced(next(iter(units.values())).u, 1.0):
                objective.loss()
                raise RuntimeError("out of memory")
        raise RuntimeError("out of memory")

    if where == "interrupt":

        def failing(objective, units, *rest, **named):
            with objective.measuring(), objective.displaced(next(iter(units.values())).u, 1.0):
                raise KeyboardInterrupt

    monkeypatch.setattr(module, "measure_units", failing)
    if where == "interrupt":
        model = net().train()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        probe = attached(every=1)(model, optimizer)
        loss_fn(model, data(1)[0]).backward()
        before = fingerprint(model, optimizer)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
        assert fingerprint(model, optimizer) == before
        monkeypatch.setattr(module, "measure_units", real)
        optimizer.step()
        assert {r["step"] for r in probe.records} == {1}
        return
    with caplog.at_level(logging.WARNING, "stepscope"):
        probed, probe = train(OPTIMIZERS["adamw"], attached())
    assert same(plain, probed)
    assert probe.records == []
    assert len(calls) == 3  # then it is off
    assert "out of memory" in caplog.text
    assert "the probe is off after 3 failures" in caplog.text


def test_training_goes_on_when_the_loss_turns_nan(caplog):
    def poison(p):
        return torch.optim.SGD(p, lr=1e30)

    plain, _ = train(poison, steps=8)
    assert any(torch.isnan(t).any() for t in plain if t.is_floating_point())
    with caplog.at_level(logging.WARNING, "stepscope"):
        probed, _ = train(poison, attached(every=2), steps=8)
    assert same(plain, probed)
    assert "training goes on" in caplog.text


def test_records_report_and_log(tmp_path):
    logged = []

    class Writer:
        def add_scalar(self, name, value, step):
            logged.append((name, value, step))

    _, probe = train(OPTIMIZERS["sgd"], attached(run_dir=tmp_path / "run", log=Writer()))
    probe.close()
    head, records = read_run(tmp_path / "run", DirectionRecord)
    assert len(records) == len(probe.records) == 16
    assert head["context"]["self_check"]["second_derivative"] in ("agrees", "kinked")
    assert len(head["context"]["evaluation"]["sha256"]) == 64
    record = next(r for r in records if r.direction == "own SGD")
    assert sum(record.layers.values()) == pytest.approx(record.sharpness, rel=1e-4)
    assert record.overshoot == pytest.approx(record.lr_step / record.best_step)
    assert ("stepscope/own SGD/sharpness", record.sharpness, record.step) in logged
    page = probe.report(tmp_path / "page.html").read_text()
    assert "own SGD" in page
    assert "Where the steps land" in page


def test_a_probe_shows_itself_its_numbers_and_its_charts():
    pytest.importorskip("pandas")
    _, probe = train(OPTIMIZERS["sgd"], attached(every=2), steps=4)
    assert re.fullmatch(
        r"Probe\(SGD on \w+, step 4: 2 measured on their own batches, 2 beside others, .*; in memory\)", repr(probe)
    )
    frame = probe.to_pandas()
    assert list(frame["direction"]) == [record["direction"] for record in probe.records]
    assert list(frame["sharpness"]) == [record["sharpness"] for record in probe.records]
    assert {"landscape", "layers"}.isdisjoint(frame.columns)
    assert len(probe.to_pandas(steps=True)) == len(probe.step_records)
    assert probe.plot().title.text.endswith("SGD trajectory, step 4")
    assert probe.plot("landscape", step=2).title.text.endswith("SGD trajectory, step 2")
    assert probe.plot("sharpness").to_dict()
    with pytest.raises(UsageError, match="no chart 'loss': choose of landscape"):
        probe.plot("loss")


def test_the_overshoot_is_smoothed_geometrically():
    _, probe = train(OPTIMIZERS["sgd"], attached(every=1), steps=4)
    own = [r for r in probe.records if r["direction"] == "own SGD" and r["overshoot"]]
    expected = math.log(own[0]["overshoot"])
    for record in own:
        expected = 0.7 * expected + 0.3 * math.log(record["overshoot"])
        assert record["overshoot_smoothed"] == pytest.approx(math.exp(expected))


def test_a_log_that_fails_is_said_once(caplog):
    def broken(values, step):
        raise OSError("no route to host")

    with caplog.at_level(logging.WARNING, "stepscope"):
        _, probe = train(OPTIMIZERS["sgd"], attached(log=broken))
    assert len(probe.records) == 16
    assert caplog.text.count("no route to host") == 1


def test_measuring_at_will():
    model = net().train()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with attached(every=10**9)(model, optimizer) as probe:
        before = fingerprint(model, optimizer)
        found = probe.measure()
        assert fingerprint(model, optimizer) == before
        assert set(found) == {"own AdamW", "own AdamW clip 50%", "sgd", "adam"}
        assert probe.records[0]["gradient"] == "evaluation"
        loss_fn(model, data(1)[0]).backward()
        probe.measure()
        assert probe.records[-1]["gradient"] == "evaluation"  # those on the parameters may be old, or scaled
        own = probe.measure(gradients="training", within_layers=True)["own AdamW"]
        assert probe.records[-1]["gradient"] == "training"
        assert own.within_layer + own.cross_layer == pytest.approx(own.sharpness)
        assert probe.records[0]["within_layer"] is None
        optimizer.zero_grad()
        with pytest.raises(UsageError, match="no parameter has a gradient"):
            probe.measure(gradients="training")
    with pytest.raises(UsageError, match="closed"):
        probe.measure()


def test_closing_takes_it_off():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    probe = attached(every=1)(model, optimizer)
    probe.close()
    probe.close()
    loss_fn(model, data(1)[0]).backward()
    optimizer.step()
    assert (probe.records, probe.step) == ([], 0)


def test_an_optimizer_that_is_refused_replaces_no_records(tmp_path):
    with attached(run_dir=tmp_path / "run")(model := net(), OPTIMIZERS["sgd"](model.parameters())) as probe:
        probe.measure()
    with pytest.raises(UsageError, match="holds no trainable parameter"):
        attached(run_dir=tmp_path / "run", overwrite=True)(model, OPTIMIZERS["sgd"](net().parameters()))
    assert len(read_run(tmp_path / "run", DirectionRecord)[1]) == len(probe.records)


@pytest.mark.parametrize("trouble", ["deleted", "full"])
def test_a_run_directory_that_is_lost_ends_no_training(trouble, tmp_path, monkeypatch, caplog):
    def lost(descriptor):
        raise OSError(28, "No space left on device")

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with attached(every=2, run_dir=tmp_path / "run", quiet=True)(model, optimizer) as probe:
        for step, batch in enumerate(data(4)):
            if step == 3 and trouble == "deleted":
                shutil.rmtree(tmp_path / "run")
            elif step == 3:
                monkeypatch.setattr(os, "fsync", lost)
            optimizer.zero_grad()
            probe.loss_fn(model, batch).backward()
            optimizer.step()
    assert {r["step"] for r in probe.records} == {2, 4}
    assert len([line for line in caplog.messages if "kept in memory alone" in line]) == 1
    monkeypatch.undo()
    again = attached(run_dir=tmp_path / "run", overwrite=True)(model, optimizer)  # nobody holds it any more
    again.close()


def test_the_announcement_comes_before_the_first_measurement(capsys):
    train(OPTIMIZERS["sgd"], attached(quiet=False))
    first, second = capsys.readouterr().err.splitlines()
    own = "stepscope: your step is measured on its own batch from step 5; "
    assert re.fullmatch(own + r"in full when due \([\d.e-]+ s\)", first)
    assert second.endswith("compute the loss by `probe.loss_fn(model, batch)`, or inside `with probe.batch(batch):`")


def test_other_directions_and_a_kept_history():
    directions = {"momentum": lambda p: torch.optim.SGD(p, lr=1.0, momentum=0.9)}
    _, probe = train(OPTIMIZERS["adamw"], attached(directions=directions, every=6))
    assert {r["direction"] for r in probe.records} == {"own AdamW", "momentum"}
    assert [r["followed_steps"] for r in probe.records if r["direction"] == "momentum"] == [5, 11]


def test_a_learning_rate_of_zero_has_no_direction():
    def warm(p):
        return torch.optim.SGD(p, lr=0.0)

    _, probe = train(warm, attached(every=1), steps=2)
    assert {r["direction"] for r in probe.records} == {"sgd", "adam"}


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(3))
        self.system = random.SystemRandom()

    def forward(self, x):
        return (self.w * self.system.random()).sum()


class Failing(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("boom")


def test_refusals():
    model = net()
    batches = data(1)
    with pytest.raises(UsageError, match="LBFGS reevaluates"):
        Probe(model, torch.optim.LBFGS(model.parameters()), loss_fn, batches)
    with pytest.raises(UsageError, match=r"not a torch\.optim\.Optimizer"):
        Probe(model, "adam", loss_fn, batches)
    drawing = Random()
    with pytest.raises(UsageError, match="draws random numbers"):
        Probe(
            drawing, torch.optim.SGD(drawing.parameters(), lr=1.0), lambda m, b: m(b), [torch.ones(1)], quiet=True
        ).measure()
    with pytest.raises(UsageError, match="give another label"):
        Probe(model, OPTIMIZERS["sgd"](model.parameters()), loss_fn, batches, directions={"own SGD": torch.optim.SGD})
    with pytest.raises(UsageError, match="give a function"):
        Probe(model, OPTIMIZERS["sgd"](model.parameters()), loss_fn, batches, log=3)
    with pytest.raises(UsageError, match="SGD holds no trainable parameter of the model: make it of those"):
        Probe(model, OPTIMIZERS["sgd"](net().parameters()), loss_fn, batches, quiet=True)
    both = [*model.parameters(), *net().parameters()]
    with pytest.raises(UsageError, match="can't follow: boom"):
        Probe(model, OPTIMIZERS["sgd"](both), loss_fn, batches, directions={"bad": Failing}, quiet=True).measure()


class WrongSecond(torch.autograd.Function):
    """x³ whose backward is right and, differentiated, is not."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * 3 * x.detach() ** 2


def test_a_wrong_second_derivative_is_loud_and_got_around(caplog):
    w = nn.ParameterDict({"x": nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))})
    optimizer = torch.optim.SGD(w.parameters(), lr=1e-3)
    with caplog.at_level(logging.WARNING, "stepscope"):
        probe = Probe(
            w, optimizer, lambda m, b: WrongSecond.apply(m["x"]).sum(), [0], weight_fn=lambda b: 1, quiet=True
        )
    assert probe.check.second_derivative == "disagrees"
    assert "wrong second derivative" in caplog.text
    found = probe.measure()["own SGD"]
    assert found.method == "difference"
    u = torch.tensor([3.0, 12.0], dtype=torch.float64) / math.hypot(3, 12)
    assert found.sharpness == pytest.approx(float((u**2 * 6 * torch.tensor([1.0, 2.0])).sum()), rel=1e-5)


class Lookahead(torch.optim.Optimizer):
    """Holds another optimizer and changes what it does: half of its step."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        super().__init__(optimizer.param_groups, {})
        self.param_groups = optimizer.param_groups

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        self.optimizer.step()
        with torch.no_grad():
            for p, start in zip(parameters, before, strict=True):
                p.lerp_(start, 0.5)


def test_an_optimizer_that_changes_the_step_of_another_is_taken_as_it_is():
    steps = {}
    for name in ("SGD", "Lookahead"):
        model = net().train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = optimizer if name == "SGD" else Lookahead(optimizer)
        with attached(every=1)(model, optimizer) as probe:
            loss_fn(model, data(1)[0]).backward()
            optimizer.step()
        own = next(r for r in probe.records if r["direction"] == f"own {name}")
        assert own["step_error"] < 1e-4
        steps[name] = own["lr_step"]
    assert steps["Lookahead"] == pytest.approx(steps["SGD"] / 2, rel=1e-4)


def test_after_ctrl_c_the_step_is_measured_as_if_nothing_had_been(monkeypatch):
    """In a notebook: the cell is interrupted in a measurement, and run again."""
    found = []
    for interrupted in (False, True):
        model = net().train()
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        probe = attached(every=4)(model, optimizer)
        real, calls = module.measure_units, []

        def once(*args, real=real, calls=calls, interrupted=interrupted, **named):
            calls.append(1)
            if interrupted and len(calls) == 2:
                raise KeyboardInterrupt
            return real(*args, **named)

        monkeypatch.setattr(module, "measure_units", once)
        for batch in data(12):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            try:
                optimizer.step()
            except KeyboardInterrupt:
                optimizer.step()
        monkeypatch.setattr(module, "measure_units", real)
        kept = ("step", "direction", "sharpness", "lr_step", "followed_steps", "step_error")
        found.append([tuple(r[name] for name in kept) for r in probe.records])
    assert [step for step, *_ in found[0]] == [4] * 4 + [8] * 4 + [12] * 4
    assert found[0] == found[1]


def test_a_gradient_that_is_not_finite_at_a_measured_step_is_not_followed(caplog):
    """The user's loop skips such steps by itself."""
    model = net().train()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    probe = attached(every=4)(model, optimizer)

    with caplog.at_level(logging.WARNING, "stepscope"):
        for index, batch in enumerate(data(12), 1):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            if index == 8:
                weights = [p.detach().clone() for p in model.parameters()]
                next(model.parameters()).grad[0] = float("inf")
            optimizer.step()
            if index == 8:
                with torch.no_grad():
                    for p, w in zip(model.parameters(), weights, strict=True):
                        p.copy_(w)
                optimizer.state.clear()
    directions = {r["direction"] for r in probe.records if r["step"] == 12}
    assert directions == {"own SGD", "own SGD clip 10%", "sgd", "adam"}


def test_a_step_that_is_not_made_is_compared_with_none(caplog):
    model = net().train()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    probe = attached(every=2, directions={})(model, optimizer)
    fail = []

    def refuse(*_):
        if fail:
            raise RuntimeError("not now")

    optimizer.register_step_pre_hook(refuse)
    with caplog.at_level(logging.WARNING, "stepscope"):
        for index, batch in enumerate(data(4), 1):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            fail[:] = [1] if index == 2 else []
            try:
                optimizer.step()
            except RuntimeError:
                assert index == 2
    assert [(r["step"], r["step_error"] is None) for r in probe.records] == [(2, True), (4, False)]
    assert "differs" not in caplog.text


def test_parameters_that_are_added_to_the_optimizer_are_followed_from_then_on(caplog):
    model = net().train()
    optimizer = OPTIMIZERS["sgd"](model[4].parameters())
    probe = attached(every=5)(model, optimizer)
    with caplog.at_level(logging.WARNING, "stepscope"):
        for index, batch in enumerate(data(40), 1):
            if index == 8:
                optimizer.add_param_group({"params": list(model[0].parameters())})
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    assert caplog.text == ""
    layers = {r["step"]: set(r["layers"]) for r in probe.records if r["direction"] == "sgd"}
    assert layers[5] == {"4"}
    assert layers[40] == {"0", "4"}


def test_an_optimizer_that_also_holds_what_is_not_the_models():
    model = net().train()
    temperature = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)
    with attached(every=1)(model, optimizer) as probe:
        (loss_fn(model, data(1)[0]) * temperature).backward()
        optimizer.step()
    own = next(r for r in probe.records if r["direction"] == "own SGD")
    assert own["step_error"] < 1e-4
    assert float(temperature.detach()) != 1.0


def test_memory_that_does_not_suffice_is_said_at_once():
    def greedy(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = net()
    with pytest.raises(UsageError, match=r"give memory=0\.5, or smaller batches"):
        Probe(model, OPTIMIZERS["sgd"](model.parameters()), greedy, data(1), quiet=True).measure()


def test_the_memory_counts_what_half_precision_is_raised_to():
    """A frozen base in bfloat16 is measured in float32 too."""
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        base = nn.Linear(64, 64).to(dtype).requires_grad_(False)
        model = nn.Sequential(base, nn.Linear(64, 2))
        probe = Probe(
            model,
            OPTIMIZERS["sgd"](model[1].parameters()),
            lambda m, b: m[1](m[0](b.to(m[0].weight.dtype)).float()).square().mean(),
            [torch.randn(3, 64)],
            quiet=True,
        )
        sizes[dtype] = probe._measurer.bytes_needed
    assert sizes[torch.bfloat16] - sizes[torch.float32] == 4 * (64 * 64 + 64)


def test_the_step_is_compared_with_the_one_that_is_made(caplog):
    """A hook that comes later clips the gradient: what was measured of the own step is withdrawn, and that is said."""

    def attach(model, optimizer):
        probe = attached(every=2)(model, optimizer)
        if clip:
            optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 1e-3) and None)
        return probe

    for clip in (False, True):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "stepscope"):
            _, probe = train(OPTIMIZERS["sgd"], attach, steps=4)
        own = {r["step_error"] for r in probe.records if r["direction"] == "own SGD"}
        clipped = [r for r in probe.records if r["direction"] == "own SGD clip 10%"]
        if clip:
            assert not own
            assert not clipped
        else:
            assert len(clipped) == 2
            assert all(error < 1e-5 for error in own)
        assert [r["step_error"] for r in probe.records if r["direction"] == "sgd"] == [None, None]
        assert caplog.text.count("differs by") == clip


def test_a_step_that_is_replaced_on_the_object_is_not_made_within_itself():
    """It has changed the gradients when the probe asks."""

    def attach(model, optimizer):
        probe = attached(every=1)(model, optimizer)
        inner = optimizer.step

        def step(closure=None):
            for p in model.parameters():
                p.grad.mul_(2)
            return inner(closure)

        optimizer.step = step
        return probe

    _, probe = train(OPTIMIZERS["sgd"], attach, steps=4)
    own = [r for r in probe.records if r["direction"] == "own SGD"]
    assert len(own) == 4
    assert all(r["step_error"] < 1e-5 for r in own)


def test_rounding_of_half_precision_weights_is_said(caplog):
    model = nn.Linear(64, 64).bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    batch = torch.randn(8, 64).bfloat16()

    def square(model, batch):
        return model(batch).float().square().mean()

    with (
        caplog.at_level(logging.WARNING, "stepscope"),
        Probe(model, optimizer, square, [batch], every=1, max_overhead=None, directions={}, quiet=True) as probe,
    ):
        square(model, batch).backward()
        before = [p.detach().double().clone() for p in model.parameters()]
        optimizer.step()
    own = probe.records[0]
    moved = math.sqrt(
        sum(float((p.detach().double() - b).square().sum()) for p, b in zip(model.parameters(), before, strict=True))
    )
    assert own["step_error"] > 0.1
    assert abs(moved - own["lr_step"]) <= own["step_error"] * own["lr_step"]
    assert "rounding to bfloat16 changes the step" in caplog.text


def test_measuring_at_will_leaves_the_others_and_the_schedule_alone():
    records = []
    for at_will in (False, True):

        def attach(model, optimizer, at_will=at_will):
            probe = attached(every=4)(model, optimizer)
            if at_will:
                optimizer.register_step_post_hook(lambda *_: probe.measure() and None)
            return probe

        _, probe = train(OPTIMIZERS["adamw"], attach, steps=8)
        # What was measured at will after step 3 has the same place, and came before.
        records.append({(r["step"], r["direction"]): (r["sharpness"], r["lr_step"]) for r in probe.records})
    planned, among_others = records
    assert {step for step, _ in planned} == {4, 8}
    assert {step for step, _ in among_others} == set(range(2, 10))
    assert {key: among_others[key] for key in planned} == planned


def test_the_time_of_measuring_at_will_is_not_the_trainings():
    model = net().train()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    probe = attached(every=10**9)(model, optimizer)
    for batch in data(3):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        probe.measure()
        optimizer.step()
    assert probe._schedule.step_seconds < 0.3 * probe.records[-1]["seconds"] * 4


def test_pauses_do_not_add_up():
    model = net().train()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    probe, other = (attached(every=10**9, directions={})(model, optimizer) for _ in range(2))
    for batch in data(3):
        loss_fn(model, batch).backward()
        with probe.paused(), other.paused():
            time.sleep(0.1)
            probe.measure()
        time.sleep(0.05)
        optimizer.step()
    assert 0.05 <= probe._schedule.step_seconds < 0.15


def test_paused_time_earns_nothing():
    model = net().train()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    probe = attached(every=10**9)(model, optimizer)
    for batch in data(4):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        with probe.paused():
            time.sleep(0.2)
        optimizer.step()
    assert probe._schedule.step_seconds < 0.1


def test_warm_up_and_missing_gradients_are_no_failures(caplog):
    def warming(p):
        return torch.optim.SGD(p, lr=0.1)

    model = net().train()
    optimizer = warming(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step < 5 else 1.0)
    with caplog.at_level(logging.WARNING, "stepscope"):
        probe = attached(every=1, directions={})(model, optimizer)
        for index, batch in enumerate(data(8)):
            optimizer.zero_grad()
            if index > 3:
                loss_fn(model, batch).backward()
            optimizer.step()
            schedule.step()
    assert [r["step"] for r in probe.records] == [6, 7, 8]
    assert caplog.text.count("nothing to measure") == 1


def test_parameters_that_are_unfrozen_are_measured_from_then_on():
    model = net().train()
    model[0].requires_grad_(False)
    optimizer = OPTIMIZERS["sgd"]([p for p in model.parameters() if p.requires_grad])
    probe = attached(every=1, directions={})(model, optimizer)
    for index, batch in enumerate(data(4)):
        if index == 2:
            model[0].requires_grad_(True)
            optimizer.add_param_group({"params": list(model[0].parameters())})
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
    own = [set(r["layers"]) for r in probe.records if r["direction"] == "own SGD"]
    assert own == [{"1", "4"}] * 2 + [{"0", "1", "4"}] * 2


def test_a_model_that_is_frozen_as_a_whole_has_a_page_of_what_was_measured_before(tmp_path, caplog):
    model = net().train()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    probe = attached(every=2, steps=12, source="a few")(model, optimizer)
    for index, batch in enumerate(data(12)):
        if index == 4:
            model.requires_grad_(False)
        optimizer.zero_grad()
        with probe.batch(batch):
            loss = loss_fn(model, batch)
        if loss.requires_grad:
            loss.backward()
        optimizer.step()
    count = sum(p.numel() for p in model.parameters())
    assert f"{count:,} parameters" in probe.report(tmp_path / "page.html").read_text()
    assert {r["step"] for r in probe.records} == {2, 4}
    assert caplog.text.count("the probe is off after 3 failures in a row") == 1
    assert "after 4 failures" not in caplog.text


def test_names_that_every_tracker_takes():
    logged = {}
    train(OPTIMIZERS["sgd"], attached(log=lambda values, step: logged.update(values), every=12))
    assert "stepscope/own SGD clip 10pct/sharpness" in logged
    assert all(re.fullmatch(r"[/\w.\- ]+", name) for name in logged)


def test_a_log_that_draws_random_numbers_changes_nothing():
    plain, _ = train(OPTIMIZERS["sgd"])
    drawn, _ = train(OPTIMIZERS["sgd"], attached(log=lambda values, step: torch.rand(1)))
    assert same(plain, drawn)


def test_a_compiled_model_is_measured_as_the_eager_one():
    torch.manual_seed(0)
    eager = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    compiled = torch.compile(eager, backend="aot_eager")
    batches = data(2)
    loss_fn(compiled, batches[0]).backward()
    direction = {n: torch.randn(p.shape) for n, p in eager.named_parameters()}
    plain = stepscope.measure(Objective(eager, loss_fn, batches), {"d": direction})["d"]
    prefixed = {f"_orig_mod.{n}": d for n, d in direction.items()}
    found = stepscope.measure(Objective(compiled, loss_fn, batches), {"d": prefixed})["d"]
    assert found.sharpness == plain.sharpness
    assert found.method == "autograd"


UNSEEN = "no step of SGD was seen, yet the weights have moved"


def steps_of(optimizer, model, count=3):
    for batch in data(count):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()


@pytest.mark.parametrize("how", ["another optimizer", "another step"])
def test_a_training_that_goes_past_the_probe_is_said_once(how, caplog, tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "stepscope"):
        with attached()(model, optimizer) as probe:
            if how == "another optimizer":
                optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            else:
                inner = torch.optim.SGD(model.parameters(), lr=0.1)
                optimizer.step = lambda: inner.step()
            steps_of(optimizer, model)
            probe.report(tmp_path / "page.html")
        assert probe.records == []
        assert [UNSEEN in text for text in caplog.messages] == [True]


def test_a_training_that_is_seen_or_that_does_not_happen_is_not_remarked_on(caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "stepscope"):
        with attached()(model, optimizer):
            steps_of(optimizer, model, 1)
        with attached()(model, optimizer):
            pass
        with attached()(model, optimizer) as probe:  # measures at will, along weights that are loaded
            probe.measure()
            steps_of(torch.optim.SGD(model.parameters(), lr=0.1), model)
        optimizer.step = optimizer.step  # as schedulers put one on the object
        with attached()(model, optimizer) as probe:
            steps_of(optimizer, model)
        assert probe.step == 3
    assert UNSEEN not in caplog.text


def test_a_run_directory_is_used_again(tmp_path, capsys):
    def trained(steps, **settings):
        probe = train(OPTIMIZERS["sgd"], attached(run_dir=tmp_path / "run", **settings), steps=steps)[1]
        probe.close()
        return probe.run_dir

    def steps_in(run_dir):
        return {r.step for r in read_run(run_dir, DirectionRecord)[1]}

    assert trained(6) == tmp_path / "run"
    assert capsys.readouterr().err == ""
    assert trained(3, quiet=False) == tmp_path / "run-2"
    assert f"records go to {tmp_path / 'run-2'}\n" in capsys.readouterr().err
    assert trained(3, step=3) == tmp_path / "run-2"  # goes on in the newest
    assert steps_in(tmp_path / "run-2") == {3, 6}
    assert trained(3, overwrite=True, directions={}) == tmp_path / "run"
    assert steps_in(tmp_path / "run") == {3}
    # A training that goes on keeps what it has.
    assert trained(3, overwrite=True, step=3, directions={}) == tmp_path / "run"
    assert steps_in(tmp_path / "run") == {3, 6}


def test_a_model_that_changes_its_dtype_midway_is_measured_on(caplog):
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with caplog.at_level(logging.WARNING, "stepscope"), attached(every=1)(model, optimizer) as probe:
        steps_of(optimizer, model, 2)
        model.double()
        optimizer.state.clear()
        for x, y in data(2):
            optimizer.zero_grad()
            loss_fn(model, (x.double(), y)).backward()
            optimizer.step()
    assert not caplog.messages
    found = [(r["step"], r["dtype"]) for r in probe.records if r["direction"] == "sgd"]  # which then follows anew
    assert found == [(1, "float32"), (2, "float32"), (3, "float64")]


class Branched(nn.Module):
    """One branch gets its first gradients late, and not at every step."""

    def __init__(self):
        super().__init__()
        self.always, self.rarely, self.is_used = nn.Linear(4, 2), nn.Linear(4, 2), False

    def forward(self, x):
        return self.always(x) + self.rarely(x) if self.is_used else self.always(x)


def test_those_that_follow_bear_a_parameter_that_gets_its_first_gradient_late(caplog):
    torch.manual_seed(0)
    model = Branched()
    batches = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(16)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    settings = {"every": 2, "max_overhead": None, "quiet": True, "steps": 16}
    with (
        caplog.at_level(logging.WARNING, "stepscope"),
        Probe(model, optimizer, loss_fn, batches[:2], **settings) as probe,
    ):
        for step, batch in enumerate(batches):
            model.is_used = step >= 4 and step % 2 == 0
            probe.loss_fn(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert caplog.messages == []
    assert {record["step"] for record in probe.records if record["direction"] == "sgd"} == set(range(2, 17, 2))
