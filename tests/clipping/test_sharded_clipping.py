"""The threshold of tensors that lie in parts on several ranks is that of the whole, to the bit."""

import functools
import math
import random
import struct

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from ranks import on_ranks, refused
from stepscope import clip_grad_fraction_, clip_optimizer
from stepscope.clipping import fraction_threshold

pytestmark = pytest.mark.slow

CASES_OF_CHANCE = 400
OPTIMIZERS = {
    "grad": functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "first_moment": functools.partial(torch.optim.AdamW, lr=0.01),
    "update": functools.partial(torch.optim.Adam, lr=0.01, weight_decay=0.1),
}


@functools.cache
def mesh(*shape):
    return init_device_mesh("cpu", shape)


def bits(value):
    return struct.pack("d", value).hex()


def drawn(seed):
    """Tensors of any kind, the same on all ranks, and how they lie on them."""
    chance = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    kinds = [[torch.float32], [torch.float64], [torch.bfloat16], [torch.float32, torch.bfloat16], [torch.float16]]
    dtypes = chance.choice(kinds)
    few, zeros, special = chance.random() < 0.3, chance.random() < 0.3, chance.random()
    tensors = []
    factor = 30 if chance.random() < 0.15 else 1  # far more than are sampled
    for _ in range(chance.randint(1, 4)):
        shape = [factor * chance.choice([1, 2, 3, 5, 8, 17]) for _ in range(chance.randint(1, 2))]
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        if few:
            x = x.sign() * (x.abs() * 2).round()  # equal magnitudes
        if zeros:
            x = torch.where(torch.rand(shape, generator=generator) < 0.6, 0.0, x)
        if special < 0.2:
            x.view(-1)[chance.randrange(x.numel())] = math.nan if special < 0.1 else math.inf
        tensors.append(x.to(chance.choice(dtypes)))
    return tensors, chance.choice([0.0, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0]), chance.choice(["keep", "ignore"]), chance


def spread(whole, chance):
    """In parts on all ranks: uneven, empty, copies of one another, terms of a sum, on one mesh or two, or as it is."""
    size = dist.get_world_size()
    meshes = [mesh(size)] if size < 4 else [mesh(size), mesh(2, 2)]
    on = chance.choice(meshes)
    places = [chance.choice([Shard(0), Shard(whole.dim() - 1), Replicate(), Partial()]) for _ in range(on.ndim)]
    if whole.dim() < 2 and on.ndim == 2 and all(place.is_shard() for place in places):
        places[1] = Replicate()
    if any(place.is_partial() for place in places):
        # One term is the tensor, the others zeros.
        first = all(c == 0 for c, place in zip(on.get_coordinate(), places, strict=True) if place.is_partial())
        whole = whole if first else torch.zeros_like(whole)
        base = distribute_tensor(whole, on, [Replicate() if p.is_partial() else p for p in places], src_data_rank=None)
        return DTensor.from_local(base.to_local(), on, places, shape=base.shape, stride=base.stride())
    return distribute_tensor(whole, on, places, src_data_rank=None)


# ------------------------------------------------------------------------------------------------------------ cases


def by_chance():
    differ = []
    for seed in range(CASES_OF_CHANCE):
        tensors, fraction, zeros, chance = drawn(seed)
        expected = fraction_threshold(tensors, fraction, zeros=zeros)
        parts = [spread(tensors[0], chance), *(spread(t, chance) if chance.random() < 0.8 else t for t in tensors[1:])]
        found = fraction_threshold(parts, fraction, zeros=zeros)
        if bits(found) != bits(expected):
            differ.append((seed, found, expected))
    return differ


def in_place():
    """Gradients are clipped where they are; one that lies in terms of a sum is added up for it."""
    generator = torch.Generator().manual_seed(0)
    wholes = [torch.randn(shape, generator=generator) for shape in ((5, 3), (1,), (7,))]
    on, size = mesh(dist.get_world_size()), dist.get_world_size()
    parameters, plain = [], []
    for whole, place in zip(wholes, (Shard(0), Shard(0), Replicate()), strict=True):
        parameters.append(nn.Parameter(distribute_tensor(torch.zeros_like(whole), on, [place])))
        parameters[-1].grad = distribute_tensor(whole.clone(), on, [place])
        plain.append(nn.Parameter(torch.zeros_like(whole)))
        plain[-1].grad = whole.clone()
    parameters[2].grad = DTensor.from_local(wholes[2] / size, on, [Partial()])
    threshold, expected = clip_grad_fraction_(parameters, 0.2), clip_grad_fraction_(plain, 0.2)
    same = [torch.equal(p.grad.full_tensor(), q.grad) for p, q in zip(parameters, plain, strict=True)]
    return [bits(float(threshold)) == bits(float(expected)), *same]


