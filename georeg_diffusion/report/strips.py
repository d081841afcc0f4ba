"""The images on ``evaluate``'s page: samples of each model from equal noise, and slerps between equal ends."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

import georeg
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.batches import batches
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.files import replacing
from georeg_diffusion.progress import progress
from georeg_diffusion.report.panels import as_array

SAMPLES, PAIRS, FRAMES = 16, 2, 9

_LARGEST = 128  # pixels of a side; larger images are averaged down, or a page would weigh megabytes


@dataclass(frozen=True)
class Strips:
    """Images of one model in [−1, 1].

    Attributes:
        samples: ``(N, C, H, W)``, image i from seed + i.
        paths: ``(P, S, C, H, W)``, the frames of each slerp.
    """

    samples: Tensor
    paths: Tensor


def strips(setting: Setting, title: str, *, deadline: float = math.inf) -> Strips | None:
    """Make the images, or take those that an earlier call kept in the setting's cache; None when out of time.

    The slerps have the ends of those of the same number in mRTL.

    Args:
        setting: the model.
        title: on the progress bar.
        deadline: by ``time.monotonic()``.

    Raises:
        RunError: images of neither one channel nor three, as a latent model without its codec makes; images that are
            not finite.
    """
    steps = setting.steps(20, 20)
    target = None
    if setting.cache is not None:
        text = f"{setting.key} {setting.seed} {steps} {SAMPLES} {PAIRS} {FRAMES}"
        target = setting.cache / f"strips-{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
        if target.is_file():
            try:
                kept = load_file(target)
                return Strips(kept["samples"], kept["paths"])
            except (OSError, SafetensorError, KeyError):
                pass  # damaged: made anew
    if setting.image_shape[0] not in (1, 3):
        raise RunError(f"images of {setting.image_shape[0]} channels cannot be shown, expected 1 or 3")
    rows = [*range(SAMPLES), *range(PAIRS * FRAMES)]
    made: list[Tensor] = []
    with progress(title, len(rows)) as bar, torch.no_grad():

        def make(part: list[int], decode: Callable[[list[int]], Tensor]) -> bool:
            for batch in batches(part, setting.batch_size):
                if time.monotonic() >= deadline:
                    return False
                made.append(_small(decode(batch)))
                bar.advance(steps=len(batch))
            return True

        is_done = make(rows[:SAMPLES], lambda batch: setting.sample([setting.seed + i for i in batch], steps))
        is_done = is_done and make(rows[SAMPLES:], lambda batch: _frames(setting, batch, steps))
    if not is_done:
        return None
    images = torch.cat(made)
    if not bool(torch.isfinite(images).all()):
        raise RunError("images hold NaN or infinite pixels; try --dtype float32")
    found = Strips(images[:SAMPLES], images[SAMPLES:].unflatten(0, (PAIRS, FRAMES)))
    if target is not None:
        with replacing(target) as scratch:
            save_file({"samples": found.samples.contiguous(), "paths": found.paths.contiguous()}, scratch)
    return found


def _frames(setting: Setting, rows: list[int], steps: int) -> Tensor:
    """Frame i mod S of slerp i div S."""
    points = []
    for row in rows:
        (draw,) = setting.draws([row // FRAMES])
        ends = torch.randn(2, 1, *setting.bundle.sample_shape, generator=draw).double()
        at = torch.tensor([row % FRAMES / (FRAMES - 1)], dtype=torch.float64)
        points.append(georeg.slerp(ends[0], ends[1], at)[0])
    x = torch.cat(points).to(setting.device, setting.precision)
    return setting.bundle.decode(setting.decode(x, [setting.seed + row // FRAMES for row in rows], steps))


def _small(images: Tensor) -> Tensor:
    images = images.float().cpu()
    side = max(images.shape[-2:])
    if side <= _LARGEST:
        return images
    scale = _LARGEST / side
    return interpolate(images, size=[max(round(one * scale), 1) for one in images.shape[-2:]], mode="area")


def data_uri(image: Tensor) -> str:
    """A picture ``(C, H, W)`` in [−1, 1] as a PNG inside a ``data:`` address.

    Example:
        >>> import torch
        >>> from georeg_diffusion.report.strips import data_uri
        >>> data_uri(torch.zeros(1, 2, 2))[:22]
        'data:image/png;base64,'
    """
    with io.BytesIO() as buffer:
        Image.fromarray(as_array(image)).save(buffer, format="png", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
