"""All runs by one call: what is planned, that a failing one stops no other, that what was cut off goes on."""

import dataclasses
import json
import pickle

import pytest

from made_data import data_of
from stepscope import UsageError
from stepscope.paper.experiments import jobs as module
from stepscope.paper.experiments.command_lines import MEASURED_TASKS
from stepscope.paper.experiments.jobs import in_processes, jobs_of, perform
from stepscope.paper.experiments.run_files import read
from stepscope.paper.reproduction.costs import measured_cost
from stepscope.paper.reproduction.plan import reproduction, run_reproduction
from stepscope.paper.tasks.catalog import TASKS
from stepscope.paper.tasks.pretraining import STARTS

NAMES = [f"trajectory-{task}-{start}" for start in STARTS for task in MEASURED_TASKS][:-1]


def test_the_plan_has_every_experiment():
    plan = reproduction("cpu", seeds=(0, 1))
    assert [planned.run_name for planned in plan] == [*NAMES, "agreement", "convergence", "robustness", "theory"]
    assert "".join(planned.entry.letter for planned in plan) == "AAAAAABCD"
    assert all(planned.scale == "cpu" for planned in plan)
    assert pickle.loads(pickle.dumps(plan)) == plan, "they can be sent to other processes"
    assert [planned.task.start for planned in plan[:5]] == ["pretrained"] * 3 + ["random"] * 2
    assert all(planned.seeds == (0, 1) for planned in plan if planned.run_name != "agreement")


def test_directions_on_sentiment_are_measured_where_they_are_asked_for():
    plan = reproduction("smoke", only="A", tasks=("code", "sentiment"))
    assert [planned.run_name for planned in plan[:2]] == [
        "trajectory-code-pretrained",
        "trajectory-sentiment-pretrained",
    ]
    assert len(plan) == 5


def test_letters_may_be_joined_by_commas():
    assert reproduction("smoke", only=["c,D"]) == reproduction("smoke", only=["C", "D"])


def test_as_the_published_code_has_it():
    """Without attention masks, and with its optimizers."""
    ours, code = reproduction("smoke"), reproduction("smoke", settings="code")
    assert all(p.masked for p in ours if p.run_name.startswith("trajectory"))
    assert not any(p.masked for p in code if p.run_name.startswith(("trajectory", "convergence")))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"only": "AX"}, "no experiment 'X': choose of A, B, C, D"),
        ({"only": ""}, "no experiment is asked for"),
        ({"tasks": ["poetry"]}, "no task 'poetry': choose translation, code, sentiment, images"),
        ({"sources": {"poetry": "x"}}, "a source is given for poetry: choose of translation"),
        ({"settings": "mine"}, "unknown settings 'mine'"),
        ({"scale": "huge"}, "unknown scale 'huge'"),
        ({"seeds": ()}, "seeds"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(UsageError, match=message):
        reproduction(**{"scale": "smoke", **arguments})


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {kind: data_of(kind, folder) for kind in TASKS}


def small(plan, *names):
    """Some runs of a plan, as small as they can be."""
    found = []
    for planned in plan:
        if planned.run_name in names:
            few = {"steps": (1,)} if planned.run_name.startswith("trajectory") else {}
            few |= {"directions": ("sgd", "adam")} if few else {}
            found.append(dataclasses.replace(planned, **few))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_fails_stops_no_other(processes, sources, tmp_path):
    plan = small(reproduction("smoke", seeds=(0,), sources={**sources, "code": str(tmp_path / "none.py")}), *NAMES[:3])
    told = []
    failures = run_reproduction(plan, tmp_path / "out", lambda p, w: told.append(p), execute=in_processes(processes))
    assert [failure.name for failure in failures] == ["trajectory-code-pretrained"]
    assert "none.py" in failures[0].reason
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [NAMES[2], NAMES[0]]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)
    assert all(len(read(path)[1]) == 4 for path in (tmp_path / "out").iterdir())


