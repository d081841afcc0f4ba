"""``georeg-diffusion invert``: the noise of images, what comes back of them, and how well."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from georeg_diffusion import Bundle, Denoiser, load
from georeg_diffusion._compat import diffusers
from georeg_diffusion.report import panels
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from georeg_diffusion.sampling.inversion import ddim_invert
from georeg_diffusion.sampling.latents import load_latents
from tests.georeg_diffusion.commands.conftest import DIGITS, written


def round_trip(unet, num_steps, refine=0):
    """Mean-squared error of images that are inverted and drawn again."""
    scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=False)
    denoiser, steps, images = Denoiser(Bundle(unet, scheduler)), ddim_steps(scheduler, num_steps), DIGITS[:16]
    found = ddim_invert(denoiser, steps, images, refine=refine)
    return float((ddim(denoiser, steps, found.latents) - images).square().mean())


def test_on_a_trained_model_inversion_improves_with_steps_and_refinement(trained):
    errors = [round_trip(trained, count) for count in (5, 20, 80)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
    refined = [round_trip(trained, 20, refine) for refine in (1, 3, 20)]
    assert errors[1] > 2 * refined[0] > 4 * refined[1] > 8 * refined[2]


@pytest.fixture
def images(tmp_path):
    """Of several sizes and modes; all are read as grey, 8 × 8."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = Image.fromarray(((DIGITS[0, 0] + 1) * 127.5).round().byte().numpy())
    files = []
    for name, mode, size in [
        ("grey.png", "L", (8, 8)),
        ("colour.png", "RGB", (40, 20)),
        ("clear.png", "RGBA", (5, 9)),
        ("palette.gif", "P", (8, 8)),
        ("bits.png", "1", (8, 8)),
        ("print.tif", "CMYK", (1, 1)),
    ]:
        pixels.resize(size).convert(mode).save(folder / name)
        files.append(folder / name)
    return files


def test_latents_reconstructions_and_scores(command, model, images):
    code, folder, text = command("invert", model, *images, images[0], "--batch-size", 2, "--refine", 2)
    assert code == 0, text
    names = ["grey", "colour", "clear", "palette", "bits", "print", "grey-2"]
    assert written(folder) == {
        *(f"latents/{name}.safetensors" for name in names),
        *(f"reconstructions/{name}.png" for name in names),
        "reconstructions.png",
        "inversion.json",
    }
    record = json.loads((folder / "inversion.json").read_text())
    assert [entry["name"] for entry in record["images"]] == names
    assert record["images"][0]["mse"] == pytest.approx(record["images"][-1]["mse"], rel=1e-3)
    source = torch.as_tensor(np.array(Image.open(images[0]), dtype=np.float32))[None, None] / 127.5 - 1
    denoiser = Denoiser(load(model))
    steps = ddim_steps(denoiser.bundle.scheduler, 4)
    latents, info = load_latents(folder / "latents/grey.safetensors", (1, 8, 8))
    assert (info.num_inference_steps, info.start, info.sources) == (4, 0, ("grey.png",))
    torch.testing.assert_close(latents, ddim_invert(denoiser, steps, source, refine=2).latents, rtol=1e-4, atol=1e-4)
    again = ddim(denoiser, steps, latents)
    shown = np.asarray(Image.open(folder / "reconstructions/grey.png"), dtype=float)
    np.testing.assert_allclose(shown, ((again[0, 0] + 1) * 127.5).clamp(0, 255).numpy(), atol=0.6)
    entry = record["images"][0]
    mse = float((again.clamp(-1, 1) - source).square().mean())
    assert entry["mse"] == pytest.approx(mse, rel=1e-3)
    assert entry["psnr"] == pytest.approx(-10 * np.log10(mse / 2**2), abs=0.01)
    assert f"{entry['psnr']:.1f} dB" in text
    assert "2 refinements a step" in text


def test_steps_portion_and_refinement(command, trained, images, tmp_path):
    diffusers.DDPMPipeline(unet=trained, scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path / "digits")

    def mse(out, *options, **kwargs):
        code, folder, text = command("invert", tmp_path / "digits", images[0], *options, out=out, **kwargs)
        assert code == 0, text
        return json.loads((folder / "inversion.json").read_text())["images"][0]["mse"], folder

    plain, _ = mse("plain", steps=20)
    half, folder = mse("half", "--portion", 0.5, steps=20)
    assert half < plain
    assert load_latents(folder / "latents/grey.safetensors", (1, 8, 8))[1].start == 10
    assert mse("refined", "--refine", 5, steps=20)[0] < plain / 2


