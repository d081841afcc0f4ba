"""What the tests of the commands share."""

import json

import pytest
import torch

from georeg_diffusion._compat import diffusers
from tests.georeg_diffusion.conftest import cli
from tests.georeg_diffusion.networks import dit


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


def written(folder):
    """Names of all files, which must be those that run.json lists."""
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    record = json.loads((folder / "run.json").read_text())
    assert record["finished"]
    assert names == {*record["files"], "run.json"}
    return names - {"run.json"}
