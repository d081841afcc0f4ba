"""What the tests of the commands share."""

import json

import pytest
import torch
from sklearn.datasets import load_digits

from georeg_diffusion import IsometricDiffusionLoss
from georeg_diffusion._compat import diffusers
from tests.georeg_diffusion.conftest import cli, small_unet
from tests.georeg_diffusion.networks import dit

DIGITS = torch.as_tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1


@pytest.fixture
def command(tmp_path, capsys):
    """Run a command into ``tmp_path / out``: exit code, its folder, and all that it said, on one line."""

    def run(name, *arguments, out="out", steps=4):
        folder = tmp_path / out
        code = cli(name, "--output-dir", folder, "--device", "cpu", "--num-inference-steps", steps, *arguments)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        return code, folder, " ".join((said.out + said.err).split())

    return run


@pytest.fixture
def conditional(tmp_path):
    """A model of ten classes and one that stands for none, in a folder whose name is hard to show."""
    torch.manual_seed(1)
    folder = tmp_path / "a model with $dollars$ and [red] brackets in its rather long name"
    network = dit(in_channels=3, out_channels=3)
    torch.nn.init.normal_(network.proj_out_2.weight, std=0.5)  # zero at first
    for block in network.transformer_blocks:
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.5)
    network.save_pretrained(folder / "transformer")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")
    return folder / "transformer"


@pytest.fixture(scope="session")
def trained():
    """A few steps on the digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = small_unet(attention=False).train()
        objective = IsometricDiffusionLoss(unet, diffusers.DDPMScheduler(), gate=None)
        optimiser = torch.optim.Adam(unet.parameters(), lr=3e-3)
        for _ in range(150):
            optimiser.zero_grad()
            objective(DIGITS[torch.randint(len(DIGITS), (32,))]).loss.backward()
            optimiser.step()
    return unet.eval().requires_grad_(False)


def written(folder):
    """Names of all files, which must be those that run.json lists."""
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"]
    assert names == {*record["files"], "run.json"}
    return names - {"run.json"}
