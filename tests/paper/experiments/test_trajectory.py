"""The trajectory experiment end to end on a few sentences: complete, right, and no influence on training."""

import dataclasses
import itertools

import pytest
import torch

import stepscope
from made_data import data_of
from stepscope import Objective, UsageError
from stepscope.directions.updates import PseudoUpdates
from stepscope.paper.experiments.compared_optimizers import TRAINING, measured_directions
from stepscope.paper.experiments.jobs import run as run_experiment
from stepscope.paper.experiments.robustness import robustness_experiment
from stepscope.paper.experiments.theory import theory_experiment
from stepscope.paper.experiments.trajectory import demonstration, trajectory_experiment
from stepscope.paper.tasks.pretraining import STARTS
from stepscope.paper.tasks.translation import translation
from stepscope.runs import DirectionRecord, read_run

MEASURED = ("sharpness", "correlation", "best_step", "best_decrease", "method")


@pytest.fixture(scope="module")
def experiment(pairs):
    """Of one trajectory: `test_several_seeds` has two."""
    return dataclasses.replace(trajectory_experiment("smoke", source=pairs), training_lr={"adam": 2e-4})


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "demo"
    return out, run_experiment(experiment, out)


@pytest.mark.slow
def test_the_run_is_complete(run, experiment, pairs):
    out, count = run
    head, records = read_run(out, DirectionRecord)
    assert len(records) == count == 2 * len(measured_directions())
    assert len(measured_directions()) >= 17
    assert {(r.trajectory, r.step, r.direction) for r in records} == {
        ("adam", s, d) for s in experiment.steps for d in measured_directions()
    }
    for record in records:
        assert all(getattr(record, field) is not None for field in MEASURED)
        assert record.landscape.losses[0] == pytest.approx(record.loss, rel=1e-5)
        count = record.magnitudes.zeros + sum(record.magnitudes.counts)
        assert count == head["context"]["model"]["parameters"]
    assert head["configuration"]["scale"] == "smoke"
    assert head["context"]["source"]["name"] == "file"
    assert head["context"]["model"]["initialisation"].startswith("pretrained: 16 steps of span corruption")
    [pretraining] = head["context"]["pretraining"]
    assert pretraining["seed"] == 0
    assert pretraining["loss_after"] < pretraining["loss_before"]
    assert len(head["context"]["source"]["sha256"]) == 64
    assert head["context"]["versions"]["torch"] == torch.__version__


def test_records_are_what_measuring_by_hand_gives(run, experiment, pairs):
    """The same point reached by plain training, without any measuring before it."""
    _, records = read_run(run[0], DirectionRecord)
    task = translation(experiment.task, seed=0, source=pairs)
    objective = Objective(task.model, None, task.eval_batches)
    optimizer = TRAINING["adam"](list(task.model.parameters()), experiment.training_lr["adam"])
    followers = PseudoUpdates(objective.parameters, {"adam": measured_directions()["adam"]})
    batches = task.training_batches()
    for step in range(1, experiment.steps[1] + 1):
        task.model.zero_grad()
        task.model(**next(batches)).loss.backward()
        gradients = {n: p.grad for n, p in objective.parameters.items()}
        directions = followers.step(gradients, capture=step == experiment.steps[1])
        if step < experiment.steps[1]:
            optimizer.step()
    by_hand = stepscope.measure(objective, directions, "autograd")["adam"]
    found = next(r for r in records if (r.trajectory, r.step, r.direction) == ("adam", step, "adam"))
    assert found.sharpness == pytest.approx(by_hand.sharpness, rel=1e-4, abs=1e-7)
    assert found.loss == pytest.approx(by_hand.loss, rel=1e-6)
    # Independent of double backward: a float64 copy, by differences.
    exact = Objective(task.model, None, task.eval_batches, dtype=torch.float64)
    other = stepscope.measure(exact, directions, "difference")["adam"]
    assert found.sharpness == pytest.approx(other.sharpness, abs=other.numerical_error + 1e-6)


def test_the_directions_differ_as_they_should(run, experiment):
    """Every direction is its own: none is silently another's (the published classes take plain steps)."""
    _, records = read_run(run[0], DirectionRecord)
    at = [r for r in records if r.step == experiment.steps[1]]
    assert len({round(r.correlation, 9) for r in at}) == len(at)
    assert all(r.correlation < 0 for r in at if r.direction in ("sgd", "adam", "signsgd"))


