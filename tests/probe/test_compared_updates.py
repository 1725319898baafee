"""What is compared at a step: on the optimizer's own parameters, of gradients of the loss, the finite ones."""

import logging

import pytest
import torch
from torch import nn

from stepscope import UsageError, next_update
from stepscope.objective import vectors
from stepscope.probe.compared_updates import ComparedUpdates, NoUpdateError


def weights(**shapes):
    torch.manual_seed(0)
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def give_gradients(parameters, scale=1.0):
    for p in parameters.values():
        p.grad = scale * torch.randn(p.shape)


def test_only_the_optimizers_own_parameters_are_compared():
    all_of_them = weights(mine=(20,), others=(20,))
    give_gradients(all_of_them)
    all_of_them["others"].grad *= 1000
    optimizer = torch.optim.SGD([all_of_them["mine"]], lr=0.1)
    found = ComparedUpdates(optimizer).updates(all_of_them)
    assert all(set(direction) == {"mine"} for direction in found.values())
    assert set(found) == {"own SGD", "own SGD clip 10%", "sgd", "adam"}
    clipped = found["own SGD clip 10%"]["mine"]
    assert int((clipped != found["own SGD"]["mine"]).sum()) == 2  # a tenth of twenty


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_gradient_is_taken_for_what_it_is(fused):
    """A gradient scaler lets a fused optimizer undo the scale itself; the others must not see it."""
    found = []
    for scaled in (False, True):
        w = weights(w=(50,))
        optimizer = torch.optim.AdamW(w.values(), lr=1e-3, fused=fused)
        compared = ComparedUpdates(optimizer)
        seen = []

        def look(*_, seen=seen, compared=compared, w=w):
            seen.append(compared.updates(w))

        optimizer.register_step_pre_hook(look)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for _ in range(2):
            scaler.scale((w["w"] ** 2).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        found.append(seen)
    for plain, scaled in zip(*found, strict=True):
        for label, update in plain.items():
            assert torch.allclose(scaled[label]["w"], update["w"], rtol=1e-5, atol=1e-9), label


def test_a_step_that_the_scaler_skips_is_noticed():
    w = weights(w=(5,))
    optimizer = torch.optim.AdamW(w.values(), lr=1e-3, fused=True)
    compared = ComparedUpdates(optimizer)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(compared.skipped()))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf"), 1.0):
        scaler.scale(factor * (w["w"] ** 2).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert seen == [False, True, False]


def test_an_infinite_gradient_is_not_followed():
    w = weights(w=(5,))
    compared = ComparedUpdates(torch.optim.SGD(w.values(), lr=0.1))
    w["w"].grad = torch.full((5,), float("inf"))
    compared.follow(w)
    give_gradients(w)
    found = compared.updates(w)
    assert all(torch.isfinite(vectors.UnitDirection.of(d, w).u["w"]).all() for d in found.values())
    assert {"sgd", "adam"} < set(found)


def test_one_that_is_not_finite_is_left_out_and_said_so_once(caplog):
    class Infinite(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    p.add_(float("inf"))

    w = weights(w=(5,))
    compared = ComparedUpdates(torch.optim.SGD(w.values(), lr=0.1), {"bad": lambda p: Infinite(p, lr=1.0)})
    give_gradients(w)
    with caplog.at_level(logging.WARNING, "stepscope"):
        assert [set(compared.updates(w)) for _ in range(2)] == [{"own SGD"}] * 2
    assert caplog.text.count("the update of bad is infinite") == 1
    w["w"].grad.fill_(float("inf"))
    with pytest.raises(UsageError, match="own update is infinite or NaN"):
        compared.updates(w)


def test_asking_does_not_advance_the_others():
    w = weights(w=(5,))
    compared = ComparedUpdates(torch.optim.SGD(w.values(), lr=0.1))
    give_gradients(w)
    first, again = compared.updates(w), compared.updates(w)
    assert compared.followed == 0
    assert all(torch.equal(first[label]["w"], again[label]["w"]) for label in first)
    compared.follow(w)
    assert compared.followed == 1
    give_gradients(w)
    later = compared.updates(w)
    fresh = ComparedUpdates(torch.optim.SGD(w.values(), lr=0.1)).updates(w)
    assert torch.equal(later["own SGD"]["w"], fresh["own SGD"]["w"])
    assert not torch.equal(later["sgd"]["w"], fresh["sgd"]["w"])


def test_sparse_gradients():
    model = nn.Embedding(10, 3, sparse=True)
    model(torch.tensor([1, 4, 4])).square().sum().backward()
    parameters = dict(model.named_parameters())
    found = ComparedUpdates(torch.optim.SparseAdam(model.parameters(), lr=0.1)).updates(parameters)
    assert set(found) == {"own SparseAdam", "sgd", "adam"}  # nothing clips sparse gradients
    own = next_update(torch.optim.SparseAdam(model.parameters(), lr=0.1), parameters)
    assert torch.equal(found["own SparseAdam"]["weight"], own["weight"])


def test_nothing_to_compare():
    w = weights(w=(5,))
    compared = ComparedUpdates(torch.optim.SGD(w.values(), lr=0.0), {})
    with pytest.raises(NoUpdateError, match="no parameter has a gradient"):
        compared.updates(w)
    give_gradients(w)
    with pytest.raises(NoUpdateError, match="no optimizer would move"):
        compared.updates(w)


def test_what_cannot_follow_is_shown_by_a_rehearsal():
    class Failing(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("boom")

    w = weights(w=(5,))
    with pytest.raises(UsageError, match="'bad' can't follow: boom"):
        ComparedUpdates(torch.optim.SGD(w.values(), lr=0.1), {"bad": lambda p: Failing(p, lr=1.0)}).rehearse(w)
    with pytest.raises(UsageError, match="SGD holds no trainable parameter"):
        ComparedUpdates(torch.optim.SGD(weights(w=(5,)).values(), lr=0.1)).rehearse(w)


def test_a_sweep_of_fractions_is_one_update_for_each():
    w = weights(w=(200,))
    give_gradients(w)
    optimizer = torch.optim.SGD(w.values(), lr=0.5)
    compared = ComparedUpdates(optimizer, {}, clip_fractions=(0.0, 0.005, 0.1, 1.0))
    found = compared.updates(w)
    assert list(found) == ["own SGD", "own SGD clip 0.5%", "own SGD clip 10%", "own SGD clip 100%"]
    assert compared.count == len(found)
    changed = {label: int((update["w"] != found["own SGD"]["w"]).sum()) for label, update in found.items()}
    assert changed == {"own SGD": 0, "own SGD clip 0.5%": 1, "own SGD clip 10%": 20, "own SGD clip 100%": 199}
    threshold = w["w"].grad.abs().sort(descending=True).values[20]
    expected = -0.5 * w["w"].grad.clamp(-threshold, threshold)
    torch.testing.assert_close(found["own SGD clip 10%"]["w"].to(expected.dtype), expected)


def test_fractions_that_cannot_be_used():
    optimizer = torch.optim.SGD(weights(w=(2,)).values(), lr=0.5)
    with pytest.raises(UsageError, match=r"fraction is 10: it is the part of all coordinates"):
        ComparedUpdates(optimizer, clip_fractions=(10,))
    with pytest.raises(UsageError, match="'own SGD clip 10%' is the optimizer's own, clipped: give another label"):
        ComparedUpdates(optimizer, {"own SGD clip 10%": torch.optim.Adam}, clip_fractions=(0.1,))


def test_an_own_update_of_zero_is_said_with_its_reason(caplog):
    class Resting(torch.optim.SGD):
        def step(self, closure=None):
            pass

    w = weights(w=(5,))
    optimizer = torch.optim.SGD(w.values(), lr=0.1)
    compared, resting = ComparedUpdates(optimizer), ComparedUpdates(Resting(w.values(), lr=0.1))
    give_gradients(w)
    with caplog.at_level(logging.WARNING, "stepscope"):
        assert "own SGD" in compared.updates(w)
        assert not caplog.messages
        optimizer.param_groups[0]["lr"] = 0.0
        assert [set(compared.updates(w)) for _ in range(2)] == [{"sgd", "adam"}] * 2
        assert "own Resting" not in resting.updates(w)
        optimizer.param_groups[0]["lr"] = 0.1
        compared.follow(w)  # their momentum moves the others on
        w["w"].grad.zero_()
        assert set(compared.updates(w)) == {"sgd", "adam"}
    assert caplog.messages == [
        "the update of own SGD is zero (its learning rate is 0): it is left out",
        "the update of own Resting is zero (though neither the gradients nor its learning rate are): it is left out",
        "the update of own SGD is zero (all gradients are zero): it is left out",
    ]


def test_a_rule_that_divides_by_the_length_of_its_gradients_is_rehearsed():
    class Normalized(torch.optim.SGD):
        def step(self, closure=None):
            [group] = self.param_groups
            group["lr"] = 1.0 / float(group["params"][0].grad.norm())  # an error where it is zero
            return super().step(closure)

    parameters = weights(w=(3,))
    ComparedUpdates(Normalized(parameters.values(), lr=0.1), {"other": Normalized}).rehearse(parameters)
