"""Small networks made on the spot."""

import pytest
import torch

from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import load
from georeg_diffusion.cli import main


def small_unet(*, attention=True, **kwargs):
    """A U-Net with every kind of block, 8 × 8, h of 16 × 4 × 4."""
    kinds = ("AttnDownBlock2D", "AttnUpBlock2D") if attention else ("DownBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", kinds[0]),
        up_block_types=(kinds[1], "UpBlock2D"),
        **kwargs,
    ).eval()


@pytest.fixture
def unet():
    torch.manual_seed(3)
    return small_unet()


@pytest.fixture
def scheduler():
    return diffusers.DDPMScheduler()


TINY = ["--resolution", "8", "--train-batch-size", "8", "--logging-steps", "1", "--report-to", "none", "--cpu"]


def cli(*arguments):
    """Exit code of the command line."""
    try:
        main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A small model as a diffusers folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "small"
    diffusers.DDPMPipeline(unet=small_unet(), scheduler=diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def weights(folder):
    return load(folder).network.state_dict()


def error_of(capsys, *arguments):
    code = cli("train", *arguments)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return code, " ".join(error.split())