def test_a_torn_run_is_continued_to_the_same_records(run, experiment, tmp_path):
    """Cut anywhere, also inside a line: the rest is measured and nothing twice."""
    complete = (run[0] / "measurements.jsonl").read_bytes()
    out = tmp_path / "torn"
    out.mkdir()
    (out / "run.json").write_bytes((run[0] / "run.json").read_bytes())
    lines = complete.splitlines(keepends=True)
    kept = len(lines) - 10  # within the second measured step
    (out / "measurements.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:50])
    assert run_experiment(experiment, out) == 10
    _, continued = read_run(out, DirectionRecord)
    _, whole = read_run(run[0], DirectionRecord)

    def rounded(records):
        return {(r.trajectory, r.step, r.direction): (pytest.approx(r.sharpness, rel=1e-6), r.loss) for r in records}

    assert len(continued) == len(whole)
    assert rounded(continued) == {(r.trajectory, r.step, r.direction): (r.sharpness, r.loss) for r in whole}


def test_several_seeds(experiment, tmp_path):
    both = {"sgd": 1e-3, "adam": 2e-4}
    two = dataclasses.replace(experiment, training_lr=both, seeds=(0, 1), steps=(1,), directions=("sgd", "adam"))
    assert run_experiment(two, tmp_path / "run") == 8
    _, records = read_run(tmp_path / "run", DirectionRecord)
    assert {(r.trajectory, r.seed, r.direction) for r in records} == set(itertools.product(both, (0, 1), both))
    losses = {r.loss for r in records}
    assert len(losses) == 2  # the first step of both trajectories starts from the seed's own weights


@pytest.mark.parametrize(
    ("scale", "seeds", "message"),
    [
        ("huge", (0,), "choose smoke or cpu"),
        ("smoke", (), "seeds"),
        ("smoke", (1, 1), "seeds"),
        ("smoke", (-1,), "seeds"),
    ],
)
@pytest.mark.parametrize("make", [trajectory_experiment, demonstration, robustness_experiment, theory_experiment])
def test_wrong_settings(make, scale, seeds, message):
    with pytest.raises(UsageError, match=message):
        make(scale, seeds=seeds)


def test_tasks_that_there_are_not():
    with pytest.raises(UsageError, match="no task 'poetry': choose translation, code"):
        trajectory_experiment("smoke", "poetry")
    with pytest.raises(UsageError, match="start is 'afresh': choose pretrained or random"):
        trajectory_experiment("smoke", start="afresh")


def test_the_demo_is_a_part_of_the_experiment():
    whole, part = trajectory_experiment("cpu", start="random"), demonstration("cpu")
    evaluated = dataclasses.replace(whole.task, eval_size=whole.task.eval_size // 2)
    assert (part.task, part.training_lr) == (evaluated, whole.training_lr)
    assert set(part.directions) < set(whole.directions)
    assert {"adagrad", "amsgrad", "adamw", "muon"} < set(whole.directions)


@pytest.mark.parametrize("kind", ["code", "images"])
def test_other_tasks(kind, tmp_path):
    """A causal model, and one with batch norm; the pretrained start differs from the random one."""
    few = {"steps": (2,), "directions": ("sgd", "adam"), "training_lr": {"adam": 1e-3}}
    found, source = [], data_of(kind, tmp_path)
    for number, start in enumerate(STARTS):
        experiment = dataclasses.replace(trajectory_experiment("smoke", kind, source=source, start=start), **few)
        assert run_experiment(experiment, tmp_path / str(number)) == 2
        head, records = read_run(tmp_path / str(number), DirectionRecord)
        assert head["context"]["task"] == kind
        found.append((head["context"]["model"]["initialisation"].partition(":")[0], records[0].loss))
    assert tuple(start for start, _ in found) == STARTS
    assert len({loss for _, loss in found}) == len(found)


def test_without_masks_padding_is_attended_to(experiment, tmp_path):
    (tmp_path / "uneven.tsv").write_text("".join(f"a{' new' * (n % 9 + 1)} house\tla maison {n}\n" for n in range(99)))
    task = dataclasses.replace(experiment.task, start="random")
    few = dataclasses.replace(
        experiment,
        task=task,
        source=str(tmp_path / "uneven.tsv"),
        steps=(1,),
        directions=("sgd",),
        training_lr={"sgd": 1.0},
    )
    losses = []
    for masked in (True, False):
        run_experiment(dataclasses.replace(few, masked=masked), tmp_path / str(masked))
        losses.append(read_run(tmp_path / str(masked), DirectionRecord)[1][0].loss)
    assert losses[0] != losses[1]
