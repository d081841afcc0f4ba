"""A small network of every family, with a batch of its inputs."""

import torch

from georeg_diffusion._compat import diffusers


def adm(**kwargs):
    """Class-conditional with attention, scale-shift norms and ten classes, as ADM."""
    return diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        block_out_channels=(8, 16),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        **{"in_channels": 2, "out_channels": 2, "num_class_embeds": 10, **kwargs},
    ).eval()


def plain(**kwargs):
    """An unconditional U-Net."""
    return adm(num_class_embeds=None, **kwargs)


def condition(**kwargs):
    """Stable Diffusion's U-Net: cross-attention to tokens of 6 numbers."""
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=2,
        out_channels=2,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        block_out_channels=(8, 16),
        cross_attention_dim=6,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **kwargs,
    ).eval()


def dit(**kwargs):
    """Ten classes, a learned variance, three blocks."""
    network = diffusers.DiTTransformer2DModel(
        sample_size=8,
        patch_size=2,
        num_attention_heads=2,
        attention_head_dim=4,
        **{"in_channels": 2, "out_channels": 4, "num_layers": 3, "num_embeds_ada_norm": 10, **kwargs},
    )
    return network.eval()


def sd3(**kwargs):
    """Three joint blocks; text tokens of 6 numbers, pooled text of 5."""
    options = {"num_layers": 3, **kwargs}
    return diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=2,
        out_channels=2,
        num_attention_heads=2,
        attention_head_dim=4,
        joint_attention_dim=6,
        caption_projection_dim=8,
        pooled_projection_dim=5,
        pos_embed_max_size=8,
        **options,
    ).eval()


NETWORKS = {"unet2d": plain, "adm": adm, "unet2d_condition": condition, "dit": dit, "sd3": sd3}


def conditioning_of(name, batch, seed=0):
    """What the network of that name needs, random, a row for each sample."""
    g = torch.Generator().manual_seed(seed)
    labels = {"class_labels": torch.randint(10, (batch,), generator=g)}
    text = {"encoder_hidden_states": torch.randn(batch, 4, 6, generator=g)}
    pooled = {"pooled_projections": torch.randn(batch, 5, generator=g)}
    return {"unet2d": {}, "adm": labels, "unet2d_condition": text, "dit": labels, "sd3": {**text, **pooled}}[name]


def latents(batch, seed=1):
    """x_t and t of each sample."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 2, 8, 8, generator=g), torch.randint(1000, (batch,), generator=g)


def vae(**kwargs):
    """AutoencoderKL from one channel at 16² to two at 8²."""
    return diffusers.AutoencoderKL(
        latent_channels=2,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **{"in_channels": 1, "out_channels": 1, "scaling_factor": 0.5, **kwargs},
    ).eval()


def vq(**kwargs):
    """VQModel of the same shape."""
    return diffusers.VQModel(
        in_channels=1,
        out_channels=1,
        latent_channels=2,
        num_vq_embeddings=16,
        layers_per_block=1,
        norm_num_groups=4,
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **{"scaling_factor": 2.0, **kwargs},
    ).eval()
