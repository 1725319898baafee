"""The same lines on two ranks by `DistributedDataParallel`: one training, one set of records, nothing disturbed."""

import importlib.util
import os
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ranks import on_ranks
from stepscope import Probe
from stepscope.runs import DirectionRecord, read_run, read_steps
from traces import outcome, same

pytestmark = pytest.mark.slow


def as_launched():
    """Says that a launcher has started each rank."""
    warnings.simplefilter("ignore")
    rank = str(dist.get_rank())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


def told(probe):
    """Of each step its loss and slope on the batch of all ranks, and of each direction its sharpness."""
    steps = [[r["step"], r["batch_loss"], r["batch_slope"]] for r in probe.step_records if r["batch_loss"] is not None]
    return [steps, [[r["step"], r["direction"], r["sharpness"]] for r in probe.records]]


# ------------------------------------------------------------------------------------------------------------ cases


def transformers():
    from test_transformers import trainer_of

    from stepscope.integrations.transformers import ProbeCallback

    as_launched()
    out, results = Path.cwd(), []
    for probed in (False, True):
        trainer = trainer_of("gpt-2", out / "out", max_steps=6, logging_steps=1, gradient_accumulation_steps=2)
        if probed:
            settings = {"every": 3, "max_overhead": None, "directions": {}, "micro_batches": 3, "quiet": True}
            callback = ProbeCallback(trainer, run_dir=out / "trainer", **settings)
            trainer.add_callback(callback)
        trainer.train()
        results.append(outcome(trainer.model, trainer.optimizer))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return [same(*results), losses, *told(callback.probe), len(callback.probe.eval_batches)]


def lightning():
    import lightning_loop

    as_launched()
    out, losses, step = Path.cwd(), [], lightning_loop.Module.training_step
    plain = lightning_loop.train(out, devices=2, strategy="ddp")

    def noted(*args):
        losses.append(step(*args))
        return losses[-1]

    lightning_loop.Module.training_step = noted
    batches = [lightning_loop.data(8, seed).tensors for seed in (9, 10)]
    callback = lightning_loop.probe(
        every=3, max_overhead=None, directions={}, eval_batches=batches, run_dir=out / "lightning"
    )
    logger = lightning_loop.Recorder()
    found = same(plain, lightning_loop.train(out, callback, logger, devices=2, strategy="ddp"))
    means = torch.stack([loss.detach() for loss in losses])
    dist.all_reduce(means)
    logged = [at for at, values in logger.seen if "stepscope/own AdamW/sharpness" in values]
    return [found, (means / 2).tolist(), *told(callback.probe), logged]


def accelerate():
    from accelerate import Accelerator
    from test_accelerate import data, loss_fn

    as_launched()

    def trained(probed):
        torch.manual_seed(0)
        accelerator, losses, probe = Accelerator(cpu=True, gradient_accumulation_steps=2), [], None
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Dropout(0.2), nn.Linear(8, 3))
        loader = torch.utils.data.DataLoader(data(64, 1), batch_size=8, shuffle=True)
        model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-2), loader)
        if probed:
            held_out = [data(8, 2 + dist.get_rank()).tensors]
            probe = Probe(
                model, optimizer, loss_fn, held_out, every=2, max_overhead=None, directions={}, steps=4, quiet=True,
                process_group=dist.group.WORLD,
            )  # fmt: skip
        for _ in range(2):
            for batch in loader:
                with probe.batch(batch) if probe else warnings.catch_warnings(), accelerator.accumulate(model):
                    loss = loss_fn(model, batch)
                    losses.append(loss.detach())
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.step()
                    optimizer.zero_grad()
        dist.all_reduce(mean := torch.stack(losses).view(-1, 2).mean(1) / 2)
        return outcome(accelerator.unwrap_model(model), optimizer.optimizer), mean.tolist(), probe

    plain, (measured, losses, probe) = trained(False)[0], trained(True)
    return [same(plain, measured), losses, *told(probe), 0]


LOOPS = (accelerate, transformers, lightning)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    made = tmp_path_factory.mktemp("ranks")
    return on_ranks(LOOPS, 2, made), made


@pytest.mark.parametrize("loop", [loop.__name__ for loop in LOOPS])
def test_training_is_bit_identical_and_ranks_have_the_same_records(results, loop):
    first, second = results[0][loop]
    assert first[0], second[0]
    assert first[2:4] == second[2:4]
    assert {name for _, name, _ in first[3]} == {"own AdamW"}


@pytest.mark.parametrize("loop", [loop.__name__ for loop in LOOPS])
def test_the_loss_of_a_step_is_that_of_both_ranks(results, loop):
    for _, losses, steps, *_ in results[0][loop]:
        assert len(steps) >= 3
        for step, loss, slope in steps:
            assert loss == pytest.approx(losses[step - 1], rel=2e-4 if loop == "transformers" else 1e-6)
            assert slope < 0


def test_evaluation_batches_are_shared_out(results):
    assert [rank[4] for rank in results[0]["transformers"]] == [2, 1]


@pytest.mark.parametrize(("loop", "name"), [("transformers", "trainer"), ("lightning", "lightning")])
def test_the_first_rank_writes_for_all(results, loop, name):
    found, made = results
    _, _, steps, directions, _ = found[loop][0]
    assert [r.sharpness for r in read_run(made / name, DirectionRecord)[1]] == [value for _, _, value in directions]
    assert [r.step for r in read_steps(made / name) if r.batch_loss is not None] == [step for step, *_ in steps]
    assert (made / name / "report.html").exists()
    assert not (made / f"{name}-2").exists()


def test_the_first_rank_logs_for_all(results):
    first, second = results[0]["lightning"]
    assert first[4] == [step for step, _, _ in first[3]]
    assert second[4] == []
