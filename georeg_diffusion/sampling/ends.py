"""What a user names as a latent: a seed, an image file, or saved latents."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from georeg_diffusion.denoiser import Denoiser
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.sampling.ddim import ddim_steps
from georeg_diffusion.sampling.images import read_image
from georeg_diffusion.sampling.inversion import ddim_invert
from georeg_diffusion.sampling.latents import load_latents
from georeg_diffusion.sampling.noise import seeded_noise

_SAVED = re.compile(r"(?P<file>.+\.safetensors)(?::(?P<row>\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class End:
    """A latent ``(1, C, H, W)`` with the step from which it is sampled, and a name for pictures.

    Attributes:
        latents: x_t.
        start: the first step that is left; 0 for x_T.
        name: such as ``"seed 3"``.
        model: hash of the model it was made with, where the file says so.

    Example:
        >>> import torch
        >>> from georeg_diffusion.sampling.ends import End
        >>> End(torch.zeros(1, 1, 8, 8), 0, "seed 3").model is None
        True
    """

    latents: Tensor
    start: int
    name: str
    model: str | None = None


def end_of(text: str, denoiser: Denoiser, num_steps: int, *, option: str, refine: int = 0) -> End:
    """The latent that ``text`` names.

    A whole number is a seed, ``FILE.safetensors`` saved latents (their first row, or row N of ``FILE.safetensors:N``),
    anything else an image file, which is inverted.

    Args:
        text: what the user wrote.
        denoiser: of the model, with its conditions.
        num_steps: of DDIM.
        option: for errors.
        refine: refinements of each step of an inversion.

    Raises:
        UsageError: a negative seed; a row that is not there; latents on the way, saved with other steps.
        RunError: a file that cannot be read.

    Example:
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.sampling.ends import end_of
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> end_of("3", Denoiser(Bundle(unet, diffusers.DDPMScheduler())), 10, option="A").name
        'seed 3'
    """
    bundle = denoiser.bundle
    device = next(bundle.network.parameters()).device
    if re.fullmatch(r"-?\d+", text):
        if int(text) < 0 or int(text) >= 2**63:
            raise UsageError(f"{option}: got {text}, expected a seed from 0 to 2⁶³ − 1, an image file or saved latents")
        return End(seeded_noise(bundle.sample_shape, [int(text)]).to(device), 0, f"seed {int(text)}")
    if (match := _SAVED.fullmatch(text)) is not None:
        rows, info = load_latents(Path(match["file"]), bundle.sample_shape)
        row = int(match["row"] or 0)
        if row >= len(rows):
            raise UsageError(
                f"{option}: {match['file']} holds {len(rows)} latents, expected a row from 0 to {len(rows) - 1}"
            )
        start = info.start if info else 0
        if info is not None and start and info.num_inference_steps != num_steps:
            raise UsageError(
                f"{option}: {match['file']} holds latents on the way, after {start} of {info.num_inference_steps} steps; "
                f"pass --num-inference-steps {info.num_inference_steps}"
            )
        name = info.sources[row] if info and row < len(info.sources) else f"{Path(match['file']).stem}:{row}"
        return End(rows[row : row + 1].to(device).float(), start, name, info.model if info else None)
    try:
        image = read_image(text, bundle)
    except RunError as error:
        raise RunError(f"{option}: {error}") from error
    steps = ddim_steps(bundle.scheduler, num_steps)
    found = ddim_invert(denoiser, steps, bundle.encode(image.to(device)), refine=refine)
    return End(found.latents, found.start, Path(text).name)
