"""``georeg-diffusion interpolate``: ends of every kind, paths, two models, and the pictures."""

import json
import os
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import georeg
from georeg_diffusion import load
from georeg_diffusion._compat import diffusers
from georeg_diffusion.report import panels
from georeg_diffusion.sampling.ddim import ddim_sample
from georeg_diffusion.sampling.noise import seeded_noise
from tests.georeg_diffusion.commands.conftest import DIGITS, written
from tests.georeg_diffusion.conftest import small_unet

NO_MP4 = {"interpolation.png", "interpolation.gif", "interpolation.json"}
A, B = seeded_noise((1, 8, 8), [3, 8]).unsqueeze(1)


@pytest.fixture(autouse=True)
def _no_ffmpeg(monkeypatch):
    monkeypatch.setattr(panels, "encoder", lambda: None)


@pytest.fixture
def other(tmp_path):
    torch.manual_seed(5)
    diffusers.DDPMPipeline(unet=small_unet(), scheduler=diffusers.DDPMScheduler()).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def frames_of(folder, name):
    files = sorted((folder / "frames" / name).iterdir())
    return np.stack([np.asarray(Image.open(file), dtype=float) for file in files])


def test_slerp_between_seeds(command, model):
    code, folder, text = command("interpolate", model, 3, 8, "--frames", 5, "--batch-size", 2)
    assert code == 0, text
    assert written(folder) == NO_MP4 | {f"frames/small/{i:03d}.png" for i in range(5)}
    images = ddim_sample(load(model), georeg.slerp(A, B, torch.linspace(0, 1, 5))[:, 0], 4)
    expected = ((images[:, 0] + 1) * 127.5).clamp(0, 255)
    np.testing.assert_allclose(frames_of(folder, "small"), expected.numpy(), atol=0.6)
    scores = json.loads((folder / "interpolation.json").read_text())
    assert scores["ends"] == ["seed 3", "seed 8"]
    found = scores["models"]["small"]
    distances = [float((b - a).norm()) for a, b in pairwise(images)]
    assert found["distances"] == pytest.approx(distances, rel=1e-4)
    assert found["variation"] == pytest.approx(np.std(distances) / np.mean(distances), rel=1e-4)
    assert "No MP4" in text
    with Image.open(folder / "interpolation.gif") as gif:
        assert gif.n_frames == 8  # there and back
        assert gif.size[0] >= 256
    assert (folder / "interpolation.png").read_bytes().startswith(b"\x89PNG")


def test_two_models_one_above_the_other(command, model, other):
    code, folder, text = command("interpolate", model, 3, 8, "--frames", 3, "--baseline", other)
    assert code == 0, text
    assert list(json.loads((folder / "interpolation.json").read_text())["models"]) == ["other", "small"]
    assert len(json.loads((folder / "run.json").read_text())["models"]) == 2
    assert not np.array_equal(frames_of(folder, "other"), frames_of(folder, "small"))
    code, _, text = command("interpolate", model, 3, 8, "--frames", 3, "--baseline", model, out="same")
    assert code == 0, text  # under names of their own
    names = list(json.loads((folder.parent / "same/interpolation.json").read_text())["models"])
    assert [name[-4:] for name in names] == [" (1)", " (2)"]


def test_a_baseline_of_another_size(command, model, tmp_path):
    network = diffusers.UNet2DModel(**{**dict(small_unet().config), "sample_size": 16})
    network.save_pretrained(tmp_path / "large")
    code, _, text = command("interpolate", model, 3, 8, "--frames", 3, "--baseline", tmp_path / "large")
    assert code == 2
    assert "--baseline: makes images of another size" in text


def test_the_geodesic_is_of_less_energy_in_h_than_the_slerp(command, model):
    code, folder, text = command("interpolate", model, 3, 8, "--frames", 5, "--path", "geodesic")
    assert code == 0, text
    assert written(folder) >= NO_MP4
    _, slerp, _ = command("interpolate", model, 3, 8, "--frames", 5, out="slerp")
    found, plain = frames_of(folder, "small"), frames_of(slerp, "small")
    assert np.array_equal(found[[0, -1]], plain[[0, -1]])
    assert np.abs(found[1:-1] - plain[1:-1]).max() > 1


SAVED = {
    "parallel": (A, 1.5 * A + 1e-6),
    "antipodal": (A, -A),
    "equal": (A, A),
    "zero": (0 * A, B),
    "nothing": (0 * A, 0 * B),
    "half": (A.half(), B.half()),
}


