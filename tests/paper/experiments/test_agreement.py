"""The independent path against a closed form and exact products, and the experiment that compares both paths."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from made_data import data_of
from stepscope import UsageError
from stepscope.paper.experiments import agreement as module
from stepscope.paper.experiments.agreement import DISPLACEMENT, AgreementExperiment, difference_sharpness
from stepscope.paper.experiments.jobs import run
from stepscope.paper.experiments.trajectory import trajectory_experiment
from stepscope.paper.records import AgreementRecord
from stepscope.paper.tasks.small import small_task
from stepscope.runs import read_run


class Quadratic(nn.Module):
    """``½ Σ scale·w²``, whose Hessian is the diagonal of the scales."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -4.0, 0.5]))

    def forward(self, scale, labels):
        return type("Output", (), {"loss": 0.5 * (scale.mean(0) * self.w**2).sum()})


def test_a_quadratic_whose_batches_count_by_their_labels():
    """Three quarters of the labels are in the first batch: its curvature counts three times that of the second."""
    batches = [
        {"scale": torch.tensor([[1.0, 10.0, 100.0]]), "labels": torch.tensor([0, 1, 2, -100])},
        {"scale": torch.tensor([[5.0, 50.0, 500.0]]), "labels": torch.tensor([0, -100, -100, -100])},
    ]
    d = {"w": torch.tensor([0.0, 3.0, 4.0])}
    expected = 0.36 * (0.75 * 10 + 0.25 * 50) + 0.64 * (0.75 * 100 + 0.25 * 500)
    # The rounding of x in float64, relative to the displacement.
    assert difference_sharpness(Quadratic(), batches, d) == pytest.approx(expected, rel=10 * 2**-52 / DISPLACEMENT)


@pytest.mark.parametrize("kind", ["classifier", "language model"])
def test_small_tasks_against_the_product_with_the_hessian(kind):
    """By double backward written out here, in float64; the micro-batches weighted by what they average over."""
    task = small_task(kind)
    parameters = dict(task.model.named_parameters())
    generator = torch.Generator().manual_seed(0)
    d = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in parameters.items()}
    labels = [b["labels"][:, 1:] if kind == "language model" else b["labels"] for b in task.eval_batches]
    counts = [int((each != -100).sum()) for each in labels]
    task.model.eval()
    with sdpa_kernel(SDPBackend.MATH):
        loss = sum(task.model(**b).loss * (n / sum(counts)) for b, n in zip(task.eval_batches, counts, strict=True))
        gradient = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        slope = sum((g * d[name]).sum() for name, g in zip(parameters, gradient, strict=True))
        product = torch.autograd.grad(slope, list(parameters.values()))
    exact = float(sum((h * d[name]).sum() for name, h in zip(parameters, product, strict=True)))
    exact /= float(sum((part**2).sum() for part in d.values()))
    # The rounding of the gradient in float64, divided by the displacement.
    g, x = (sum(float((p.detach() ** 2).sum()) for p in some) ** 0.5 for some in (gradient, parameters.values()))
    bar = 10 * 2**-52 * g / (DISPLACEMENT * x)
    assert difference_sharpness(task.model, task.eval_batches, d) == pytest.approx(exact, abs=bar)
    assert bar < 1e-3 * abs(exact)


class ForCausalLM(nn.Module):
    """Whose first label of each row is no target: the mean of its second batch is over two tokens, not three."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, scale, labels):
        return type("Output", (), {"loss": 0.5 * (scale * self.w**2).sum()})


def test_a_causal_model_predicts_all_tokens_but_the_first():
    batches = [
        {"scale": torch.tensor([1.0]), "labels": torch.tensor([[5, 6, 7, 8, 9]])},
        {"scale": torch.tensor([10.0]), "labels": torch.tensor([[5, 6, 7, -100, -100]])},
    ]
    found = difference_sharpness(ForCausalLM(), batches, {"w": torch.ones(1)})
    assert found == pytest.approx((4 * 1.0 + 2 * 10.0) / 6, rel=10 * 2**-52 / DISPLACEMENT)


def test_the_model_is_left_alone():
    task = small_task("classifier")
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.model.train()
    difference_sharpness(
        task.model, task.eval_batches, {n: torch.ones_like(p) for n, p in task.model.named_parameters()}
    )
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())
    assert task.model.training
    assert all(p.grad is None for p in task.model.parameters())


def test_a_direction_of_zeros():
    with pytest.raises(UsageError, match="the direction is zero"):
        difference_sharpness(Quadratic(), [], {"w": torch.zeros(3)})


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    points = {
        kind: dataclasses.replace(
            trajectory_experiment("smoke", kind, source=data_of(kind, folder), seeds=(3,)), steps=(4, 9)
        )
        for kind in ("translation", "code", "sentiment", "images")
    }
    return AgreementExperiment("smoke", points, directions=("sgd", "adam", "signsgd", "muon"))


def test_the_measured_sharpness_agrees(experiment, tmp_path):
    """In float32 on one side and float64 differences on the other: what is left is the rounding of float32."""
    assert run(experiment, tmp_path / "run") == 16
    head, records = read_run(tmp_path / "run", AgreementRecord)
    assert list(head["context"]["tasks"]) == list(experiment.points)
    for kind in experiment.points:
        found = [record for record in records if record.task == kind]
        assert {(r.seed, r.step) for r in found} == {(3, 4)}
        largest = max(abs(record.independent) for record in found)
        for record in found:
            assert record.sharpness == pytest.approx(record.independent, abs=2e-5 * largest), (kind, record)
    assert run(experiment, tmp_path / "run") == 0


def test_what_was_cut_off_is_made_and_nothing_twice(experiment, tmp_path, monkeypatch):
    few = dataclasses.replace(experiment, points={"code": experiment.points["code"]}, directions=("sgd", "adam"))
    run(few, tmp_path / "run")
    lines = (tmp_path / "run" / "measurements.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "measurements.jsonl").write_text(lines[0])
    asked = []
    original = difference_sharpness
    monkeypatch.setattr(module, "difference_sharpness", lambda *a: asked.append(1) or original(*a))
    assert run(few, tmp_path / "run") == len(asked) == 1
    first, second = (read_run(tmp_path / "run", AgreementRecord)[1][1], json.loads(lines[1]))
    assert first.independent == pytest.approx(second["independent"], rel=1e-6)
