"""Classifiers: trained in place, saved, loaded, and refused."""

import json
import sys

import pytest
import torch
from torch import nn

from georeg_diffusion.data.digits import Digits
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.classifier import build, load_classifier, split_head, train_classifier
from georeg_diffusion.evaluation.feature_network import features_of
from georeg_diffusion.evaluation.features import open_features


@pytest.fixture(scope="module")
def digits():
    return train_classifier(Digits(8), epochs=3)


def test_probabilities_of_classes(digits):
    images = Digits(8).pixels[:50]
    p = digits.probabilities(images)
    assert p.shape == (50, 10)
    torch.testing.assert_close(p.sum(1), torch.ones(50))
    assert float((p.argmax(1) == Digits(8).labels[:50]).float().mean()) > 0.5
    torch.testing.assert_close(digits.probabilities(images, batch_size=7), p)
    assert digits.names == tuple("0123456789")
    assert digits.name.startswith("features of a digits classifier trained in place (")


def test_saved_and_loaded_it_is_the_same(digits, tmp_path):
    digits.save(tmp_path / "classifier")
    loaded = load_classifier(tmp_path / "classifier")
    images = Digits(8).pixels[:20]
    torch.testing.assert_close(loaded.probabilities(images), digits.probabilities(images), rtol=0, atol=0)
    assert (loaded.name, loaded.names, loaded.accuracy, loaded.exclusive) == (
        digits.name,
        digits.names,
        digits.accuracy,
        True,
    )
    assert loaded.key == digits.key
    assert not any(p.requires_grad for p in loaded.features.parameters())
    opened = open_features(str(tmp_path / "classifier"), resolution=8)
    torch.testing.assert_close(features_of(opened, images), features_of(digits, images))


def test_images_of_another_size_are_resized(digits):
    larger = Digits(16)
    right = (digits.probabilities(larger.pixels).argmax(1) == larger.labels).float().mean()
    assert right > 0.8 * digits.accuracy
    with pytest.raises(UsageError, match="trained on grey ones"):
        digits.probabilities(torch.zeros(1, 3, 8, 8))


def test_attributes_do_not_exclude_each_other(tmp_path):
    torch.manual_seed(0)
    features, head = build("resnet18", channels=3, resolution=16, outputs=3)
    network = nn.Sequential(features.eval(), head.eval())
    config = {"_class_name": "georeg_diffusion.Classifier", "architecture": "resnet18", "channels": 3, "resolution": 16}
    config |= {"names": ["a", "b", "c"], "exclusive": False, "accuracy": 0.9, "data": "a test"}
    from georeg_diffusion.evaluation.classifier import assemble

    assemble(config, features, head).save(tmp_path)
    loaded = load_classifier(tmp_path)
    images = torch.rand(4, 3, 16, 16)
    torch.testing.assert_close(loaded.probabilities(images), torch.sigmoid(network(images)))
    assert loaded.probabilities(images[:, :1]).shape == (4, 3), "grey images are repeated to RGB"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vit_b_32", "efficientnet_b0", "small"])
def test_architectures_split_into_features_and_head(name):
    with torch.device("meta"):
        features, head = build(name, channels=3, resolution=32 if name != "vit_b_32" else 224, outputs=5)
        size = 224 if name == "vit_b_32" else 32
        out = head(features(torch.zeros(2, 3, size, size)))
    assert out.shape == (2, 5)


def test_networks_without_a_linear_head():
    for name in ("nothing", "raft_large", ""):
        with pytest.raises(UsageError, match="--architecture"):
            build(name, channels=3, resolution=16, outputs=2)
    with pytest.raises(UsageError, match="no single linear layer"):
        split_head(nn.Sequential(nn.Conv2d(3, 3, 1)), "mine")


def test_folders_that_are_no_classifier(digits, tmp_path):
    with pytest.raises(RunError, match="train-classifier"):
        load_classifier(tmp_path / "none")
    with pytest.raises(RunError, match="is no classifier"):
        load_classifier(tmp_path)
    digits.save(tmp_path)
    good = json.loads((tmp_path / "config.json").read_text())
    for content, message in (
        ("{", "cannot read"),
        ("[]", "names neither"),
        ("[1]", "cannot read"),
        ('{"_class_name": "UNet2DModel"}', "names neither"),
        (json.dumps({**good, "names": None}), "cannot use"),
        (json.dumps({k: v for k, v in good.items() if k != "architecture"}), "cannot use"),
        (json.dumps({**good, "names": ["one"]}), "does not hold weights"),
        (json.dumps({**good, "architecture": "resnet18"}), "does not hold weights"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(RunError, match=message):
            load_classifier(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(good))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(RunError, match="cannot read the weights"):
        load_classifier(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RunError, match="cannot read the weights"):
        load_classifier(tmp_path)


def test_a_folder_of_transformers(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RunError, match="pip install transformers"):
        load_classifier(tmp_path)
    monkeypatch.undo()
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = transformers.ViTConfig(**small, image_size=32, patch_size=8, id2label={0: "cat", 1: "dog", 2: "eel"})
    network = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    network.save_pretrained(tmp_path / "vit")
    with pytest.raises(RunError, match="cannot load the classifier"):
        load_classifier(tmp_path / "vit")
    processor.save_pretrained(tmp_path / "vit")
    loaded = load_classifier(tmp_path / "vit")
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    pictures = [((image.permute(1, 2, 0) + 1) * 127.5).numpy() for image in images]
    with torch.no_grad():
        expected = network(**processor(images=pictures, return_tensors="pt")).logits.softmax(1)
    torch.testing.assert_close(loaded.probabilities(images), expected, rtol=1e-3, atol=1e-4)
    assert loaded.names == ("cat", "dog", "eel")
    assert loaded.name == "logits of vit (transformers' ViTForImageClassification)"
    assert loaded.accuracy is None


def test_a_set_without_labels():
    digits = Digits(8)
    digits.labels = None
    with pytest.raises(ValueError, match="has no labels"):
        train_classifier(digits)
