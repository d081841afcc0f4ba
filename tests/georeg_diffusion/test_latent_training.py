"""train --vae: latents cached once, nothing through the autoencoder, a pipeline that plain diffusers loads."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from skimage.data import lfw_subset

from georeg_diffusion._compat import diffusers
from georeg_diffusion.bundle import Bundle, load
from georeg_diffusion.codec import load_codec, stride_of
from georeg_diffusion.data.folder import ImageFolder
from georeg_diffusion.data.rows import Rows, write_rows
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.denoising import denoising_loss
from georeg_diffusion.training.encode import cached_latents
from georeg_diffusion.training.log import read_log
from tests.georeg_diffusion.conftest import cli, error_of
from tests.georeg_diffusion.networks import plain, vae, vq

ALONE = SimpleNamespace(process_index=0, num_processes=1, device="cpu", is_main_process=True, wait_for_everyone=lambda: None)
QUICK = ["--logging-steps", 1, "--report-to", "none", "--cpu", "--train-batch-size", 4, "--no-evaluate"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine real face crops of 25 × 25, grey."""
    place = tmp_path_factory.mktemp("data") / "faces"
    place.mkdir()
    for i, face in enumerate(lfw_subset()[:9]):
        Image.fromarray((face * 255).astype(np.uint8)).save(place / f"{i}.png")
    return place


@pytest.fixture(scope="module")
def trained_vae(tmp_path_factory, folder):
    """An AutoencoderKL that has seen these faces for a moment, with the scale of its latents."""
    torch.manual_seed(0)
    codec = vae().train()
    pixels = ImageFolder(folder, 16, channels=1).batch(range(9))
    optimizer = torch.optim.Adam(codec.parameters(), lr=1e-2)
    for _ in range(30):
        posterior = codec.encode(pixels).latent_dist
        loss = (codec.decode(posterior.sample()).sample - pixels).square().mean() + 1e-3 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        codec.register_to_config(scaling_factor=1 / float(codec.encode(pixels).latent_dist.mode().std()))
    place = tmp_path_factory.mktemp("vae") / "kl"
    codec.eval().save_pretrained(place)
    return place


def images(folder, **kwargs):
    return ImageFolder(folder, 16, channels=1, **kwargs)


@pytest.mark.parametrize("make", [vae, vq])
def test_cached_latents_are_the_encodings_of_the_image_and_of_its_mirror_image(tmp_path, folder, make):
    torch.manual_seed(0)
    codec = make().requires_grad_(False)
    pixels = images(folder).batch(range(9))
    latents = cached_latents(images(folder), codec, tmp_path, ALONE)
    with torch.no_grad():
        for flipped, row in ((pixels, 0), (pixels.flip(-1), 1)):
            out = codec.encode(flipped)
            z = out.latent_dist.mode() if make is vae else out.latents
            expected = z * codec.config.scaling_factor
            got = torch.stack([latents.rows[i]["latents"][row] for i in range(9)])
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert (latents.channels, latents.resolution, len(latents), latents.name) == (2, 8, 9, "faces")
    assert torch.equal(latents.image(3), latents.rows[3]["latents"][0])
    drawn = {latents.image(0, np.random.default_rng(i)).sum().item() for i in range(20)}
    assert len(drawn) == 2
    still = cached_latents(images(folder, random_flip=False), codec, tmp_path, ALONE)
    assert still.rows[0]["latents"].shape == (1, 2, 8, 8)


def test_latents_are_encoded_once_and_never_taken_from_another_autoencoder(tmp_path, folder):
    torch.manual_seed(0)
    codec, calls = vae(), []
    codec.register_forward_pre_hook(lambda *a: calls.append(1))
    codec.encode = lambda x, _encode=codec.encode: (calls.append(len(x)), _encode(x))[1]
    first = cached_latents(images(folder), codec, tmp_path, ALONE)
    assert calls
    calls.clear()
    again = cached_latents(images(folder), codec, tmp_path, ALONE)
    assert not calls
    assert torch.equal(first.image(2), again.image(2))
    codec.register_to_config(scaling_factor=0.25)
    torch.testing.assert_close(cached_latents(images(folder), codec, tmp_path, ALONE).image(2), first.image(2) / 2)
    other = cached_latents(images(folder), vae(), tmp_path, ALONE)
    assert not torch.equal(other.image(2), first.image(2))
    Image.new("L", (25, 25), 200).save(folder.parent / "one.png")
    assert len({place.name for place in tmp_path.iterdir()}) == 3