@pytest.mark.parametrize(
    ("name", "path"), [*((name, "slerp") for name in SAVED), ("antipodal", "geodesic"), ("nothing", "geodesic")]
)
def test_ends_that_are_no_ordinary_pair(command, model, tmp_path, name, path):
    """Also the ends: what is shown at both is what the model makes of them."""
    for end, latents in zip("ab", SAVED[name], strict=True):
        save_file({"latents": latents.contiguous()}, tmp_path / f"{end}.safetensors")
    files = [tmp_path / "a.safetensors", f"{tmp_path / 'b.safetensors'}:0"]
    code, folder, text = command("interpolate", model, *files, "--frames", 4, "--path", path, steps=2)
    assert code == 0, text
    ends = torch.cat(SAVED[name]).float()
    expected = ((ddim_sample(load(model), ends, 2)[:, 0] + 1) * 127.5).clamp(0, 255)
    np.testing.assert_allclose(frames_of(folder, "small")[[0, -1]], expected.numpy(), atol=0.6)


def test_an_image_is_inverted_and_comes_back(command, trained, tmp_path):
    diffusers.DDPMPipeline(trained, diffusers.DDPMScheduler(clip_sample=False)).save_pretrained(tmp_path / "digits")
    images = [tmp_path / "a.png", tmp_path / "b.png"]
    for pixels, file in zip(DIGITS, images, strict=False):
        Image.fromarray(((pixels[0] + 1) * 127.5).round().byte().numpy()).save(file)
    code, folder, text = command("interpolate", tmp_path / "digits", *images, "--frames", 2, "--refine", 10, steps=20)
    assert code == 0, text
    frames = frames_of(folder, "digits")
    for frame, image in zip(frames, images, strict=True):
        assert np.abs(frame - np.asarray(Image.open(image))).mean() < 3
    assert json.loads((folder / "interpolation.json").read_text())["ends"] == ["a.png", "b.png"]


def test_latents_of_another_model_are_noted(command, model, other):
    _, drawn, _ = command("sample", other, "--num-images", 2, "--save-latents", out="drawn")
    file = drawn / "latents.safetensors"
    code, folder, text = command("interpolate", model, f"{file}:1", file, "--frames", 2)
    assert code == 0, text
    assert "seed 1: was made with another model than small" in text
    assert json.loads((folder / "interpolation.json").read_text())["ends"] == ["seed 1", "seed 0"]


@pytest.mark.parametrize(
    "dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow), pytest.param("float64", marks=pytest.mark.slow)]
)
def test_precisions(command, model, dtype):
    code, folder, text = command("interpolate", model, 3, 8, "--frames", 3, "--path", "geodesic", "--dtype", dtype)
    assert code == 0, text
    _, single, _ = command("interpolate", model, 3, 8, "--frames", 3, out="single")
    np.testing.assert_allclose(frames_of(folder, "small")[0], frames_of(single, "small")[0], atol=16)


def test_conditions_and_hard_names(command, conditional):
    options = ["--frames", 2, "--class-label", 3]
    code, plain, text = command("interpolate", conditional, 3, 8, *options, out="plain")
    assert code == 0, text
    command("interpolate", conditional, 3, 8, *options, "--guidance-scale", 5, out="guided")
    assert not np.array_equal(frames_of(plain, "transformer"), frames_of(plain.parent / "guided", "transformer"))
    name = f"{conditional.parent.name}/x"
    rows, distances = {name: torch.zeros(3, 3, 8, 8)}, {name: torch.ones(2)}
    target = plain / "x.png"
    panels.strips(rows, distances, target, title="t", ends=("$a.png", "b$ [red].png" * 9), path="slerp")
    assert target.is_file()


