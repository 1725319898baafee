"""A probe in a Hugging Face `Trainer`: T5 and GPT-2 in their default configuration, trained as without it."""

import sys

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from stepscope import Objective, UsageError
from stepscope.integrations.transformers import ProbeCallback
from stepscope.runs import DirectionRecord, read_head, read_run, read_steps
from traces import outcome, same

VOCABULARY = 40


def t5():
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
    )


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=1
        )
    )


MODELS = {"t5": t5, "gpt-2": gpt2}


def sentences(count, *, seed, causal):
    """Rows of different lengths, so that the collator has to pad."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        ids = torch.randint(2, VOCABULARY, (int(torch.randint(4, 9, (1,), generator=generator)),), generator=generator)
        labels = ids if causal else ids.flip(0)
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist(), "unused": "a column the model doesn't know"})
    return rows


def collate(rows):
    def padded(name, value):
        longest = max(len(row[name]) for row in rows)
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    ids = padded("input_ids", 0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": padded("labels", -100)}


def trainer_of(name, folder, **arguments):
    torch.manual_seed(0)
    given = {
        "max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 2,
        "use_cpu": True, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
    }  # fmt: skip
    return Trainer(
        MODELS[name](),
        TrainingArguments(folder, **given | arguments),
        train_dataset=sentences(40, seed=1, causal=name == "gpt-2"),
        eval_dataset=sentences(10, seed=2, causal=name == "gpt-2"),
        data_collator=collate,
    )


LOOPS = {
    "default": {},
    "accumulating": {"gradient_accumulation_steps": 2, "max_steps": 4},
    "bf16": {"bf16": True},
    "smoothed labels": {"label_smoothing_factor": 0.1},
    "checkpointed": {"activation_checkpointing": True},
    "evaluating": {"eval_strategy": "steps", "eval_steps": 2},
}


@pytest.mark.parametrize(
    ("name", "loop"), [("t5", "default"), ("t5", "checkpointed"), *(("gpt-2", loop) for loop in LOOPS)]
)
def test_training_is_bit_identical(name, loop, tmp_path):
    results = []
    for probed in (False, True):
        trainer = trainer_of(name, tmp_path / "out", **LOOPS[loop])
        if probed:
            callback = ProbeCallback(
                trainer, every=4, max_overhead=None, quiet=True, micro_batches=2, run_dir=tmp_path / "run"
            )
            trainer.add_callback(callback)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        results.append((outcome(trainer.model, trainer.optimizer), losses))
    (plain, losses), (measured, same_losses) = results
    assert same(plain, measured)
    assert losses == same_losses
    _, records = read_run(tmp_path / "run", DirectionRecord)
    steps = range(4, trainer.state.max_steps + 1, 4)
    assert [r.step for r in records if r.direction == "own AdamW"] == list(steps)
    assert {r.direction for r in records} == {"own AdamW", "own AdamW clip 50%", "sgd", "adam"}


def test_the_numbers_are_those_of_the_trainers_loss(tmp_path):
    """The own direction, its length and the loss it is measured on, against a hand-made objective."""
    trainer = trainer_of("gpt-2", tmp_path, max_steps=1)
    callback = ProbeCallback(trainer, every=1, max_overhead=None, quiet=True, micro_batches=2)
    trainer.add_callback(callback)
    start = {n: p.detach().double().clone() for n, p in trainer.model.named_parameters()}
    trainer.train()
    own = next(r for r in callback.probe.records if r["direction"] == "own AdamW")
    moved = sum(float((p.detach().double() - start[n]).square().sum()) for n, p in trainer.model.named_parameters())
    assert own["lr_step"] == pytest.approx(moved**0.5, rel=1e-5)
    with torch.no_grad():
        for n, p in trainer.model.named_parameters():
            p.copy_(start[n])
    by_hand = Objective(trainer.model, None, callback.probe.eval_batches)
    assert own["loss"] == pytest.approx(by_hand.loss(), rel=1e-6)


def run_once(trainer, **settings):
    callback = ProbeCallback(trainer, **{"every": 1, "max_overhead": None, "directions": {}, "quiet": True} | settings)
    trainer.add_callback(callback)
    trainer.train()
    trainer.remove_callback(callback)
    return callback.probe


def half_as_much(outputs, labels, num_items_in_batch=None):
    """Sums over the accumulated batch, as a `compute_loss_func` does."""
    losses = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    return losses / num_items_in_batch / 2


@pytest.mark.parametrize(
    ("name", "loop"),
    [("t5", "default"), ("t5", "accumulating")]
    + [("gpt-2", loop) for loop in (*LOOPS, "accumulating smoothed labels", "a loss function")],
)
def test_the_loss_on_the_steps_own_batch_is_the_trainers(name, loop, tmp_path):
    """With its dropout, label smoothing, accumulation and precision: the one that the trainer logs."""
    both = {**LOOPS["accumulating"], **LOOPS["smoothed labels"]}
    arguments = {**LOOPS, "accumulating smoothed labels": both, "a loss function": LOOPS["accumulating"]}[loop]
    trainer = trainer_of(name, tmp_path / "out", **arguments | {"logging_steps": 1})
    if loop == "a loss function":
        trainer.compute_loss_func = half_as_much
    run_once(trainer, run_dir=tmp_path / "run")
    logged = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    steps = read_steps(tmp_path / "run")
    assert len(steps) >= 3
    assert {record.steps for record in steps} == {trainer.state.max_steps}
    for record in steps:
        assert record.batch_loss == pytest.approx(logged[record.step], abs=6e-5)
        assert record.batch_slope < 0
    assert "compute_loss" not in vars(trainer)


class Augmented(torch.utils.data.Dataset):
    """Draws from torch's random numbers when it is read."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        by = int(torch.randint(3, ()))
        return {
            name: value[by:] + value[:by] if name != "unused" else value for name, value in self.rows[index].items()
        }


