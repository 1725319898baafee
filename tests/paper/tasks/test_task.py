"""A task on a device: what is moved, and when."""

from itertools import islice

import pytest
import torch
from torch import nn

from stepscope.errors import UsageError
from stepscope.paper.tasks.task import Source, Task, placed


class Traveller:
    """Stands for a tensor, and says where it is: a machine without a GPU has one device alone to put real ones on."""

    def __init__(self, number, where="here"):
        self.number, self.where = number, where

    def to(self, device):
        return Traveller(self.number, device)


class Model(nn.Module):
    where = "here"

    def to(self, device):
        self.where = device
        return self


def task(asked, seed=0):
    def training_batches():
        for number in range(100):
            asked.append(seed + number)
            yield {"labels": Traveller(seed + number)}

    return Task(
        name="travel",
        model=Model(),
        training_batches=training_batches,
        eval_batches=({"labels": Traveller(-1)}, {"labels": Traveller(-2)}),
        source=Source("made", "Made", "none needed", "0" * 64, 100),
        seeded=lambda other: task(asked, other),
        initialisation="pretrained: someone/model",
    )


def test_all_is_moved_for_every_seed():
    asked = []
    cpu = torch.device("cpu")
    found = placed(task(asked), "cpu")
    for each, seed in ((found, 0), (found.seeded(1_000), 1_000), (found.seeded(1_000).seeded(2_000), 2_000)):
        assert each.model.where == cpu
        assert each.initialisation == "pretrained: someone/model"
        travellers = [batch["labels"] for batch in [*islice(each.training_batches(), 3), *each.eval_batches]]
        assert [t.number for t in travellers] == [seed, seed + 1, seed + 2, -1, -2]
        assert {t.where for t in travellers} == {cpu}


def test_training_batches_are_moved_as_they_are_asked_for():
    asked = []
    batches = placed(task(asked), "cpu").training_batches
    first = batches()
    next(first)
    assert asked == [0]
    next(batches())  # starts again from the first one
    next(first)
    assert asked == [0, 0, 1]


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", ""])
def test_there_is_no_such_device(device):
    with pytest.raises(UsageError, match=rf"^device '{device}' cannot be used \(.*\): choose another, such as cpu$"):
        placed(task([]), device)
