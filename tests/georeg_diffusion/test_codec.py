import pytest
import torch

from georeg_diffusion import Bundle
from georeg_diffusion._compat import diffusers
from tests.georeg_diffusion.networks import plain, vae, vq


@pytest.fixture
def images():
    return torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def bundle_with(codec):
    return Bundle(plain(), diffusers.DDPMScheduler(), codec=codec)


def test_the_codec_scales_and_shifts_as_diffusers_pipelines_do(images):
    codec = vae(scaling_factor=0.5, shift_factor=0.25)
    latents = bundle_with(codec).encode(images)
    mean = codec.encode(images).latent_dist.mean
    torch.testing.assert_close(latents, (mean - 0.25) * 0.5)
    by_hand = codec.decode(latents / 0.5 + 0.25).sample.clamp(-1, 1)
    torch.testing.assert_close(bundle_with(codec).decode(latents), by_hand)


def test_a_vq_codec_quantises_only_on_the_way_back(images):
    codec = vq()
    latents = bundle_with(codec).encode(images)
    torch.testing.assert_close(latents, 2.0 * codec.encode(images).latents)
    assert latents.shape == (3, 2, 8, 8)
    by_hand = codec.decode(latents / 2.0).sample.clamp(-1, 1)
    torch.testing.assert_close(bundle_with(codec).decode(latents), by_hand)


def test_other_autoencoders_keep_their_own_names(images):
    tiny = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), in_channels=1, out_channels=1, latent_channels=2,
    )  # fmt: skip
    bundle = bundle_with(tiny)
    assert bundle.decode(bundle.encode(images)).shape == images.shape


def test_without_a_codec_pixels_are_latents(images):
    bundle = Bundle(plain(), diffusers.DDPMScheduler())
    assert bundle.encode(images) is images
    assert torch.equal(bundle.decode(images), images)
    assert bundle.decode(3 * images).abs().max() == 1


def test_half_precision_codecs_answer_in_the_images_precision(images):
    codec = vae()
    exact = bundle_with(codec).encode(images)
    latents = bundle_with(codec.to(torch.bfloat16)).encode(images)
    assert latents.dtype == torch.float32
    assert 0 < (latents - exact).abs().max() < 0.05 * exact.abs().max()
    assert bundle_with(codec).decode(latents).dtype == torch.float32
