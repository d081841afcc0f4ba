"""Stable Diffusions of a few thousand weights, with a tokenizer of letters and text encoders of two layers."""

import json

import torch
import transformers

from georeg_diffusion._compat import diffusers
from tests.georeg_diffusion.networks import condition, sd3, vae


def tokenizer(folder):
    """CLIP's, whose every token is a letter."""
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789,.")
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=8)


def text_encoder(words, *, width=6, projection=None):
    """CLIP's text transformer; with a projection as Stable Diffusion 3 has two of."""
    size = len(words)
    config = transformers.CLIPTextConfig(
        vocab_size=size, hidden_size=width, intermediate_size=8, num_hidden_layers=2, num_attention_heads=1,
        max_position_embeddings=8, bos_token_id=size - 2, eos_token_id=size - 1, pad_token_id=size - 1,
        projection_dim=projection or width,
    )  # fmt: skip
    kind = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return kind(config).eval()


def stable_diffusion(folder, *, channels=3):
    """The pipeline, 16 × 16 pixels, latents of 2 × 8 × 8."""
    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae(in_channels=channels, out_channels=channels),
        text_encoder=text_encoder(words),
        tokenizer=words,
        unet=condition(),
        scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stable_diffusion_3(folder):
    """Of version 3, by flow matching, without its third text encoder."""
    torch.manual_seed(0)
    words = tokenizer(folder / "words")
    pipeline = diffusers.StableDiffusion3Pipeline(
        transformer=sd3(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(in_channels=3, out_channels=3, shift_factor=0.1),
        text_encoder=text_encoder(words, width=3, projection=2),
        tokenizer=words,
        text_encoder_2=text_encoder(words, width=3, projection=3),
        tokenizer_2=words,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
