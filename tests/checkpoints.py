"""Tiny models and data in the Hub's formats, made on the spot: what the tasks' largest size is tried on."""

import io
import json
from dataclasses import replace

import PIL.Image
import pyarrow.parquet
import tokenizers
import torch
import transformers

from stepscope.paper.tasks.catalog import TASKS
from stepscope.paper.tasks.resnet import classifier, resnet_config
from stepscope.paper.tasks.sources import source
from stepscope.paper.tasks.sources.pictures import CIFAR10
from stepscope.paper.tasks.sources.programs import STACK
from stepscope.paper.tasks.sources.reviews import IMDB
from stepscope.paper.tasks.sources.sentences import OPUS_BOOKS

WORDS = ["red", "big", "old", "new", "deep", "calm"]
FRENCH = dict(zip(WORDS, ["rouge", "grand", "vieux", "neuf", "profond", "calme"], strict=True))


def word_tokenizer(folder, texts, specials, around=None):
    """Saves a tokenizer of whole words; it cuts and pads, as those of the Hub may."""
    words = sorted({word for text in texts for word in text.split()})
    names = [*specials, *words]
    model = tokenizers.models.WordLevel({word: n for n, word in enumerate(names)}, unk_token=specials[0])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if around:
        pairs = [(word, specials.index(word)) for word in around.split() if word in specials]
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single=around, special_tokens=pairs)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=40)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return len(names)


def varied(model):
    """Weights that no seed of a task gives."""
    generator = torch.Generator().manual_seed(77)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def translation(folder):
    """A T5 with dropout and T5's own activation, whose end is token 2 and whose padding is token 3."""
    texts = [side for english, french in PAIRS for side in (english, french)]
    prefix = "translate English to French:"
    size = word_tokenizer(folder, [*texts, prefix], ["<unk>", "<start>", "</s>", "<pad>"], "$A </s>")
    config = transformers.T5Config(
        vocab_size=size + 3, d_model=8, d_ff=12, d_kv=4, num_layers=2, num_heads=2, dropout_rate=0.4,
        eos_token_id=2, pad_token_id=3, decoder_start_token_id=1,
    )  # fmt: skip
    varied(transformers.T5ForConditionalGeneration(config)).save_pretrained(folder)
    return transformers.T5ForConditionalGeneration


def code(folder):
    """A GPT-Neo without a padding token, as GPT-2's tokenizer has none."""
    size = word_tokenizer(folder, PROGRAMS, ["<unk>", "<end>"])
    config = transformers.GPTNeoConfig(
        vocab_size=size, hidden_size=8, num_layers=2, attention_types=[[["global", "local"], 1]], num_heads=2,
        window_size=4, max_position_embeddings=16, resid_dropout=0.3, embed_dropout=0.3, attention_dropout=0.3,
        bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    varied(transformers.GPTNeoForCausalLM(config)).save_pretrained(folder)
    return transformers.GPTNeoForCausalLM


def distilbert(folder):
    """A DistilBERT with the head of another task, as the Hub's."""
    size = word_tokenizer(folder, [text for text, _ in REVIEWS], ["[UNK]", "[CLS]", "[SEP]", "[PAD]"], "[CLS] $A [SEP]")
    config = transformers.DistilBertConfig(
        vocab_size=size, dim=8, hidden_dim=12, n_layers=2, n_heads=2, max_position_embeddings=12, pad_token_id=3,
        dropout=0.3, attention_dropout=0.3, seq_classif_dropout=0.3,
    )  # fmt: skip
    varied(transformers.DistilBertForMaskedLM(config)).save_pretrained(folder)
    return transformers.DistilBertForSequenceClassification


def bert(folder):
    """A BERT with the heads that it is pretrained with."""
    size = word_tokenizer(folder, [text for text, _ in REVIEWS], ["[UNK]", "[CLS]", "[SEP]", "[PAD]"], "[CLS] $A [SEP]")
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=12, pad_token_id=3,
    )  # fmt: skip
    varied(transformers.BertForPreTraining(config)).save_pretrained(folder)
    return transformers.BertForSequenceClassification


def resnet(folder):
    """A ResNet of the paper's kind of layer with a head for 7 classes."""
    config = resnet_config(layer_type="bottleneck", depths=(1, 2), widths=(8, 12), embedding=4, channels=3)
    varied(classifier(config, classes=7, seed=4)).save_pretrained(folder)
    return transformers.ResNetForImageClassification


PAIRS = [
    (f"the {a} house has {n} dogs" + " and cats" * n, f"la maison {FRENCH[a]} a {n} chiens" + " et chats" * n)
    for a in WORDS
    for n in range(8)
]
PROGRAMS = [f"def add ( first ) :\n    return first + {n}\n" + f"x = {n}\n" * (n % 7) for n in range(40)]
REVIEWS = [(f"a {a} film with {n} good scenes", n % 2) for a in WORDS for n in range(8)]


def opus_books(folder):
    rows = [{"id": str(n), "translation": {"en": en, "fr": fr}} for n, (en, fr) in enumerate(PAIRS)]
    return _parquet(folder, rows)


def the_stack(folder):
    path = folder / "data.json"
    path.write_text("".join(json.dumps({"content": program, "lang": "Python"}) + "\n" for program in PROGRAMS))
    return path


def imdb(folder):
    return _parquet(folder, [{"text": text, "label": label} for text, label in REVIEWS])


def cifar10(folder):
    """Images of five classes, as PNG files in rows."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for label in [n % 5 for n in range(40)]:
        pixels = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=generator)
        buffer = io.BytesIO()
        PIL.Image.fromarray(pixels.numpy()).save(buffer, "PNG")
        rows.append({"img": {"bytes": buffer.getvalue(), "path": None}, "label": label})
    return _parquet(folder, rows)


def _parquet(folder, rows):
    path = folder / "train-00000-of-00001.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


REVISION = "0123456789abcdef0123456789abcdef01234567"
SMALL_BATCHES = {"batch_size": 8, "eval_size": 12, "micro_batch_size": 5}


def put_on_hub(folder, monkeypatch, kind, write_model):
    """Puts a model and its data where the Hub's are looked for, beside those that were put there before.

    Returns:
        The paper's configuration for them, and transformers' class of the model.
    """
    dataset, write_data, sizes = {
        "translation": (OPUS_BOOKS, opus_books, {"max_tokens": 9}),
        "code": (STACK, the_stack, {"max_tokens": 14}),
        "sentiment": (IMDB, imdb, {"max_tokens": 8}),
        "images": (CIFAR10, cifar10, {"depths": (1, 2), "widths": (8, 12), "embedding": 4}),
    }[kind]
    folder.mkdir(exist_ok=True)
    path, others = write_data(folder), source.cached_dataset
    monkeypatch.setattr(source, "cached_dataset", lambda asked: (path, REVISION) if asked == dataset else others(asked))
    their_class = write_model(folder / "checkpoint")
    config = replace(TASKS[kind].scales["paper"], checkpoint=str(folder / "checkpoint"), **SMALL_BATCHES, **sizes)
    return config, their_class
