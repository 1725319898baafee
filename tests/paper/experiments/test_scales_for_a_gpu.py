"""The scales for a GPU: the same code end to end on tiny stand-ins in the Hub's formats, and training in parts."""

from dataclasses import replace
from fractions import Fraction

import pytest
import torch

from made_data import data_of

pytest.importorskip("transformers")
pytest.importorskip("datasets")
pytest.importorskip("PIL")

import checkpoints
from stepscope.paper.experiments import training
from stepscope.paper.experiments.agreement import AgreementExperiment
from stepscope.paper.experiments.convergence import ConvergenceExperiment, convergence_experiment
from stepscope.paper.experiments.robustness import RobustnessExperiment
from stepscope.paper.experiments.run_files import read
from stepscope.paper.experiments.search import Search
from stepscope.paper.experiments.training import accumulate, at_home, part_size
from stepscope.paper.experiments.trajectory import TrajectoryExperiment, trajectory_experiment
from stepscope.paper.reproduction.plan import reproduction, run_reproduction
from stepscope.paper.tasks.catalog import TASKS

MODELS = {
    "translation": checkpoints.translation,
    "code": checkpoints.code,
    "sentiment": checkpoints.distilbert,
    "images": checkpoints.resnet,
}


@pytest.fixture
def stand_ins(tmp_path, monkeypatch):
    """The paper's configuration of each task, for a model and data that were made here."""
    made = {kind: checkpoints.put_on_hub(tmp_path / kind, monkeypatch, kind, model) for kind, model in MODELS.items()}
    return {kind: config for kind, (config, _) in made.items()}


def shrunk(experiment, configs):
    """The paper's run on the stand-ins: with fewer steps and directions, and all else as it is."""
    if isinstance(experiment, TrajectoryExperiment):
        task = start_of(configs[experiment.kind], experiment.task)
        return replace(experiment, task=task, steps=(2,), directions=("sgd", "adam clip 50% (first moment)"))
    if isinstance(experiment, AgreementExperiment):
        points = {
            name: replace(point, task=start_of(configs[point.kind], point.task), steps=(2,))
            for name, point in experiment.points.items()
        }
        return replace(experiment, points=points, directions=("sgd", "adam"))
    if isinstance(experiment, ConvergenceExperiment):
        quick = Search(rates=1, extensions=0, rungs=((Fraction(1), 1),), climbs=0)
        tasks = {name: configs[name] for name in experiment.tasks}
        return replace(experiment, tasks=tasks, steps=3, every=2, search=quick, optimizers=("sgd", "adam"))
    if isinstance(experiment, RobustnessExperiment):
        return replace(experiment, task=replace(configs["sentiment"], micro_batch_size=1), steps=(1,), draws=1)
    part = replace(experiment.correlated["translation"], steps=(1,), coordinates=4)
    part = replace(part, training_lr={"sgd": 1e-3})
    task = replace(configs["translation"], eval_size=4)
    return replace(experiment, task=task, draws=5, resamples=10, correlated={"translation": part})


def start_of(config, asked):
    """The start that is asked for."""
    return replace(config, start=asked.start)


@pytest.mark.slow
def test_the_papers_scale_end_to_end(stand_ins, tmp_path):
    plan = reproduction("paper", seeds=(0,), tasks=tuple(TASKS))
    plan = [shrunk(experiment, stand_ins) for experiment in plan]
    assert run_reproduction(plan, tmp_path / "out") == []
    for planned in plan:
        head, records = read(tmp_path / "out" / planned.run_name)
        assert head["configuration"]["scale"] == "paper"
        assert records
    starts = [read(tmp_path / "out" / p.run_name)[0]["context"]["model"]["initialisation"] for p in plan[:7]]
    assert [start.partition(":")[0] for start in starts] == ["pretrained"] * 4 + ["random"] * 3
    sources = [read(tmp_path / "out" / p.run_name)[0]["context"]["source"]["name"] for p in plan[:7]]
    assert sources == [*(papers := ["opus_books", "the-stack-smol", "imdb", "cifar10"]), *papers[:3]]
    groups = read(tmp_path / "out" / "robustness")[0]["context"]["groups"]
    assert set(groups) == {"attention", "feed-forward"}
    assert all(count > 0 for count in groups.values())
    for record in read(tmp_path / "out" / "agreement")[1]:
        assert record.sharpness == pytest.approx(record.independent, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("kind", ["translation", "code", "sentiment"])
@pytest.mark.parametrize("part", [1, 3, 100])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(kind, part, tmp_path):
    """Each part counts by its label tokens: they differ from part to part."""
    task = TASKS[kind].make(TASKS[kind].scales["smoke"], source=data_of(kind, tmp_path))
    model = task.model.double()
    model.eval()
    batch = next(task.training_batches())
    batch["labels"] = batch["labels"].clone()
    if batch["labels"].dim() == 2:
        for row in range(len(batch["labels"])):
            batch["labels"][row, 3 + row % 4 :] = -100
    whole = accumulate(model, batch)
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert accumulate(model, batch, part) == pytest.approx(whole, rel=1e-6)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        found = dict(model.named_parameters())[name].grad
        assert torch.allclose(found, gradient, rtol=1e-4, atol=1e-6 * largest), name


def test_which_batches_go_in_parts():
    assert part_size(TASKS["code"].scales["cpu"], "cpu") is None
    assert part_size(TASKS["code"].scales["paper"], "paper") == TASKS["code"].scales["paper"].micro_batch_size
    assert part_size(TASKS["images"].scales["paper"], "paper") is None


def test_only_the_scales_for_a_gpu_go_there(monkeypatch):
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(training, "placed", lambda task, device: moved.append((task, device)))
    for scale in ("smoke", "cpu"):
        assert at_home("task", scale) == "task"
    for scale in ("gpu", "paper"):
        at_home(scale, scale)
    assert moved == [("gpu", "cuda"), ("paper", "cuda")]


def test_the_papers_rates_and_starts():
    """Its Table 3 for SGD, and Adam at 2e-4; from its published weights."""
    assert trajectory_experiment("paper").training_lr == {"sgd": 1e-3, "adam": 2e-4}
    assert trajectory_experiment("cpu", "code").training_lr == {"sgd": 3e-5, "adam": 2e-4}
    assert all(trajectory_experiment("paper", kind).task.start == "pretrained" for kind in TASKS)
    assert convergence_experiment("paper").tasks["translation"].checkpoint == "google-t5/t5-small"