def test_shards_that_are_whole_survive_an_interruption(tmp_path):
    made = []

    def make(rows):
        made.extend(rows)
        if 7 in rows and len(made) < 30:
            raise KeyboardInterrupt
        return {"x": torch.arange(rows.start, rows.stop).float()[:, None].expand(-1, 2**22)}  # 16 MiB a row

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / "r", 9, make, title="rows", batch_size=2)
    with pytest.raises(RunError, match=r"cannot read .*index.json"):
        Rows(tmp_path / "r")
    whole = sorted(file.name for file in (tmp_path / "r").glob("rows-*"))
    assert len(whole) == 1
    made.extend(range(100, 130))
    (tmp_path / "r" / "rows-00002.safetensors").write_bytes(b"torn")
    before = len(made)
    rows = write_rows(tmp_path / "r", 9, make, title="rows", batch_size=2)
    assert made[before:] == [0, 4, 5, 6, 7, 8]  # row 0 to learn the size, then what was not there
    assert [float(rows[i]["x"][0]) for i in range(9)] == list(range(9))
    with pytest.raises(IndexError):
        rows[9]
    used = psutil.Process().memory_info().rss
    for i in range(9):
        rows[i]
    assert psutil.Process().memory_info().rss - used < 2**26


def test_processes_share_the_shards(tmp_path):
    def make(rows):
        return {"x": torch.arange(rows.start, rows.stop).float()[:, None].expand(-1, 2**23)}

    # The second process of two writes every other shard; the first writes the rest and the index.
    with pytest.raises(RunError):
        write_rows(tmp_path, 6, make, title="rows", part=(1, 2))
    assert len(list(tmp_path.glob("rows-*"))) == 1
    rows = write_rows(tmp_path, 6, make, title="rows", part=(0, 2))
    assert len(list(tmp_path.glob("rows-*"))) == 3
    assert float(rows[5]["x"][7]) == 5


@pytest.mark.parametrize("kind", ["AutoencoderKL", "VQModel in a pipeline"])
def test_train_on_latents_saves_a_pipeline_that_plain_diffusers_samples_from(tmp_path, folder, trained_vae, kind):
    place = trained_vae
    if kind != "AutoencoderKL":
        torch.manual_seed(1)
        place = tmp_path / "ldm"
        diffusers.LDMPipeline(vq(), plain(), diffusers.DDIMScheduler()).save_pretrained(place)
    arguments = ["train", *QUICK, "--train-data-dir", folder, "--vae", place, "--resolution", 16, "--max-train-steps", 3,
                 "--output-dir", tmp_path / "out", "--cache-dir", tmp_path / "cache"]  # fmt: skip
    assert cli(*arguments) == 0
    pipeline = diffusers.LDMPipeline.from_pretrained(tmp_path / "out" / "isometric")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(batch_size=2, num_inference_steps=2).images[0].size == (16, 16)
    before = load_codec(str(place)).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pipeline.vqvae.state_dict().items())
    assert pipeline.scheduler.config.clip_sample is False
    assert any(entry["isometry"] > 0 for entry in read_log(tmp_path / "out/logs/isometric.jsonl"))
    bundle = load(tmp_path / "out" / "isometric")
    assert bundle.sample_shape == (2, 8, 8)
    assert type(bundle.codec).__name__ == kind.split()[0]
    # Another run goes on from there, finds its autoencoder in the pipeline, and the latents in the cache.
    cached = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")}
    assert cli("train", *QUICK, "--train-data-dir", folder, "--pretrained-model-name-or-path", tmp_path / "out/isometric",
               "--max-train-steps", 1, "--cache-dir", tmp_path / "cache",
               "--output-dir", tmp_path / "more") == 0  # fmt: skip
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.safetensors")} == cached


@pytest.mark.slow
def test_two_processes_share_the_encoding_the_sampling_and_the_choice(tmp_path, folder, trained_vae):
    """Latents, validation images and the training of two processes are those of one."""
    shared = ["train", "--train-data-dir", folder, "--vae", trained_vae, "--resolution", 16, "--max-train-steps", 3,
              "--logging-steps", 1, "--report-to", "none", "--cpu", "--no-evaluate", "--validation-steps", 1,
              "--select-by", "denoising", "--num-validation-images", 9]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29631", "-m"]
    command = [*launch, "georeg_diffusion", *shared, "--train-batch-size", 2, "--output-dir", tmp_path / "two"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment)
    assert cli(*shared, "--train-batch-size", 4, "--output-dir", tmp_path / "one") == 0
    logs = [read_log(tmp_path / name / "logs" / "isometric-validation.jsonl") for name in ("one", "two")]
    assert [entry["best"] for entry in logs[0]] == [entry["best"] for entry in logs[1]]
    for first, second in zip(*logs, strict=True):
        assert first["denoising"] == pytest.approx(second["denoising"], rel=1e-4)
    one, two = (load(tmp_path / name / "isometric").network.state_dict() for name in ("one", "two"))
    # Three Adam steps of 1e-4 enlarge rounding where a gradient is all but zero; other draws would be 3e-4 apart.
    assert max((one[name] - two[name]).abs().max() for name in one) < 5e-5


