"""The examples run, draw their pictures and show what they claim."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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
    printed = run_example("01_sphere.py", tmp_path)
    assert is_picture(tmp_path / "sphere.png")
    pattern = rf"^(.+): reconstruction error {NUMBER}, normalised loss {NUMBER} ± {NUMBER}, mean condition number {NUMBER}"
    rows = {name: list(map(float, numbers)) for name, *numbers in re.findall(pattern, printed, re.M)}
    (_, base, base_error, _), (_, flat, flat_error, round_), (_, ours, error, _) = rows.values()
    for loss, stderr in ((base, base_error), (flat, flat_error)):
        assert ours + 3 * (error**2 + stderr**2) ** 0.5 < loss
    assert round_ < min(row[3] for name, row in rows.items() if "G = I" not in name)  # a conformal map


@pytest.mark.slow
def test_digits_autoencoder(tmp_path):
    printed = run_example("02_digits_autoencoder.py", tmp_path)
    assert is_picture(tmp_path / "digits_autoencoder.png")
    pattern = rf"reconstruction error {NUMBER}, normalised loss {NUMBER}.*, mean condition number {NUMBER}"
    (error, loss, condition), (error2, loss2, condition2) = (map(float, row) for row in re.findall(pattern, printed))
    assert loss2 < 1.2 < loss
    assert condition2 < condition
    assert error2 < 1.1 * error


def test_digits_example_is_short():
    assert len((EXAMPLES / "02_digits_autoencoder.py").read_text().splitlines()) < 60


@pytest.mark.parametrize("name", ["11_plain_loop", "12_lightning_module"])
def test_training_loops_improve_both_losses(tmp_path, name):
    printed = run_example(f"{name}.py", tmp_path)
    rows = re.findall(rf"(before|after): reconstruction error {NUMBER}, normalised loss {NUMBER}", printed)
    (first, *before), (last, *after) = rows
    assert (first, last) == ("before", "after")
    (error, loss), (error2, loss2) = map(float, before), map(float, after)
    assert error2 < 0.2 * error
    assert loss2 < 1.05 < 1.3 < loss  # without the loss it ends at 1.33
    assert is_picture(tmp_path / f"{name[3:]}.png")
    for drawn in re.findall(rf"last batch: reconstruction error {NUMBER}, normalised loss {NUMBER}", printed):
        assert float(drawn[0]) == pytest.approx(error2, rel=0.3)  # of the whole batch, and not of a micro-batch
        assert float(drawn[1]) == pytest.approx(loss2, rel=0.05)


@pytest.mark.slow
def test_vae_warmup(tmp_path):
    printed = run_example("14_vae_warmup.py", tmp_path)
    assert is_picture(tmp_path / "vae_warmup.png")
    pattern = rf"^([\w -]+): .*−ELBO {NUMBER}, normalised loss {NUMBER}"
    rows = {name: (float(elbo), float(loss)) for name, elbo, loss in re.findall(pattern, printed, re.M)}
    assert set(rows) == {"no loss", "full weight", "warm-up"}
    elbo, loss = rows["no loss"]
    for name in ("full weight", "warm-up"):
        assert rows[name][1] < 1.02 < 1.05 < loss
        assert rows[name][0] < 1.1 * elbo


def test_inspect_geometry(tmp_path):
    printed = run_example("07_inspect_a_model.py", tmp_path)
    assert is_picture(tmp_path / "inspect_a_model.png")
    rows = re.findall(rf"^(before|after) t = (\d+): isometry loss {NUMBER}", printed, re.M)
    losses = {(name, int(t)): float(loss) for name, t, loss in rows}
    assert losses["after", 950] < losses["before", 950]
    assert "suggested p: 0.4" in printed


def test_edit_latents(tmp_path):
    printed = run_example("08_edit.py", tmp_path)
    assert is_picture(tmp_path / "edit.png")
    assert "plain sampling bit for bit: True" in printed
    assert 0 < float(re.search(rf"shooting, {NUMBER} rad", printed)[1]) < 0.5


@pytest.mark.slow
def test_hyperbolic_latent(tmp_path):
    printed = run_example("03_hyperbolic_latent.py", tmp_path)
    assert is_picture(tmp_path / "hyperbolic_latent.png")
    rows = re.findall(
        rf"reconstruction error {NUMBER}, normalised loss {NUMBER} ± {NUMBER}, distances off by (\d+)%", printed
    )
    (_, flat, flat_error, _), (_, curved, error, _) = (map(float, row) for row in rows)
    assert flat > 1
    assert abs(curved - 1) < 0.3
    assert max(flat_error, error) < 0.1


@pytest.mark.slow
def test_perceptual_pullback_metric(tmp_path):
    printed = run_example("04_perceptual_pullback_metric.py", tmp_path)
    assert is_picture(tmp_path / "perceptual_pullback_metric.png")
    rows = re.findall(rf"normalised loss in pixels {NUMBER}, perceptual {NUMBER}", printed)
    (pixels, seen), (pixels2, seen2) = (map(float, row) for row in rows)
    assert pixels < pixels2  # each is the better isometry of its own metric
    assert seen2 < seen


@pytest.mark.slow
def test_product_of_spheres(tmp_path):
    printed = run_example("05_product_of_spheres.py", tmp_path)
    assert is_picture(tmp_path / "product_of_spheres.png")
    rows = re.findall(rf"normalised loss {NUMBER} ± {NUMBER}", printed)
    (base, base_error), (ours, error) = (map(float, row) for row in rows)
    assert ours + 3 * (error**2 + base_error**2) ** 0.5 < base


@pytest.mark.slow
def test_diffusion_by_api(tmp_path):
    printed = run_example("06_diffusion_by_api.py", tmp_path)
    assert is_picture(tmp_path / "diffusion_by_api.png")
    losses = dict(re.findall(rf"^(base|isometric): .*isometry loss {NUMBER}", printed, re.M))
    assert float(losses["isometric"]) < float(losses["base"])
    assert (tmp_path / "fine-tuned" / "isometric" / "model_index.json").exists()


ALL = sorted(path.stem for path in EXAMPLES.iterdir() if path.is_file())


def test_examples_are_numbered():
    assert [name[:3] for name in ALL] == [f"{i:02}_" for i in range(1, len(ALL) + 1)]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("**/*.py")), ids=lambda path: path.stem)
def test_examples_stay_short(path):
    assert len(path.read_text().splitlines()) < 80


@pytest.mark.parametrize("name", ALL)
def test_the_gallery_shows_every_example(name):
    assert f"examples/{name}." in (EXAMPLES.parent / "docs" / "gallery.md").read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_pictures_of_the_gallery_are_there_and_small(path):
    picture = EXAMPLES.parent / "docs" / "images" / "gallery" / f"{path.stem[3:]}.png"
    assert f'"{picture.name}"' in path.read_text()
    assert is_picture(picture)
    assert picture.stat().st_size < 150_000
