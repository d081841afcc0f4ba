"""LPIPS from local files equals the lpips package's own; distances in float32."""

import urllib.error
import warnings

import lpips
import pytest
import torch
from torch import nn
from torchvision import models

from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.perceptual import BACKBONES, feature_distance, lpips_distance

NETWORKS = {"alex": models.alexnet, "vgg": models.vgg16, "squeeze": models.squeezenet1_1}


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Random backbones, only the part that LPIPS uses."""
    folder, made = tmp_path_factory.mktemp("backbones"), {}
    torch.manual_seed(0)
    for name in ("alex", "squeeze"):
        network = NETWORKS[name](weights=None)
        state = {k: v for k, v in network.state_dict().items() if k.startswith("features.")}
        torch.save(state, folder / f"{name}.pth")
        made[name] = (folder / f"{name}.pth", network)
    return made


def images(size=64, channels=3, seed=0):
    return torch.rand(2, 3, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", ["alex", "squeeze"])
def test_it_is_the_packages_own(backbones, name, monkeypatch):
    file, network = backbones[name]
    # Which the lpips package would have downloaded.
    monkeypatch.setattr(lpips.pretrained_networks.tv, network.__class__.__name__.lower(), lambda **_: network, raising=False)
    constructor = {"alex": "alexnet", "squeeze": "squeezenet1_1"}[name]
    monkeypatch.setattr(lpips.pretrained_networks.tv, constructor, lambda **_: network)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net=name, verbose=False)
    monkeypatch.undo()
    ours = lpips_distance(name, file)
    a, b = images()
    torch.testing.assert_close(ours(a, b), theirs(a, b).reshape(3))
    assert float(ours(a, a).abs().max()) == 0
    assert BACKBONES[name][0] in ours.name
    assert not any(p.requires_grad for p in ours.network.parameters())


def test_small_grey_and_large_images(backbones):
    distance = lpips_distance("alex", backbones["alex"][0])
    a, b = images(16, channels=1)
    assert distance(a, b).shape == (3,)
    assert bool((distance(a, b) > 0).all())
    enlarged = [nn.functional.interpolate(x.expand(-1, 3, -1, -1), size=64, mode="bilinear") for x in (a, b)]
    torch.testing.assert_close(distance(a, b), distance(*enlarged))
    a, b = images(512)
    halved = [nn.functional.avg_pool2d(x, 2) for x in (a, b)]
    torch.testing.assert_close(distance(a[:1], b[:1]), distance(halved[0][:1], halved[1][:1]))
    wide = torch.rand(1, 3, 16, 40)
    assert distance(wide, wide).tolist() == [0]


def test_half_precision_and_autocast_are_kept_out(backbones):
    distance = lpips_distance("squeeze", backbones["squeeze"][0])
    a, b = images()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = distance(a, b)
    torch.testing.assert_close(inside, distance(a, b), rtol=0, atol=0)
    assert distance(a.half(), b.half()).dtype == torch.float32
    distance.network.double()
    assert distance(a.double(), b.double()).dtype == torch.float64


def test_missing_weights_say_file_place_and_option(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise urllib.error.URLError("offline")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name, (title, url) in BACKBONES.items():
        with pytest.raises(RunError, match="--lpips-backbone-weights FILE") as error:
            lpips_distance(name)
        assert title in str(error.value)
        assert str(tmp_path / "checkpoints" / url.rsplit("/", 1)[1]) in str(error.value)
    with pytest.raises(UsageError, match="does not exist"):
        lpips_distance("alex", tmp_path / "none")


def test_weights_of_another_backbone(backbones):
    with pytest.raises(RunError, match="does not hold"):
        lpips_distance("alex", backbones["squeeze"][0])
    with pytest.raises(ValueError, match="expected one of alex, vgg, squeeze"):
        lpips_distance("resnet", None)


def test_a_feature_network_as_a_distance():
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(12, 5, bias=False))
    distance = feature_distance(FeatureNetwork("a linear map", linear))
    a, b = images(2)
    matrix = linear[1].weight
    expected = ((a - b).flatten(1) @ matrix.T).square().sum(1)
    torch.testing.assert_close(distance(a, b), expected)
    assert distance.name == "squared distance of a linear map"