def test_what_was_cut_off_goes_on(sources, tmp_path):
    plan = small(reproduction("smoke", seeds=(0,), sources=sources), *NAMES[:2])
    assert run_reproduction(plan, tmp_path) == []
    whole = [(tmp_path / name / "measurements.jsonl").read_text() for name in NAMES[:2]]
    (tmp_path / NAMES[1] / "measurements.jsonl").write_text(whole[1].splitlines(keepends=True)[0])
    assert run_reproduction(plan, tmp_path) == []
    again = [(tmp_path / name / "measurements.jsonl").read_text() for name in NAMES[:2]]
    assert again[0] == whole[0]
    assert [json.loads(line)["loss"] for line in again[1].splitlines()] == [
        json.loads(line)["loss"] for line in whole[1].splitlines()
    ]


def test_another_configuration_in_the_directory_is_a_failure(sources, tmp_path):
    plan = small(reproduction("smoke", seeds=(0,), sources=sources), NAMES[0])
    run_reproduction(plan, tmp_path)
    other = small(reproduction("smoke", seeds=(1,), sources=sources), NAMES[0])
    assert "another configuration" in run_reproduction(other, tmp_path)[0].reason


def test_the_longest_begins_first(sources, tmp_path):
    begun = []
    plan = reproduction("smoke", sources=sources)
    weights = {"theory": 90.0, "robustness": 15.0}

    def looked_at(jobs, receive):
        begun.extend(job.path.name for job in jobs)

    failures = run_reproduction(plan, tmp_path, weights=weights, execute=looked_at)
    assert len(failures) == len(plan)
    reasons = {failure.name: failure.reason for failure in failures}
    assert reasons["theory"] == "25 jobs are not done: another process may be at them"
    names = list(dict.fromkeys(begun))
    assert names[:2] == ["theory", "robustness"]
    assert names[-1] == "convergence", "its jobs are many"


def test_jobs_that_share_a_pretraining_are_apart():
    """Whoever comes second would wait for it."""
    [planned] = small(reproduction("smoke", seeds=(0, 1, 2)), NAMES[0])
    jobs = jobs_of(planned, "out")
    assert [job.unit.seed for job in jobs] == [0, 1, 2, 0, 1, 2]
    assert sorted(job.number for job in jobs) == list(range(6))
    assert len({job.name for job in jobs}) == 6


@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_every_run_has_a_cost(scale):
    for seeds in ((0,), (0, 1, 2)):
        for planned in reproduction(scale, seeds=seeds):
            cost = measured_cost(planned, len(seeds))
            assert cost.minutes > 0
            assert 0.2 < cost.memory < 6


def test_the_plan_for_two_cores_takes_as_long_as_is_said():
    """`stepscope reproduce`: within 100 minutes, if both have something to do all the time."""
    assert sum(measured_cost(planned, 5).minutes for planned in reproduction("cpu")) < 200


def test_whatever_fails_in_a_run_the_others_are_made(sources, tmp_path, monkeypatch, capsys):
    """A graphics card that is full, a disk that is gone: one line at the end, and the traceback for who wants it."""

    def full(job, *rest):
        if job.experiment.kind == "code":
            raise RuntimeError("CUDA out of memory\nmore of it")
        return perform(job, *rest)

    monkeypatch.setattr(module, "perform", full)
    plan = small(reproduction("smoke", seeds=(0,), sources=sources), *NAMES[:3])
    failures = run_reproduction(plan, tmp_path)
    assert [(f.name, f.reason) for f in failures] == [
        ("trajectory-code-pretrained", "RuntimeError: CUDA out of memory")
    ]
    assert "Traceback" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == [NAMES[2], NAMES[0]]


def test_runs_of_another_scale_or_mask_are_not_mixed_in(sources, tmp_path):
    """The claims are judged by all runs of a directory."""
    plan = small(reproduction("smoke", seeds=(0,), sources=sources), NAMES[0])
    run_reproduction(plan, tmp_path)
    with pytest.raises(UsageError, match=f"holds a run at the scale smoke: {NAMES[0]}; give another"):
        run_reproduction(reproduction("cpu", only="C"), tmp_path)
    with pytest.raises(UsageError, match="holds a run with another attention mask"):
        run_reproduction(reproduction("smoke", only="B", settings="code"), tmp_path)