def test_batch_and_precision_do_not_matter(command, model, images):
    options = ["invert", model, *images[:3], "--refine", 2]
    found = {}
    for name, more in {"one": ["--batch-size", 1], "all": [], "double": ["--dtype", "float64"]}.items():
        code, folder, text = command(*options, *more, out=name)
        assert code == 0, text
        found[name] = [load_latents(f, (1, 8, 8))[0].double() for f in sorted((folder / "latents").iterdir())]
    for name in ("one", "double"):
        torch.testing.assert_close(found["all"], found[name], rtol=1e-3, atol=1e-3)
    for dtype in ("float16", "bfloat16"):
        code, folder, text = command(*options, "--dtype", dtype, out=dtype)
        assert code == 0, text


def test_conditions(command, conditional, images):
    latents = []
    for name, options in {"three": ["--class-label", 3], "guided": ["--class-label", 3, "--guidance-scale", 3]}.items():
        code, folder, text = command("invert", conditional, images[1], *options, out=name)
        assert code == 0, text
        latents.append(load_latents(folder / "latents/colour.safetensors", (3, 8, 8))[0])
    assert not torch.allclose(*latents)


def test_files_that_are_no_images_are_named_and_the_others_go_on(command, model, images, tmp_path):
    (tmp_path / "junk [red].png").write_bytes(b"no image")
    wrong = [tmp_path / "junk [red].png", tmp_path / "missing.png", images[0].parent]
    code, folder, text = command("invert", model, images[0], *wrong)
    assert code == 1
    assert "junk [red].png" in text
    assert "3 of 4 images could not be read" in text
    record = json.loads((folder / "inversion.json").read_text())
    assert len(record["images"]) == 1
    assert len(record["unreadable"]) == 3
    code, folder, text = command("invert", model, *wrong, out="none")
    assert code == 1
    assert "none of the 3 images" in text
    assert not folder.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--portion", "0"], "--portion"),
        (["--portion", "nan"], "--portion"),
        (["--refine", "-1"], "--refine"),
        (["--num-inference-steps", "1001"], "--num-inference-steps"),
        (["--class-label", "1"], "--class-label"),
        (["--guidance-scale", "2"], "--guidance-scale"),
    ],
)
def test_wrong_options_leave_nothing_behind(command, model, images, options, message):
    code, folder, text = command("invert", model, images[0], *options)
    assert (code, message in text) == (2, True), text
    assert not folder.exists()
    assert command("invert", model)[0] == 2


def test_a_model_of_nan_is_named(command, model, images, tmp_path):
    broken = load(model)
    broken.network.conv_out.bias.data.fill_(float("nan"))
    shutil.copytree(model, tmp_path / "broken")
    broken.network.save_pretrained(tmp_path / "broken" / "unet")
    code, folder, text = command("invert", tmp_path / "broken", images[0])
    assert code == 1
    assert "grey.png: the model's result is not finite" in text
    assert not folder.exists()


def test_again_after_an_interruption(command, model, images, monkeypatch):
    draw = panels.reconstructions
    monkeypatch.setattr(panels, "reconstructions", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    code, folder, _ = command("invert", model, images[0])
    assert code == 130
    monkeypatch.setattr(panels, "reconstructions", draw)
    assert command("invert", model, images[0])[0] == 0
    assert "inversion.json" in written(folder)
    code, _, text = command("invert", model, images[0])
    assert code == 2
    assert "--overwrite" in text
    assert command("invert", model, images[1], "--overwrite")[0] == 0
    assert not (folder / "latents/grey.safetensors").exists()


def test_an_exact_reconstruction(tmp_path):
    """No division by zero in its picture."""
    source = torch.zeros(1, 1, 8, 8)
    name = "a $very$ long name of an image " * 3
    panels.reconstructions(source, source, tmp_path / "x.png", names=[name], scores=["exact"], title="t")
    assert (tmp_path / "x.png").is_file()
