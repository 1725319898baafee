"""Steps measured on the batches that made them, against references that are written out by hand."""

import copy
import functools
import logging
import math
import pickle
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from stepscope import Probe, UsageError
from stepscope.judging import trust_ratio
from stepscope.objective.replay import Replay
from stepscope.runs import StepRecord, read_steps
from traces import fingerprint, outcome, same


def loss_fn(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def data(count, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 4, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def net():
    torch.manual_seed(0)
    layers = nn.Linear(4, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.3), nn.Linear(16, 3)
    return nn.Sequential(*layers).double().train()


def told(probe):
    """The records of steps that were measured on their own batches: others have only the edge."""
    return [record for record in probe.step_records if record["batch_loss"] is not None]


def attached(model, optimizer, loss=loss_fn, **settings):
    given = {"every": 10**9, "max_overhead": None, "quiet": True, "directions": {}, "steps": 20, **settings}
    dtype = next(model.parameters()).dtype
    return Probe(model, optimizer, loss, [(x.to(dtype), y) for x, y in data(1, seed=9)], **given)


def terms_by_hand(model, before, gradient, losses_of):
    """The two losses and the slope of a step that has been made."""
    now = copy.deepcopy(model.state_dict())
    step = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    after = losses_of()
    model.load_state_dict(now | {name: before[name] for name in step})
    first = losses_of()
    model.load_state_dict(now)
    slope = sum(float((gradient[name] * step[name]).sum()) for name in step)
    return first, after - first, slope


def test_on_a_parabola_the_trust_ratio_is_one_less_half_the_edge_ratio():
    torch.manual_seed(0)
    h = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)
    model = nn.ParameterDict({"w": nn.Parameter(torch.randn(3, dtype=torch.float64))})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.5, weight_decay=0.01)

    def loss(model, batch):
        return batch * (h * model["w"] ** 2).sum() / 2

    probe = Probe(
        model,
        optimizer,
        loss,
        [torch.ones(1)],
        weight_fn=lambda b: 1,
        max_overhead=None,
        every=10**9,
        steps=12,
        quiet=True,
    )
    ratios = {}
    for step in range(1, 13):
        x = model["w"].detach().clone()
        with probe.batch(torch.ones(())):
            optimizer.zero_grad()
            loss(model, torch.ones(())).backward()
            optimizer.step()
        d = model["w"].detach() - x
        ratios[step] = 1 - float((d * h * d).sum() / -(h * x * d).sum()) / 2
    found = {r["step"]: r["batch_change"] / r["batch_slope"] for r in probe.step_records}
    assert len(found) > 10
    assert found == pytest.approx({step: ratios[step] for step in found}, abs=1e-12)
    by = [r["slope_by"] for r in probe.step_records]
    assert [place for place, way in enumerate(by, 1) if way == "recomputed"] == [1, 3, 9]
    assert probe.step_records[0]["lr"] == probe.step_records[0]["peak_lr"] == [0.3]
    assert (probe.step_records[0]["steps"], probe.step_records[0]["batch_size"]) == (12, None)


WAYS = {
    "plain": {},
    "clipped by norm": {"clip": True},
    "clipped by value": {"values": 0.01},
    "largest values clipped": {"largest": 0.9},
    "accumulated": {"accumulate": 3},
    "accumulated, summed": {"accumulate": 3, "summed": True},
    "scaled": {"scale": 64.0},
    "fused": {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True)},
    "adamw": {"optimizer": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1)},
}


