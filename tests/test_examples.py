"""The examples run, draw their pictures and show what they claim."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"


def run_example(name, folder):
    command = [sys.executable, str(EXAMPLES / name), "--quick", "--output-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


@pytest.mark.slow
def test_sphere_autoencoder(tmp_path):
    printed = run_example("sphere_autoencoder.py", tmp_path)
    assert is_picture(tmp_path / "sphere_autoencoder.png")
    pattern = rf"^(.+): reconstruction error {NUMBER}, normalised loss {NUMBER} ± {NUMBER}, mean condition number {NUMBER}"
    rows = {name: list(map(float, numbers)) for name, *numbers in re.findall(pattern, printed, re.M)}
    (_, base, base_error, _), (_, flat, flat_error, round_), (_, ours, error, _) = rows.values()
    for loss, stderr in ((base, base_error), (flat, flat_error)):
        assert ours + 3 * (error**2 + stderr**2) ** 0.5 < loss
    assert round_ < min(row[3] for name, row in rows.items() if "G = I" not in name)  # a conformal map


@pytest.mark.slow
def test_digits_autoencoder(tmp_path):
    printed = run_example("digits_autoencoder.py", tmp_path)
    assert is_picture(tmp_path / "digits_autoencoder.png")
    pattern = rf"reconstruction error {NUMBER}, normalised loss {NUMBER}.*, mean condition number {NUMBER}"
    (error, loss, condition), (error2, loss2, condition2) = (map(float, row) for row in re.findall(pattern, printed))
    assert loss2 < 1.2 < loss
    assert condition2 < condition
    assert error2 < 1.1 * error


def test_digits_example_is_short():
    assert len((EXAMPLES / "digits_autoencoder.py").read_text().splitlines()) < 60


@pytest.mark.parametrize(
    ("name", "saved"), [("plain_loop.py", "plain_loop.pt"), ("lightning_module.py", "lightning_module.ckpt")]
)
def test_training_loops_improve_both_losses(tmp_path, name, saved):
    printed = run_example(name, tmp_path)
    rows = re.findall(rf"(before|after): reconstruction error {NUMBER}, normalised loss {NUMBER}", printed)
    (first, *before), (last, *after) = rows
    assert (first, last) == ("before", "after")
    (error, loss), (error2, loss2) = map(float, before), map(float, after)
    assert error2 < 0.2 * error
    assert loss2 < 1.05 < 1.3 < loss  # without the loss it ends at 1.33
    assert torch.load(tmp_path / saved, weights_only=False)


@pytest.mark.slow
def test_vae_warmup(tmp_path):
    printed = run_example("vae_warmup.py", tmp_path)
    assert is_picture(tmp_path / "vae_warmup.png")
    pattern = rf"^([\w -]+): .*−ELBO {NUMBER}, normalised loss {NUMBER}"
    rows = {name: (float(elbo), float(loss)) for name, elbo, loss in re.findall(pattern, printed, re.M)}
    assert set(rows) == {"no loss", "full weight", "warm-up"}
    elbo, loss = rows["no loss"]
    for name in ("full weight", "warm-up"):
        assert rows[name][1] < 1.02 < 1.05 < loss
        assert rows[name][0] < 1.1 * elbo


def test_inspect_geometry(tmp_path):
    printed = run_example("inspect_geometry.py", tmp_path)
    assert is_picture(tmp_path / "inspect_geometry.png")
    rows = re.findall(rf"^(before|after) t = (\d+): isometry loss {NUMBER}", printed, re.M)
    losses = {(name, int(t)): float(loss) for name, t, loss in rows}
    assert losses["after", 950] < losses["before", 950]
    assert "suggested p: 0.4" in printed


def test_edit_latents(tmp_path):
    printed = run_example("edit_latents.py", tmp_path)
    assert is_picture(tmp_path / "edit_latents.png")
    assert "plain sampling bit for bit: True" in printed
    assert 0 < float(re.search(rf"shooting, {NUMBER} rad", printed)[1]) < 0.5


@pytest.mark.parametrize(
    "name",
    [
        "edit_latents.py",
        "inspect_geometry.py",
        "lightning_module.py",
        "plain_loop.py",
        "sphere_autoencoder.py",
        "vae_warmup.py",
    ],
)
def test_examples_stay_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 80
