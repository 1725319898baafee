"""Experiment D end to end on a few sentences: complete, right, and no influence on training."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from stepscope import UsageError
from stepscope.paper.experiments.bounds import bound_record
from stepscope.paper.experiments.compared_optimizers import TRAINING
from stepscope.paper.experiments.jobs import run as run_experiment
from stepscope.paper.experiments.theory import CorrelatedTask, theory_experiment
from stepscope.paper.records import BoundRecord, CorrelationRecord, TheoryRecord
from stepscope.paper.report.evidence import theory_tables
from stepscope.paper.statistics import rank_correlation
from stepscope.paper.tasks.small import small_task
from stepscope.runs import read_run

STORED = Path(__file__).parents[1] / "version_1" / "theory"


@pytest.fixture(scope="module")
def experiment(pairs):
    return theory_experiment("smoke", source=pairs)


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    out = tmp_path_factory.mktemp("run") / "theory"
    return out, run_experiment(experiment, out)


@pytest.fixture
def small(experiment):
    """Without the task of translation, and with few draws."""
    settings = CorrelatedTask({"adam": 1e-2}, (1, 4), ("", "out"), 20)
    families = ("quadratic of section 1",)
    return dataclasses.replace(experiment, draws=5, families=families, correlated={"classifier": settings})


def without_time(records):
    return [dataclasses.replace(record, seconds=None) for record in records]


def test_the_run_is_complete(run, experiment):
    out, count = run
    head, records = read_run(out, TheoryRecord)
    scopes = sum(len(s.training_lr) * len(s.steps) * len(s.scopes) for s in experiment.correlated.values())
    assert len(records) == len({r.key for r in records}) == count == 3 * 3 + scopes
    bounds = [r for r in records if isinstance(r, BoundRecord)]
    assert {(r.family, r.fraction) for r in bounds} == {
        (family, fraction) for family in experiment.families for fraction in (0.1, 0.5, 1.0)
    }
    assert all(r.clipped.violations == r.plain.violations == 0 for r in bounds)
    assert all(r.draws == experiment.draws for r in bounds)
    for record in (r for r in records if isinstance(r, CorrelationRecord)):
        settings = experiment.correlated[record.task]
        assert record.coordinates + record.left_out == min(settings.coordinates, record.of)
        for name in ("diagonal", "row_norm"):
            assert -1 <= getattr(record, name).low <= getattr(record, name).high <= 1
            assert len(getattr(record.points, name)) == record.coordinates
    assert head["configuration"]["experiment"] == "theory"
    assert head["context"]["source"]["name"] == "file"
    assert set(head["context"]["small"]) == {"classifier"}


def test_a_record_of_the_bound_is_what_it_gives_by_itself(run, experiment):
    record = next(r for r in read_run(run[0], TheoryRecord)[1] if r.group == "block quadratic, clip 50%")
    by_hand = bound_record("block quadratic", 0.5, experiment.draws, seed=0)
    assert without_time([record]) == without_time([by_hand])


def test_a_correlation_is_that_of_the_dense_hessian_after_plain_training(small, tmp_path):
    """The same point reached without measuring before it, and its Hessian by another way."""
    settings = dataclasses.replace(small.correlated["classifier"], scopes=("", "out"), coordinates=None)
    run_experiment(dataclasses.replace(small, correlated={"classifier": settings}, seeds=(2,)), tmp_path / "run")
    records = [r for r in read_run(tmp_path / "run", TheoryRecord)[1] if isinstance(r, CorrelationRecord)]
    task = small_task("classifier", seed=2)
    optimizer = TRAINING["adam"](list(task.model.parameters()), 1e-2)
    batches = task.training_batches()
    for _ in range(3):
        optimizer.zero_grad()
        task.model(**next(batches)).loss.backward()
        optimizer.step()
    parameters = dict(task.model.named_parameters())

    def loss(x):
        parts = x.split([p.numel() for p in parameters.values()])
        values = {n: part.view(p.shape) for (n, p), part in zip(parameters.items(), parts, strict=True)}
        return sum(torch.func.functional_call(task.model, values, kwargs=b).loss for b in task.eval_batches) / 2

    x = torch.cat([p.detach().flatten() for p in parameters.values()])
    hessian = torch.autograd.functional.hessian(loss, x)
    gradient = torch.autograd.functional.jacobian(loss, x)
    for scope, chosen in (("", slice(None)), ("out", slice(-52, None))):
        record = next(r for r in records if (r.scope, r.step) == (scope, 4))
        assert record.loss == pytest.approx(float(loss(x)), rel=1e-12)
        assert record.of == record.coordinates == len(x[chosen])
        for name, other in (("diagonal", hessian.diagonal().abs()), ("row_norm", hessian.norm(dim=1))):
            wanted = rank_correlation(gradient.abs()[chosen], other[chosen], resamples=200, seed=2)
            assert dataclasses.asdict(getattr(record, name)) == pytest.approx(wanted._asdict(), abs=1e-9)


@pytest.mark.parametrize("kept", [5, 15])
def test_a_torn_run_is_continued_to_the_same_records(run, experiment, tmp_path, kept):
    """Cut in the bound's part, within a step's scopes, and later, each inside a line."""
    lines = (run[0] / "measurements.jsonl").read_bytes().splitlines(keepends=True)
    out = tmp_path / "torn"
    out.mkdir()
    (out / "run.json").write_bytes((run[0] / "run.json").read_bytes())
    (out / "measurements.jsonl").write_bytes(b"".join(lines[:kept]) + lines[kept][:50])
    assert run_experiment(experiment, out) == len(lines) - kept
    assert without_time(read_run(out, TheoryRecord)[1]) == without_time(read_run(run[0], TheoryRecord)[1])


def test_a_stored_run_with_a_family_that_is_gone_is_read_and_shown_but_not_continued(tmp_path):
    """Its records are data; what would be measured now is another configuration."""
    out = shutil.copytree(STORED, tmp_path / "theory")
    before = (out / "measurements.jsonl").read_bytes()
    head, records = read_run(out, TheoryRecord)
    (table,) = (table for table in theory_tables(records) if "bound" in table.title)
    assert "gelu network" in head["configuration"]["families"]
    assert sum("gelu network, clip" in str(row) for row in table.rows) == 3
    with pytest.raises(UsageError, match="another configuration") as caught:
        run_experiment(theory_experiment("cpu", seeds=(0, 1, 2)), out)
    assert "\n" not in str(caught.value)
    assert (out / "measurements.jsonl").read_bytes() == before


def test_several_seeds_draw_other_losses_weights_and_samples(small, tmp_path):
    assert run_experiment(dataclasses.replace(small, seeds=(0, 1)), tmp_path / "run") == 2 * (3 + 4)
    records = read_run(tmp_path / "run", TheoryRecord)[1]

    def measured(record):
        return record.plain if isinstance(record, BoundRecord) else record.points

    first, second = ([r for r in records if r.seed == seed] for seed in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert one.group == other.group
        assert measured(one) != measured(other)


def test_measuring_leaves_training_alone(small, tmp_path):
    """The last step's records are the same whether the steps before it were measured or not."""
    one = dataclasses.replace(small.correlated["classifier"], steps=(4,))
    run_experiment(small, tmp_path / "all")
    run_experiment(dataclasses.replace(small, correlated={"classifier": one}), tmp_path / "last")
    ends = [
        without_time(r for r in read_run(tmp_path / name, TheoryRecord)[1] if getattr(r, "step", None) == 4)
        for name in ("all", "last")
    ]
    assert ends[0] == ends[1] != []


def test_it_draws_on_no_global_random_state(small, tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_experiment(small, tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"families": ("cubic",)}, "no family 'cubic'"),
        ({"correlated": {"vision": CorrelatedTask({"sgd": 1.0}, (1,), ("",))}}, "no task 'vision': choose translation"),
        ({"correlated": {"classifier": CorrelatedTask({"lbfgs": 1.0}, (1,), ("",))}}, "no training optimizer 'lbfgs'"),
        ({"correlated": {"classifier": CorrelatedTask({"sgd": 1.0}, (0,), ("",))}}, "counted from 1"),
        ({"correlated": {"classifier": CorrelatedTask({"sgd": 1.0}, (1,), ("attention",))}}, "begins with 'attention'"),
        ({"fractions": (0.001,)}, "clips none"),
    ],
)
def test_settings_that_do_not_fit(small, tmp_path, change, message):
    with pytest.raises(UsageError, match=message):
        run_experiment(dataclasses.replace(small, **change), tmp_path / "run")


def test_a_part_may_be_left_out(small, tmp_path):
    assert run_experiment(dataclasses.replace(small, families=()), tmp_path / "a") == 4
    assert run_experiment(dataclasses.replace(small, correlated={}), tmp_path / "b") == 3
