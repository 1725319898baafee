"""The paper's scale, end to end, on tiny models and data in the Hub's formats."""

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from traces import equal

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("datasets")
pytest.importorskip("PIL")

import checkpoints
from stepscope import Objective
from stepscope.errors import UsageError
from stepscope.paper.tasks import pretrained
from stepscope.paper.tasks.catalog import TASKS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``hub(kind, write_model)`` puts a model and its data there: the paper's configuration for them."""
    return partial(checkpoints.put_on_hub, tmp_path, monkeypatch)


MODELS = {
    "translation": ("translation", checkpoints.translation),
    "code": ("code", checkpoints.code),
    "sentiment, distilbert": ("sentiment", checkpoints.distilbert),
    "sentiment, bert": ("sentiment", checkpoints.bert),
    "images": ("images", checkpoints.resnet),
}
CLASSES = {"sentiment": 2, "images": 5}


@pytest.fixture(params=MODELS)
def made(request, hub):
    """The kind, the class of transformers, the folder, and ``make(seed)``, which gives the task."""
    kind, write_model = MODELS[request.param]
    config, their_class = hub(kind, write_model)
    return kind, their_class, config.checkpoint, lambda seed=0: TASKS[kind].make(config, seed=seed)


def is_head(name):
    return name.startswith(("classifier", "pre_classifier"))


def split(model):
    """Weights that are the checkpoint's, and those of the new head."""
    state = model.state_dict()
    return [{name: value for name, value in state.items() if is_head(name) == head} for head in (False, True)]


def test_the_loss_is_that_of_transformers_own_model(made):
    """In training mode too, where there is no batch norm: nothing is dropped."""
    kind, their_class, folder, make = made
    task = make()
    more = {"num_labels": CLASSES[kind], "ignore_mismatched_sizes": True} if kind in CLASSES else {}
    theirs = their_class.from_pretrained(folder, **more)
    if kind in CLASSES:
        theirs.load_state_dict(split(task.model)[1], strict=False)
    theirs.eval()
    with torch.no_grad():
        for batch in task.eval_batches:
            torch.testing.assert_close(task.model.eval()(**batch).loss, theirs(**batch).loss)
            if kind != "images":
                torch.testing.assert_close(task.model.train()(**batch).loss, theirs(**batch).loss)


def test_it_trains_and_can_be_measured(made):
    task = made[3]()
    assert task.model.training
    objective = Objective(task.model, None, task.eval_batches)
    before = objective.loss()
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.02)
    for batch in islice(task.training_batches(), 10):
        optimizer.zero_grad()
        task.model(**batch).loss.backward()
        optimizer.step()
    assert objective.loss() < before


def test_seeds_differ_in_order_and_a_new_head_alone(made):
    kind, _, _, make = made
    first = make(3)
    with torch.no_grad():
        for parameter in first.model.parameters():
            parameter.add_(1)  # training the one doesn't move the weights that others begin with
    first, second = first.seeded(3), first.seeded(4)
    (body, head), (other_body, other_head) = split(first.model), split(second.model)
    assert equal(body, other_body)
    assert bool(head) == (kind in CLASSES)
    assert not head or not equal(head, other_head)
    assert not equal(next(first.training_batches()), next(second.training_batches()))
    assert all(map(equal, first.eval_batches, second.eval_batches))
    assert equal(first.model.state_dict(), make(3).model.state_dict())


def test_it_says_where_model_and_data_are_from(made):
    _, _, folder, make = made
    task = make()
    assert task.initialisation == f"pretrained: {folder}"
    assert checkpoints.REVISION[:12] in task.source.title
    assert task.source.examples == {"translation": 48, "code": 40, "sentiment": 48, "images": 40}[task.name]


