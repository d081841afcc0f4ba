"""Any scheduler, each sample from its own seed; latents and images on disk."""

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from georeg_diffusion import Bundle, Denoiser
from georeg_diffusion._compat import diffusers
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.sampling.images import image_shape, read_image
from georeg_diffusion.sampling.latents import LatentsInfo, load_latents, save_latents
from georeg_diffusion.sampling.noise import seeded_noise
from georeg_diffusion.sampling.samplers import sample_latents, scheduler_class

NAMES = ["ddim", "ddpm", "dpmsolver", "euler", "euler-ancestral", "heun", "unipc", "pndm", "lms", "deis", "LCMScheduler"]


@pytest.fixture
def denoiser(unet):
    return Denoiser(Bundle(unet, diffusers.DDPMScheduler()))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(denoiser, name):
    together = sample_latents(denoiser, [3, 4, 5], 4, scheduler=name)
    alone = sample_latents(denoiser, [4], 4, scheduler=name)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:2], b, rtol=1e-4, atol=1e-4)
    assert bool(torch.isfinite(together[1]).all())
    assert torch.equal(together[0], seeded_noise((1, 8, 8), [3, 4, 5]))


def test_eta_adds_noise_that_follows_from_the_seed(denoiser):
    plain, noisy, again = (sample_latents(denoiser, [0], 4, eta=eta)[1] for eta in (0, 1, 1))
    assert torch.equal(noisy, again)
    assert not torch.allclose(plain, noisy)
    with pytest.raises(UsageError, match="--eta"):
        sample_latents(denoiser, [0], 4, eta=0.5, scheduler="euler")


def test_ddim_is_that_of_diffusers(denoiser):
    scheduler = diffusers.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    noise, found = sample_latents(denoiser, [7], 10)
    x = noise
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t), t, x).prev_sample
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_wrong_schedulers(denoiser):
    with pytest.raises(UsageError, match="expected ddim, ddpm"):
        scheduler_class("nope")
    with pytest.raises(UsageError, match="diffusion"):
        sample_latents(denoiser, [0], 4, scheduler="FlowMatchEulerDiscreteScheduler")
    for name in ("ddim", "ddpm"):
        with pytest.raises(UsageError, match="1001"):
            sample_latents(denoiser, [0], 1001, scheduler=name)
    assert len(sample_latents(denoiser, [], 4)[1]) == 0


def test_latents_on_disk(tmp_path):
    file, x = tmp_path / "x.safetensors", torch.randn(2, 1, 8, 8)
    info = LatentsInfo("abc", 30, 4, "ddim", ("seed 0", "b.png"))
    save_latents(file, x, info)
    found, read = load_latents(file, (1, 8, 8))
    assert torch.equal(found, x)
    assert read == info
    save_file({"z": x[0]}, file)
    assert load_latents(file, (1, 8, 8))[0].shape == (1, 1, 8, 8)
    assert load_latents(file, (1, 8, 8))[1] is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"latents": torch.zeros(1, 3, 8, 8)}, r"\(1, 3, 8, 8\)"),
        ({"latents": torch.full((1, 1, 8, 8), float("nan"))}, "not finite"),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, "expected one named latents"),
        ({"latents": torch.zeros(0, 1, 8, 8)}, "expected latents"),
        ({"latents": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, "int64"),
        (None, "does not exist"),
        (b"no such thing", "cannot read"),
    ],
)
def test_wrong_latents(tmp_path, content, message):
    file = tmp_path / "x.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save_file(content, file)
    with pytest.raises(RunError, match=message):
        load_latents(file, (1, 8, 8))


def test_images_of_any_kind_are_read(tmp_path, unet):
    bundle = Bundle(unet, diffusers.DDPMScheduler())
    assert image_shape(bundle) == (1, 8, 8)
    wide = Image.new("RGB", (30, 10), "black")
    wide.paste("white", (10, 0, 20, 10))  # the centre, which is what is kept
    wide.save(tmp_path / "wide.png")
    pixels = read_image(tmp_path / "wide.png", bundle)
    assert pixels.shape == (1, 1, 8, 8)
    assert float(pixels[..., 2:6].mean()) > 0.95
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no")
    for name in ("broken.png", "missing.png"):
        with pytest.raises(RunError, match=name):
            read_image(tmp_path / name, bundle)