@pytest.mark.parametrize(
    ("ends", "code", "message"),
    [
        (("1.5", "2"), 1, "A: 1.5 does not exist, expected an image"),
        (("1", "abc"), 1, "B: abc does not exist"),
        (("1", str(2**64)), 2, "B: got 18446744073709551616, expected a seed"),
        (("junk.png", "1"), 1, "A: cannot read"),
        (("1", "folder"), 1, "folder is not a file"),
        (("missing.safetensors", "1"), 1, "missing.safetensors does not exist"),
        (("shape.safetensors", "1"), 1, "expected latents of this model"),
        (("nan.safetensors", "1"), 1, "not finite"),
        (("a.safetensors:3", "1"), 2, "expected a row from 0 to 0"),
        (("a.safetensors", "1", "--frames", "1"), 2, "--frames"),
        (("a.safetensors", "1", "--path", "arc"), 2, "--path"),
        (("a.safetensors", "1", "--fps", "nan"), 2, "--fps"),
        (("a.safetensors", "1", "--baseline", "nowhere"), 1, "nowhere"),
        (("a.safetensors", "1", "--num-inference-steps", "1001"), 2, "--num-inference-steps"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(command, model, tmp_path, monkeypatch, ends, code, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junk.png").write_bytes(b"no image")
    (tmp_path / "folder").mkdir()
    save_file({"latents": A.contiguous()}, "a.safetensors")
    save_file({"latents": torch.zeros(1, 3, 4, 4)}, "shape.safetensors")
    save_file({"latents": A * float("nan")}, "nan.safetensors")
    found, folder, text = command("interpolate", model, *ends)
    assert (found, message in text) == (code, True), text
    assert not folder.exists() or "nowhere" in message


def test_negative_seeds(command, model):
    code, _, text = command("interpolate", model, "--frames", 2, "--", -1, 2)
    assert code == 2
    assert "A: got -1, expected a seed" in text


def test_latents_on_the_way_need_their_steps_and_each_other(command, model):
    _, drawn, _ = command("sample", model, "--num-images", 2, out="drawn")
    images = sorted((drawn / "images").iterdir())
    _, inverted, _ = command("invert", model, *images, "--portion", 0.5, out="inverted")
    a, b = sorted((inverted / "latents").iterdir())
    code, folder, text = command("interpolate", model, a, b, "--frames", 2, out="good")
    assert code == 0, text
    for i in range(2):
        again = np.asarray(Image.open(inverted / "reconstructions" / images[i].name), dtype=int)
        assert np.abs(again - frames_of(folder, "small")[i]).max() <= 1
    assert "different noise levels" in command("interpolate", model, a, 3)[2]
    assert "pass --num-inference-steps 4" in command("interpolate", model, a, b, steps=5)[2]


def test_again_after_an_interruption(command, model, monkeypatch):
    save = panels.save_gif
    monkeypatch.setattr(panels, "save_gif", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    code, folder, _ = command("interpolate", model, 3, 8, "--frames", 2)
    assert code == 130
    assert not json.loads((folder / "run.json").read_text())["finished"]
    monkeypatch.setattr(panels, "save_gif", save)
    assert command("interpolate", model, 3, 8, "--frames", 2)[0] == 0
    assert written(folder) >= NO_MP4
    code, _, text = command("interpolate", model, 3, 8, "--frames", 2)
    assert code == 2
    assert "--overwrite" in text
    assert command("interpolate", model, 3, 9, "--frames", 2, "--overwrite")[0] == 0


def encoder(folder, script):
    file = folder / "ffmpeg"
    file.write_text(f"#!/bin/sh\n{script}\n")
    os.chmod(file, 0o755)
    return str(file)


def test_mp4_where_there_is_an_encoder(command, model, tmp_path, monkeypatch):
    """The encoder gets every frame as raw bytes; its last argument is the file."""
    good = encoder(tmp_path, 'for last; do :; done\nwc -c > "$last"\necho "$@" >> "$last"')
    monkeypatch.setattr(panels, "encoder", lambda: good)
    code, folder, text = command("interpolate", model, 3, 8, "--frames", 3, "--fps", 5)
    assert code == 0, text
    said = (folder / "interpolation.mp4").read_text()
    width, height = Image.open(folder / "interpolation.gif").size
    assert int(said.split()[0]) == 3 * 3 * width * height
    assert f"-s {width}x{height} -r 5.0" in said
    assert width % 2 == height % 2 == 0
    monkeypatch.setattr(panels, "encoder", lambda: encoder(tmp_path, "echo no codec >&2; exit 3"))
    code, folder, text = command("interpolate", model, 3, 8, "--frames", 3, out="bad")
    assert code == 1
    assert "no codec" in text
    assert not (folder / "interpolation.mp4").exists()


def test_variation():
    assert panels.variation(torch.zeros(3)) == 0
    assert panels.variation(torch.tensor([2.0])) == 0
