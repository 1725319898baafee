"""Evaluation batches are read without a trace: a training draws from the same generators as without."""

import random

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from stepscope import Objective
from stepscope.integrations.examples import RandomExamples
from stepscope.objective import reading


class Augmented(Dataset):
    """Draws from generators of its own for each example."""

    def __init__(self):
        self.of_torch, self.of_numpy, self.of_python = (
            torch.Generator().manual_seed(0), np.random.default_rng(0), random.Random(0)
        )  # fmt: skip

    def __len__(self):
        return 8

    def __getitem__(self, index):
        drawn = self.of_numpy.random() + self.of_python.random() + torch.rand((), generator=self.of_torch)
        return torch.full((2,), index + float(drawn))


def a_shared_generator(shuffle):
    """As in torch's recipe for reproducible trainings: one generator for all loaders."""
    generator, data = torch.Generator().manual_seed(0), torch.arange(16.0).view(8, 2)
    train = DataLoader(data, 2, shuffle=True, generator=generator)
    return DataLoader(data, 2, shuffle=shuffle, generator=generator), lambda: [b.tolist() for b in train]


def a_data_set(wrapped):
    data = Augmented()
    return DataLoader(wrapped(data), 2), lambda: [data[0].tolist(), data[1].tolist()]


def workers_that_stay():
    """A loader draws the seed of its workers from the global generator when it makes them."""
    held_out = DataLoader(torch.ones(4, 2), 2, num_workers=1, persistent_workers=True)
    return held_out, lambda: [len(list(held_out)), torch.rand(3).tolist()]


MADE = {
    "a loader's generator": lambda: a_shared_generator(False),
    "a sampler's generator": lambda: a_shared_generator(True),
    "a data set's generators": lambda: a_data_set(lambda data: data),
    "those of a part of a data set": lambda: a_data_set(lambda data: Subset(data, range(4))),
    "those of one of several": lambda: a_data_set(lambda data: ConcatDataset([data, data])),
    "workers that stay": workers_that_stay,
}


@pytest.mark.parametrize("made", MADE)
def test_a_training_draws_the_same_after_evaluation_batches_were_read(made):
    def drawn(use):
        batches, trained = MADE[made]()
        model = torch.nn.Linear(2, 1)
        torch.manual_seed(1)
        use(model, batches)
        return trained()

    read = drawn(lambda model, batches: Objective(model, lambda m, x: m(x).square().mean(), batches))
    assert read == drawn(lambda model, batches: None)


def test_examples_that_a_callback_looks_up_leave_the_data_set_as_it_was():
    data = Augmented()
    RandomExamples(2, seed=0).batches(data, "data", torch.stack, size=2)
    assert data[0].tolist() == Augmented()[0].tolist()


def test_a_generator_is_put_back_after_an_error():
    data = Augmented()
    with pytest.raises(IndexError), reading(data):
        _ = data[0].tolist()[2]
    assert data[0].tolist() == Augmented()[0].tolist()
