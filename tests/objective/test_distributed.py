"""A process of a distributed training measures by itself; the others don't wait for it."""

import datetime
import os
import warnings
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from stepscope import Probe, UsageError, clip_grad_fraction_, clip_optimizer


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def work(rank, folder, trainings):
    """Trains several times, each time with a probe at some steps of some ranks."""
    torch.set_num_threads(1)
    # By a file: a port that was free a moment ago may be taken.
    store, timeout = folder / "store", datetime.timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timeout)
    torch.save([train(rank, every[rank]) for every in trainings], folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    # What was to be found out is on the disk. torch's own threads now and then abort an interpreter that winds down.
    os._exit(0)


def train(rank, every):
    torch.manual_seed(0)
    # Buffers: calling the wrapper sends them from process to process.
    inside = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model = nn.parallel.DistributedDataParallel(inside)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(rank)
    batches = [(torch.randn(8, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])) for _ in range(6)]
    probe = None
    if every:
        probe = Probe(model, optimizer, loss_fn, batches[:2], every=every, max_overhead=None, quiet=True)
    for batch in batches:
        optimizer.zero_grad()
        with probe.batch(batch) if probe else nullcontext():
            loss_fn(model, batch).backward()
        optimizer.step()
    state = [t.clone() for t in inside.state_dict().values()]
    if probe:
        probe.close()
        # The gradient is that of both processes' batches, and known of neither.
        assert not any(record["batch_slope"] is not None for record in probe.step_records)
    return state, sorted({r["step"] for r in probe.records}) if probe else []


@pytest.mark.slow
def test_it_measures_alone_and_changes_nothing(tmp_path):
    mp.spawn(work, (tmp_path, ([None, None], [2, None], [2, 3])), nprocs=2)
    plain, one, both = zip(*(torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)), strict=True)
    assert [steps for _, steps in one] == [[2, 4, 6], []]
    assert [steps for _, steps in both] == [[2, 4, 6], [3, 6]]
    for probed in (one, both):
        for rank in range(2):
            assert all(torch.equal(a, b) for a, b in zip(plain[rank][0], probed[rank][0], strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("original", [True, False])
def test_a_model_sharded_by_the_first_fsdp_is_refused(original, tmp_path):
    """With the original parameters its sharpness would be 0; flat ones end the process."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a single process nothing is cut up
            inside = FullyShardedDataParallel(nn.Linear(4, 3), use_orig_params=original, device_id=torch.device("cpu"))
        batch = (torch.randn(2, 4), torch.tensor([0, 1]))
        optimizer = torch.optim.SGD(inside.parameters(), lr=0.1)
        for model in (inside, nn.Sequential(inside), inside.module):
            with pytest.raises(
                UsageError, match="sharded over processes by FSDP, which can't be measured: use fully_shard"
            ):
                Probe(model, optimizer, loss_fn, [batch], quiet=True)
        with pytest.raises(UsageError, match="sharded over processes by FSDP: the threshold"):
            clip_optimizer(optimizer, 0.1)
        loss_fn(inside, batch).backward()
        with pytest.raises(UsageError, match="sharded over processes by FSDP: the threshold"):
            clip_grad_fraction_(inside.parameters(), 0.1)
    finally:
        dist.destroy_process_group()