def train(
    probed,
    *,
    steps=8,
    clip=False,
    values=None,
    largest=None,
    accumulate=1,
    summed=False,
    scale=None,
    optimizer=None,
    check=None,
):
    """Trains; `check(step, by hand)` gets the terms of each step, worked out by hand."""
    model = net()
    optimizer = (optimizer or (lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9)))(model.parameters())
    probe = attached(model, optimizer) if probed else None
    torch.manual_seed(5)
    batches = data(steps * accumulate)
    for step in range(1, steps + 1):
        mine = batches[(step - 1) * accumulate : step * accumulate]
        states = []
        for batch in mine:
            states.append(torch.get_rng_state())
            if probe is not None:
                with probe.batch(batch):
                    loss = loss_fn(model, batch)
            else:
                loss = loss_fn(model, batch)
            (loss * (scale or 1.0) / (1 if summed else accumulate)).backward()
        gradient = {name: p.grad / (scale or 1.0) for name, p in model.named_parameters()}
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        if scale:
            for p in model.parameters():
                p.grad.div_(scale)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.05)
        if largest:
            values = largest * max(float(p.grad.abs().max()) for p in model.parameters())
        if values:
            nn.utils.clip_grad_value_(model.parameters(), values)
        optimizer.step()
        if check is not None:
            again = functools.partial(replayed, model, mine, states, summed)
            check(step, terms_by_hand(model, before, gradient, again))
        optimizer.zero_grad()
    return outcome(model, optimizer), probe


def replayed(model, batches, states, summed):
    kept, total = torch.get_rng_state(), 0.0
    for batch, state in zip(batches, states, strict=True):
        torch.set_rng_state(state)
        with torch.no_grad():
            total += float(loss_fn(model, batch))
    torch.set_rng_state(kept)
    return total if summed else total / len(batches)


@pytest.mark.parametrize("way", WAYS)
def test_terms_are_those_worked_out_by_hand_and_training_is_the_same(way):
    by_hand = {}
    plain, _ = train(False, **WAYS[way])
    probed, probe = train(True, check=by_hand.__setitem__, **WAYS[way])
    assert same(plain, train(True, **WAYS[way])[0])
    assert same(plain, probed)
    found = {r["step"]: (r["batch_loss"], r["batch_change"], r["batch_slope"]) for r in probe.step_records}
    assert set(found) == set(by_hand)
    for step, terms in found.items():
        assert terms == pytest.approx(by_hand[step], rel=1e-9, abs=1e-12)
    assert {r["batch_size"] for r in probe.step_records} == {8 * WAYS[way].get("accumulate", 1)}
    by = {r["slope_by"] for place, r in enumerate(probe.step_records, 1) if place not in (1, 3, 9)}
    assert by == ({"recomputed"} if "value" in way or way == "scaled" else {"step"})


class Own(nn.Module):
    """Has its loss in its output."""

    def __init__(self):
        super().__init__()
        self.inside = net()

    def forward(self, x, labels):
        return {"loss": loss_fn(self.inside, (x, labels))}


