"""The examples run, draw their pictures and show what they claim; Fig. I's curve against theory."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import georeg

EXAMPLES = Path(__file__).parents[1] / "examples"
NUMBER = r"([\d.]+(?:e[+-]?\d+)?)"


@pytest.fixture(scope="module")
def sphere():
    pytest.importorskip("matplotlib")
    pytest.importorskip("rich")
    spec = importlib.util.spec_from_file_location("sphere_autoencoder", EXAMPLES / "sphere_autoencoder.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    threads = torch.get_num_threads()
    spec.loader.exec_module(module)
    yield module
    torch.set_num_threads(threads)
    del sys.modules[spec.name]


def run_example(name, folder):
    command = [sys.executable, str(EXAMPLES / name), "--quick", "--output-dir", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


def naive_trace_errors(a, numbers, repeats, generator):
    """One probe at a time, with the probes of the same seed."""
    rows = []
    for number in numbers:
        row = []
        for _ in range(repeats):
            v = torch.randn(number, len(a), generator=generator, dtype=a.dtype)
            row.append(sum(float(p @ a @ p) for p in v) / number - float(a.trace()))
        rows.append(row)
    return torch.tensor(rows, dtype=a.dtype)


def test_trace_errors_equal_a_plain_loop(sphere):
    a = torch.randn(7, 7, dtype=torch.float64)
    fast = sphere.trace_errors(a, [1, 5], repeats=3, generator=torch.Generator().manual_seed(4))
    plain = naive_trace_errors(a, [1, 5], 3, torch.Generator().manual_seed(4))
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["general", "symmetric"])
def test_trace_error_falls_as_theory_says(sphere, kind):
    a = torch.randn(256, 256, dtype=torch.float64)
    a = a if kind == "general" else (a + a.mT) / 2
    numbers, repeats = [1, 4, 16, 64], 1000
    errors = sphere.trace_errors(a, numbers, repeats=repeats, generator=torch.Generator().manual_seed(1))
    variance = sphere.probe_stderr(a) ** 2 / torch.tensor(numbers, dtype=a.dtype)
    squares = errors.square()
    stderr = squares.std(1) / repeats**0.5
    assert (squares.mean(1) - variance).abs().le(4 * stderr).all()
    assert (errors.mean(1).abs() <= 4 * (variance / repeats).sqrt()).all()


def test_only_the_symmetric_part_of_a_general_matrix_counts(sphere):
    a = torch.randn(256, 256, dtype=torch.float64)
    symmetric = (a + a.mT) / 2
    of_a, of_s = (sphere.trace_errors(m, [4], repeats=8, generator=torch.Generator().manual_seed(1)) for m in (a, symmetric))
    torch.testing.assert_close(of_a, of_s, rtol=1e-9, atol=1e-9)
    assert sphere.probe_stderr(a) == pytest.approx(sphere.probe_stderr(symmetric))
    naive = 2**0.5 * float(torch.linalg.matrix_norm(a))
    # E‖S‖² = (n² + n)/2 against E‖A‖² = n², both with a relative spread of order 1/n.
    assert naive / sphere.probe_stderr(a) == pytest.approx((2 / (1 + 1 / 256)) ** 0.5, rel=5 / 256)


def test_points_keep_clear_of_the_pole_and_cover_the_region_by_area(sphere):
    x = sphere.sample_points(20_000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.norm(dim=1), torch.ones(len(x)))
    assert sphere.CHART.from_ambient(x).norm(dim=1).max() <= 3**0.5 + 1e-4
    # Archimedes: uniform by area is uniform in height, here on [−1, 1/2].
    height = x[:, 2].double()
    assert abs(height.mean() + 0.25) <= 4 * 1.5 / (12 * len(x)) ** 0.5
    assert (x[:, :2].mean(0).abs() <= 4 * x[:, :2].std(0) / len(x) ** 0.5).all()


def test_the_flat_chart_is_fooled_by_the_stereographic_projection(sphere):
    x = sphere.sample_points(2000, torch.Generator().manual_seed(0))
    in_chart = georeg.IsometryLoss(estimator=georeg.Exact(), normalize=True)
    stereographic, equidistant = (sphere.geometry(f, x) for f in (sphere.CHART.from_ambient, sphere.equidistant))
    fooled = in_chart(lambda z: sphere.CHART.from_ambient(sphere.CHART.to_ambient(z)), sphere.CHART.from_ambient(x))
    assert fooled.loss.item() == pytest.approx(1, abs=1e-5)
    assert stereographic["condition_number"] == pytest.approx(1, abs=1e-4)
    assert stereographic["normalised_loss"] > 1.6 > 1.45 > equidistant["normalised_loss"] > 1


def test_alignment_undoes_a_similarity(sphere):
    x = sphere.sample_points(500, torch.Generator().manual_seed(0))
    turned = torch.tensor([[0.6, -0.8], [-0.8, -0.6]]) * 3
    same = sphere.aligned(lambda p: sphere.equidistant(p) @ turned + 5, x, sphere.equidistant)(x)
    centred = sphere.equidistant(x) - sphere.equidistant(x).mean(0)
    torch.testing.assert_close(same.float(), centred, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_sphere_autoencoder(tmp_path):
    printed = run_example("sphere_autoencoder.py", tmp_path)
    assert all(is_picture(tmp_path / f"{name}.png") for name in ("sphere_autoencoder", "hutchinson", "trace_error"))
    rows = json.loads((tmp_path / "metrics.json").read_text())
    base, flat, ours = (next(v for k, v in rows.items() if word in k) for word in ("only", "G = I", "sphere's"))
    loss = "normalised_loss"
    for other in (base, flat):
        assert ours[loss] + 3 * (ours["stderr"] ** 2 + other["stderr"] ** 2) ** 0.5 < other[loss]
        assert ours["log_vor"] < other["log_vor"]
    probed = [row for name, row in rows.items() if "probe" in name]
    assert len(probed) == 5
    assert all(abs(row[loss] - ours[loss]) < 0.02 < base[loss] - ours[loss] for row in probed)
    assert f"{ours[loss]:.3f}" in printed


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
    "name", ["edit_latents.py", "inspect_geometry.py", "plain_loop.py", "lightning_module.py", "vae_warmup.py"]
)
def test_examples_stay_short(name):
    assert len((EXAMPLES / name).read_text().splitlines()) < 80
