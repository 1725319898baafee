"""A probe in a Lightning `Trainer`, which always steps by a closure."""

import pytest

from stepscope import UsageError
from traces import same

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*logging interval"),
    pytest.mark.filterwarnings("ignore:.*treespec"),
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
    logged = [(step, m["stepscope/own AdamW/sharpness"]) for step, m in recorder.seen if "loss" not in m]
    assert logged == [(r["step"], r["sharpness"]) for r in own]


def test_mistakes(lightning, tmp_path):
    with pytest.raises(UsageError, match="no setting 'evry'"):
        lightning.probe(evry=2)
    with pytest.raises(UsageError, match="the module has 1"):
        lightning.train(tmp_path, lightning.probe(optimizer=1))
