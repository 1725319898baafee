"""Micro-batches that fit a memory budget: the same numbers, the memory that was announced, and no trace."""

import pytest
import torch
from torch import nn

import stepscope
from stepscope import Objective, UsageError
from stepscope.objective import memory_budget
from traces import fingerprint


class Attending(nn.Module):
    """A transformer's layer, dropout in it, on 64 tokens of width 128."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 128)
        self.layer = nn.TransformerEncoderLayer(128, 4, 512, 0.1, batch_first=True, norm_first=True)
        self.out = nn.Linear(128, 50)

    def forward(self, tokens):
        return self.out(self.layer(self.embedding(tokens)))


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch["tokens"]).transpose(1, 2), batch["labels"])


def batches(*sizes):
    made = torch.Generator().manual_seed(3)
    tokens = [torch.randint(0, 50, (size, 64), generator=made) for size in sizes]
    return [{"tokens": t, "labels": t.roll(1, 1)} for t in tokens]


def peak_bytes(work):
    """The most that a profiler sees, what kernels take within themselves too."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.parametrize("part", [0.4])
def test_what_is_announced_is_what_is_used_and_fits_the_budget(part):
    torch.manual_seed(0)
    model = Attending()
    whole = Objective(model, loss_fn, batches(12, 12))
    # Two: the graph of the last product is freed on the way, so that one alone takes less.
    directions = {str(k): {n: torch.randn_like(p) for n, p in whole.parameters.items()} for k in range(2)}

    def measured(objective):
        return stepscope.measure(objective, directions, landscape=True, breakdown=True)

    measured(whole)
    budget = int(part * peak_bytes(lambda: measured(whole)))
    objective = Objective(model, loss_fn, batches(12, 12), memory=budget)
    used = peak_bytes(lambda: measured(objective))
    assert objective.memory.needed == pytest.approx(used, rel=0.2)
    assert used <= budget
    assert objective.memory.count == len(objective.batches) > 2
    assert max(len(b["tokens"]) for b in objective.batches) == objective.memory.examples
    assert f"{objective.memory.count} micro-batches of at most" in str(objective.memory)


def test_the_numbers_are_those_of_the_whole_batches():
    torch.manual_seed(0)
    model = Attending().double()
    whole = Objective(model, loss_fn, batches(7, 5))
    direction = {"d": {n: torch.randn_like(p) for n, p in whole.parameters.items()}}
    expected = stepscope.measure(whole, direction)["d"]
    cut = Objective(model, loss_fn, batches(7, 5), memory=40_000_000)
    assert sum(len(b["tokens"]) for b in cut.batches) == 12
    assert len(cut.batches) > 2
    found = stepscope.measure(cut, direction)["d"]
    for name in ("loss", "gradient_norm", "slope", "sharpness"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-10), name


def test_the_trial_leaves_no_trace():
    model = Attending().train()
    before = fingerprint(model)
    Objective(model, loss_fn, batches(6), memory=50_000_000)
    assert fingerprint(model) == before


def test_a_part_of_what_is_free(monkeypatch):
    monkeypatch.setattr(memory_budget, "_free", lambda _: 100_000_000)
    assert Objective(Attending(), loss_fn, batches(2), memory=0.3).memory.budget == 30_000_000


def test_a_trial_without_enough_memory_counts_one_example_alone():
    def trial(batch):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("no more")
        return 100

    cut, plan = memory_budget.within(500, [torch.ones(8, 2)], trial, torch.device("cpu"))
    assert (plan.examples, plan.needed, [len(b) for b in cut]) == (4, 400, [4, 4])
    with pytest.raises(torch.OutOfMemoryError):
        memory_budget.within(500, [torch.ones(8, 2, 2).expand(8, 2, 2)], lambda _: trial([1, 2]), torch.device("cpu"))


def test_what_is_free_is_known_here():
    assert 2**24 < memory_budget._free(torch.device("cpu")) < 2**50
    with pytest.raises(UsageError, match="give memory in bytes"):
        memory_budget._free(torch.device("meta"))


@pytest.mark.parametrize(
    ("memory", "batch", "said"),
    [
        (10, {"x": torch.ones(4, 2)}, "for one example"),
        (0, {"x": torch.ones(4, 2)}, "give bytes, or a part of what is free"),
        ("1G", {"x": torch.ones(4, 2)}, "give bytes, or a part of what is free"),
        (1e6, {"x": torch.tensor(2.0)}, "cut them yourself"),
    ],
)
def test_refusals(memory, batch, said):
    with pytest.raises(UsageError, match=said):
        Objective(
            nn.Linear(2, 1),
            lambda m, b: m(b["x"].expand(2) if not b["x"].dim() else b["x"]).mean(),
            [batch],
            lambda _: 1.0,
            memory=memory,
        )


def test_a_loss_that_is_no_mean_over_examples_is_not_cut():
    """Contrastive: each example is compared with the others of its batch."""

    def contrastive(model, x):
        y = nn.functional.normalize(model(x), dim=1)
        return nn.functional.cross_entropy(y @ y.T / 0.1, torch.arange(len(x)))

    with pytest.raises(UsageError, match="mean"):
        Objective(nn.Linear(8, 4), contrastive, [torch.randn(64, 8)], memory=12_000)


def test_a_model_without_a_second_derivative_is_tried_too():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**2

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    model = nn.Linear(4, 3)
    objective = Objective(model, lambda m, x: Once.apply(m(x)).mean(), [torch.ones(8, 4)], memory=100_000)
    assert objective.memory.count >= 1


def test_a_probe_says_what_was_chosen(capsys):
    model = Attending()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with stepscope.Probe(
        model, optimizer, loss_fn, batches(8), every=1, max_overhead=None, directions={}, memory=20_000_000
    ) as probe:
        optimizer.zero_grad()
        loss_fn(model, batches(8)[0]).backward()
        optimizer.step()
    assert len(probe.eval_batches) > 1
    assert f"{len(probe.eval_batches)} micro-batches of at most" in capsys.readouterr().err
