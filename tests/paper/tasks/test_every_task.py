"""What all tasks promise: the same at every call, a seed draws weights and order alone, nothing outside is touched."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from made_data import data_of
from traces import equal

pytest.importorskip("transformers")
pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")

import transformers

from stepscope.paper.tasks import code, sentiment, translation
from stepscope.paper.tasks.catalog import TASKS
from stepscope.paper.tasks.resnet import classifier, resnet_config
from stepscope.paper.tasks.small import SMALL, small_task
from stepscope.paper.tasks.task import placed

CASES = (
    {name: {"start": "random"} for name in TASKS}
    | {f"{name}, pretrained": {"start": "pretrained"} for name in TASKS}
    | dict.fromkeys(SMALL)
)


@pytest.fixture(params=CASES)
def make(request, tmp_path):
    """``make(seed)`` gives the task."""
    name, changes = request.param, CASES[request.param]
    if name in SMALL:
        return lambda seed=0: small_task(name, seed=seed)
    kind = name.partition(",")[0]
    source = data_of(kind, tmp_path)
    config = replace(TASKS[kind].scales["smoke"], **changes)
    return lambda seed=0: TASKS[kind].make(config, seed=seed, source=source)


def alike(first, second):
    """Whether two tasks are the same in all that a training sees."""
    batches = list(islice(first.training_batches(), 40))  # more than an epoch
    return (
        equal(first.model.state_dict(), second.model.state_dict())
        and all(map(equal, batches, second.training_batches()))
        and all(map(equal, batches, first.training_batches()))
        and all(map(equal, first.eval_batches, second.eval_batches))
    )


def test_a_seed_fixes_everything(make):
    assert alike(make(3), make(3))


def test_another_seed_changes_weights_and_order_alone(make):
    first, second = make(3), make(4)
    assert not equal(first.model.state_dict(), second.model.state_dict())
    assert not equal(next(first.training_batches()), next(second.training_batches()))
    assert all(map(equal, first.eval_batches, second.eval_batches))


def test_another_seed_of_a_task_is_the_task_of_that_seed(make):
    task = make(3)
    next(task.training_batches())
    with torch.no_grad():
        for parameter in task.model.parameters():
            parameter.add_(1)  # what was done to the one isn't seen in the other
    assert alike(task.seeded(4), make(4))
    assert alike(task.seeded(3), make(3))


def test_global_random_state_is_neither_used_nor_moved(make):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make()
    batch = next(first.training_batches())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = make()
    assert equal(first.model.state_dict(), second.model.state_dict())
    assert equal(batch, next(second.training_batches()))


def test_it_can_be_trained(make):
    task = make()
    assert task.model.training
    loss = task.model(**next(task.training_batches())).loss
    loss.backward()
    assert loss.isfinite()
    assert any(bool(parameter.grad.any()) for parameter in task.model.parameters() if parameter.grad is not None)


def test_it_says_where_its_data_are_from(make):
    source = make().source
    assert source.title
    assert source.license
    assert len(source.sha256) == 64
    assert source.examples > 0


def test_placed_where_it_is_it_stays_the_same(make):
    task = make(3)
    found = placed(task, "cpu")
    assert found.model is task.model
    assert alike(found, make(3))
    assert alike(found.seeded(4), make(4))
    assert (found.name, found.source, found.initialisation) == (task.name, task.source, task.initialisation)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_placed_on_a_gpu(make):
    """The same weights and batches, there."""
    for found, expected in ((placed(make(3), "cuda"), make(3)), (placed(make(3), "cuda").seeded(4), make(4))):
        for name, value in found.model.state_dict().items():
            assert value.is_cuda
            assert torch.equal(value.cpu(), expected.model.state_dict()[name])
        pairs = zip(found.training_batches(), expected.training_batches(), strict=True)
        batches = [*islice(pairs, 3), *zip(found.eval_batches, expected.eval_batches, strict=True)]
        for there, here in batches:
            assert all(value.is_cuda for value in there.values())
            assert equal({name: value.cpu() for name, value in there.items()}, here)
            assert found.model(**there).loss.isfinite()


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_has_every_scale(kind):
    """Evaluated on what is trained on, in whole batches; with weights of others at the paper's scale alone."""
    scales = TASKS[kind].scales
    assert list(scales) == ["smoke", "cpu", "desk", "gpu", "paper"]
    for name, config in scales.items():
        count = next(
            getattr(config, field) for field in ("pairs", "pieces", "reviews", "images") if hasattr(config, field)
        )
        assert config.micro_batch_size <= config.eval_size <= count
        assert config.batch_size <= count
        assert bool(config.checkpoint) == (name == "paper")


def parameters_of(kind, scale):
    """How many parameters a model has where the data fill its vocabulary: counted, without memory for them."""
    config = TASKS[kind].scales[scale]
    text = {
        "translation": (translation._t5, transformers.T5ForConditionalGeneration),
        "code": (code._gpt_neo, transformers.GPTNeoForCausalLM),
        "sentiment": (sentiment._bert, transformers.BertForSequenceClassification),
    }
    with torch.device("meta"):
        if kind in text:
            model_config, make = text[kind]
            model = make(model_config(config, config.vocabulary))
        else:
            names = ("layer_type", "depths", "widths", "embedding")
            sizes = {name: getattr(config, name) for name in names}
            model = classifier(resnet_config(**sizes, channels=3), classes=10, seed=0)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("kind", "scale", "millions"),
    [
        ("translation", "cpu", 0.36),
        ("translation", "desk", 2.97),
        ("translation", "gpu", 27.9),
        ("code", "cpu", 0.23),
        ("code", "desk", 2.57),
        ("code", "gpu", 23.2),
        ("sentiment", "cpu", 0.24),
        ("sentiment", "desk", 2.82),
        ("sentiment", "gpu", 14.0),
        ("images", "cpu", 0.08),
        ("images", "desk", 2.80),
        ("images", "gpu", 11.2),
        ("images", "paper", 58.2),
    ],
)
def test_models_are_as_large_as_documented(kind, scale, millions):
    digits = len(str(millions).partition(".")[2])
    assert round(parameters_of(kind, scale) / 1e6, digits) == millions


@pytest.mark.parametrize(
    ("kind", "embedded", "parameters"),
    [
        ("translation", 32_128 * 512, 60.5e6),  # T5-small
        ("code", (50_257 + 2_048) * 768, 125.2e6),  # GPT-Neo 125M
        ("sentiment", (30_522 + 512) * 768, 67.0e6),  # DistilBERT
    ],
)
def test_at_the_desk_embeddings_have_the_papers_share_of_the_parameters(kind, embedded, parameters):
    """A larger share is another model: on one of mostly embeddings C1 holds from random weights too."""
    config = TASKS[kind].scales["desk"]
    rows = config.vocabulary + (0 if kind == "translation" else config.max_tokens)
    width = config.d_model if kind == "translation" else config.hidden
    assert rows * width / parameters_of(kind, "desk") == pytest.approx(embedded / parameters, abs=0.02)
