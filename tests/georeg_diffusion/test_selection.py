"""--validation-steps and --select-by: the best checkpoint is what is saved, and looking for it changes nothing."""

import json

import pytest
import torch

from georeg_diffusion import IsometricDiffusionLoss, load
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.sampling.ddim import ddim_sample
from georeg_diffusion.sampling.noise import seeded_noise
from georeg_diffusion.training import run
from georeg_diffusion.training.selection import Selection
from tests.georeg_diffusion.conftest import TINY, cli, error_of, weights


@pytest.fixture
def train(tmp_path, model):
    """Run the command, and give the weights that it saved."""

    def call(name, *arguments, code=0):
        out = tmp_path / name
        found = cli(
            "train", *TINY, "--pretrained-model-name-or-path", model, "--no-evaluate", "--output-dir", out, *arguments
        )
        assert found == code
        return weights(out / "isometric") if code == 0 else None

    return call


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture
def scripted(monkeypatch):
    """Scores as given, one for each validation."""

    def script(*values):
        left = list(values)
        monkeypatch.setattr(Selection, "_score", lambda self: left.pop(0))
        return left

    return script


@pytest.mark.parametrize(
    ("ema", "scores", "best"),
    [
        ("--use-ema", (5.0, 1.0, 3.0), 2),
        ("--no-use-ema", (float("nan"), 2.0, float("nan")), 2),
        ("--use-ema", (3.0, 2.0, 1.0), 3),
    ],
)
def test_the_best_is_saved_and_training_is_not_disturbed(train, scripted, tmp_path, ema, scores, best):
    left = scripted(*scores)
    chosen = train("chosen", ema, "--max-train-steps", 3, "--validation-steps", 1)
    assert not left
    assert same(chosen, train("shorter", ema, "--max-train-steps", best))
    entries = [json.loads(line) for line in (tmp_path / "chosen/logs/isometric-validation.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3]
    assert [entry["step"] for entry in entries if entry["best"]][-1] == best


def test_the_last_step_is_always_a_candidate(train, scripted, tmp_path):
    scripted(2.0, 1.0)
    train("out", "--max-train-steps", 3, "--validation-steps", 2)
    entries = [json.loads(line) for line in (tmp_path / "out/logs/isometric-validation.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 3]


def test_an_interrupted_run_selects_what_the_whole_one_does(train, scripted, monkeypatch, tmp_path):
    arguments = ["--max-train-steps", 5, "--validation-steps", 1, "--checkpointing-steps", 2]
    scripted(5.0, 4.0, 1.0, 3.0, 2.0)
    whole = train("whole", *arguments)
    forward, calls = IsometricDiffusionLoss.forward, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(IsometricDiffusionLoss, "forward", interrupted)
    scripted(5.0, 4.0, 1.0)
    train("torn", *arguments, code=130)
    monkeypatch.setattr(IsometricDiffusionLoss, "forward", forward)
    scripted(1.0, 3.0, 2.0)  # from the checkpoint of step 2 on
    assert same(train("torn", *arguments), whole)
    log = (tmp_path / "torn/logs/isometric-validation.jsonl").read_text()
    assert [json.loads(line)["step"] for line in log.splitlines()] == [1, 2, 3, 4, 5]


class Projection(torch.nn.Module):
    """Three fixed features."""

    def __init__(self):
        super().__init__()
        self.register_buffer("w", torch.randn(64, 3, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return images.flatten(1) @ self.w


def test_the_fid_is_that_of_the_averaged_weights(train, monkeypatch, tmp_path):
    features = FeatureNetwork("three projections", Projection())
    monkeypatch.setattr(run, "_features", lambda *args: features)
    train("out", "--max-train-steps", 2, "--validation-steps", 2, "--num-validation-images", 70, "--seed", 3)
    (entry,) = [json.loads(line) for line in (tmp_path / "out/logs/isometric-validation.jsonl").read_text().splitlines()]
    bundle = load(tmp_path / "out" / "isometric")
    generated = ddim_sample(bundle, seeded_noise((1, 8, 8), range(3, 73)), 20)
    digits = Digits(8)
    a, b = (Projection()(images).double() for images in (digits.batch(range(len(digits))), generated))
    (p, q) = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(p @ q).real.clamp_min(0).sqrt().sum()  # Tr (C₁C₂)^½ by the product's own eigenvalues
    expected = (a.mean(0) - b.mean(0)).square().sum() + p.trace() + q.trace() - 2 * root
    assert entry["fid"] == pytest.approx(float(expected), rel=1e-4)
    assert not (tmp_path / "out" / "checkpoints" / "isometric" / ".validation").exists()


def test_selecting_by_the_denoising_loss_needs_no_features(train, tmp_path):
    train("out", "--max-train-steps", 2, "--validation-steps", 1, "--select-by", "denoising", "--num-validation-images", 32)
    entries = [json.loads(line) for line in (tmp_path / "out/logs/isometric-validation.jsonl").read_text().splitlines()]
    assert all(0 < entry["denoising"] < 10 for entry in entries)


def test_missing_inception_weights_are_named_before_training(tmp_path, capsys, model):
    pictures = tmp_path / "faces"
    pictures.mkdir()
    from PIL import Image

    for i in range(3):
        Image.new("L", (8, 8), 80 * i).save(pictures / f"{i}.png")
    code, error = error_of(
        capsys, *TINY, "--train-data-dir", pictures, "--pretrained-model-name-or-path", model, "--max-train-steps", 1,
        "--validation-steps", 1, "--inception-weights", tmp_path / "gone.pth", "--output-dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 2
    assert "--inception-weights" in error
    assert "gone.pth does not exist" in error
    assert not (tmp_path / "out" / "logs").exists() or not list((tmp_path / "out" / "logs").glob("*.jsonl"))
