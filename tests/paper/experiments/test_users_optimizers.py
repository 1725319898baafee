"""An optimizer of the user's own among the paper's: found by its name, measured and trained as they are."""

import dataclasses
import random
import sys

import pytest
import torch

from made_data import data_of
from stepscope import UsageError
from stepscope.directions import PseudoUpdates
from stepscope.paper.experiments.compared_optimizers import RULES, factory_of
from stepscope.paper.experiments.convergence import convergence_experiment
from stepscope.paper.experiments.jobs import run
from stepscope.paper.experiments.trajectory import demonstration, trajectory_experiment
from stepscope.paper.records import LossRecord
from stepscope.runs import DirectionRecord, read_run

MODULE = """\
import torch

class Halved(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.mul_(0.5)
        return super().step(closure)

class Of:
    @staticmethod
    def both(parameters, lr):
        torch.rand(3)
        matrices = [p for p in parameters if p.dim() == 2]
        rest = [p for p in parameters if p.dim() != 2]
        return [torch.optim.Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=lr)]

def of_two(parameters, lr):
    return [torch.optim.SGD(parameters, lr=lr), torch.optim.AdamW(parameters, lr=lr)]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A directory with a module of its own."""
    (tmp_path / "my_rules.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    sys.modules.pop("my_rules", None)


@pytest.mark.usefixtures("here")
def test_its_update_is_that_of_the_optimizer_which_the_name_says():
    parameters = {"w": torch.nn.Parameter(torch.ones(2, 3)), "b": torch.nn.Parameter(torch.ones(3))}
    g = torch.arange(6.0).reshape(2, 3)
    names = ("my_rules:Halved@0.5", "torch.optim:SGD@0.5", "my_rules:Halved", "my_rules:Of.both@0.1")
    followers = PseudoUpdates(parameters, {name: factory_of(name) for name in names})
    found = followers.step({"w": g, "b": g[0]}, capture=True)
    torch.testing.assert_close(found["torch.optim:SGD@0.5"]["w"], -0.5 * g)
    torch.testing.assert_close(found["my_rules:Halved@0.5"]["w"], -0.25 * g)
    torch.testing.assert_close(found["my_rules:Halved"]["w"], -0.0005 * g)
    p = torch.nn.Parameter(torch.ones(2, 3))
    p.grad = g
    torch.optim.Muon([p], lr=0.1).step()
    torch.testing.assert_close(found["my_rules:Of.both@0.1"]["w"], p.detach() - 1, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NAdam", "names no optimizer: give MODULE:FUNCTION"),
        ("torch.optim:", "names no optimizer"),
        ("torch.optim:NAdam@", "names no optimizer"),
        ("torch.optim:NAdam@nan", "names no optimizer"),
        ("torch.optim:NAdam@0", "names no optimizer"),
        ("../rules:NAdam", "names no optimizer"),
        ("no_such_module:NAdam", "No module named 'no_such_module'"),
        ("torch.optim:Nope", "has no attribute 'Nope'"),
        ("os:getcwd", "can't be used"),
        ("torch:zeros_like", "can't be used"),
        ("torch.optim:LBFGS", "closure"),
        ("my_rules:of_two", "hold the same parameter"),
    ],
)
@pytest.mark.usefixtures("here")
def test_one_that_cant_be_used_is_refused_before_anything_is_trained(name, why, tmp_path):
    for experiment in (trajectory_experiment("smoke", optimizers=[name]), convergence_experiment(optimizers=[name])):
        with pytest.raises(UsageError, match=why):
            run(experiment, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("here")
def test_looking_for_it_draws_no_random_numbers_and_twice_is_refused():
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    trajectory_experiment("smoke", optimizers=["my_rules:Of.both"]).check()
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    with pytest.raises(UsageError, match="is given twice: each optimizer once"):
        trajectory_experiment("smoke", optimizers=["torch.optim:SGD"] * 2).check()


def test_its_direction_is_measured_as_that_of_the_same_rule_under_the_papers_name(pairs, tmp_path):
    name = f"torch.optim:Adam@{RULES['adam'].lr}"
    assert demonstration("smoke", optimizers=[name]).directions == (*demonstration("smoke").directions, name)
    whole = trajectory_experiment("smoke", source=pairs, optimizers=[name])
    assert whole.directions == (*trajectory_experiment("smoke").directions, name)
    assert whole.run_name == "trajectory-translation-pretrained-Adam"
    few = {"training_lr": {"adam": 2e-4}, "directions": ("sgd", "adam", name), "steps": (3,)}
    run(dataclasses.replace(whole, **few), tmp_path / "out")
    _, records = read_run(tmp_path / "out", DirectionRecord)
    found = {record.direction: record for record in records}
    assert found[name].sharpness == pytest.approx(found["adam"].sharpness, rel=1e-4)
    assert found[name].norm == pytest.approx(found["adam"].norm, rel=1e-4)


def test_it_is_trained_as_the_same_rule_under_the_papers_name(tmp_path):
    rate = RULES["adam"].first_lr
    name = f"torch.optim:Adam@{rate}"
    source = {"code": data_of("code", tmp_path)}
    whole = convergence_experiment("smoke", tasks=["code"], sources=source, seeds=(0,), optimizers=[name])
    assert whole.run_name == "convergence-Adam"
    run(dataclasses.replace(whole, optimizers=("adam", name), steps=4, every=2), tmp_path / "out")
    _, records = read_run(tmp_path / "out", LossRecord)
    found = {
        who: [(r.phase, r.lr, r.seed, r.step, r.loss) for r in records if r.optimizer == who] for who in ("adam", name)
    }
    assert len(found[name]) == len(found["adam"]) > 5
    for one, other in zip(found[name], found["adam"], strict=True):
        assert one[:4] == other[:4]
        assert one[4] == pytest.approx(other[4], rel=1e-5)


def test_several_optimizers_of_one_name_all_make_their_step(here, tmp_path):
    sources, names = {"code": data_of("code", here)}, ["my_rules:Of.both@0.01"]
    whole = convergence_experiment("smoke", tasks=["code"], sources=sources, seeds=(0,), optimizers=names)
    run(dataclasses.replace(whole, optimizers=whole.optimizers[-1:], steps=4, every=2), tmp_path / "out")
    _, records = read_run(tmp_path / "out", LossRecord)
    losses = [r.loss for r in records if r.phase == "final"]
    assert losses[-1] < losses[0]
