"""Perceptual distances between images: LPIPS, or a feature network's. Always in float32 or better."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn.functional import interpolate

from georeg_diffusion._compat import repair_torchvision
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, as_rgb, full_precision, precision_of
from georeg_diffusion.evaluation.weights import fill, read_weights, weights_file

_URL = "https://download.pytorch.org/models/"
BACKBONES = {
    "alex": ("AlexNet", _URL + "alexnet-owt-7be5be79.pth"),
    "vgg": ("VGG16", _URL + "vgg16-397923af.pth"),
    "squeeze": ("SqueezeNet", _URL + "squeezenet1_1-b8a52dc0.pth"),
}
_SMALLEST, _LARGEST = 64, 256


@dataclass(frozen=True)
class PerceptualDistance:
    """A distance d(a, b) of images in [−1, 1], ``(B, C, H, W)`` each ↦ ``(B,)``.

    Attributes:
        name: which every figure that used it names.
        network: the module that computes it; moved by the caller to where the images are.
    """

    name: str
    network: nn.Module

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """d of each pair, in the network's own precision, float32 unless it was moved."""
        dtype = precision_of(self.network, a)
        with full_precision(a.device):
            distances: Tensor = self.network(a.to(dtype), b.to(dtype))
        return distances.reshape(len(a))


def lpips_distance(backbone: str = "alex", weights: Path | None = None) -> PerceptualDistance:
    """LPIPS (Zhang et al. 2018, v0.1). Its linear weights are in the lpips package, its backbone's are torchvision's.

    It is a *squared* distance of unit-normalised features. Images below 64 pixels are enlarged to 64 (AlexNet has no
    fifth layer on 16 × 16), those above 256 averaged down to 256, as StyleGAN2 does.

    Args:
        backbone: ``"alex"`` (the paper), ``"vgg"`` (StyleGAN2) or ``"squeeze"``.
        weights: the backbone's file; by default torch's hub cache, or a download.

    Raises:
        ValueError: another backbone.
        RunError: no weights, saying which file, where to put it and which option names it; or weights of another network.
        UsageError: a given file that does not exist.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone: got {backbone!r}, expected one of {', '.join(BACKBONES)}")
    title, url = BACKBONES[backbone]
    file = weights_file(url, what=f"LPIPS with {title}", option="--lpips-backbone-weights", given=weights)
    repair_torchvision()
    try:
        import lpips
    except ImportError as error:
        raise RunError("LPIPS needs the lpips package: pip install 'georeg[diffusion]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, on an argument that lpips still uses
        network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)
    state = read_weights(file)
    # lpips keeps torchvision's layers in slices, under their old numbers: slice2.3.weight is features.3.weight.
    wanted = {name: f"features.{name.split('.', 1)[1]}" for name in network.net.state_dict()}
    missing = [name for name in wanted.values() if name not in state]
    if missing:
        raise RunError(f"{file} does not hold torchvision's {title}: no {missing[0]}; expected {url.rsplit('/', 1)[1]}")
    fill(network.net, {ours: state[theirs] for ours, theirs in wanted.items()}, source=file)
    return PerceptualDistance(f"LPIPS ({title}, v0.1)", _Lpips(network.eval().requires_grad_(False)))


class _Lpips(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        distances: Tensor = self.network(_resized(as_rgb(a)), _resized(as_rgb(b)))
        return distances


def _resized(images: Tensor) -> Tensor:
    size = images.shape[-2:]
    if min(size) < _SMALLEST:
        scale = _SMALLEST / min(size)
        return interpolate(images, size=[round(s * scale) for s in size], mode="bilinear", align_corners=False)
    if max(size) > _LARGEST:
        scale = _LARGEST / max(size)
        return interpolate(images, size=[max(round(s * scale), 1) for s in size], mode="area")
    return images


def feature_distance(network: FeatureNetwork) -> PerceptualDistance:
    """‖φ(a) − φ(b)‖², the squared distance of a network's features.

    Squared, as LPIPS is, so that d/ε² along a path has a limit.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.feature_network import FeatureNetwork
        >>> from georeg_diffusion.evaluation.perceptual import feature_distance
        >>> pixels = feature_distance(FeatureNetwork("the pixels", torch.nn.Flatten()))
        >>> pixels(torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)), pixels.name
        (tensor([4., 4.]), 'squared distance of the pixels')
    """
    return PerceptualDistance(f"squared distance of {network.name}", _Squared(network.features))


class _Squared(nn.Module):
    def __init__(self, features: nn.Module) -> None:
        super().__init__()
        self.features = features

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.features(a) - self.features(b)).flatten(1).square().sum(1)
