"""A setting small enough to measure everything in."""

import pytest
import torch
from torch import nn

from georeg_diffusion.bundle import load
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.evaluation.classifier import train_classifier
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.perceptual import feature_distance
from georeg_diffusion.evaluation.reference import reference_of
from georeg_diffusion.evaluation.setting import Setting


@pytest.fixture(scope="session")
def digits():
    return Digits(8)


@pytest.fixture(scope="session")
def classifier(digits):
    return train_classifier(digits, epochs=2)


@pytest.fixture
def make_setting(model, digits, classifier):
    """A setting of the small model; keywords replace its parts."""

    def make(**changes):
        pooled = FeatureNetwork("the pixels of 4 × 4", nn.Sequential(nn.AvgPool2d(2), nn.Flatten()))
        bundle = load(model)
        bundle.network.eval().requires_grad_(False)
        parts = {
            "bundle": bundle,
            "images": Once(lambda: digits),
            "features": Once(lambda: pooled),
            "distance": Once(lambda: feature_distance(pooled)),
            "classifier": Once(lambda: classifier),
            "reference": Once(lambda: reference_of(digits, pooled)),
            "num_inference_steps": 3,
        }
        return Setting(**(parts | changes))

    return make


@pytest.fixture
def linear_bundle(scheduler):
    """A denoiser whose h is a known linear map of x_t, and whose prediction is a multiple of x_t."""
    from georeg_diffusion.bundle import Bundle

    class Linear(nn.Module):
        def __init__(self, matrix, gain):
            super().__init__()
            self.mid = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
            self.mid.weight.data = matrix
            size = round(matrix.shape[1] ** 0.5)
            self.config = type("config", (), {"sample_size": size, "in_channels": 1})()
            self.gain = gain

        def forward(self, sample, timestep):
            self.mid(sample.flatten(1))
            return type("out", (), {"sample": self.gain * sample})()

    def make(matrix, gain=0.0):
        return Bundle(Linear(torch.as_tensor(matrix), gain).requires_grad_(False), scheduler)

    return make