def test_a_model_that_is_called_with_its_batch_needs_nothing_and_is_left_as_it_was(tmp_path):
    torch.manual_seed(0)
    model = Own().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [{"x": x, "labels": y} for x, y in data(6)]
    probe = Probe(
        model,
        optimizer,
        None,
        batches[:1],
        every=10**9,
        max_overhead=None,
        steps=6,
        quiet=True,
        run_dir=tmp_path / "run",
    )
    for batch in batches:
        losses = model(**batch)["loss"]
        model.eval()
        model(**batch)  # a validation makes no step
        model.train()
        losses.backward()
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for p in model.parameters():
            assert not p._backward_hooks
        optimizer.step()
        optimizer.zero_grad()
        for other in copies:  # hooks of the probe do nothing there
            other(**batch)["loss"].backward()
        assert probe.step_records[-1]["batch_loss"] == pytest.approx(float(losses.detach()), rel=1e-12)
    probe.close()
    assert model._forward_pre_hooks == {}
    assert {p._post_accumulate_grad_hooks for p in model.parameters()} == {None}
    assert [r.step for r in read_steps(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


def test_a_hook_that_is_put_on_a_weight_after_the_probe_stays():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    calls = []
    with attached(model, optimizer) as probe:  # which has hooks of its own on the weights from the start
        model[0].weight.register_post_accumulate_grad_hook(lambda _: calls.append(probe.step))
        for batch in data(4):
            optimizer.zero_grad()
            probe.loss_fn(model, batch).backward()
            optimizer.step()
    assert len(probe.step_records) == 4
    assert calls == [0, 1, 2, 3]


def test_a_loss_computed_by_the_probe_is_the_loops_own_and_is_known():
    """In place of the loop's function: the same training, batch and loss known, one evaluation a step less."""

    def trained(probed):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        probe = attached(model, optimizer) if probed else None
        torch.manual_seed(5)
        losses = []
        for batch in data(8):
            optimizer.zero_grad()
            loss = probe.loss_fn(model, batch) if probed else loss_fn(model, batch)
            loss.backward()
            losses.append(loss.item())
            optimizer.step()
        end = outcome(model, optimizer)
        if probed:
            assert [r["batch_loss"] for r in probe.step_records] == losses
            with torch.no_grad():
                probe.loss_fn(model, batch)  # a validation makes no step
            probe.close()
            assert probe.loss_fn(model.eval(), batch).item() == loss_fn(model, batch).item()
        return end, losses

    (plain, losses), (probed, again) = trained(False), trained(True)
    assert same(plain, probed)
    assert losses == again


@pytest.mark.parametrize("loop", ["plain", "other loss", "weights moved"])
def test_a_loss_that_the_model_has_told_is_not_evaluated_again(loop, monkeypatch):
    torch.manual_seed(0)
    model = Own().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [{"x": x, "labels": y} for x, y in data(5)]
    factor = 2.0 if loop == "other loss" else 1.0
    loss = (lambda model, batch: factor * model(**batch)["loss"]) if loop == "other loss" else None
    calls, before, evaluated = [], [], Replay.evaluated
    monkeypatch.setattr(Replay, "evaluated", lambda *a, **b: (calls.append(probe.step), evaluated(*a, **b))[1])
    with Probe(
        model, optimizer, loss, batches[:1], every=10**9, max_overhead=None, steps=5, directions={}, quiet=True
    ) as probe:
        for batch in batches:
            state = torch.get_rng_state()
            (factor * model(**batch)["loss"]).backward()
            if loop == "weights moved":
                with torch.no_grad():
                    model.inside[0].weight.mul_(1 - 1e-6)
            with torch.random.fork_rng():
                torch.set_rng_state(state)
                before.append(factor * float(copy.deepcopy(model)(**batch)["loss"].detach()))
            optimizer.step()
            optimizer.zero_grad()
    assert [r["batch_loss"] for r in probe.step_records] == pytest.approx(before, rel=1e-12)
    assert [calls.count(step) for step in range(1, 6)] == (
        # At the first step it is evaluated close to the weights too.
        [3, 1, 2, 1, 1] if loop == "plain" else [3, 2, 2, 2, 2]
    )


def test_a_loss_that_the_loop_divides_in_place_is_known_as_it_was(monkeypatch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    evaluations, losses, evaluated = [], [], Replay.evaluated
    monkeypatch.setattr(Replay, "evaluated", lambda *a, **b: (evaluations.append(probe.step), evaluated(*a, **b))[1])
    batches = data(10)
    with attached(model, optimizer) as probe:
        for first, second in zip(batches[::2], batches[1::2], strict=True):
            found = []
            for batch in (first, second):
                loss = probe.loss_fn(model, batch)
                found.append(loss.item())
                loss /= 2
                loss.backward()
            losses.append(sum(found) / 2)
            optimizer.step()
            optimizer.zero_grad()
    assert [r["batch_loss"] for r in probe.step_records] == pytest.approx(losses, rel=1e-12)
    assert [evaluations.count(step) for step in range(1, 6)] == [3, 1, 2, 1, 1]


def test_what_cannot_be_known_is_said_once_and_not_recorded(caplog, capsys):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = data(12)
    with caplog.at_level(logging.WARNING, "stepscope"), attached(model, optimizer) as probe:
        for batch, other in zip(batches[:6], batches[6:], strict=True):
            optimizer.zero_grad()
            with probe.batch(other):
                loss_fn(model, batch).backward()
            optimizer.step()
    assert told(probe) == []
    assert ["another gradient than the one that made the step" in text for text in caplog.messages] == [True]


def penalty(model):
    return sum(p.square().sum() for p in model.parameters())


def written_to(model, batch):
    loss_fn(model, batch).backward()
    batch[0].mul_(0.1)


CHANGES = {  # what a training does from its fourth step on, and the last step that is recorded
    "batch written to": (written_to, 3),
    "pass not told": (lambda model, batch: (loss_fn(model, batch).backward(), penalty(model).backward()), 3),
    "loss changed": (lambda model, batch: (loss_fn(model, batch) + penalty(model)).backward(), 8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_training_that_comes_to_do_something_else_is_noticed(change):
    backward, last = CHANGES[change]
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attached(model, optimizer) as probe:
        for step, batch in enumerate(data(12), 1):
            optimizer.zero_grad()
            with probe.batch(batch):
                backward(model, batch) if step > 3 else loss_fn(model, batch).backward()
            optimizer.step()
    assert [r["step"] for r in told(probe)] == list(range(1, last + 1))


def test_a_factor_that_a_training_comes_to_multiply_its_loss_by_changes_no_slope():
    """Half the loss at twice the rate makes the same steps."""

    def slopes(factor):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        torch.manual_seed(2)
        with attached(model, optimizer) as probe:
            for step, batch in enumerate(data(8), 1):
                now = factor if step > 3 else 1.0
                optimizer.param_groups[0]["lr"] = 0.1 / now
                optimizer.zero_grad()
                (now * probe.loss_fn(model, batch)).backward()
                optimizer.step()
        return {r["step"]: r["batch_slope"] for r in told(probe)}

    assert slopes(0.5) == pytest.approx(slopes(1.0), rel=1e-9)


@pytest.mark.parametrize("after", [True, False])
def test_weights_that_are_written_to_after_the_step_are_said_once(after, caplog):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with caplog.at_level(logging.WARNING, "stepscope"), attached(model, optimizer) as probe:
        for batch in data(4):
            with probe.batch(batch):
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                optimizer.step()
            if after:
                with torch.no_grad():
                    model[0].weight.mul_(0.99)
    assert ["between steps 1 and 2 something else than the step of SGD" in text for text in caplog.messages] == (
        [True] if after else []
    )


def test_without_a_batch_it_is_said_what_to_do(capsys):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attached(model, optimizer, quiet=False) as probe:
        for batch in data(5):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    assert told(probe) == []
    assert capsys.readouterr().err.count("compute the loss by `probe.loss_fn(model, batch)`") == 1


def test_an_iterator_can_not_be_read_twice(capsys):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attached(model, optimizer, quiet=False) as probe:
        for batch in data(3):
            with probe.batch(iter([batch])):
                optimizer.zero_grad()
                loss_fn(model, batch).backward()
                optimizer.step()
    assert told(probe) == []
    assert "the batch is an iterator, which can't be read twice" in capsys.readouterr().err


def test_gradients_that_are_cleared_made_no_step():
    """As where a loop skips a batch whose loss is too large, or a gradient scaler a step."""
    for to_none in (True, False):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        probe = attached(model, optimizer)
        losses = []
        for index, batch in enumerate(data(8)):
            optimizer.zero_grad(set_to_none=to_none)
            with probe.batch(batch):
                loss = loss_fn(model, batch)
            loss.backward()
            if index % 2:
                losses.append(float(loss.detach()))
                optimizer.step()
        assert [r["batch_loss"] for r in probe.step_records] == pytest.approx(losses, rel=1e-12)


class Bag(nn.Module):
    def __init__(self, sparse):
        super().__init__()
        self.bag = nn.EmbeddingBag(9, 3, mode="sum", sparse=sparse)

    def forward(self, x):
        return self.bag(x.abs().long() % 9)


def by_backward(model, loss):
    loss.backward()


def by_hand(model, loss):
    for p, gradient in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
        p.grad = gradient / 2


GRADIENTS = {  # that no hook has seen, and how they are had otherwise
    "assigned": ((net, by_hand), (net, by_backward)),
    "sparse alone": ((lambda: Bag(True).double(), by_backward), (lambda: Bag(False).double(), by_backward)),
}


@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients_that_no_hook_has_seen_are_those_of_the_batch(kind):
    def ratios(make, backward):
        torch.manual_seed(1)
        model = make()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.2 if backward is by_hand else 0.1)
        torch.manual_seed(2)
        with attached(model, optimizer) as probe:
            for batch in data(5):
                optimizer.zero_grad()
                backward(model, probe.loss_fn(model, batch))
                optimizer.step()
        return [r[name] for r in told(probe) for name in ("batch_loss", "batch_change", "batch_slope")]

    unseen, seen = (ratios(*how) for how in GRADIENTS[kind])
    assert len(unseen) == 15
    assert unseen == pytest.approx(seen, rel=1e-9)


def test_what_is_trained_beside_the_model_is_not_taken_for_the_step(caplog):
    model, temperature = net(), nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = torch.optim.SGD([*model.parameters(), temperature], lr=0.1)

    def loss(model, batch):
        return F.cross_entropy(temperature * model(batch[0]), batch[1])

    with attached(model, optimizer, loss) as probe:
        for batch in data(4):
            optimizer.zero_grad()
            probe.loss_fn(model, batch).backward()
            optimizer.step()
    assert told(probe) == []
    assert "give the probe a model that holds all that is trained" in caplog.text


@pytest.mark.parametrize("hook", ["registered before the probe", "registered after it", "before the step", "none"])
def test_what_a_teacher_adds_to_a_step_is_not_taken_for_the_steps(hook, caplog):
    """It moves from the fourth step on; without a hook the loop moves it, before the step."""
    model, teacher = net(), net().requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss(model, batch):
        return loss_fn(model, batch) + F.mse_loss(model(batch[0]), teacher(batch[0]))

    def move(*_):
        if step > 3:
            with torch.no_grad():
                teacher[-1].weight.mul_(0.99)

    if hook == "registered before the probe":
        optimizer.register_step_post_hook(move)
    probe = attached(model, optimizer, loss)
    if hook == "registered after it":
        optimizer.register_step_post_hook(move)
    if hook == "before the step":
        optimizer.register_step_pre_hook(move)
    changes = {}
    for step, batch in enumerate(data(8), 1):
        state = torch.get_rng_state()
        optimizer.zero_grad()
        probe.loss_fn(model, batch).backward()
        if hook == "none":
            move()
        here, there = copy.deepcopy(model), copy.deepcopy(teacher)
        optimizer.step()
        losses = []
        for one in (here, copy.deepcopy(model)):
            with torch.random.fork_rng(), torch.no_grad():
                torch.set_rng_state(state)
                losses.append(float(loss_fn(one, batch) + F.mse_loss(one(batch[0]), there(batch[0]))))
        changes[step] = losses[1] - losses[0]
    moves_inside = hook in ("registered before the probe", "before the step")
    assert {r["step"]: r["batch_change"] for r in told(probe)} == pytest.approx(
        {step: change for step, change in changes.items() if step < 4 or not moves_inside}, abs=1e-12
    )
    assert caplog.text.count("something else that it depends on, such as a teacher, moves while") == moves_inside


@pytest.mark.parametrize("kept", [range(1, 9), [3], []], ids=["always", "once", "never"])
def test_gradients_that_stay_from_the_step_before_are_not_taken_for_the_batchs(kept):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attached(model, optimizer) as probe:
        for step, batch in enumerate(data(8)):
            if step not in kept:
                optimizer.zero_grad(set_to_none=step % 2 == 0)
            with probe.batch(batch):
                loss_fn(model, batch).backward()
            optimizer.step()
    assert [r["step"] for r in told(probe)] == [step for step in range(1, 9) if step - 1 not in kept]


@pytest.mark.parametrize("moment", ["in the loop", "while measuring"])
def test_an_exception_and_ctrl_c_leave_no_trace(moment, monkeypatch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    probe = attached(model, optimizer)
    (batch,) = data(1)
    if moment == "in the loop":
        with pytest.raises(KeyboardInterrupt), probe.batch(batch):
            raise KeyboardInterrupt
        with probe.batch(batch):
            loss_fn(model, batch).backward()
            optimizer.step()
        assert [r["step"] for r in probe.step_records] == [1]
        return
    with probe.batch(batch):
        loss_fn(model, batch).backward()
    before = fingerprint(model, optimizer)

    def interrupted(*_):
        with torch.no_grad():
            model[1].running_mean.add_(1)
        raise KeyboardInterrupt

    handle = model[4].register_forward_pre_hook(interrupted)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    handle.remove()
    assert fingerprint(model, optimizer) == before
    optimizer.step()
    assert probe.step == 1


class Rounded(nn.Module):
    """Rounds what passes, and lets gradients pass as if it didn't: a straight-through estimator."""

    def forward(self, x):
        return x + ((4 * x).round() / 4 - x).detach()


def stopped(model, batch):
    """The loss of a prediction of itself, one side of which has no gradient."""
    half = model[:3](batch[0])
    return F.mse_loss(model[4](half), model[4](half.flip(0)).detach())


SURROGATES = {
    "straight-through": (lambda: net().insert(2, Rounded()), loss_fn),
    "stop-gradient": (net, stopped),
}


@pytest.mark.parametrize(
    ("surrogate", "lr"),
    # Over longer steps than these rounding is a slope, and the straight-through gradient that of the loss.
    [("straight-through", 1e-6), *(("stop-gradient", lr) for lr in (1e-6, 1e-2, 1.0)), (None, 1e-6), (None, 1.0)],
)
def test_a_gradient_that_is_not_that_of_its_loss_says_nothing_of_the_step(surrogate, lr, caplog):
    """At a millionth of a usual rate all of what a gradient foretells comes true, if it is the loss's own."""
    make, loss = SURROGATES.get(surrogate, (net, loss_fn))
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with caplog.at_level(logging.WARNING, "stepscope"), attached(model, optimizer, loss) as probe:
        for batch in data(6):
            optimizer.zero_grad()
            probe.loss_fn(model, batch).backward()
            versions = [p._version for p in model.parameters()]
            optimizer.step()
            assert [p._version for p in model.parameters()] == [version + 1 for version in versions]
    assert [text.split(" (")[0] for text in caplog.messages] == (
        [] if surrogate is None else ["at step 3 the gradient isn't that of the loss"]
    )
    of_batches = [record for record in probe.step_records if record["batch_loss"] is not None]
    assert len(of_batches) == (6 if surrogate is None else 0)


@pytest.mark.parametrize("lr", [10.0, 30.0])
def test_of_steps_that_throw_a_training_off_the_gradient_is_not_doubted(lr, caplog):
    """A loss that can't fall by more than all of it has another slope nearby, along a step of a million times that."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"cells": nn.GRU(8, 32, batch_first=True), "out": nn.Linear(32, 4)})
    optimizer, wanted = torch.optim.SGD(model.parameters(), lr=lr), torch.randn(8, 4)

    def loss(model, batch):
        return F.mse_loss(model["out"](model["cells"](batch[0])[0][:, -1]), batch[1])

    def train(loss, count):
        for _ in range(count):
            inputs = torch.randn(16, 12, 8)
            optimizer.zero_grad()
            loss(model, (inputs, inputs.mean(1) @ wanted)).backward()
            optimizer.step()

    train(loss, 4)
    with caplog.at_level(logging.WARNING, "stepscope"), attached(model, optimizer, loss) as probe:
        train(probe.loss_fn, 30)
    assert not any("isn't that of the loss" in text for text in caplog.messages)
    assert len([record for record in probe.step_records if record["batch_slope"]]) >= 4


def test_weights_that_other_processes_train_too_are_never_moved(monkeypatch):
    model = net().share_memory()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen, evaluated = [], Replay.evaluated

    def noted(*args, **options):
        seen.append(model[0].weight.detach().clone())
        return evaluated(*args, **options)

    monkeypatch.setattr(Replay, "evaluated", noted)
    (batch,) = data(1)
    with attached(model, optimizer) as probe:
        before = model[0].weight.detach().clone()
        probe.loss_fn(model, batch).backward()
        optimizer.step()
    assert len(probe.step_records) == 1
    assert all(torch.equal(x, before) or torch.equal(x, model[0].weight) for x in seen)


def test_an_error_close_to_the_weights_leaves_them_as_the_step_made_them(caplog, monkeypatch):
    evaluated, calls = Replay.evaluated, []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == 3:  # after one at the start, and one after the step
            raise ValueError("not here")
        return evaluated(*args, **options)

    def trained(probed):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        (batch,) = data(1)
        torch.manual_seed(5)
        with attached(model, optimizer) if probed else nullcontext() as probe:
            (probe.loss_fn if probed else loss_fn)(model, batch).backward()
            optimizer.step()
        return outcome(model, optimizer)

    monkeypatch.setattr(Replay, "evaluated", failing)
    with caplog.at_level(logging.WARNING, "stepscope"):
        probed = trained(True)
    assert ["not here" in text for text in caplog.messages] == [True]
    assert same(probed, trained(False))


def test_no_length_of_a_training():
    model = net()
    with pytest.raises(UsageError, match="give the number of steps of the training"):
        attached(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=0)


class Autocast(nn.Sequential):
    """Enters autocast by itself, as accelerate has models do."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


@pytest.mark.parametrize("kind", [nn.Sequential, Autocast])
def test_autocast_and_its_error(kind):
    """In half precision a change of the loss is known to `batch_noise`, wherever autocast is entered."""
    errors = []
    for seed in range(20):
        torch.manual_seed(seed)
        model = kind(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        probe = attached(model, optimizer)
        ((x, y),) = data(1, size=16, seed=seed)
        batch = x.float(), y
        with probe.batch(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=kind is not Autocast):
                loss = loss_fn(model, batch)
            loss.backward()
            optimizer.step()
        (record,) = probe.step_records
        assert record["batch_loss"] == float(loss.detach())
        # The slope is so small a part that the step is straight.
        errors.append((record["batch_change"] - record["batch_slope"]) / record["batch_noise"])
    assert 0.02 < math.sqrt(sum(e * e for e in errors) / len(errors)) < 1


@pytest.mark.parametrize("lr", [1e-6, 1e-3, 1e-2])
def test_the_interval_in_half_precision_has_the_ratio_of_exact_losses(lr):
    """Rounding is in the spread of the steps; at the smallest rate no weight moves in bfloat16, and nothing is said."""
    covered = 0
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.Linear(32, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        probe = attached(model, optimizer, steps=24)
        exact = []
        for x, y in data(24, size=16, seed=seed):
            before = copy.deepcopy(model).double()
            with torch.autocast("cpu", torch.bfloat16):
                loss = probe.loss_fn(model, (x.float(), y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                exact.append(float(loss_fn(copy.deepcopy(model).double(), (x, y)) - loss_fn(before, (x, y))))
        records = [StepRecord.from_json(record) for record in probe.step_records]
        trust = trust_ratio(records)
        change, slope = sum(exact[record.step - 1] for record in records), sum(r.batch_slope for r in records)
        covered += trust.low <= change / slope <= trust.high
        assert lr != 1e-6 or trust.high > 0.97
    assert covered >= 13  # of 20, where each end is missed in a tenth


@pytest.mark.parametrize("how", ["wrapper", "in place"])
@pytest.mark.parametrize("named", [False, True])
def test_compiled_code_is_used_as_it_is(how, named):
    """Compiling takes seconds to minutes: neither hooks nor switches may make that necessary again."""
    found = []
    for probed in (False, True):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        raw = Own().train()
        model = torch.compile(raw, backend="aot_eager", fullgraph=True) if how == "wrapper" else raw
        if how == "in place":
            raw.compile(backend="aot_eager", fullgraph=True)
        optimizer = torch.optim.SGD(raw.parameters(), lr=0.1)
        batches = [{"x": x, "labels": y} for x, y in data(4)]
        torch.manual_seed(5)
        settings = {"every": 10**9, "max_overhead": None, "quiet": True, "steps": 4}
        probe = Probe(model, optimizer, None, batches[:1], **settings) if probed else None
        for batch in batches:
            optimizer.zero_grad()
            with probe.batch(batch) if named and probe is not None else nullcontext():
                model(**batch)["loss"].backward()
            optimizer.step()
        found.append((torch._dynamo.utils.counters["stats"]["unique_graphs"], outcome(raw, optimizer)))
    (plain_graphs, plain), (probed_graphs, probed) = found
    assert same(plain, probed)
    assert plain_graphs == probed_graphs
    assert probe is not None
    assert len(probe.step_records) == (4 if named or how == "wrapper" else 0)


def test_a_full_measurement_says_how_far_the_step_is_from_the_edge_of_the_evaluation_examples():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = attached(model, optimizer, every=2)
    for batch in data(4):
        with probe.batch(batch):
            optimizer.zero_grad()
            loss_fn(model, batch).backward()
            optimizer.step()
    own = {r["step"]: r for r in probe.records if r["direction"] == "own SGD"}
    edges = {r["step"]: r["edges"]["evaluation"] for r in probe.step_records if r["edges"]}
    assert set(own) == {2, 4}
    for step in own:
        found = edges[step]
        assert found["loss"] == pytest.approx(own[step]["loss"])
        assert found["realized_change"] == pytest.approx(own[step]["lr_loss"] - own[step]["loss"])
        assert found["predicted_change"] == pytest.approx(own[step]["slope"] * own[step]["norm"])
        assert found["decay_change"] == 0


def test_an_edge_says_what_weight_decay_adds():
    model, batch = net(), data(1)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.3)
    probe = attached(model, optimizer, every=1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss_fn(model, batch).backward()
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    optimizer.step()
    losses = []
    for undone in (0.0, 0.03):
        there = copy.deepcopy(model).eval()
        there.load_state_dict(buffers | {n: p.detach() + undone * before[n] for n, p in model.named_parameters()})
        losses.append(loss_fn(there, probe.eval_batches[0]).item())
    found = probe.step_records[0]["edges"]["evaluation"]
    assert found["decay_change"] == pytest.approx(losses[0] - losses[1], rel=1e-6)
    assert found["decay_slope"] is None


def test_a_training_that_diverges_has_records_of_it_and_a_page(tmp_path):
    pytest.importorskip("altair")
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with attached(model, optimizer) as probe:
        for step, batch in enumerate(data(6)):
            optimizer.zero_grad()
            probe.loss_fn(model, batch).backward()
            if step == 3:
                model[0].weight.data.fill_(math.nan)
            optimizer.step()
        assert "wasn't finite" in probe.findings()[0].evidence
        assert probe.report(tmp_path / "page.html").read_text().count("the loss of the batch isn")
    assert [record["batch_loss"] is None for record in probe.step_records][-2:] == [True, True]


def test_a_call_of_the_model_before_its_batch_is_given_is_none_of_the_steps():
    """A generator makes examples for its critic first: their gradient isn't its own."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with attached(model, optimizer) as probe:
        for batch in data(3):
            model(batch[0]).detach()
            optimizer.zero_grad()
            probe.loss_fn(model, batch).backward()
            optimizer.step()
    assert [record["step"] for record in told(probe)] == [1, 2, 3]
