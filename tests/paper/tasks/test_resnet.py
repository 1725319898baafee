"""ResNets: the paper's architecture, weights of others without unpickling."""

import json
import os

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers")
pytest.importorskip("safetensors")

from stepscope.errors import UsageError
from stepscope.paper.tasks import pretrained
from stepscope.paper.tasks.downloads import UnavailableError
from stepscope.paper.tasks.resnet import classifier, published_backbone, resnet_config

CONFIG = resnet_config(layer_type="basic", depths=(1, 1), widths=(4, 6), embedding=4, channels=3)
GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [
    {
        "pixel_values": torch.randn(6, 3, 12, 12, generator=GENERATOR),
        "labels": torch.randint(0, 3, (6,), generator=GENERATOR),
    }
    for _ in range(4)
]


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_papers_architecture():
    """ResNet-152 has 60,192,808 parameters with ImageNet's head, 2048 inputs and a bias for each of 1,000 classes."""
    config = resnet_config(
        layer_type="bottleneck", depths=(3, 8, 36, 3), widths=(256, 512, 1024, 2048), embedding=64, channels=3
    )
    with torch.device("meta"):
        model = classifier(config, classes=10, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 60_192_808 - 1_000 * 2_049 + 10 * 2_049


def test_loss_is_the_mean_over_images_also_with_two_classes():
    model = classifier(CONFIG, classes=2, seed=0)
    batch = BATCHES[0] | {"labels": BATCHES[0]["labels"] % 2}
    output = model(**batch)
    assert output.logits.shape == (6, 2)
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, batch["labels"]))
    assert model.training


def test_the_seed_alone_draws_the_weights():
    before = torch.get_rng_state()
    first = classifier(CONFIG, classes=3, seed=5).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert same(first, classifier(CONFIG, classes=3, seed=5).state_dict())
    assert not same(first, classifier(CONFIG, classes=3, seed=6).state_dict())


def test_a_new_head_on_a_given_backbone():
    backbone = classifier(CONFIG, classes=3, seed=1).resnet.state_dict()
    first, second = (classifier(CONFIG, classes=5, seed=seed, backbone=backbone) for seed in (7, 8))
    assert same(first.resnet.state_dict(), backbone)
    assert same(second.resnet.state_dict(), backbone)
    assert first.classifier[1].out_features == 5
    assert not torch.equal(first.classifier[1].weight, second.classifier[1].weight)
    assert (
        CONFIG.to_dict()
        == resnet_config(layer_type="basic", depths=(1, 1), widths=(4, 6), embedding=4, channels=3).to_dict()
    )


@pytest.fixture
def published(tmp_path):
    """A model with a head for 7 classes, in a directory of the Hub's format."""
    model = classifier(CONFIG, classes=7, seed=4)
    model(**BATCHES[0])  # running statistics that aren't the initial ones
    model.save_pretrained(tmp_path / "published")
    return tmp_path / "published", model


def test_a_published_model_without_its_head(published):
    folder, model = published
    config, weights, origin = published_backbone(str(folder))
    assert same(weights, model.resnet.state_dict())
    assert origin == str(folder)
    assert (config.num_channels, config.hidden_sizes) == (3, [4, 6])
    assert same(classifier(config, classes=2, seed=0, backbone=weights).resnet.state_dict(), weights)


def test_a_published_model_in_half_precision_is_raised(published, tmp_path):
    published[1].half().save_pretrained(tmp_path / "half")
    _, weights, _ = published_backbone(str(tmp_path / "half"))
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32, torch.int64}
    assert same(weights, published[1].float().resnet.state_dict())


class Trap:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_is_never_read(published, tmp_path):
    trap = Trap()
    trap.path = str(tmp_path / "sprung")
    torch.save({"weight": trap}, published[0] / "pytorch_model.bin")
    (published[0] / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"has no model\.safetensors, only pytorch_model\.bin, a pickle, which is"):
        published_backbone(str(published[0]))
    assert not (tmp_path / "sprung").exists()


def changed(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "config.json").unlink(),
            r"has no config\.json: give a directory with config\.json and model\.safetensors \(",
        ),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"junk"), "cannot be read"),
        (lambda folder: changed(folder, model_type="bert"), "is of type 'bert': give a ResNet"),
        (lambda folder: changed(folder, depths=[1, 2]), "lacks weights, such as encoder"),
        (lambda folder: changed(folder, hidden_sizes=[4, 8]), "cannot be read"),
    ],
)
def test_damaged_models(published, damage, message):
    damage(published[0])
    with pytest.raises(UsageError, match=message) as caught:
        published_backbone(str(published[0]))
    assert "\n" not in str(caught.value)


def test_a_model_of_the_hub(published, monkeypatch):
    asked = []

    def cached_files(name, files, *, revision):
        asked.append((name, files, revision))
        return published[0], "0123456789abcdef"

    monkeypatch.setattr(pretrained, "cached_files", cached_files)
    _, weights, origin = published_backbone("someone/resnet")
    assert asked == [("someone/resnet", ("config.json", "model.safetensors"), None)]
    assert origin == "someone/resnet at 0123456789ab"
    assert same(weights, published[1].resnet.state_dict())


def test_no_such_model(monkeypatch):
    def cached_files(name, files, **what):
        raise UnavailableError("the Hub cannot be used (ConnectionError)")

    monkeypatch.setattr(pretrained, "cached_files", cached_files)
    with pytest.raises(UsageError, match=r"no pretrained model 'a/b' \(the Hub cannot .*\): get online, or give"):
        published_backbone("a/b")
