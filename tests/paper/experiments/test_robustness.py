"""The robustness experiment end to end on a few sentences: complete, right, no influence on training."""

import copy
import dataclasses
import json

import pytest
import torch

from stepscope import UsageError
from stepscope.paper.experiments.compared_optimizers import TRAINING
from stepscope.paper.experiments.jobs import run as run_experiment
from stepscope.paper.experiments.robustness import GROUPS, robustness_experiment
from stepscope.paper.experiments.run_files import write_page
from stepscope.paper.records import SmoothnessRecord
from stepscope.paper.tasks.sentiment import sentiment
from stepscope.runs import read_run

WORDS = {"good": ("fine", "great", "moving", "lovely"), "bad": ("dull", "awful", "boring", "empty")}
THINGS = ("film", "story", "cast of many", "music", "ending")


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "texts.tsv"
    lines = [
        f"{label}\ta {w} {a} and {b}" for label, words in WORDS.items() for w in words for a in THINGS for b in THINGS
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def experiment(texts):
    return dataclasses.replace(robustness_experiment("smoke", source=texts), batches=2, draws=2)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "demo"
    return out, run_experiment(experiment, out)


def test_the_run_is_complete(run, experiment):
    out, count = run
    head, records = read_run(out, SmoothnessRecord)
    assert len(records) == count == 2 * 2 * 2 * 3 * 3
    assert {r.key for r in records} == {
        (name, 0, step, batch, group, cut)
        for name in ("sgd", "adam")
        for step in experiment.steps
        for batch in (0, 1)
        for group in GROUPS
        for cut in (4.0, 2.5, 2.0)
    }
    for r in records:
        assert 0 < r.removed < r.coordinates == head["context"]["groups"][r.group]
        assert 0 < r.spectral_norm_removed < r.spectral_norm
        assert r.ratio == pytest.approx(r.spectral_norm / r.spectral_norm_removed)
        assert len(r.spectral_norm_random) == 2
        assert all(r.spectral_norm_removed < value <= r.spectral_norm * (1 + 1e-12) for value in r.spectral_norm_random)
        assert r.examples == 6
    assert head["context"]["model"]["initialisation"] == "random"
    assert head["context"]["evaluation"] == {"examples": 12, "batches": 2}
    assert head["context"]["source"]["name"] == "file"


def test_a_smaller_cut_removes_more_and_smooths_more(run):
    found = {r.key: r for r in read_run(run[0], SmoothnessRecord)[1]}
    for (*place, cut), r in found.items():
        if cut == 4.0:
            other = found[(*place, 2.0)]
            assert other.removed > r.removed
            assert other.spectral_norm_removed < r.spectral_norm_removed
            assert other.spectral_norm == r.spectral_norm


def test_records_are_what_measuring_by_hand_gives(run, experiment, texts):
    """The same point reached by plain training; rows made one by one in float64, by the paper's formula."""
    task = sentiment(experiment.task, seed=0, source=texts)
    optimizer = TRAINING["adam"](list(task.model.parameters()), experiment.training_lr["adam"])
    batches = task.training_batches()
    for _ in range(experiment.steps[1] - 1):
        task.model.zero_grad()
        task.model(**next(batches)).loss.backward()
        optimizer.step()
    model = copy.deepcopy(task.model).double().eval()
    layer = model.bert.encoder.layer[0]
    attention = layer.attention
    groups = {
        "attention": [attention.self.query, attention.self.key, attention.self.value, attention.output.dense],
        "feed-forward": [layer.intermediate.dense, layer.output.dense],
    }
    found = {r.key: r for r in read_run(run[0], SmoothnessRecord)[1]}
    for name, modules in groups.items():
        for number in (0, 1):
            rows, losses = [], []
            for batch in task.eval_batches[number::2]:
                output = model(**batch)
                [z] = output.logits
                losses.append(float(output.loss.detach()))
                p = z.detach().softmax(0)
                parts = torch.autograd.grad(z[0] - z[1], [m.weight for m in modules])
                rows.append((p[0] * p[1]).sqrt() * torch.cat([part.reshape(-1) for part in parts]))
            G = torch.stack(rows)
            columns = G.norm(dim=0)
            for cut in (4.0, 2.5, 2.0):
                record = found["adam", 0, experiment.steps[1], number, name, cut]
                drop = columns >= cut * columns.mean()
                # Rounding of float32 may move a column over the cut.
                assert abs(record.removed - int(drop.sum())) <= 1
                assert record.spectral_norm == pytest.approx(float(torch.linalg.matrix_norm(G, 2) ** 2) / 6, rel=1e-3)
                after = float(torch.linalg.matrix_norm(G[:, ~drop], 2) ** 2) / 6
                assert record.spectral_norm_removed == pytest.approx(after, rel=1e-2)
                assert record.loss == pytest.approx(sum(losses) / 6, rel=1e-5)


def test_evaluation_texts_are_dealt_out_once_with_all_lengths(experiment, texts):
    task = sentiment(experiment.task, seed=0, source=texts)
    lengths = [[int(b["attention_mask"].sum()) for b in task.eval_batches[n::2]] for n in (0, 1)]
    assert [len(each) for each in lengths] == [6, 6]
    assert all(a <= b for a, b in zip(*lengths, strict=True))
    assert lengths[0][-1] >= lengths[1][0]


def test_groups_are_the_matrices_that_they_say(experiment, texts):
    names = [n for n, _ in sentiment(experiment.task, source=texts).model.named_parameters()]
    chosen = {group: [n for n in names if GROUPS[group](n)] for group in GROUPS}
    block = "bert.encoder.layer.0"
    assert chosen["attention"] == [
        f"{block}.attention.self.query.weight",
        f"{block}.attention.self.key.weight",
        f"{block}.attention.self.value.weight",
        f"{block}.attention.output.dense.weight",
    ]
    assert chosen["feed-forward"] == [f"{block}.intermediate.dense.weight", f"{block}.output.dense.weight"]
    assert chosen["all"] == names


OLD_NAMES = {"spectral_norm": "before", "spectral_norm_removed": "after", "spectral_norm_random": "random"}


def test_a_torn_run_is_continued_to_the_same_records(run, experiment, tmp_path):
    """Version 1 wrote the beginning, cut inside a batch's groups: the rest is measured and nothing twice."""
    whole = 20
    lines = [json.loads(line) for line in (run[0] / "measurements.jsonl").read_text().splitlines()]
    lines = [json.dumps({OLD_NAMES.get(name, name): line[name] for name in line}) + "\n" for line in lines]
    out = tmp_path / "torn"
    out.mkdir()
    head = json.loads((run[0] / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(head | {"schema_version": 1}))
    (out / "measurements.jsonl").write_text("".join(lines[:whole]) + lines[whole][:50])
    assert run_experiment(experiment, out) == len(lines) - whole
    continued = {r.key: r for r in read_run(out, SmoothnessRecord)[1]}
    for each in read_run(run[0], SmoothnessRecord)[1]:
        other = continued.pop(each.key)
        assert (other.removed, other.loss) == (each.removed, each.loss)
        assert (other.spectral_norm_removed, *other.spectral_norm_random) == pytest.approx(
            (each.spectral_norm_removed, *each.spectral_norm_random), rel=1e-6
        )
    assert not continued
    assert "smoother" in write_page(out, out / "report.html").read_text()


def test_seeds_differ_and_trajectories_begin_alike(experiment, tmp_path):
    two = dataclasses.replace(experiment, seeds=(0, 1), steps=(1,), groups=("attention",), cuts=(4.0,))
    assert run_experiment(two, tmp_path / "run") == 8
    _, records = read_run(tmp_path / "run", SmoothnessRecord)
    assert len({r.spectral_norm for r in records}) == 4  # a seed and a batch each


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ("attention", "heads")}, "no group 'heads': choose attention, feed-forward, all"),
        ({"cuts": (0.0,)}, r"cuts are \[0.0\]"),
        ({"draws": -1}, "draws is -1"),
        ({"batches": 0}, "12 evaluation texts can't be dealt into 0 batches"),
        ({"batches": 13}, "can't be dealt into 13 batches"),
        ({"task": {"micro_batch_size": 2}}, "parts of 2: parts of 1 are needed"),
    ],
)
def test_impossible_settings(experiment, change, message, tmp_path):
    if "task" in change:
        change = {"task": dataclasses.replace(experiment.task, **change["task"])}
    with pytest.raises(UsageError, match=message):
        run_experiment(dataclasses.replace(experiment, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_pretrained_is_another_configuration(scale):
    random, pretrained = robustness_experiment(scale), robustness_experiment(scale, pretrained=True)
    assert json.loads(json.dumps(random.configuration()))["task"]["pretrained"] is None
    assert json.loads(json.dumps(pretrained.configuration()))["task"]["pretrained"] == "minilm"
    assert "all" not in pretrained.groups
    assert {random.task.micro_batch_size, pretrained.task.micro_batch_size} == {1}
