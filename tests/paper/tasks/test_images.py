"""The image task: the same at every call, pretraining apart from the task, nothing outside it touched."""

import copy
import os
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.nn.functional as F

from traces import equal

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from safetensors.torch import save_file

from stepscope import Objective
from stepscope.errors import UsageError
from stepscope.paper.tasks import batching
from stepscope.paper.tasks import images as module
from stepscope.paper.tasks.images import SCALES, images, normalized
from stepscope.paper.tasks.resnet import classifier, resnet_config

SMOKE = SCALES["smoke"]
PRETRAINED = replace(SMOKE, start="pretrained")
LONGER = replace(PRETRAINED, pretraining=replace(SMOKE.pretraining, steps=60))
CLASSES = (2, 3, 5, 8, 9)  # two for pretraining, three for the task


def made_up(count=240, channels=1, classes=CLASSES):
    """Noise with a bright corner that differs by class; the first pixel is the class, to be recognised by."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor(classes)[torch.arange(count) % len(classes)]
    pixels = torch.randint(0, 60, (count, channels, 12, 12), generator=generator, dtype=torch.uint8)
    for number, label in enumerate(labels.tolist()):
        pixels[number, :, label : label + 3, 3:9] += 150
        pixels[number, :, 0, 0] = label
    return {"images": pixels, "labels": labels}


@pytest.fixture
def file(tmp_path):
    save_file(made_up(), tmp_path / "images.safetensors")
    return str(tmp_path / "images.safetensors")


def rows(batch):
    return [tuple(image.flatten().tolist()) for image in batch["pixel_values"]]


def test_another_seed_changes_new_weights_and_order_alone(file):
    for config in (SMOKE, PRETRAINED):
        first, second = images(config, seed=3, source=file), images(config, seed=4, source=file)
        assert not torch.equal(first.model.classifier[1].weight, second.model.classifier[1].weight)
        assert not equal(next(first.training_batches()), next(second.training_batches()))
        assert all(map(equal, first.eval_batches, second.eval_batches))
        assert not equal(first.model.resnet.state_dict(), second.model.resnet.state_dict())


def test_an_epoch_holds_each_image_once_in_changing_order(file):
    task = images(replace(SMOKE, batch_size=32), source=file)  # 4 batches are the 128 images
    batches = task.training_batches()
    epochs = [[row for batch in islice(batches, 4) for row in rows(batch)] for _ in range(2)]
    assert len(set(epochs[0])) == 128 == task.source.examples
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])
    evaluated = [row for batch in task.eval_batches for row in rows(batch)]
    assert len(set(evaluated)) == 24
    assert set(evaluated) < set(epochs[0])  # of the training images, as in the paper


def seen_in_pretraining(config, file, monkeypatch):
    """The images that pretraining gets, by making the batches that it is given."""
    caught = {}
    real = batching.pretrained_here

    def spy(lesson, settings, seed):
        caught.update(batches=[*islice(lesson.batches(0), 30), lesson.held_out])
        return real(lesson, settings, seed)

    monkeypatch.setattr(batching, "pretrained_here", spy)
    task = images(config, source=file)
    return task, caught


def test_pretraining_sees_other_images_of_other_classes(file, monkeypatch):
    monkeypatch.setattr(module, "normalized", lambda pixels: pixels.float())  # the first pixel tells the class
    task, caught = seen_in_pretraining(PRETRAINED, file, monkeypatch)

    def classes(batches):
        pairs = {
            (int(image[0, 0, 0]), int(label))
            for batch in batches
            for image, label in zip(batch["pixel_values"], batch["labels"], strict=True)
        }
        return dict(sorted(pairs)) if len(dict(pairs)) == len(pairs) else pairs

    assert classes(caught["batches"]) == {2: 0, 3: 1}
    assert classes(islice(task.training_batches(), 30)) == classes(task.eval_batches) | {5: 0, 8: 1, 9: 2}
    assert task.model.classifier[1].out_features == 3
    assert task.initialisation == "pretrained: 16 steps of 96 other images of 2 other classes"


def test_both_initializations_train_on_the_same_images(file):
    first, second = images(SMOKE, source=file), images(PRETRAINED, source=file)
    assert all(map(equal, islice(first.training_batches(), 10), second.training_batches()))
    assert all(map(equal, first.eval_batches, second.eval_batches))
    assert not equal(first.model.resnet.state_dict(), second.model.resnet.state_dict())
    assert first.initialisation == "random"


def test_pretraining_learns_the_other_classes(file, monkeypatch):
    """Its features tell the other classes apart far better than random ones: by class means, without training."""
    _, caught = seen_in_pretraining(LONGER, file, monkeypatch)
    loss = {}
    config = resnet_config(layer_type="basic", depths=(1, 1), widths=(4, 8), embedding=4, channels=1)
    backbone = images(LONGER, source=file).model.resnet.state_dict()
    for name, weights in (("random", None), ("pretrained", backbone)):
        model = classifier(config, classes=2, seed=0, backbone=weights).eval()
        with torch.no_grad():
            x = torch.cat([batch["pixel_values"] for batch in caught["batches"][:6]])
            y = torch.cat([batch["labels"] for batch in caught["batches"][:6]])
            features = model.resnet(x).pooler_output.flatten(1)
            means = torch.stack([features[y == k].mean(0) for k in (0, 1)])
            within = (features - means[y]).square().sum(1).mean()
            loss[name] = float(within / (means[0] - means[1]).square().sum())
    assert loss["pretrained"] < loss["random"] / 3


def test_other_data_or_settings_are_pretrained_anew(file, tmp_path, cache):
    images(PRETRAINED, source=file)
    images(replace(PRETRAINED, batch_size=17), source=file)
    images(replace(PRETRAINED, images=100, eval_size=5, micro_batch_size=5), source=file)

    def kept():
        return len(list((cache / "pretrained").glob("*.safetensors")))

    assert kept() == 1  # nothing of these concerns pretraining
    other = made_up()
    other["images"][0, 0, 5, 5] += 1  # of class 2
    save_file(other, tmp_path / "other.safetensors")
    images(PRETRAINED, source=str(tmp_path / "other.safetensors"))
    for number, change in enumerate(
        ({"pretraining": replace(SMOKE.pretraining, examples=60)}, {"widths": (4, 9)}), start=3
    ):
        images(replace(PRETRAINED, **change), source=file)
        assert kept() == number


def test_loss_is_the_mean_over_images(file):
    task = images(replace(SMOKE, micro_batch_size=16), source=file)
    assert [len(batch["labels"]) for batch in task.eval_batches] == [16, 8]
    objective = Objective(task.model, None, task.eval_batches)
    assert objective.weights == pytest.approx([2 / 3, 1 / 3])
    model = task.model.eval()
    whole = {name: torch.cat([batch[name] for batch in task.eval_batches]) for name in task.eval_batches[0]}
    with torch.no_grad():
        by_hand = F.cross_entropy(model(pixel_values=whole["pixel_values"]).logits, whole["labels"])
    assert objective.loss() == pytest.approx(float(by_hand), rel=1e-5)


def test_measuring_uses_running_statistics_and_a_copy_without_them_those_of_the_batch(file):
    """As the limits say: the loss in evaluation mode, and that of training mode by the copy that they recommend."""
    task = images(replace(SMOKE, micro_batch_size=24), source=file)
    [batch] = task.eval_batches
    copied = copy.deepcopy(task.model)
    for norm in copied.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.track_running_stats, norm.running_mean, norm.running_var = False, None, None
    running, of_batch = (Objective(model, None, [batch]).loss() for model in (task.model, copied))
    with torch.no_grad():
        assert of_batch == pytest.approx(float(task.model(**batch).loss), rel=1e-5)
    assert abs(running - of_batch) > 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_normalized_by_the_training_images(tmp_path, channels):
    save_file(made_up(channels=channels), tmp_path / "x.safetensors")
    task = images(replace(SMOKE, batch_size=128), source=str(tmp_path / "x.safetensors"))  # all of them
    pixels = next(task.training_batches())["pixel_values"].double()
    assert pixels.shape == (128, channels, 12, 12)
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(channels).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.var((0, 2, 3), correction=0), torch.ones(channels).double(), atol=1e-5, rtol=0)


def test_a_channel_without_contrast_becomes_zero():
    assert not normalized(torch.full((2, 1, 3, 3), 7, dtype=torch.uint8)).any()


@pytest.mark.parametrize("config", [SMOKE, PRETRAINED])
def test_it_learns(file, config, losses_of):
    losses = losses_of(images(config, source=file), steps=40, lr=2e-2)
    assert losses[-1] < losses[0] / 2


def test_all_classes_where_none_are_set_apart(file):
    task = images(replace(SMOKE, set_apart=False, images=1_000), source=file)
    assert task.source.examples == 240
    assert task.model.classifier[1].out_features == 5


@pytest.fixture
def checkpoint(tmp_path):
    """A color model with a head for 7 classes, in a directory of the Hub's format."""
    config = resnet_config(layer_type="basic", depths=(1, 1), widths=(4, 8), embedding=4, channels=3)
    model = classifier(config, classes=7, seed=4)
    model(pixel_values=torch.randn(8, 3, 12, 12), labels=torch.zeros(8, dtype=torch.int64))
    model.save_pretrained(tmp_path / "published")
    return str(tmp_path / "published"), model


