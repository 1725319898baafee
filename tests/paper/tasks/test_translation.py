"""The translation task: the same at every call, nothing outside it touched, losses weighted as documented."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from stepscope.errors import UsageError
from stepscope.objective import IGNORED_LABEL
from stepscope.paper.tasks.text import END, PAD, SMALLEST_VOCABULARY, collate, learn_tokenizer
from stepscope.paper.tasks.translation import SCALES, translation

SMOKE = SCALES["smoke"]
NUMBERS = (("one", "un"), ("two", "deux"), ("three", "trois"), ("four", "quatre"), ("five", "cinq"), ("six", "six"))
THINGS = (("cats", "chats"), ("dogs", "chiens"), ("red houses", "maisons rouges"), ("old trees", "vieux arbres"))
PAIRS = [
    (f"{one[0]} {thing[0]} and {other[0]} birds", f"{one[1]} {thing[1]} et {other[1]} oiseaux")
    for one in NUMBERS
    for other in NUMBERS
    for thing in THINGS
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{english}\t{french}\n" for english, french in PAIRS))
    return str(path)


def test_an_epoch_holds_each_pair_once_in_changing_order(table):
    task = translation(replace(SMOKE, batch_size=36, set_apart=False), source=table)  # 4 batches are the 144 pairs
    batches = task.training_batches()
    epochs = []
    for _ in range(2):
        rows = [row for batch in islice(batches, 4) for row in batch["input_ids"].tolist()]
        epochs.append([tuple(token for token in row if token != PAD) for row in rows])
    assert len(set(epochs[0])) == len(PAIRS)
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])


def test_loss_is_the_mean_over_valid_tokens(table):
    task = translation(SMOKE, source=table)
    model = task.model.eval()
    whole = translation(replace(SMOKE, micro_batch_size=16), source=table).eval_batches
    assert (len(task.eval_batches), len(whole)) == (2, 1)
    tokens = [int((batch["labels"] != IGNORED_LABEL).sum()) for batch in task.eval_batches]
    assert tokens[0] < tokens[1]
    with torch.no_grad():
        losses = [model(**batch).loss for batch in task.eval_batches]
        pooled = sum(n * loss for n, loss in zip(tokens, losses, strict=True)) / sum(tokens)
        torch.testing.assert_close(pooled, model(**whole[0]).loss)
        logits = model(**whole[0]).logits
    wanted = whole[0]["labels"]
    by_hand = -logits.log_softmax(-1).gather(-1, wanted.clamp(min=0)[..., None])[..., 0][wanted != IGNORED_LABEL].mean()
    torch.testing.assert_close(by_hand, pooled)


def test_padding_changes_no_loss(table):
    task = translation(SMOKE, source=table)
    batch = task.eval_batches[0]
    longer = {name: torch.nn.functional.pad(value, (0, 5), value=0) for name, value in batch.items()}
    longer["labels"] = torch.nn.functional.pad(batch["labels"], (0, 5), value=IGNORED_LABEL)
    with torch.no_grad():
        torch.testing.assert_close(task.model(**longer).loss, task.model(**batch).loss)


def test_collate_pads_to_the_longest():
    batch = collate([([5, 6, 7, END], [8, END]), ([9, END], [5, 5, END])])
    assert batch["input_ids"].tolist() == [[5, 6, 7, END], [9, END, PAD, PAD]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch["labels"].tolist() == [[8, END, IGNORED_LABEL], [5, 5, END]]
    assert {value.dtype for value in batch.values()} == {torch.int64}
    assert collate([([5, END], 1), ([9, END], 0)])["labels"].tolist() == [1, 0]


def test_long_sides_are_cut_but_end(table):
    batch = next(translation(replace(SMOKE, max_tokens=6), source=table).training_batches())
    assert batch["input_ids"].shape == batch["labels"].shape == (8, 6)
    assert (batch["input_ids"][:, -1] == END).all()
    assert (batch["labels"][:, -1] == END).all()


def test_model_is_the_papers_kind(table):
    model = translation(SMOKE, source=table).model
    assert model.training
    assert model.lm_head.weight is model.shared.weight
    assert model.config.decoder_start_token_id == PAD
    for activation, name in (("relu", "ReLU"), ("gelu", "GELU")):
        model = translation(replace(SMOKE, activation=activation), source=table).model
        assert any(name in type(module).__name__ for module in model.modules())
    first, second = (model(**batch).loss for batch in [next(translation(SMOKE, source=table).training_batches())] * 2)
    assert torch.equal(first, second)  # no dropout, in training mode too


def test_it_learns(table, losses_of):
    losses = losses_of(translation(SMOKE, source=table), steps=40, lr=1e-2)
    assert losses[-1] < losses[0] / 2


def test_fewer_pairs_than_asked_for_are_counted(table):
    assert translation(replace(SMOKE, set_apart=False), source=table).source.examples == len(PAIRS)
    assert translation(SMOKE, source=table).source.examples == len(PAIRS) / 2, "the other half is set apart"
    assert translation(replace(SMOKE, pairs=64), source=table).source.examples == 64
    small = translation(replace(SMOKE, pairs=5), source=table)
    assert next(small.training_batches())["labels"].shape[0] == 5
    assert sum(len(batch["labels"]) for batch in small.eval_batches) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "tanh"}, "activation is 'tanh': choose gelu or relu"),
        ({"pairs": 0}, "pairs is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_tokens": 1}, "max_tokens is 1"),
        ({"vocabulary": 100}, "at least 259"),
    ],
)
def test_impossible_sizes(table, change, message):
    with pytest.raises(UsageError, match=message):
        translation(replace(SMOKE, **change), source=table)


@pytest.mark.parametrize("text", ["deux chats", "Ça coûte 3 €, n'est-ce pas ?", "日本 \t🙂"])
def test_tokenizer_encodes_everything_and_back(text):
    tokenizer = learn_tokenizer([side for pair in PAIRS for side in pair], 300)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id("<pad>") == PAD
    assert tokenizer.token_to_id("</s>") == END


def test_tokenizer_is_learned_once_for_each_text_and_size(cache):
    texts = [side for pair in PAIRS for side in pair]
    first = learn_tokenizer(texts, 300)
    [path] = (cache / "tokenizers").iterdir()
    stamp = path.stat().st_mtime_ns
    assert learn_tokenizer(texts, 300).to_str() == first.to_str()
    assert path.stat().st_mtime_ns == stamp
    for other in ((texts, 301), (texts[1:], 300), (["".join(texts)], 300)):
        learn_tokenizer(*other)
    assert len(list((cache / "tokenizers").iterdir())) == 4
    path.write_text("{ damaged")
    assert learn_tokenizer(texts, 300).to_str() == first.to_str()
    assert path.read_text() == first.to_str()


def test_tokenizer_without_a_cache(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPSCOPE_CACHE", str(tmp_path / "file"))
    assert learn_tokenizer(["a b"], SMALLEST_VOCABULARY).get_vocab_size() == SMALLEST_VOCABULARY
