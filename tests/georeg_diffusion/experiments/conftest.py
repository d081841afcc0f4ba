"""A lab that trains for a few steps and scores a few images."""

import pytest

from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.recipe import Recipe

TINY = Recipe(
    pretraining_steps=2,
    steps=2,
    batch=8,
    training={"resolution": 8},
    num_samples={"fid": 70, "kid": 70, "ppl": 2, "mrtl": 2, "mcn": 2, "vor": 2, "vor_log": 2, "ls": 40, "isometry": 4},
    autoencoder_steps=2,
    points=128,
    num_inference_steps=dict.fromkeys(("fid", "kid", "ppl", "mrtl", "ls"), 2),
)


@pytest.fixture(scope="session")
def tiny():
    return TINY


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory):
    """Shared by the tests, so that each model is trained once."""
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture
def lab(lab_folder):
    """Two seeds on the digits at 8²."""
    return Lab(TINY, (0, 1), lab_folder, quick=True)
