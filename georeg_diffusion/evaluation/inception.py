"""The Inception-v3 of the FID: torch-fidelity's port of the TensorFlow graph, which no other network is called after."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from georeg_diffusion._compat import repair_torchvision
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, as_rgb
from georeg_diffusion.evaluation.weights import file_hash, read_weights, weights_file

URL = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
_PUBLISHED = "6726825d"


class InceptionFeatures(nn.Module):
    """The 2,048 features of the last pooling, from images in [−1, 1] by way of 8 bits, as FID has always been measured.

    It resizes to 299 as TensorFlow 1 did, without antialiasing: other resizing gives another number (Parmar et al. 2022).
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((as_rgb(images) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        features: Tensor = self.network(pixels)[0]
        return features


def inception(weights: Path | None = None) -> FeatureNetwork:
    """The network that FID is named after.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth``; by default torch's hub cache, or a download.

    Raises:
        RunError: no weights, saying which file, where to put it and which option names it; or weights of another network.
        UsageError: a given file that does not exist.
    """
    file = weights_file(URL, what="FID's Inception-v3", option="--inception-weights", given=weights)
    read_weights(file)  # safely first: torch-fidelity's own reading would run code from the file
    repair_torchvision()
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise RunError("FID's Inception-v3 needs torch-fidelity: pip install 'georeg[diffusion]'") from error
    try:
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    except Exception as error:  # RuntimeError for other names; a .safetensors file ends in the unpickler
        raise RunError(
            f"{file} does not hold weights of FID's Inception-v3: expected torch-fidelity's {URL.rsplit('/', 1)[1]}; "
            "pytorch-fid's pt_inception file has other names"
        ) from error
    digest = file_hash(file)
    name = (
        "FID's Inception-v3 (2048 features, torch-fidelity's port, TensorFlow 1 resizing)"
        if digest.startswith(_PUBLISHED)
        else f"a network of Inception-v3's shape with weights other than FID's (sha256 {digest[:8]})"
    )
    return FeatureNetwork(name, InceptionFeatures(network.eval().requires_grad_(False)))