def test_a_checkpoint(file, checkpoint):
    """Gray images are given to a model of colors in each of them."""
    config = replace(PRETRAINED, checkpoint=checkpoint[0], set_apart=False)
    task = images(config, source=file)
    assert equal(task.model.resnet.state_dict(), checkpoint[1].resnet.state_dict())
    assert task.model.classifier[1].out_features == 5
    assert task.initialisation == f"pretrained: {checkpoint[0]}"
    pixels = next(task.training_batches())["pixel_values"]
    assert pixels.shape == (16, 3, 12, 12)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    assert Objective(task.model, None, task.eval_batches).loss() > 0


def test_a_checkpoint_of_another_architecture(file, checkpoint):
    config = replace(PRETRAINED, checkpoint=checkpoint[0], depths=(1, 2))
    with pytest.raises(UsageError, match=r"depths is \(1, 2\), but .* has \(1, 1\): set depths to that"):
        images(config, source=file)


def test_images_of_other_channels_than_the_checkpoints(checkpoint, tmp_path):
    save_file(made_up(channels=2), tmp_path / "two.safetensors")
    with pytest.raises(UsageError, match="images have 2 channels, the pretrained model takes 3"):
        images(replace(PRETRAINED, checkpoint=checkpoint[0]), source=str(tmp_path / "two.safetensors"))


