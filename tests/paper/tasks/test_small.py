"""The small tasks: the same at every call, smooth, in double precision, and as described."""

from itertools import islice

import pytest
import torch

from stepscope.errors import UsageError
from stepscope.paper.tasks.small import SMALL, small_task


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", SMALL)
def test_a_seed_fixes_everything_and_touches_nothing(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = small_task(name, seed=3)
    batches = list(islice(first.training_batches(), 20))  # more than an epoch
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second, other = small_task(name, seed=3), small_task(name, seed=4)
    assert same(first.model.state_dict(), second.model.state_dict())
    assert all(map(same, batches, second.training_batches()))
    assert all(map(same, first.eval_batches, second.eval_batches))
    assert not same(first.model.state_dict(), other.model.state_dict())
    assert not same(batches[0], next(other.training_batches()))
    assert all(map(same, first.eval_batches, other.eval_batches))
    assert first.source == other.source


@pytest.mark.parametrize(("name", "count"), [("classifier", 432), ("language model", 824)])
def test_models_are_as_large_as_said_and_in_double_precision(name, count):
    model = small_task(name).model
    assert sum(p.numel() for p in model.parameters()) == count
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model.training


@pytest.mark.parametrize("name", SMALL)
def test_it_learns_and_every_coordinate_matters(name):
    task = small_task(name)
    optimizer = torch.optim.Adam(task.model.parameters(), lr=1e-2)
    losses = []
    for batch in islice(task.training_batches(), 200):
        optimizer.zero_grad()
        loss = task.model(**batch).loss
        loss.backward()
        assert all(float(p.grad.abs().min()) > 1e-14 for p in task.model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10])


def test_a_word_is_predicted_from_those_before_it_alone():
    task = small_task("language model")
    batch = task.eval_batches[0]
    changed = batch["input_ids"].clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 24
    model = task.model.eval()

    def losses(ids, upto):
        labels = batch["labels"].clone()
        labels[:, upto:] = -100
        return model(ids, labels).loss

    assert torch.equal(losses(changed, 6), losses(batch["input_ids"], 6))
    assert not torch.equal(losses(changed, 7), losses(batch["input_ids"], 7))


def test_words_are_unequally_frequent_and_labels_are_the_next_ones():
    batch = next(small_task("language model").training_batches())
    assert torch.equal(batch["input_ids"][:, 1:], batch["labels"][:, :-1])
    counts = torch.stack([b["labels"] for b in islice(small_task("language model").training_batches(), 16)])
    counts = counts.flatten().bincount(minlength=24).sort(descending=True).values
    assert int(counts[0]) > 8 * int(counts[12]) > 0


def test_an_unknown_task():
    with pytest.raises(UsageError, match="choose classifier or language model"):
        small_task("vision")