def costs():
    """Bytes and number of exchanges, for models of two sizes."""
    counted = []
    reduce, gather = dist.all_reduce, dist.all_gather

    def noted(exchange):
        def call(first, *args, **kwargs):
            tensor = args[0] if isinstance(first, list) else first
            counted.append(tensor.numel() * tensor.element_size())
            return exchange(first, *args, **kwargs)

        return call

    dist.all_reduce, dist.all_gather = noted(reduce), noted(gather)
    try:
        found = []
        for count in (10**4, 10**6):
            counted.clear()
            fraction_threshold([distribute_tensor(torch.randn(count), mesh(dist.get_world_size()), [Shard(0)])], 0.1)
            found.append([sum(counted), len(counted)])
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather
    return found


def trained(shard, target):
    torch.manual_seed(1)
    model = shard(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double())
    optimizer = OPTIMIZERS[target](model.parameters())
    handle = clip_optimizer(optimizer, 0.2, target=target, scope="tensor" if target == "update" else "global")
    x = torch.randn(8, 5, dtype=torch.float64)
    thresholds = []
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()  # all ranks have the same batch
        optimizer.step()
        thresholds.append(handle.last_threshold.tolist())
    weights = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return thresholds, [w.detach().clone() for w in weights], handle.stats().steps


def targets():
    """The three targets, of a model that `fully_shard` has cut."""
    return {target: [trained(fully_shard, target), trained(lambda m: m, target)] for target in OPTIMIZERS}


def bad_gradients():
    """Infinite on one rank alone; all zero; and of parameters that should be the same on all ranks."""
    on, rank = mesh(dist.get_world_size()), dist.get_rank()
    parameter = nn.Parameter(distribute_tensor(torch.zeros(4, 2), on, [Shard(0)]))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    handle = clip_optimizer(optimizer, 0.5, error_if_nonfinite=True)
    parameter.grad = distribute_tensor(torch.tensor([[math.inf, 1.0], *[[1.0, 2.0]] * 3]), on, [Shard(0)])
    raised = refused(optimizer.step)
    parameter.grad = distribute_tensor(torch.zeros(4, 2), on, [Shard(0)])
    optimizer.step()
    other = nn.Parameter(torch.zeros(3))
    other.grad = torch.ones(3) * (1 + rank)
    parameter.grad = distribute_tensor(torch.ones(4, 2), on, [Shard(0)])
    unsynchronized = refused(lambda: clip_grad_fraction_([parameter, other], 0.5))
    other.grad = torch.ones(3) if rank else None
    missing = [refused(lambda: clip_grad_fraction_([parameter, other], 0.5))]
    parameter.grad = parameter.grad if rank else None
    missing += [refused(lambda: clip_grad_fraction_([parameter, other], 0.5)), refused(optimizer.step)]
    return [raised, handle.stats().without_gradient, unsynchronized, missing]


CASES = (by_chance, in_place, costs, targets, bad_gradients)


@pytest.fixture(scope="module", params=[2, 4])
def results(request, tmp_path_factory):
    return on_ranks(CASES, request.param, tmp_path_factory.mktemp("ranks"))


def test_thresholds_are_those_of_the_whole_to_the_bit(results):
    assert results["by_chance"] == [[]] * len(results["by_chance"])


def test_gradients_are_clipped_in_place(results):
    assert results["in_place"] == [[True] * 4] * len(results["in_place"])


def test_what_is_exchanged_does_not_grow_with_the_model(results):
    for small, large in results["costs"]:
        for exchanged, exchanges in (small, large):
            assert exchanged <= 40_000
            assert exchanges <= 6


@pytest.mark.parametrize("target", OPTIMIZERS)
def test_a_sharded_training_is_clipped_as_in_one_process(results, target):
    for rank in results["targets"]:
        (thresholds, weights, steps), (alone, alone_weights, alone_steps) = rank[target]
        assert steps == alone_steps == 3
        torch.testing.assert_close(torch.tensor(thresholds), torch.tensor(alone), rtol=1e-12, atol=0)
        for here, there in zip(weights, alone_weights, strict=True):
            torch.testing.assert_close(here, there, rtol=1e-12, atol=1e-15)


def test_gradients_that_cannot_be_clipped(results):
    for raised, without_gradient, unsynchronized, missing in results["bad_gradients"]:
        assert "infinite or NaN" in raised
        assert without_gradient == 1
        assert "should be the same on all ranks differ" in unsynchronized
        assert ["some ranks lack gradients" in text for text in missing] == [True] * 3
