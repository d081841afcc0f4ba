"""Feature networks: where their weights come from, and what they are called."""

import urllib.error
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, as_rgb, features_of, full_precision
from georeg_diffusion.evaluation.features import open_features
from georeg_diffusion.evaluation.inception import inception
from georeg_diffusion.evaluation.weights import read_weights, weights_file, weights_hash


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty hub cache and no network."""

    def refuse(url, *_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def test_missing_inception_weights_say_file_place_and_option(offline):
    with pytest.raises(RunError) as error:
        open_features("inception", resolution=16)
    text = str(error.value)
    assert "weights-inception-2015-12-05-6726825d.pth" in text
    assert str(offline) in text
    assert "--inception-weights FILE" in text
    assert "no route to host" in text
    assert "\n" not in text


def test_a_given_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match="--inception-weights: .*none.pth does not exist"):
        inception(tmp_path / "none.pth")
    with pytest.raises(UsageError, match="is not a file"):
        inception(tmp_path)


def test_the_hub_cache_is_used(offline):
    offline.mkdir(parents=True)
    (offline / "net-0123abcd.pth").write_bytes(b"there")
    assert weights_file("https://host/net-0123abcd.pth", what="it").read_bytes() == b"there"


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x04."])
def test_damaged_weights(tmp_path, content):
    for name in ("damaged.pth", "damaged.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunError, match="cannot read the weights"):
            read_weights(tmp_path / name)
    (tmp_path / "damaged.pth").write_bytes(content)
    with pytest.raises(RunError, match="cannot read the weights"):
        inception(tmp_path / "damaged.pth")


class Bomb:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a weights file was run')",)


def test_no_code_in_a_weights_file_is_run(tmp_path):
    torch.save({"w": Bomb()}, tmp_path / "bomb.pth")
    with pytest.raises(RunError, match="cannot read"):
        inception(tmp_path / "bomb.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(RunError, match="holds a list"):
        read_weights(tmp_path / "list.pth")


def test_inception_with_other_weights_is_not_called_fids(tmp_path):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, state):
            return None

    torch.manual_seed(0)
    original = torch.load
    try:
        torch.load = lambda *_, **__: {}
        network = Empty("empty", ["2048"], feature_extractor_weights_path="none")
    finally:
        torch.load = original
    torch.save(network.state_dict(), tmp_path / "mine.pth")
    opened = inception(tmp_path / "mine.pth")
    assert "weights other than FID's" in opened.name
    grey = torch.rand(2, 1, 20, 20) * 2 - 1
    features = features_of(opened, grey)
    assert features.shape == (2, 2048)
    pixels = ((as_rgb(grey) + 1) * 127.5).round().to(torch.uint8)
    torch.testing.assert_close(features, network(pixels)[0])
    torch.save({"w": torch.zeros(2)}, tmp_path / "other.pth")
    save_file({"w": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name in ("other.pth", "other.safetensors"):
        with pytest.raises(RunError, match="does not hold weights of FID's Inception-v3"):
            inception(tmp_path / name)


def test_a_torchvision_network_gives_its_penultimate_features(offline):
    from torchvision import models

    torch.manual_seed(0)
    network = models.get_model("squeezenet1_1", weights=None)
    offline.mkdir(parents=True)
    with pytest.raises(UsageError, match="no single linear layer"):
        torch.save(network.state_dict(), offline / "squeezenet1_1-b8a52dc0.pth")
        open_features("squeezenet1_1", resolution=16)

    network = models.get_model("resnet18", weights=None).eval()
    file = models.get_model_weights("resnet18").DEFAULT.url.rsplit("/", 1)[1]
    with pytest.raises(RunError, match=file):
        open_features("resnet18", resolution=16)
    torch.save(network.state_dict(), offline / file)
    opened = open_features("resnet18", resolution=16)
    assert "resnet18" in opened.name
    assert "Inception" not in opened.name
    images = torch.rand(2, 3, 224, 224) * 2 - 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = ((images + 1) / 2 - mean.reshape(1, 3, 1, 1)) / std.reshape(1, 3, 1, 1)
    torch.testing.assert_close(network.fc(features_of(opened, images)), network(normal))
    assert features_of(opened, images[:, :1, :20, :24]).shape == (2, 512)


@pytest.mark.parametrize("name", ["nothing", "", "no/such/folder", "raft_large", "inception_v3", "googlenet"])
def test_unknown_networks(offline, name):
    with pytest.raises((UsageError, RunError)) as error:
        open_features(name, resolution=16)
    assert "Traceback" not in str(error.value)


def test_torchvisions_inception_is_refused_by_name(offline):
    with pytest.raises(UsageError, match="take inception"):
        open_features("inception_v3", resolution=16)


def test_the_key_follows_name_and_weights():
    torch.manual_seed(0)
    a, b = nn.Linear(3, 2), nn.Linear(3, 2)
    assert FeatureNetwork("n", a).key == FeatureNetwork("n", a).key
    assert FeatureNetwork("n", a).key != FeatureNetwork("m", a).key
    assert FeatureNetwork("n", a).key != FeatureNetwork("n", b).key
    assert weights_hash(a) != weights_hash(b)


def test_images_that_are_not_finite_are_refused():
    """A conversion to 8 bits would turn them into black pixels."""
    images = torch.zeros(3, 1, 2, 2)
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(RunError, match="1 of 3 images"):
        features_of(FeatureNetwork("pixels", nn.Flatten()), images)


def test_features_do_not_depend_on_the_batch_size_nor_on_autocast():
    network = FeatureNetwork("linear", nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    images = torch.randn(5, 1, 2, 2)
    whole = features_of(network, images)
    torch.testing.assert_close(features_of(network, images, batch_size=2), whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = features_of(network, images.half())
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, features_of(network, images.half().float()))


def test_images_in_any_precision_are_measured_in_the_networks():
    network = FeatureNetwork("linear", nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    images = torch.randn(5, 1, 2, 2)
    for dtype in (torch.float64, torch.bfloat16):
        assert features_of(network, images.to(dtype)).dtype == torch.float32
    assert features_of(FeatureNetwork("pixels", nn.Flatten()), images.double()).dtype == torch.float64
    assert features_of(FeatureNetwork("pixels", nn.Flatten()), images.half()).dtype == torch.float32


def test_full_precision_restores_what_was_set():
    before = torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), full_precision(torch.device("cpu")):
        assert not torch.backends.cudnn.allow_tf32
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == before


def test_channels():
    assert as_rgb(torch.zeros(2, 1, 3, 3)).shape == (2, 3, 3, 3)
    with pytest.raises(ValueError, match="got 4 channels"):
        as_rgb(torch.zeros(2, 4, 3, 3))


def test_safetensors_are_read(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_weights(tmp_path / "w.safetensors")["w"].tolist() == [1, 1]
