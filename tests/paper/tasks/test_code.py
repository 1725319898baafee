"""The code task: the same at every call, batches and losses as documented, sources as they are."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from stepscope.errors import UsageError
from stepscope.paper.tasks.code import SCALES, code
from stepscope.paper.tasks.sources.programs import load_programs
from stepscope.paper.tasks.text import collate

SMOKE = SCALES["smoke"]
PROGRAM = "\n\n".join(f"def add_{n}(first, second):\n    return first + {n} * second\n" for n in range(60))


@pytest.fixture
def program(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def test_the_loss_is_the_mean_over_the_next_tokens(program):
    task = code(SMOKE, source=program)
    ragged = collate([(piece, piece) for piece in ([5, 6, 7, 1], [9, 1])])
    with torch.no_grad():
        found = task.model(**ragged)
        logits = found.logits[:, :-1]
        targets = torch.tensor([[6, 7, 1], [1, -100, -100]])
        expected = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(found.loss, expected)


def test_padding_is_no_text(program):
    """What a piece's logits are doesn't depend on what it is padded with."""
    model = code(SMOKE, source=program).model.eval()
    short, long = ([9, 8, 1],) * 2, ([5, 6, 7, 4, 1],) * 2
    alone, beside = collate([short]), collate([long, short])
    with torch.no_grad():
        torch.testing.assert_close(model(**alone).logits[0], model(**beside).logits[1, :3])


def test_a_program_is_cut_into_pieces_and_all_of_it_is_used(program):
    task = code(replace(SMOKE, pieces=10_000, batch_size=1), source=program)
    batches = list(islice(task.training_batches(), task.source.examples))
    pieces = {tuple(batch["input_ids"][0].tolist()) for batch in batches}
    assert max(map(len, pieces)) == SMOKE.max_tokens
    ends = [piece for piece in pieces if piece[-1] == 1]
    assert len(ends) == 1  # one program, one end
    assert sum(len(batch["input_ids"][0]) for batch in batches) > len(PROGRAM) / 10


def test_attention_is_global_and_local_by_turns(program):
    assert code(SMOKE, source=program).model.config.attention_layers == ["global", "local"]
    assert code(replace(SMOKE, layers=3), source=program).model.config.attention_layers == ["global"] * 3


def test_the_standard_library_is_this_pythons(serve_dataset):
    serve_dataset(None)
    texts, source = load_programs()
    assert source.name == "standard-library"
    assert source.title.endswith(f"Python {sys.version.split()[0]}")
    assert source.examples == len(texts) == len(set(texts)) > 100
    assert any("class OrderedDict" in text for text in texts)
    assert not any("import unittest\n\nclass " in text[:60] for text in texts)


def test_a_hub_dataset_of_json_lines(tmp_path, serve_dataset):
    pytest.importorskip("datasets")
    rows = [{"content": "x = 1\n", "lang": "Python"}, {"content": "y = 2\n"}, {"content": "x = 1\n"}, {"content": " "}]
    file = tmp_path / "data.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    serve_dataset(file)
    texts, source = load_programs("the-stack-smol")
    assert texts == ["x = 1\n", "y = 2\n"]
    assert source.title == "Python programs (The Stack), bigcode/the-stack-smol data/python at 0123456789ab"


@pytest.mark.parametrize(
    ("source", "message"),
    [("fortran", "no source 'fortran': auto, the-stack-smol, standard-library, or the path of a .py file"),
     ("missing.py", "cannot read missing.py: No such file")],
)  # fmt: skip
def test_sources_that_are_none(source, message):
    with pytest.raises(UsageError, match=message):
        load_programs(source)


@pytest.mark.parametrize(("content", "message"), [(b" \n", "is empty"), (b"x = '\xff'", "is not UTF-8")])
def test_files_that_are_no_programs(tmp_path, content, message):
    (tmp_path / "bad.py").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_programs(str(tmp_path / "bad.py"))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"pieces": 0}, "pieces is 0"), ({"max_tokens": 1}, "max_tokens is 1"), ({"window": 0}, "window is 0"),
     ({"vocabulary": 10}, "vocabulary is 10")],
)  # fmt: skip
def test_impossible_configurations(program, change, message):
    with pytest.raises(UsageError, match=message):
        code(replace(SMOKE, **change), source=program)


def test_the_data_do_not_depend_on_the_hash_seed(program):
    ask = (
        "import sys, torch; from stepscope.paper.tasks.code import *; t = code(SCALES['smoke'], source=sys.argv[1]); "
        "print(t.source.sha256, t.eval_batches[0]['input_ids'].sum().item(), "
        "sum(map(torch.sum, t.model.parameters())).item())"
    )

    command = [sys.executable, "-c", ask, program]
    environment = os.environ | {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    task = code(SMOKE, source=program)
    total = sum(map(torch.sum, task.model.parameters()))
    assert done.stdout.split() == [task.source.sha256, f"{task.eval_batches[0]['input_ids'].sum()}", f"{total.item()}"]
