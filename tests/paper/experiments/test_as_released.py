"""What the published code does, each by itself: what it changes, and that it changes nothing else."""

import json

import pytest
import torch

from made_data import data_of
from stepscope import Objective, UsageError
from stepscope.measuring import measure
from stepscope.objective import IGNORED_LABEL
from stepscope.paper.experiments.agreement import difference_sharpness
from stepscope.paper.experiments.as_released import as_released, check_released
from stepscope.paper.experiments.command_lines import (
    EQUAL_WEIGHTS,
    NO_MASKS,
    PADDING_LABELS,
    PLAIN_STEPS,
    RELEASED,
    SHORT_TEXTS,
    SMALL_NORM_BATCHES,
    WIDE_HEAD,
)
from stepscope.paper.experiments.compared_optimizers import RULES, training_rule
from stepscope.paper.experiments.convergence import convergence_experiment
from stepscope.paper.experiments.training import accumulate
from stepscope.paper.experiments.trajectory import trajectory_experiment
from stepscope.paper.tasks.catalog import TASKS

TEXTS = ("translation", "code", "sentiment")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Each task at random, as it is and with some departures."""
    folder = tmp_path_factory.mktemp("data")
    sources = {kind: data_of(kind, folder) for kind in TASKS}

    def make(kind, *names):
        config = trajectory_experiment("smoke", kind, start="random").task
        return as_released(TASKS[kind].make(config, seed=3, source=sources[kind]), kind, config, names)

    return make


def first(task):
    return next(task.training_batches())


def labeled(batch):
    return int((batch["labels"] != IGNORED_LABEL).sum())


@pytest.mark.parametrize("kind", list(TASKS))
def test_padding_tokens_are_labels_on_the_code_task_and_nowhere_else(made, kind):
    """Nor there by any other departure."""
    others = [name for name in RELEASED if name not in (PADDING_LABELS, WIDE_HEAD)]
    for plain, changed in ((made(kind), made(kind, PADDING_LABELS)), (made(kind, *others), made(kind, *RELEASED))):
        for one, two in zip((first(plain), *plain.eval_batches), (first(changed), *changed.eval_batches), strict=True):
            if kind != "code":
                assert torch.equal(one["labels"], two["labels"])
                continue
            assert torch.equal(two["labels"], two["input_ids"]), "a copy of the inputs"
            assert two["labels"].shape[1] == trajectory_experiment("smoke", "code").task.max_tokens
            assert labeled(one) <= labeled(two) == two["labels"].numel(), "all that is padding counts"
            assert int(two["labels"][:, : one["labels"].shape[1]][one["labels"] == IGNORED_LABEL].abs().sum()) == 0
    if kind == "code":
        assert sum(map(labeled, plain.eval_batches)) < sum(map(labeled, changed.eval_batches))
        assert Objective(plain.model, None, plain.eval_batches).loss() != pytest.approx(
            Objective(changed.model, None, changed.eval_batches).loss(), rel=1e-4
        )


@pytest.mark.parametrize("kind", TEXTS)
def test_no_mask_is_given(made, kind):
    assert set(first(made(kind, NO_MASKS))) == {"input_ids", "labels"}
    assert set(first(made(kind, *set(RELEASED) - {NO_MASKS, PADDING_LABELS}))) == set(first(made(kind)))


@pytest.mark.parametrize("kind", ["translation", "code"])
def test_examples_weigh_the_same_as_one_by_one(made, kind):
    """Loss, gradient and curvature are those of the mean over examples that go through the plain model alone."""
    task, plain = made(kind, EQUAL_WEIGHTS), made(kind)
    with torch.no_grad():  # so that examples differ in their losses
        for parameter in (*task.model.parameters(), *plain.model.parameters()):
            parameter.mul_(4)
    batches = [dict(batch, labels=batch["labels"].clone()) for batch in plain.eval_batches]
    for batch in batches:  # of every other example two labels are left
        batch["labels"][::2, 3:] = IGNORED_LABEL
    alone = [
        {name: value[n : n + 1] for name, value in batch.items()}
        for batch in batches
        for n in range(len(batch["labels"]))
    ]
    ours = Objective(task.model, None, batches, dtype=torch.float64).gradient()
    wanted = Objective(plain.model, None, alone, lambda batch: 1.0, dtype=torch.float64).gradient()
    tokens = Objective(plain.model, None, batches, dtype=torch.float64).gradient()
    assert ours[0] == pytest.approx(wanted[0], rel=1e-6) != pytest.approx(tokens[0], rel=1e-3)
    for name, part in ours[1].items():
        torch.testing.assert_close(part, wanted[1][name], rtol=1e-4, atol=1e-6)
    assert accumulate(task.model, batches[0], 3) == pytest.approx(accumulate(task.model, batches[0]), rel=1e-5)
    objective = Objective(task.model, None, batches, dtype=torch.float64)
    sharpness = measure(objective, {"gradient": ours[1]}, landscape=False)["gradient"].sharpness
    assert difference_sharpness(task.model, batches, ours[1]) == pytest.approx(sharpness, rel=1e-3)
    assert type(task.model).__name__ == type(plain.model).__name__
    assert list(task.model.state_dict()) == list(plain.model.state_dict())


def test_short_texts_keep_their_beginnings_and_at_least_a_quarter(made):
    task, plain = made("code", SHORT_TEXTS), made("code")
    for one, two in zip(plain.eval_batches, task.eval_batches, strict=True):
        lengths, longest = two["attention_mask"].sum(1), one["input_ids"].shape[1]
        assert bool((lengths >= one["attention_mask"].sum(1).clamp(max=longest // 4)).all())
        assert torch.equal((two["labels"] == IGNORED_LABEL), two["attention_mask"] == 0)
        assert torch.equal(two["labels"][two["attention_mask"] == 1], one["labels"][two["attention_mask"] == 1])
    assert sum(map(labeled, task.eval_batches)) < sum(map(labeled, plain.eval_batches))
    assert torch.equal(first(task)["labels"], first(task.seeded(3))["labels"])


def test_a_wide_head_has_a_thousand_classes_of_which_ten_are_there(made):
    task, plain = made("images", WIDE_HEAD), made("images")
    logits = task.model(**first(task)).logits
    own = plain.model(**first(plain)).logits
    assert logits.shape[1] == 1000
    torch.testing.assert_close(logits[:, : own.shape[1]], own)
    assert task.model(**first(task)).loss > plain.model(**first(plain)).loss
    assert torch.equal(task.seeded(3).model.classifier[-1].weight, task.model.classifier[-1].weight)


def test_batch_norm_sees_eight_images_at_a_time(made):
    whole, small = (trajectory_experiment("smoke", "images", released=names) for names in ((), (SMALL_NORM_BATCHES,)))
    (unit, *_) = whole.units()
    assert (whole.in_memory(unit), small.in_memory(unit)) == (None, 8)
    assert trajectory_experiment("smoke", "code", released=(SMALL_NORM_BATCHES,)).in_memory(unit) is None


def test_the_released_classes_take_plain_steps_in_trainings_alone():
    for name, plain in (("sgd clip 10%", "sgd"), ("signsgd", "sgd"), ("adam clip 50% (first moment)", "adam")):
        assert training_rule(name, [PLAIN_STEPS]) is RULES[plain]
        assert training_rule(name) is RULES[name]
    assert training_rule("lion", RELEASED) is RULES["lion"]


def test_what_is_asked_for_is_in_the_configuration_and_what_is_not_leaves_it_as_it_was():
    plain, code = (trajectory_experiment("smoke", "code", released=names) for names in ((), RELEASED))
    assert "released" not in plain.configuration()
    assert code.configuration() == plain.configuration() | {
        "masked": False,
        "released": (SHORT_TEXTS, PADDING_LABELS, EQUAL_WEIGHTS),
    }
    assert code.run_name == "trajectory-code-pretrained-short-texts-padding-labels-equal-weights"
    convergence = convergence_experiment("smoke", settings="code")
    assert convergence.released == tuple(name for name in RELEASED if name != NO_MASKS)
    assert "released" not in convergence_experiment("smoke", settings="text").configuration()
    assert json.dumps(convergence_experiment("smoke", settings="text", released=[PLAIN_STEPS]).configuration())
    with pytest.raises(UsageError, match="--with magic: choose of short-texts, "):
        check_released(["magic"])
