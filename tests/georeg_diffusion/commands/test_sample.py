"""``georeg-diffusion sample``: a sheet and single files, from seeds, whatever the batch."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from georeg_diffusion import load
from georeg_diffusion._compat import diffusers
from georeg_diffusion.report import panels
from georeg_diffusion.sampling.ddim import ddim_sample
from georeg_diffusion.sampling.latents import load_latents
from georeg_diffusion.sampling.noise import seeded_noise
from tests.georeg_diffusion.commands.conftest import written
from tests.georeg_diffusion.conftest import small_unet


def pixels_of(file):
    return np.asarray(Image.open(file), dtype=int)


def test_a_sheet_the_images_and_the_noise(command, model):
    code, folder, text = command("sample", model, "--num-images", 5, "--seed", 7, "--batch-size", 2, "--save-latents")
    assert code == 0, text
    assert written(folder) == {f"images/{i:06d}.png" for i in range(7, 12)} | {"samples.png", "latents.safetensors"}
    noise, info = load_latents(folder / "latents.safetensors", (1, 8, 8))
    assert torch.equal(noise, seeded_noise((1, 8, 8), range(7, 12)))
    assert info.sources[4] == "seed 11"
    expected = ((ddim_sample(load(model), noise, 4)[:, 0] + 1) * 127.5).clamp(0, 255)
    for i in range(5):
        image = Image.open(folder / "images" / f"{7 + i:06d}.png")
        assert image.mode == "L"
        np.testing.assert_allclose(np.asarray(image), expected[i].numpy(), atol=0.51)
    record = json.loads((folder / "run.json").read_text())
    assert record["seed"] == 7
    assert record["models"][0]["sha256"] == info.model
    assert {"georeg", "torch", "diffusers", "python"} <= record["versions"].keys()


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "euler-ancestral"])
def test_an_image_follows_from_its_seed_alone(command, model, scheduler):
    command("sample", model, "--num-images", 3, "--scheduler", scheduler, out="three")
    code, folder, _ = command(
        "sample", model, "--num-images", 2, "--seed", 1, "--batch-size", 1, "--scheduler", scheduler, out="two"
    )
    assert code == 0
    for seed in (1, 2):
        a, b = (pixels_of(f / "images" / f"{seed:06d}.png") for f in (folder, folder.parent / "three"))
        assert np.abs(a - b).max() <= 1


def test_classes_and_guidance(command, conditional):
    found = {}
    for name, options in {
        "three": ["--class-label", 3],
        "four": ["--class-label", 4],
        "guided": ["--class-label", 3, "--guidance-scale", 4],
        "own": [],
    }.items():
        code, folder, text = command("sample", conditional, "--num-images", 2, *options, out=name)
        assert code == 0, text
        found[name] = np.stack([pixels_of(folder / "images" / f"{i:06d}.png") for i in range(2)])
        assert found[name].shape == (2, 8, 8, 3)
    for name in ("four", "guided"):
        assert np.abs(found["three"] - found[name]).max() > 2
    code, _, text = command("sample", conditional, "--class-label", 12, out="no")
    assert code == 2
    assert "--class-label" in text


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_precisions_agree(command, model, dtype):
    _, single, _ = command("sample", model, "--num-images", 1, out="single")
    code, folder, text = command("sample", model, "--num-images", 1, "--dtype", dtype)
    assert code == 0, text
    bound = {"float16": 3, "bfloat16": 16, "float64": 1}[dtype]  # of 255; eight bits of mantissa in bfloat16
    assert np.abs(pixels_of(single / "images/000000.png") - pixels_of(folder / "images/000000.png")).max() <= bound


def test_an_interrupted_run_goes_on_with_what_it_lacks(command, model, monkeypatch):
    save, count = panels.save_image, 0

    def interrupted(*arguments, **options):
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        save(*arguments, **options)

    monkeypatch.setattr(panels, "save_image", interrupted)
    options = ["sample", model, "--num-images", 4, "--batch-size", 2]
    code, folder, text = command(*options)
    assert code == 130
    assert "same command" in text
    assert len(list((folder / "images").iterdir())) == 2
    before = {file: file.stat().st_mtime_ns for file in (folder / "images").iterdir()}
    assert command("sample", model, "--num-images", 5, "--batch-size", 2)[0] == 2  # of other options
    again = []
    monkeypatch.setattr(panels, "save_image", lambda *a, **k: (again.append(a), save(*a, **k)))
    assert command(*options)[0] == 0
    assert len(again) == 2
    assert all(file.stat().st_mtime_ns == stamp for file, stamp in before.items())
    _, whole, _ = command(*options, out="whole")
    assert written(folder) == written(whole)
    for i in range(4):
        assert np.array_equal(*(pixels_of(f / "images" / f"{i:06d}.png") for f in (folder, whole)))
    sheets = [matplotlib.image.imread(f / "samples.png") for f in (folder, whole)]
    assert np.abs(sheets[0] - sheets[1]).max() < 0.01


def test_images_of_other_weights_are_made_anew(model, tmp_path):
    panels.save_image(torch.zeros(1, 8, 8), tmp_path / "x.png", model="abc")
    saved = panels.saved_image(tmp_path / "x.png", model="abc", shape=(1, 8, 8))
    assert float(saved.abs().max()) < 0.01
    assert panels.saved_image(tmp_path / "x.png", model="abd", shape=(1, 8, 8)) is None
    assert panels.saved_image(tmp_path / "x.png", model="abc", shape=(1, 8, 9)) is None
    assert panels.saved_image(tmp_path / "x.png", model="abc", shape=(3, 8, 8)) is None
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:40])
    for name in ("x.png", "none.png"):
        assert panels.saved_image(tmp_path / name, model="abc", shape=(1, 8, 8)) is None
    colours = torch.rand(3, 4, 5) * 2 - 1
    panels.save_image(colours, tmp_path / "rgb.png", model="abc")
    torch.testing.assert_close(
        panels.saved_image(tmp_path / "rgb.png", model="abc", shape=(3, 4, 5)), colours, rtol=0, atol=0.5 / 127
    )


def test_overwriting(command, model):
    assert command("sample", model, "--num-images", 3)[0] == 0
    code, folder, text = command("sample", model, "--num-images", 2)
    assert code == 2
    assert "--overwrite" in text
    assert command("sample", model, "--num-images", 2, "--overwrite")[0] == 0
    assert {n for n in written(folder) if n.startswith("images")} == {"images/000000.png", "images/000001.png"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--scheduler", "nope"], 2, "expected ddim, ddpm"),
        (["--scheduler", "ScoreSdeVe"], 2, "--scheduler: ScoreSdeVe"),
        (["--scheduler", "KarrasVe"], 1, "does not run on this model"),
        (["--eta", "0.5", "--scheduler", "euler"], 2, "--eta"),
        (["--seed", str(2**64)], 2, "--seed"),
        (["--num-images", "0"], 2, "--num-images"),
        (["--prompt", "a cat"], 2, "--prompt"),
        (["--guidance-scale", "3"], 2, "--guidance-scale"),
        (["--columns", "0"], 2, "--columns"),
        (["--device", "nope"], 2, "--device"),
    ],
)
def test_wrong_options_leave_nothing_behind(command, model, options, code, message):
    found, folder, text = command("sample", model, "--num-images", 1, *options)
    assert (found, message in text) == (code, True), text
    assert not folder.exists()


def test_more_steps_than_the_schedule_has(command, model):
    code, _, text = command("sample", model, steps=1001)
    assert code == 2
    assert "--num-inference-steps" in text


def test_the_last_seeds(command, model):
    code, folder, text = command("sample", model, "--num-images", 2, "--seed", 2**63 - 1)
    assert code == 0, text
    assert f"images/{2**63}.png" in written(folder)


def test_models_that_make_no_images(command, model, tmp_path):
    small_unet().save_pretrained(tmp_path / "bare")  # a network alone is a model too
    assert command("sample", tmp_path / "bare", "--num-images", 1, out="bare-out")[0] == 0
    code, _, text = command("sample", tmp_path / "nowhere")
    assert code == 1
    assert "nowhere" in text
    four = diffusers.UNet2DModel(**{**dict(small_unet().config), "in_channels": 4, "out_channels": 4})
    four.save_pretrained(tmp_path / "four")
    code, folder, text = command("sample", tmp_path / "four", "--num-images", 1)
    assert code == 1
    assert "4 channels" in text
    broken = load(model)
    broken.network.conv_out.bias.data.fill_(float("nan"))
    shutil.copytree(model, tmp_path / "broken")
    broken.network.save_pretrained(tmp_path / "broken" / "unet")
    code, folder, text = command("sample", tmp_path / "broken", "--num-images", 1)
    assert code == 1
    assert "seed 0: the model's result is not finite" in text
    assert not (folder / "samples.png").exists()


@pytest.mark.parametrize("count", [1, 2, 16, 40])
def test_the_title_is_inside_the_sheet(tmp_path, count):
    """White margins on both sides of the title: nothing is cut off."""
    title = "a/very/long/path/" * 8 + "model with $one dollar: seeds 0 to 9, 50 ddim steps"
    panels.sheet(torch.zeros(count, 1, 8, 8), tmp_path / "sheet.png", title=title)
    picture = matplotlib.image.imread(Path(tmp_path / "sheet.png"))[..., :3]
    dark = (picture < 0.5).all(-1)
    for edge in (dark[:2], dark[:, :2], dark[:, -2:]):
        assert not edge.any()
    assert dark.any()
