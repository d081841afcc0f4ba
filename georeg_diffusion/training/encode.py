"""What is computed once before training and kept on disk: latents of the images, embeddings of their captions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from georeg_diffusion.bundle import Bundle
from georeg_diffusion.codec import encode, stride_of
from georeg_diffusion.data.images import Images
from georeg_diffusion.data.latents import Latents
from georeg_diffusion.data.rows import Rows, write_rows
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.weights import weights_hash
from georeg_diffusion.progress import console

_BATCH = 16


def cached_latents(images: Images, codec: Any, cache: Path, accelerator: Any) -> Latents:
    """The latents of images, the centre of each, encoded where they are not in the cache yet.

    The folder is named after a hash of the autoencoder's weights and scaling, of the images and of their size: another
    autoencoder never meets another's latents. The autoencoder works in its own precision and without a graph.

    Args:
        images: in pixels.
        codec: the autoencoder.
        cache: folder of all caches.
        accelerator: whose processes share the work, each on its device.

    Raises:
        UsageError: a resolution that the autoencoder cannot halve often enough.
        RunError: latents that are not finite.
    """
    stride = stride_of(codec)
    if images.resolution % stride:
        lower = images.resolution // stride * stride
        raise UsageError(
            f"--resolution: got {images.resolution}, expected a multiple of the autoencoder's stride {stride}, such as "
            f"{lower or stride} or {lower + stride}"
        )
    settings = {k: v for k, v in sorted(dict(codec.config).items()) if not k.startswith("_")}
    flips = 2 if images.random_flip else 1
    key = _hash(
        weights_hash(codec), settings, images.fingerprint(), images.resolution, images.channels, flips, str(codec.dtype)
    )
    moments = torch.zeros(3, dtype=torch.float64)

    @torch.no_grad()
    def make(rows: range) -> dict[str, Tensor]:
        pixels = images.batch(rows)
        both = torch.stack([pixels, pixels.flip(-1)][:flips], dim=1)
        latents = encode(codec, both.flatten(0, 1).to(accelerator.device)).float().cpu()
        bad = (~torch.isfinite(latents.flatten(1)).all(1)).nonzero().flatten()
        if len(bad):
            precision = str(codec.dtype).removeprefix("torch.")
            raise RunError(
                f"--vae: the latents of image {rows[int(bad[0]) // flips]} of {images.name} are not finite; expected "
                f"numbers (some autoencoders overflow in half precision; this one is in {precision})"
            )
        moments.add_(torch.tensor([latents.numel(), latents.double().sum(), latents.double().square().sum()]))
        return {"latents": latents.unflatten(0, (len(rows), flips))}

    with _placed([codec], accelerator.device):
        note = {"images": images.name, "resolution": images.resolution}
        rows = _write(cache / f"latents-{key}", len(images), make, "Encoding images", accelerator, note)
    count, total, squares = moments.tolist()
    deviation = (squares / count - (total / count) ** 2) ** 0.5 if count else 1.0
    if not 0.25 < deviation < 4 and accelerator.is_main_process:
        console.print(
            f"[yellow]Warning:[/] the latents' standard deviation is {deviation:.2g}, and the noise schedule expects about "
            f"1: the autoencoder's scaling_factor, {settings.get('scaling_factor')}, should be "
            f"{float(settings.get('scaling_factor') or 1) / max(deviation, 1e-12):.3g} (in its config.json)"
        )
    return Latents(images, rows)


def cached_prompts(prompts: Sequence[str], bundle: Bundle, cache: Path, accelerator: Any) -> Rows:
    """Embedded prompts, row i for prompt i, computed where they are not in the cache yet.

    The folder is named after a hash of the text encoders' weights, the tokenizers' vocabularies and the prompts.

    Args:
        prompts: to embed.
        bundle: the model with its text encoders.
        cache: folder of all caches.
        accelerator: whose processes share the work, each on its device.

    Raises:
        RunError: a model without text encoder.
    """
    encoders = [
        part for name, part in sorted(bundle.components.items()) if name.startswith("text_encoder") and part is not None
    ]
    words = [
        sorted(part.get_vocab().items())
        for name, part in sorted(bundle.components.items())
        if name.startswith("tokenizer") and hasattr(part, "get_vocab")
    ]
    modules = [part for part in encoders if isinstance(part, nn.Module)]
    key = _hash(*(weights_hash(part) for part in modules), words, list(prompts))

    def make(rows: range) -> dict[str, Tensor]:
        embedded = bundle.conditioning([prompts[i] for i in rows])
        return {name: value.float().cpu() for name, value in embedded.items()}

    with _placed(modules, accelerator.device):
        return _write(cache / f"prompts-{key}", len(prompts), make, "Embedding captions", accelerator)


def _write(folder: Path, count: int, make: Any, title: str, accelerator: Any, note: dict[str, Any] | None = None) -> Rows:
    part = (accelerator.process_index, accelerator.num_processes)
    return write_rows(
        folder, count, make, title=title, batch_size=_BATCH, note=note, part=part, wait=accelerator.wait_for_everyone
    )


class _placed:  # noqa: N801 (used as a statement)
    """Modules on a device for a while, then back on the host: the training needs the memory."""

    def __init__(self, modules: Sequence[nn.Module], device: Any) -> None:
        self.modules, self.device = modules, device

    def __enter__(self) -> None:
        for module in self.modules:
            module.to(self.device)

    def __exit__(self, *_: object) -> None:
        for module in self.modules:
            module.to("cpu")


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:32]