def test_base_and_isometric_start_from_one_latent_model(tmp_path, folder, trained_vae):
    assert cli("train", *QUICK, "--train-data-dir", folder, "--vae", trained_vae, "--resolution", 16, "--with-baseline",
               "--max-train-steps", 1, "--output-dir", tmp_path / "out") == 0  # fmt: skip
    for name in ("pretrained", "base", "isometric"):
        assert load(tmp_path / "out" / name).codec is not None


def test_the_denoising_loss_of_a_latent_model_is_that_of_its_network_on_latents(folder):
    torch.manual_seed(0)
    network, codec = plain(), vae()
    pixels = images(folder).batch(range(9))
    whole = Bundle(network, diffusers.DDPMScheduler(), codec=codec)
    alone = denoising_loss(Bundle(network, diffusers.DDPMScheduler()), whole.encode(pixels).detach(), seed=3)
    assert denoising_loss(whole, pixels, seed=3).value == pytest.approx(alone.value, rel=1e-5)


@pytest.mark.slow
def test_latent_models_are_scored_and_drawn(tmp_path, folder, trained_vae):
    arguments = [*QUICK[:-1], "--train-data-dir", folder, "--vae", trained_vae, "--resolution", 16, "--max-train-steps", 1]
    assert cli("train", *arguments, "--output-dir", tmp_path / "out") == 0
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())["models"]["isometric"]
    assert {"denoising", "isometry", "mcn", "vor", "mrtl"} <= set(scores)
    assert Image.open(tmp_path / "out" / "samples.png").size[0] > 600
    # d of the latents, 2 × 8 × 8 on a sphere
    assert "d = 127" in scores["isometry"]["protocol"]


def test_the_scale_of_latents_is_checked(tmp_path, folder, capsys):
    torch.manual_seed(0)
    cached_latents(images(folder), vae(scaling_factor=1e4), tmp_path, ALONE)
    assert "scaling_factor, 10000.0, should be" in " ".join(capsys.readouterr().out.split())


def test_latents_that_are_not_finite_are_never_kept(tmp_path, folder):
    codec = vae()
    with torch.no_grad():
        codec.quant_conv.bias[0] = torch.inf
    with pytest.raises(RunError, match="the latents of image 0 of faces are not finite; .* in float32"):
        cached_latents(images(folder), codec, tmp_path, ALONE)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_strides():
    assert stride_of(vae()) == stride_of(vq()) == 2
    assert stride_of(diffusers.AutoencoderTiny()) == 8


def test_autoencoders_that_do_not_serve(tmp_path, capsys, folder, trained_vae):
    (tmp_path / "empty").mkdir()
    plain().save_pretrained(tmp_path / "unet")
    for place, message in (
        (tmp_path / "empty", "no config.json in it, in vae or in vqvae; expected AutoencoderKL"),
        (tmp_path / "unet", "it holds a UNet2DModel"),
        ("nowhere", "nowhere is not a folder, nor a hub id"),
    ):
        code, error = error_of(capsys, *QUICK, "--train-data-dir", folder, "--vae", place, "--output-dir", tmp_path / "o")
        assert code == 1
        assert message in error
    torch.save(vae().state_dict(), tmp_path / "empty" / "diffusion_pytorch_model.bin")
    vae().save_config(tmp_path / "empty")
    with pytest.raises(RunError, match="--vae: cannot load"):
        load_codec(str(tmp_path / "empty"))
    code, error = error_of(
        capsys, *QUICK, "--train-data-dir", folder, "--vae", trained_vae, "--resolution", 15, "--output-dir", tmp_path / "o"
    )
    assert code == 2
    assert "--resolution: got 15, expected a multiple of the autoencoder's stride 2, such as 14 or 16" in error
    with pytest.raises(UsageError, match="stride 2"):
        cached_latents(ImageFolder(folder, 9, channels=1), vae(), tmp_path, ALONE)