def texts_of(task, count):
    """The token numbers of so many examples of an epoch, without their padding."""
    rows = Counter()
    for batch in islice(task.training_batches(), count // checkpoints.SMALL_BATCHES["batch_size"]):
        for row, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
            assert mask == sorted(mask, reverse=True)
            rows[tuple(row[: sum(mask)])] += 1
    return rows


def numbers(folder, text):
    words = pretrained.published(folder, KINDS, title="any").tokenizer.get_vocab()
    return [words[word] for word in text.split()]


KINDS = {"t5": "T5Model", "gpt_neo": "GPTNeoModel", "distilbert": "DistilBertModel"}


def test_a_translations_tokens_are_the_checkpoints(hub):
    config, _ = hub("translation", checkpoints.translation)
    task = TASKS["translation"].make(config)
    # 5 words are the prefix's, so the 8th and last token is "house" or before, and the end is T5's own.
    whole = [numbers(config.checkpoint, f"translate English to French: {english}") for english, _ in checkpoints.PAIRS]
    assert texts_of(task, 48) == Counter((*text[:8], 2) for text in whole)
    labels = Counter(
        tuple(token for token in row if token >= 0) for batch in task.eval_batches for row in batch["labels"].tolist()
    )
    assert labels <= Counter((*numbers(config.checkpoint, french)[:8], 2) for _, french in checkpoints.PAIRS)
    assert len(labels) == 12
    ragged = TASKS["translation"].make(replace(config, max_tokens=512)).eval_batches
    assert any((batch["attention_mask"] == 0).any() for batch in ragged)
    assert all((batch["input_ids"] != 3).eq(batch["attention_mask"] == 1).all() for batch in ragged)


def test_only_the_first_piece_of_a_program_is_used(hub):
    config, _ = hub("code", checkpoints.code)
    whole = [(*numbers(config.checkpoint, program), 1) for program in checkpoints.PROGRAMS]
    assert max(map(len, whole)) > 14
    assert texts_of(TASKS["code"].make(config), 40) == Counter(text[:14] for text in whole)
    pieces = TASKS["code"].make(replace(config, first_only=False)).source.examples
    assert pieces == sum(len(text) // 14 + (len(text) % 14 > 1) for text in whole) > 40


def test_a_reviews_tokens_are_the_checkpoints(hub):
    config, _ = hub("sentiment", checkpoints.distilbert)
    whole = [numbers(config.checkpoint, text) for text, _ in checkpoints.REVIEWS]
    assert texts_of(TASKS["sentiment"].make(config), 48) == Counter((1, *text[:6], 2) for text in whole)


SIZED = {"translation": "d_model", "code": "hidden", "sentiment": "hidden"}


@pytest.mark.parametrize("kind", SIZED)
def test_sizes_are_the_checkpoints_or_all_given(kind):
    scales = TASKS[kind].scales
    with pytest.raises(UsageError, match=r"but a checkpoint has its own: set vocabulary, .* to None") as caught:
        TASKS[kind].make(replace(scales["smoke"], checkpoint="someone/model"))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=f"^{SIZED[kind]} is not set: give it, or a checkpoint$"):
        TASKS[kind].make(replace(scales["smoke"], **{SIZED[kind]: None}))
    with pytest.raises(UsageError, match=f"^{SIZED[kind]} is 0: at least 1 is needed$"):
        TASKS[kind].make(replace(scales["smoke"], **{SIZED[kind]: 0}))


def test_either_the_package_or_a_checkpoint():
    config = replace(TASKS["sentiment"].scales["paper"], pretrained="minilm")
    with pytest.raises(UsageError, match=r"^pretrained is 'minilm' beside a checkpoint: give one of them$"):
        TASKS["sentiment"].make(config)


@pytest.mark.parametrize(
    ("kind", "write_model", "longest"), [("code", checkpoints.code, 16), ("sentiment", checkpoints.distilbert, 12)]
)
def test_texts_are_no_longer_than_the_checkpoints_positions(hub, kind, write_model, longest):
    config, _ = hub(kind, write_model)
    assert TASKS[kind].make(replace(config, max_tokens=longest))
    with pytest.raises(UsageError, match=f"max_tokens is {longest + 1}: .*checkpoint takes up to {longest}$"):
        TASKS[kind].make(replace(config, max_tokens=longest + 1))


class Trap:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def only_a_pickle(folder):
    trap = Trap()
    trap.path = str(folder / "sprung")
    torch.save({"weight": trap}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def rewrite(name, old, new):
    def damage(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


REMEDY = r"give a directory with config\.json, model\.safetensors and tokenizer\.json \(save_pretrained of trans"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (only_a_pickle, r"no model\.safetensors, only pytorch_model\.bin, a pickle, which is never read: " + REMEDY),
        (lambda folder: (folder / "model.safetensors").unlink(), r"has no model\.safetensors: " + REMEDY),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"has no tokenizer\.json: " + REMEDY),
        (lambda folder: (folder / "config.json").unlink(), r"has no config\.json: " + REMEDY),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "the tokenizer of .* cannot be read: "),
        (rewrite("config.json", '"gpt_neo"', '"gpt2"'), "is of type 'gpt2': give a GPT-Neo"),
        (rewrite("config.json", '"num_layers": 2', '"num_layers": 3'), "cannot be read|lacks weights"),
        (rewrite("config.json", '"eos_token_id": 1', '"eos_token_id": 999'), "eos_token_id is 999 in .*: give the end"),
        (rewrite("tokenizer.json", '"x": 51', '"x": 99'), "a token of number 99, and the model's embedding .* rows"),
    ],
)  # fmt: skip
def test_checkpoints_that_cannot_be_used(hub, damage, message):
    config, _ = hub("code", checkpoints.code)
    folder = Path(config.checkpoint)
    damage(folder)
    with pytest.raises(UsageError, match=message) as caught:
        TASKS["code"].make(config)
    assert "\n" not in str(caught.value)
    assert not (folder / "sprung").exists()


def test_a_revision_of_the_hub(hub, monkeypatch):
    config, _ = hub("code", checkpoints.code)
    folder, asked = Path(config.checkpoint), []

    def cached_files(*what, **more):
        asked.append((what, more))
        return folder, checkpoints.REVISION

    monkeypatch.setattr(pretrained, "cached_files", cached_files)
    paper = TASKS["code"].scales["paper"].checkpoint
    task = TASKS["code"].make(replace(config, checkpoint=paper))
    files = ("config.json", "model.safetensors", "tokenizer.json")
    assert asked == [(("flax-community/gpt-neo-125M-code-clippy", files), {"revision": "refs/pr/1"})]
    assert task.initialisation == "pretrained: flax-community/gpt-neo-125M-code-clippy at 0123456789ab"
