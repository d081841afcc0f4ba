"""Tables 2, 3 and I, and what the second of them measures beside the paper."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from georeg_diffusion.bundle import load
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.errors import UsageError
from georeg_diffusion.experiments import metric_effect
from georeg_diffusion.experiments.autoencoder import signal_to_noise, train_autoencoder
from georeg_diffusion.experiments.comparison import BASE, Replicated, replicated
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.paper import table1, table2, table3, table_i
from georeg_diffusion.experiments.recipe import recipe_of


def test_table2_has_both_kernels_and_both_splits(lab):
    lab = replace(lab, seeds=(0,))
    finding = table2.run(lab)
    (table,) = finding.tables
    assert [row[0] for row in table.rows] == [
        f"{kind} ↓, {split}" for split in ("held-out", "in-sample") for kind in ("LS", "LS (radial)")
    ]
    base = replicated(lab, ["ls_radial"], options={"options": {"ls_split": "held-out"}}, **BASE)
    assert table.rows[1][1].value == pytest.approx(base.values["ls_radial"][0])
    assert (table.rows[1][4].before, table.rows[1][4].value) == (12.3, 6.8)
    assert len(finding.claims) == 4


def test_table_i_has_its_model_on_latents_of_one_autoencoder(lab):
    start, about = table_i._latents(lab)
    assert load(str(lab.model(0, **start, **BASE))).sample_shape == (4, 4, 4)
    assert "1 × 8² to 4 × 4², PSNR" in about
    assert table_i._latents(lab)[0] == start


@pytest.mark.slow
def test_table_i_trains_on_latents_of_one_autoencoder(lab, capsys):
    finding = table_i.run(lab)
    assert "Expected types" not in capsys.readouterr().err
    (table,) = finding.tables
    assert [cell.value for cell in (row[4] for row in table.rows)][:5] == [11.46, 397, 2.73, 198, 0.54]
    folder, _ = lab.autoencoder()
    models = [load(str(lab.model(seed, vae=str(folder), **BASE))) for seed in lab.seeds]
    assert all(model.sample_shape == (4, 4, 4) for model in models)
    assert all(math.isfinite(row[1].value) for row in table.rows)
    pixels = replicated(lab, ["isometry"])
    assert table.rows[-1][2].value != pytest.approx(sum(pixels.values["isometry"]) / 2)


def test_table_i_refuses_a_model_on_pixels(lab_folder, tiny, model):
    recipe = recipe_of("digits", quick=True, pretrained=str(model))
    with pytest.raises(UsageError, match="--pretrained: .* works on pixels, expected a latent diffusion model"):
        table_i.run(Lab(recipe, (0,), lab_folder, quick=True))


def test_an_autoencoder_learns_and_its_latents_have_unit_size(tmp_path):
    images = Digits(8)
    folder = train_autoencoder(images, tmp_path / "vae", steps=60)
    blank = 10 * torch.log10(4 / (images.pixels - images.pixels.mean(0)).square().mean())
    assert signal_to_noise(folder, images) > blank + 2
    from georeg_diffusion.codec import encode, load_codec

    with torch.no_grad():
        latents = encode(load_codec(str(folder)), images.pixels)
    assert latents.std() == pytest.approx(1, rel=0.05)
    before = (folder / "config.json").stat().st_mtime_ns
    assert train_autoencoder(images, folder, steps=60) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before


def fallen(**by):
    """Scores of two seeds, ``by`` what each differs from 10 and 12, the same for both but for a hundredth."""
    values = {name: (10 + by.get(name, 0.0), 12.01 + by.get(name, 0.0) * 1.01) for name in table3.SCORES}
    return Replicated(values, dict.fromkeys(values, "protocol"), dict.fromkeys(values, ({}, {})))


def test_table3s_claims_are_decided_from_its_rows():
    found = {row: fallen() for row in table3.PAPER + table3.LACKING + table3.FULL}
    found |= {table3.OURS: fallen(fid=1.0, ppl=-3.0), table3.FLAT: fallen(fid=2.0, ppl=-3.0)}
    found |= {table3.FLAT_ALL: fallen(fid=4.0), table3.FLAT_STRONG: fallen(fid=1.5), table3.STRONG: fallen(fid=1.0)}
    verdicts = [claim.holds for claim in table3._claims(found)]
    # PPL falls; worse with I; rises at p = 0; rises with 10 λ (it falls); with the sphere (the same); rises against base
    assert verdicts == [True, True, True, False, None, True]
    found[table3.FLAT] = fallen(fid=0.5, ppl=-4.0)
    assert table3._claims(found)[1].holds is False


def test_table3_covers_the_papers_rows_and_those_it_lacks(tiny):
    trainings = {row: row.training(tiny) for row in table3.PAPER + table3.LACKING + table3.FULL}
    assert len({tuple(sorted(one.items())) for one in trainings.values()}) == len(trainings)
    assert {one["regularizer"] for one in trainings.values()} == {"isometry", "conformal", "strict", "path-length"}
    assert {one["metric"] for one in trainings.values()} == {"sphere", "ambient", "stereographic-flat", "isodiff"}
    quick = recipe_of("digits", quick=True)
    assert table3.FLAT_STRONG.training(quick)["lambda_iso"] == pytest.approx(10 * quick.lambda_iso)
    assert table3.Row(loss="strict").training(quick)["lambda_iso"] == quick.weights["strict"]
    grid = {(row.p, row.metric, row.weight) for row in trainings if row.loss == "isometry" and row.p < 1}
    assert grid >= {(p, metric, 1) for p in (0, 0.5) for metric in ("sphere", "ambient", "stereographic-flat")}


@pytest.mark.slow
def test_table3_runs(lab):
    finding = table3.run(lab)
    ablation, effect = finding.tables  # a first look
    assert len(ablation.rows) == len(table3.PAPER + table3.LACKING)
    assert any("exact and by estimated traces" in note for note in finding.notes)
    estimators = table3._estimators(lab)
    assert [cell.value for cell in ablation.rows[0][-2:]] == [15.89, 653]
    assert [row[0] for row in estimators.rows] == ["Hutchinson, 1 probe", "exact"]
    assert [row[0].split()[0] for row in effect.rows] == ["3", "64", "256", "1024"]


@pytest.mark.parametrize("n", [3, 64])
def test_the_metrics_effect_is_what_theory_says(n):
    m = {3: 2, 64: 8}[n]
    found = [metric_effect.measure(n, m, seed=seed, points=2048) for seed in range(6)]
    theories = {"flat": metric_effect.flat_theory(n), "ambient": 0.0}
    theories["ambient"] = sum(metric_effect.ambient_theory(n, m, one.rank) for one in found) / len(found)
    for name, theory in theories.items():
        values = torch.tensor([getattr(one, name) for one in found], dtype=torch.float64)
        assert theory != 0
        assert abs(values.mean() - theory) < 4 * values.std() / len(values) ** 0.5


@pytest.mark.parametrize("n", [3, 10, 300])
def test_the_theory_by_another_road(n):
    """The conformal factor's moments by numerical integration of u's density (1 − u²)^((n−3)/2) on [−1, 1]."""
    u = torch.linspace(-1, 1, 400_001, dtype=torch.float64)
    density = (1 - u.square()).clamp_min(0) ** ((n - 3) / 2)
    second, fourth = (((1 - u) ** k * density).sum() / density.sum() for k in (2, 4))
    assert metric_effect.flat_theory(n) == pytest.approx(float(fourth / second**2 - 1), rel=1e-4)
    assert metric_effect.flat_theory(10_000) == pytest.approx(4 / 10_000, rel=1e-3)


def test_the_ambient_theory_by_projecting_random_directions_out():
    torch.manual_seed(0)
    n, m = 12, 5
    a = torch.randn(m, n, dtype=torch.float64)
    x = torch.randn(200_000, n, dtype=torch.float64)
    x = x / x.norm(dim=1, keepdim=True)
    gram, ax = a @ a.T, x @ a.T
    trace, square = gram.trace(), gram.square().sum()
    # Tr PAP and Tr (PAP)² of A = aᵀa by expansion of P = I − xxᵀ
    projected = trace - ax.square().sum(1)
    squared = square - 2 * torch.einsum("bi,ij,bj->b", ax, gram, ax) + ax.square().sum(1).square()
    ambient, sphere = min(n, m) * square / trace**2, min(n - 1, m) * squared.mean() / projected.mean() ** 2
    theory = metric_effect.ambient_theory(n, m, float(trace**2 / square))
    assert float(ambient / sphere - 1) == pytest.approx(theory, abs=3e-4)


@pytest.mark.slow
def test_the_same_tables_on_real_images(tmp_path, lab):
    """A folder of crops of faces, a tiny model, features of a classifier."""
    from skimage.data import lfw_subset

    folder = tmp_path / "faces"
    folder.mkdir()
    for i, face in enumerate(lfw_subset()[:40]):
        Image.fromarray((face * 255).astype("uint8")).save(folder / f"{i}.png")
    lab.score(lab.model(0, **BASE), 0, "fid")  # trains the classifier of the digits
    features = str(lab.folder / "classifiers" / "digits-8")
    measures = {"features": features, "classifier": features, "lpips_backbone": "features"}
    recipe = recipe_of("celebahq256", quick=True, data_dir=folder, pretrained=str(lab.pretrained(0)), lambda_iso=1e-2)
    assert recipe.protocol == "paper"
    recipe = replace(recipe, steps=1, batch=4, num_samples=lab.recipe.num_samples, num_inference_steps={"ppl": 2})
    finding = table1.run(Lab(recipe, (0, 1), tmp_path / "out", measures=measures))
    (table,) = finding.tables
    assert "do not compare" not in table.caption
    assert "CelebA-HQ, continued from" in table.caption
    assert all(math.isfinite(row[1].value) for row in table.rows)
