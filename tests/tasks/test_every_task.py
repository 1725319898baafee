"""What all tasks promise: the same at every call, a seed draws weights and order alone, nothing outside is touched."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from made_data import data_of
from traces import equal

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

from stepscope.tasks.catalogue import TASKS
from stepscope.tasks.small import SMALL, small_task

CASES = {name: {} for name in TASKS} | {"images, pretrained": {"initialisation": "pretrained"}} | dict.fromkeys(SMALL)


@pytest.fixture(params=CASES)
def make(request, tmp_path):
    """``make(seed)`` gives the task."""
    name, changes = request.param, CASES[request.param]
    if name in SMALL:
        return lambda seed=0: small_task(name, seed=seed)
    kind = name.partition(",")[0]
    source = data_of(kind, tmp_path)
    config = replace(TASKS[kind].scales["smoke"], **changes)
    return lambda seed=0: TASKS[kind].make(config, seed=seed, source=source)


def alike(first, second):
    """Whether two tasks are the same in all that a training sees."""
    batches = list(islice(first.training_batches(), 40))  # more than an epoch
    return (
        equal(first.model.state_dict(), second.model.state_dict())
        and all(map(equal, batches, second.training_batches()))
        and all(map(equal, batches, first.training_batches()))
        and all(map(equal, first.eval_batches, second.eval_batches))
    )


def test_a_seed_fixes_everything(make):
    assert alike(make(3), make(3))


def test_another_seed_changes_weights_and_order_alone(make):
    first, second = make(3), make(4)
    assert not equal(first.model.state_dict(), second.model.state_dict())
    assert not equal(next(first.training_batches()), next(second.training_batches()))
    assert all(map(equal, first.eval_batches, second.eval_batches))


def test_another_seed_of_a_task_is_the_task_of_that_seed(make):
    task = make(3)
    next(task.training_batches())
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(1)  # what was done to the one isn't seen in the other
    assert alike(task.seeded(4), make(4))
    assert alike(task.seeded(3), make(3))


def test_global_random_state_is_neither_used_nor_moved(make):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make()
    batch = next(first.training_batches())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = make()
    assert equal(first.model.state_dict(), second.model.state_dict())
    assert equal(batch, next(second.training_batches()))


def test_it_can_be_trained(make):
    task = make()
    assert task.model.training
    loss = task.model(**next(task.training_batches())).loss
    loss.backward()
    assert loss.isfinite()
    assert any(bool(parameter.grad.any()) for parameter in task.model.parameters() if parameter.grad is not None)


def test_it_says_where_its_data_are_from(make):
    source = make().source
    assert source.title
    assert source.license
    assert len(source.sha256) == 64
    assert source.examples > 0
