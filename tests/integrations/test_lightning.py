"""A probe in a Lightning `Trainer`, which always steps by a closure."""

import re

import pytest

from stepscope import UsageError
from stepscope.runs import DirectionRecord, read_run
from traces import same

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
    pytest.mark.filterwarnings("ignore:.*no `val_dataloader`"),
]


@pytest.fixture(scope="module")
def lightning():
    """Imported when a test runs, not by each process that collects them."""
    pytest.importorskip("lightning.pytorch")
    import lightning_loop

    return lightning_loop


LOOPS = {
    "default": {},
    "accumulating": {"accumulate_grad_batches": 2},
    "clipping": {"gradient_clip_val": 0.1},
    "bf16": {"precision": "bf16-mixed"},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_training_is_bit_identical(loop, lightning, tmp_path):
    plain = lightning.train(tmp_path, **LOOPS[loop])
    callback = lightning.probe(every=3, max_overhead=None)
    recorder = lightning.Recorder()
    assert same(plain, lightning.train(tmp_path, callback, recorder, **LOOPS[loop]))
    steps = [3, 6] if loop == "accumulating" else [3, 6, 9, 12]
    own = [r for r in callback.probe.records if r["direction"] == "own AdamW"]
    assert [r["step"] for r in own] == steps
    assert {r["gradient"] for r in own} == {"training"}
    name = "stepscope/own AdamW/sharpness"
    logged = [(step, m[name]) for step, m in recorder.seen if name in m]
    assert logged == [(r["step"], r["sharpness"]) for r in own]


@pytest.mark.parametrize("loop", LOOPS)
def test_the_loss_on_the_steps_own_batch_is_the_trainings(loop, lightning, tmp_path, monkeypatch):
    """With its dropout, batch statistics and precision."""
    losses, step = [], lightning.Module.training_step

    def noted(*args):
        losses.append(step(*args))
        return losses[-1]

    monkeypatch.setattr(lightning.Module, "training_step", noted)
    callback = lightning.probe(max_overhead=None)
    lightning.train(tmp_path, callback, **LOOPS[loop])
    count = LOOPS[loop].get("accumulate_grad_batches", 1)
    records = callback.probe.step_records
    assert len(records) >= 3
    for record in records:
        own = losses[(record["step"] - 1) * count : record["step"] * count]
        assert record["steps"] == 12 // count
        assert record["batch_loss"] == pytest.approx(sum(own).item() / count, rel=1e-6)
        assert record["batch_slope"] < 0


@pytest.mark.parametrize("source", ["validation data", "training data"])
def test_the_examples_are_drawn_from_the_held_out_data_or_else_the_training_data(source, lightning, tmp_path):
    data = lightning.data(48, 1) if source == "training data" else lightning.data(40, 2)
    held_out = None if source == "training data" else data
    plain = lightning.train(tmp_path, held_out=held_out)
    callback = lightning.probe(eval_batches=None, every=6, max_overhead=None, directions={}, run_dir=tmp_path / "run")
    assert same(plain, lightning.train(tmp_path, callback, held_out=held_out))
    found = [x.tolist() for batch in callback.probe.eval_batches for x in batch[0]]
    rows = [data[index][0].tolist() for index in range(len(data))]
    indices = [rows.index(row) for row in found]
    assert len(set(indices)) == 32
    assert indices != sorted(indices)
    assert callback.probe.source == f"32 random examples of {source}, seed 0"


def test_the_end_of_a_training_is_summed_up_but_not_that_of_one_that_failed(lightning, tmp_path, capsys, monkeypatch):
    lightning.train(tmp_path, lightning.probe(every=6, max_overhead=None, quiet=False, run_dir=tmp_path / "run"))
    lines = capsys.readouterr().err
    assert re.search(
        r"of 12 steps, \d+ measured on their own batches, and 2 beside others on the run's own eval", lines
    )
    assert f"stepscope: the page is {tmp_path / 'run' / 'report.html'}" in lines

    step = lightning.Module.training_step

    def fail(module, batch, index):
        if module.global_step == 7:
            raise RuntimeError("out of patience")
        return step(module, batch, index)

    monkeypatch.setattr(lightning.Module, "training_step", fail)
    callback = lightning.probe(every=6, max_overhead=None, quiet=False, run_dir=tmp_path / "failed")
    with pytest.raises(RuntimeError, match="out of patience"):
        lightning.train(tmp_path, callback)
    assert "measured on their own" not in capsys.readouterr().err
    assert [r.step for r in read_run(tmp_path / "failed", DirectionRecord)[1] if r.direction == "sgd"] == [6]


def test_mistakes(lightning, tmp_path):
    with pytest.raises(UsageError, match="no setting 'evry'"):
        lightning.probe(evry=2)
    with pytest.raises(UsageError, match="the module has 1"):
        lightning.train(tmp_path, lightning.probe(optimizer=1))


def test_several_ranks_by_another_strategy_than_ddp_are_refused(lightning):
    class Elsewhere:
        world_size, strategy, optimizers = 2, object(), [None]

    with pytest.raises(UsageError, match="strategy='ddp'"):
        lightning.probe().on_train_start(Elsewhere(), None)
