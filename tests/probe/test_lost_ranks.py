"""Where a rank is lost in the middle of a measurement, all end with a message, and what was recorded can be read."""

import datetime
import logging
import multiprocessing
import os
import signal
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

from ranks import IMPORTED
from stepscope import Probe
from stepscope.runs import DirectionRecord, read_run, read_steps

pytestmark = pytest.mark.slow

TIMEOUT = 10
WAYS = [("fsdp", "failed"), ("fsdp", "killed"), ("ddp", "killed"), ("fsdp", "alone"), ("ddp", "alone")]


def loss_fn(model, x):
    return model(x).square().mean()


def work(rank, folder, way, how):
    torch.set_num_threads(1)
    limit = datetime.timedelta(seconds=TIMEOUT)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2, timeout=limit)
    logging.getLogger("stepscope").addHandler(logging.FileHandler(folder / f"{rank}.log"))
    torch.manual_seed(0)
    inside = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    if way == "fsdp":
        fully_shard(inside[2])
        model = fully_shard(inside)
    else:
        model = nn.parallel.DistributedDataParallel(inside)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def ends(module, _):
        if probe.step == 4 and rank == 1 and not module.training:
            os.kill(os.getpid(), signal.SIGKILL) if how == "killed" else module.missing()

    probe = Probe(
        model, optimizer, loss_fn, [torch.randn(3, 4)], every=2, max_overhead=None, directions={}, weight_fn=len,
        steps=8, run_dir=folder / "run", process_group=dist.group.WORLD, quiet=True,
    )  # fmt: skip
    inside[1].register_forward_pre_hook(ends)
    try:
        for _ in range(8):
            optimizer.zero_grad()
            probe.loss_fn(model, torch.randn(3, 4)).backward()
            optimizer.step()
            if how == "alone" and probe.step == 3 and rank == 1:
                probe.measure()
    except BaseException as error:
        (folder / f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    os._exit(1)


@pytest.fixture(scope="module", params=WAYS, ids="-".join)
def ended(request, tmp_path_factory):
    folder, (way, how) = tmp_path_factory.mktemp("ranks"), request.param
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    processes = [context.Process(target=work, args=(rank, folder, way, how)) for rank in range(2)]
    for process in processes:
        process.start()
    started = time.monotonic()
    for process in processes:
        process.join(6 * TIMEOUT)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    said = [path.read_text() for rank in range(2) if (path := folder / f"{rank}.txt").exists()]
    return how, codes, said, time.monotonic() - started, folder / "run"


def test_all_ranks_end_with_a_message(ended):
    how, codes, said, seconds, run = ended
    assert codes == [1, -signal.SIGKILL if how == "killed" else 1]
    own = [text for text in said if not (how == "alone" and text.startswith("RuntimeError: "))]  # of the training's
    assert all(text.startswith("OutOfStepError: ") for text in own)
    assert own
    assert len(said) == codes.count(1)
    assert seconds < 5 * TIMEOUT
    if how == "alone":
        assert "all ranks have to come to 'Probe.measure', and rank 0 didn't come" in said[1]
        assert "'Probe.measure': waiting for rank 0" in (run.parent / "1.log").read_text()  # long before the time-out
    if how == "failed":
        assert "has no attribute 'missing'" in said[1]
        assert "has no attribute 'missing'" in (run.parent / "1.log").read_text()  # long before the time-out


def test_what_was_recorded_can_be_read(ended):
    *_, run = ended
    assert {record.step for record in read_run(run, DirectionRecord)[1]} == {2}
    assert read_steps(run)