def test_data_that_draw_random_numbers_are_drawn_as_without_it(tmp_path):
    found = []
    for probed in (False, True):
        trainer = trainer_of("gpt-2", tmp_path, max_steps=4)
        trainer.train_dataset = Augmented(trainer.train_dataset)
        trainer.eval_dataset = Augmented(trainer.eval_dataset)
        if probed:
            trainer.add_callback(ProbeCallback(trainer, every=2, max_overhead=None, quiet=True, directions={}))
        trainer.train()
        found.append(outcome(trainer.model, trainer.optimizer))
    assert same(*found)


class Tracker(TrainerCallback):
    """What a tracker of Transformers does."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "stepscope/own AdamW/sharpness" in logs:
            self.seen.append((state.global_step, logs["stepscope/own AdamW/sharpness"]))


@pytest.mark.parametrize("trackers", [[], ["a tracker"]])
def test_numbers_go_where_the_trainer_reports_to(trackers, tmp_path):
    trainer = trainer_of("gpt-2", tmp_path, max_steps=2)
    trainer.args.report_to = trackers
    tracker = Tracker()
    callback = ProbeCallback(trainer, every=1, max_overhead=None, quiet=True, directions={})
    trainer.add_callback(tracker)
    trainer.add_callback(callback)
    trainer.train()
    assert tracker.seen == ([(r["step"], r["sharpness"]) for r in callback.probe.records] if trackers else [])
    assert not any("stepscope" in name for entry in trainer.state.log_history for name in entry)


def test_a_loss_that_may_do_more_is_not_called_unasked(tmp_path):
    class Gathering(Trainer):
        calls = 0

        def compute_loss(self, *args, **kwargs):
            self.calls += 1
            return super().compute_loss(*args, **kwargs)

    plain = trainer_of("gpt-2", tmp_path, max_steps=2)
    trainer = Gathering(plain.model, plain.args, train_dataset=plain.train_dataset, data_collator=collate)
    with pytest.raises(UsageError, match="Gathering has a compute_loss of its own"):
        ProbeCallback(trainer)
    callback = ProbeCallback(
        trainer, loss_fn=lambda model, batch: model(**batch).loss, every=1, max_overhead=None, quiet=True
    )
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.calls == 2
    assert callback.probe.records


@pytest.mark.parametrize("source", ["eval_dataset", "train_dataset", "named"])
def test_the_examples_are_drawn_from_the_held_out_data_or_else_the_training_data(source, tmp_path):
    trainer = trainer_of("gpt-2", tmp_path, max_steps=1)
    data = trainer.train_dataset if source == "train_dataset" else trainer.eval_dataset
    trainer.eval_dataset = {"train_dataset": None, "named": {"named": data}}.get(source, data)
    rows = {tuple(row["input_ids"]): index for index, row in enumerate(data)}

    def drawn(seed, **settings):
        probe = run_once(trainer, seed=seed, micro_batches=2, **settings)
        examples = [ids[ids != 0].tolist() for batch in probe.eval_batches for ids in batch["input_ids"]]
        return [rows[tuple(example)] for example in examples]

    indices = drawn(0, run_dir=tmp_path / "run")
    assert indices == drawn(0)
    assert len(set(indices)) == 8
    assert indices != list(range(8))
    assert indices != drawn(1)
    title = read_head(tmp_path / "run")["context"]["source"]["title"]
    assert title == f"8 random examples of {source}, seed 0"


@pytest.mark.parametrize("far", [False, True])
def test_an_evaluation_loss_far_from_the_trainers_is_said_once(far, tmp_path, caplog):
    trainer = trainer_of("gpt-2", tmp_path, max_steps=4, eval_strategy="steps", eval_steps=1)
    run_once(trainer, loss_fn=lambda model, batch: (1 + far) * model(**batch).loss)
    said = [line for line in caplog.messages if "and the trainer's eval_loss" in line]
    assert len(said) == far
    assert not far or "the loss on 10 random examples of eval_dataset, seed 0 is" in said[0]


def test_the_end_of_a_training_is_summed_up(tmp_path, capsys, monkeypatch):
    trainer = trainer_of("gpt-2", tmp_path / "out", max_steps=2)
    run_once(trainer, quiet=False, run_dir=tmp_path / "run")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("stepscope: ")]
    said = (
        "of 2 steps, 2 measured on their own batches, and 2 beside others on 10 random examples of eval_dataset, seed 0"
    )
    assert any(said in line for line in lines)
    assert lines[-1] == f"stepscope: the page is {tmp_path / 'run' / 'report.html'}"
    assert 4 <= len(lines) <= 6  # with the announcement
    assert "own AdamW" in (tmp_path / "run" / "report.html").read_text()
    monkeypatch.setitem(sys.modules, "altair", None)
    run_once(trainer, quiet=False, run_dir=tmp_path / "other")
    assert "no page: altair is not installed: pip install 'stepscope[report]'" in capsys.readouterr().err
    run_once(trainer, run_dir=tmp_path / "third")
    assert "stepscope" not in capsys.readouterr().err


def test_a_training_that_goes_on_goes_on_with_the_records(tmp_path):
    for checkpoint in (None, True):
        trainer = trainer_of(
            "t5", tmp_path / "out", max_steps=4 if checkpoint is None else 8, save_strategy="steps", save_steps=4
        )
        trainer.add_callback(
            ProbeCallback(trainer, every=2, max_overhead=None, quiet=True, run_dir=tmp_path / "run", directions={})
        )
        trainer.train(resume_from_checkpoint=checkpoint)
    assert [r.step for r in read_run(tmp_path / "run", DirectionRecord)[1]] == [2, 4, 6, 8]


def test_another_training_takes_the_next_directory(tmp_path):
    def begun(steps, **settings):
        trainer = trainer_of("gpt-2", tmp_path / "out", max_steps=steps)
        settings |= {"every": 1, "max_overhead": None, "quiet": True, "run_dir": tmp_path / "run", "directions": {}}
        trainer.add_callback(ProbeCallback(trainer, **settings))
        return trainer

    def kept():
        return {run.name: len(read_run(run, DirectionRecord)[1]) for run in tmp_path.glob("run*")}

    trainer = begun(1)
    trainer.train()
    trainer.train()  # begun anew: a trial of a search, say
    begun(1).train()
    assert kept() == {"run": 1, "run-2": 1, "run-3": 1}
    trainer = begun(2, overwrite=True)
    trainer.train()
    trainer.train()  # which doesn't overwrite its own
    assert kept() == {"run": 2, "run-2": 1, "run-3": 1, "run-4": 2}


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(sentences(40, seed=1, causal=True))


def test_mistakes(tmp_path):
    trainer = trainer_of("gpt-2", tmp_path)
    with pytest.raises(UsageError, match="no setting 'evry': choose from clip_fractions, directions, every"):
        ProbeCallback(trainer, evry=2)
    with pytest.raises(UsageError, match="micro_batches is 0"):
        ProbeCallback(trainer, micro_batches=0)
    trainer.train_dataset = trainer.eval_dataset = Stream()
    trainer.add_callback(ProbeCallback(trainer, quiet=True))
    with pytest.raises(UsageError, match="give eval_batches"):
        trainer.train()
    trainer = trainer_of("gpt-2", tmp_path)
    trainer.train_dataset = Stream()
    trainer.eval_dataset = None
    batches = [collate(sentences(4, seed=3, causal=True))]
    callback = ProbeCallback(trainer, batches, every=4, max_overhead=None, quiet=True)
    trainer.add_callback(callback)
    trainer.train()
    assert {r["step"] for r in callback.probe.records} == {4, 8}
    trainer.is_fsdp_enabled = True
    with pytest.raises(UsageError, match="sharded"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, train_dataloader=None)
