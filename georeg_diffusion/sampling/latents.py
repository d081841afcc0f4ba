"""Latents on disk, with what it takes to sample from them again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from georeg_diffusion.errors import RunError
from georeg_diffusion.files import replacing


@dataclass(frozen=True)
class LatentsInfo:
    """Where latents come from.

    Attributes:
        model: SHA-256 of the network's weights.
        num_inference_steps: of the sampler or the inversion.
        start: the step from which sampling leads on; 0 for x_T.
        scheduler: such as ``"ddim"``.
        sources: a name for each row, such as ``"seed 3"`` or an image file.

    Example:
        >>> from georeg_diffusion.sampling.latents import LatentsInfo
        >>> LatentsInfo(model="3f…", num_inference_steps=50).start
        0
    """

    model: str
    num_inference_steps: int
    start: int = 0
    scheduler: str = "ddim"
    sources: tuple[str, ...] = ()


def save_latents(target: Path, latents: Tensor, info: LatentsInfo) -> None:
    """Write latents ``(B, C, H, W)`` as safetensors, whole or not at all.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from georeg_diffusion.sampling.latents import LatentsInfo, load_latents, save_latents
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_latents(Path(folder) / "x.safetensors", torch.zeros(2, 1, 8, 8), LatentsInfo("3f…", 50))
        ...     latents, info = load_latents(Path(folder) / "x.safetensors", (1, 8, 8))
        >>> latents.shape, info.num_inference_steps
        (torch.Size([2, 1, 8, 8]), 50)
    """
    with replacing(target) as scratch:
        save_file({"latents": latents.detach().cpu().contiguous()}, scratch, {"georeg": json.dumps(asdict(info))})


def load_latents(file: Path, shape: tuple[int, ...]) -> tuple[Tensor, LatentsInfo | None]:
    """Latents ``(B, *shape)``, also from another program's file: its one tensor, without info.

    Raises:
        RunError: the file is missing, damaged, or holds no latents of this shape, or numbers that are not finite.
    """
    if not file.is_file():
        raise RunError(f"{file} {'is not a file' if file.exists() else 'does not exist'}, expected latents (.safetensors)")
    try:
        with safe_open(str(file), framework="pt") as opened:
            names, metadata = list(opened.keys()), opened.metadata() or {}
            name = "latents" if "latents" in names else names[0] if len(names) == 1 else None
            if name is None:
                raise RunError(f"{file} holds the tensors {', '.join(names) or '(none)'}, expected one named latents")
            latents: Tensor = opened.get_tensor(name)
        info = _info(json.loads(metadata["georeg"])) if "georeg" in metadata else None
    except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"cannot read the latents {file}: {' '.join(str(error).split())}") from error
    if latents.ndim == len(shape):
        latents = latents[None]
    if tuple(latents.shape[1:]) != tuple(shape) or not len(latents) or not latents.is_floating_point():
        raise RunError(
            f"{file} holds {latents.dtype} of shape {tuple(latents.shape)}, expected latents of this model, (B, "
            f"{', '.join(map(str, shape))})"
        )
    if not bool(torch.isfinite(latents).all()):
        raise RunError(f"{file} holds latents that are not finite (NaN or infinity)")
    return latents, info


def _info(content: dict[str, object]) -> LatentsInfo:
    info = LatentsInfo(**content)  # type: ignore[arg-type]
    return LatentsInfo(
        str(info.model), int(info.num_inference_steps), int(info.start), str(info.scheduler), tuple(map(str, info.sources))
    )
