"""In what runs differ from the paper's, from their heads."""

import pytest

from claim_records import claim, convergence, head, trajectory
from stepscope.paper.claims.claims import judge
from stepscope.paper.claims.departures import departures
from stepscope.paper.claims.tables import departures_table
from stepscope.paper.reproduction_runs import Run


def test_departures_are_read_off_the_head():
    assert departures([trajectory()]) == (
        "trajectory-code: data are Made code, not the-stack-smol",
        "trajectory-code: the model is A model for code, not gpt-neo-125M-code-clippy",
        "trajectory-code: initialization is random, not pretrained",
        "trajectory-code: dropout is off; the paper trains with its models' own",
        "trajectory-code: the evaluation batch has 64 examples, not 1024",
        "trajectory-code: padding is masked; the published code gives no mask",
        "trajectory-code: padding is no label; in the published code it is a label",
        "trajectory-code: all tokens weigh the same; in the published code all examples do, whatever their length",
        "trajectory-code: sgd trains at a learning rate of 1, not 3e-05",
        "trajectory-code: measured at steps 10, 60 (epochs 1, 6), not in epochs 2, 5, 10, 20",
    )


PAPERS = {
    "translation": ("opus_books", "Books, Helsinki-NLP/opus_books en-fr at 12", "pretrained: google-t5/t5-small"),
    "code": (
        "x",
        "Programs, bigcode/the-stack-smol data/python",
        "pretrained: flax-community/gpt-neo-125M-code-clippy",
    ),
    "images": ("cifar10", "CIFAR-10, uoft-cs/cifar10", "pretrained: microsoft/resnet-152"),
}


@pytest.mark.parametrize("kind", PAPERS)
def test_the_papers_own_settings_are_no_departure(kind):
    name, title, start = PAPERS[kind]
    configuration = {"experiment": "trajectory", "kind": kind, "steps": [15, 45, 95, 195], "masked": False,
                     "released": ["padding-labels", "equal-weights", "small-norm-batches"],
                     "task": {"batch_size": 1000 if kind == "images" else 1024}}  # fmt: skip
    context = {"source": {"name": name, "title": title, "examples": 10_240}, "evaluation": {"examples": 1024},
               "model": {"title": "A model", "initialisation": start}}  # fmt: skip
    found = departures([Run("run", head(configuration, **context), [])])
    # Whatever is asked for, nothing is dropped out here, and a ResNet's head is new.
    assert [each for each in found if "head is new" not in each and "dropout" not in each] == []
    assert any("dropout" in each for each in found) == (kind != "images")
    assert any("head is new" in each for each in found) == (kind == "images")


@pytest.mark.parametrize(("steps", "told"), [(190, ["trained to step 190 (epoch 19)"]), (191, [])])
def test_trainings_as_long_as_the_papers_are_no_departure(steps, told):
    """Of 320 examples in batches of 32, an epoch has ten steps."""
    asked = {"experiment": "convergence", "tasks": {"code": {"batch_size": 32}}, "steps": steps}
    context = {"tasks": {"code": {"source": {"examples": 320}}}}
    found = [each for each in departures([Run("convergence", head(asked, **context), [])]) if "trained to" in each]
    assert found == [f"convergence (code): {each}; the paper measures up to epoch 20" for each in told]


def test_the_same_departure_of_two_runs_is_told_once_with_the_claims():
    claims = judge([trajectory("code"), trajectory("translation")])
    rows = dict(departures_table(claims).rows)
    both = "trajectory-translation, trajectory-code: initialization is random, not pretrained"
    assert rows[both] == "C1, C2, C3, C4, C5, C6"


def test_a_claim_on_one_task_has_no_departures_of_others():
    found = claim("C8", trajectory("code"), convergence(tasks=("code", "translation")))
    assert any(each.startswith("convergence (code)") for each in found.departures)
    assert not any("(translation)" in each for each in found.departures)


def test_heads_that_say_nothing():
    bare = [
        Run(name, {"configuration": {"experiment": name}}, []) for name in ("trajectory", "convergence", "robustness")
    ]
    assert all(each.verdict == "cannot tell" for each in judge([*bare, Run("theory", {"configuration": {}}, [])]))
    assert departures([Run("r", {"configuration": {"experiment": "trajectory", "kind": "code"}}, [])])[0] == (
        "r: data are unknown, not the-stack-smol"
    )


def test_smaller_training_batches_are_told_where_the_paper_says_how_large_its_are():
    def told(kind):
        configuration = {"experiment": "trajectory", "kind": kind, "task": {"batch_size": 64}}
        return [each for each in departures([Run("run", head(configuration), [])]) if "training batches" in each]

    assert told("translation") == ["run: training batches have 64 examples, not 1024"]
    assert told("images") == ["run: training batches have 64 examples, not 1000"]
    assert told("code") == []


def test_other_pretraining_and_other_models_are_told():
    def told(kind, start):
        context = {"model": {"title": "A model", "initialisation": start}}
        configuration = {"experiment": "trajectory", "kind": kind}
        return " ".join(departures([Run("run", head(configuration, **context), [])]))

    assert "initialization is pretrained: 9 other images, not ResNet-152's" in told(
        "images", "pretrained: 9 other images"
    )
    assert "not ResNet-152" not in told("images", "pretrained: microsoft/resnet-152")
    assert "not BERT-base" in told("sentiment", "pretrained: distilbert/distilbert-base-uncased")
    assert "not BERT-base" not in told("sentiment", "pretrained: google-bert/bert-base-uncased")


def test_robustness_and_unknown_tasks():
    configuration = {"experiment": "robustness", "task": {"batch_size": 32}, "steps": [1, 30]}
    for masked in (None, False):
        asked = configuration | ({} if masked is None else {"masked": masked})
        context = {"source": {"examples": 320}}
        differences = departures([Run("robustness", head(asked, **context), [])])
        assert "robustness: measured at steps 1, 30 (epochs 1, 3)" in differences
        assert any("padding" in each for each in differences) == (masked is None)
    assert departures([trajectory("chess", name="run")]) == ("run: the paper has no task chess",)


def test_theory_has_the_departures_of_its_models():
    context = {"model": {"title": "T5 of 9 parameters", "initialisation": "random"}, "small": {"classifier": {}}}
    found = departures([Run("theory", head({"experiment": "theory"}, **context), [])])
    assert "theory: the model is T5 of 9 parameters, not t5-small" in found
    assert "theory: classifier: small models and made-up data of our own" in found