@pytest.mark.parametrize(
    ("classes", "config", "message"),
    [
        ((4, 6), SMOKE, "the task has 1 of the images' classes"),
        ((4, 6, 7), PRETRAINED, "pretraining has 1 of the images' classes"),
        ((4,), replace(SMOKE, set_apart=False), "the task has 1"),
    ],
)
def test_too_few_classes(tmp_path, classes, config, message):
    save_file(made_up(classes=classes), tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match=message):
        images(config, source=str(tmp_path / "x.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": "xavier"}, "start is 'xavier': choose pretrained or random"),
        ({"layer_type": "wide"}, "layer_type is 'wide': choose basic or bottleneck"),
        ({"images": 1}, "images is 1: at least 2"),
        ({"batch_size": 1}, "batch_size is 1: at least 2"),
        ({"eval_size": 0}, "eval_size is 0"),
        ({"micro_batch_size": 0}, "micro_batch_size is 0"),
        ({"pretraining": replace(SMOKE.pretraining, steps=0)}, "pretraining has steps 0"),
        ({"pretraining": replace(SMOKE.pretraining, lr=0.0)}, "pretraining has lr 0"),
        ({"depths": (1,)}, r"depths are \(1,\) and widths \(4, 8\)"),
        ({"widths": (0, 8)}, "at least 1 each"),
        ({"layer_type": "bottleneck", "widths": (3, 8)}, "a bottleneck needs at least 4"),
        ({"start": "pretrained", "set_apart": False}, "nothing to pretrain on"),
    ],
)
def test_impossible_settings(file, change, message):
    with pytest.raises(UsageError, match=message):
        images(replace(SMOKE, **change), source=file)


def test_the_papers_size_is_the_papers():
    paper = SCALES["paper"]
    assert (paper.images, paper.batch_size, paper.checkpoint) == (10_000, 1_000, "microsoft/resnet-152")
    assert sum(paper.depths) * 3 + 2 == 152


@pytest.mark.network
@pytest.mark.skipif(os.environ.get("STEPSCOPE_NETWORK") != "1", reason="set STEPSCOPE_NETWORK=1 to download 31 MB")
def test_fashion_mnist_at_the_size_of_two_cores():
    task = images(SCALES["cpu"], source="fashion-mnist")
    assert task.source.examples == 10_000
    assert sum(p.numel() for p in task.model.parameters()) == 78_069
    assert sorted(set(next(task.training_batches())["labels"].tolist())) == [0, 1, 2, 3, 4]
