"""Pictures of samples: sheets, strips of interpolations, reconstructions; and interpolations that move."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from georeg_diffusion.data.folder import printable
from georeg_diffusion.errors import RunError
from georeg_diffusion.files import replacing
from georeg_diffusion.report.pictures import _figure, _save, tiled

_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MODEL = "georeg-model"
_SHORT = 256  # pixels of the shorter side that small images are enlarged to in moving pictures


def as_array(pixels: Tensor) -> np.ndarray:
    """An image ``(C, H, W)`` in [−1, 1] as ``(H, W, 3)`` bytes."""
    return np.asarray((tiled(pixels[None], 1) * 255).round(), dtype=np.uint8)


def save_image(pixels: Tensor, target: Path, *, model: str | None = None) -> None:
    """One image ``(C, H, W)`` in [−1, 1], pixel for pixel; ``model``, a hash, goes into the PNG's text."""
    text = PngInfo()
    if model is not None:
        text.add_text(_MODEL, model)
    with replacing(target) as scratch:
        picture = Image.fromarray(as_array(pixels))
        (picture.convert("L") if len(pixels) == 1 else picture).save(scratch, pnginfo=text)


def saved_image(file: Path, *, model: str, shape: tuple[int, int, int]) -> Tensor | None:
    """What :func:`save_image` wrote for this model, ``(C, H, W)`` in [−1, 1]; None for anything else."""
    try:
        with Image.open(file) as picture:
            if picture.info.get(_MODEL) != model or picture.size != (shape[2], shape[1]):
                return None
            pixels = torch.as_tensor(np.array(picture, dtype=np.float32))
    except (OSError, ValueError):
        return None
    return (pixels.reshape(*shape[1:], -1).permute(2, 0, 1) / 127.5 - 1) if pixels.numel() == math.prod(shape) else None


def sheet(pixels: Tensor, target: Path, *, title: str, columns: int | None = None) -> None:
    """Images ``(N, C, H, W)`` side by side in rows, about a square without ``columns``; the title is wrapped to fit."""
    columns = columns or max(round(len(pixels) ** 0.5 + 0.49), 1)
    columns = min(columns, len(pixels))
    picture = tiled(pixels, columns, gap=_gap(pixels))
    width = min(max(columns * 0.9, 4.5), 10)
    # One image or few: no wider than an inch and a half each, under a title that has room.
    drawn = min(width, columns * 1.5)
    lines = wrap(title, int(width * 11.5), subsequent_indent="") or [""]
    figure = _figure(figsize=(width, drawn * picture.shape[0] / picture.shape[1] + 0.2 + 0.21 * len(lines)))
    ax = figure.subplots()
    ax.imshow(picture, interpolation="nearest")
    ax.set_axis_off()
    figure.suptitle(_plain("\n".join(lines)), fontsize=10)
    _save(figure, target)


def strips(
    rows: dict[str, Tensor],
    distances: dict[str, Tensor],
    target: Path,
    *,
    title: str,
    ends: tuple[str, str],
    path: str,
    unit: str = "L2 of pixels in [−1, 1]",
) -> None:
    """One row of frames ``(S, C, H, W)`` for each model, and under them how far adjacent frames are apart.

    Args:
        rows: frames by name.
        distances: ``(S−1,)`` by the same names.
        target: the picture.
        title: over it.
        ends: what the first and the last frame are.
        path: for the axis, such as ``"slerp"``.
        unit: of the distances.
    """
    names, frames = list(rows), len(next(iter(rows.values())))
    shown = {name: _shortened(name, 30) for name in names}
    picture = tiled(torch.cat([rows[name].cpu() for name in names]), frames, gap=_gap(rows[names[0]]))
    width = 11.0
    height = width * 0.86 * picture.shape[0] / picture.shape[1]
    figure = _figure(figsize=(width, height + 3.1))
    top, bottom = figure.subplots(2, 1, height_ratios=(height + 0.3, 2.2))
    top.imshow(picture, interpolation="nearest")
    cell = picture.shape[0] / len(names)
    top.set_yticks([cell * (i + 0.5) for i in range(len(names))], [_broken(shown[name]) for name in names], fontsize=10)
    labels = [f"{end}: {_shortened(text, 50)}" for end, text in zip("AB", ends, strict=True)]
    top.set_xticks([0, picture.shape[1] - 1], labels, fontsize=9)
    for label, side_name in zip(top.get_xticklabels(), ("left", "right"), strict=True):
        label.set_ha(side_name)
    top.tick_params(length=0)
    for spine in top.spines.values():
        spine.set_visible(False)
    position = (torch.arange(frames - 1) + 0.5) / (frames - 1)
    for i, name in enumerate(names):
        d = distances[name].detach().cpu()
        label = f"{shown[name]}: max {float(d.max()):.3g}, variation {variation(d):.0%}"
        bottom.plot(position, d, "o-", ms=4, lw=1.4, color=_LINES[i % len(_LINES)], label=label)
    bottom.set(xlim=(0, 1), xlabel=f"position on the {path} from A to B")
    bottom.set_ylabel(f"distance of adjacent\nframes ({unit})", fontsize=9)
    bottom.set_ylim(0, 1.35 * max(float(d.max()) for d in distances.values()) or 1)
    bottom.grid(alpha=0.25)
    bottom.legend(frameon=False, fontsize=9, loc="upper center", ncols=len(names))
    figure.suptitle(title, fontsize=12)
    _save(figure, target)


def variation(distances: Tensor) -> float:
    """Coefficient of variation, standard deviation over mean (of the population); 0 where nothing moves.

    Example:
        >>> import torch
        >>> from georeg_diffusion.report.panels import variation
        >>> variation(torch.tensor([1.0, 3.0]))
        0.5
    """
    mean = float(distances.mean())
    return float(distances.std(correction=0)) / mean if mean > 0 else 0.0


def reconstructions(
    source: Tensor, again: Tensor, target: Path, *, names: Sequence[str], scores: Sequence[str], title: str
) -> None:
    """Source, reconstruction and their difference ``(B, C, H, W)``, a row for each image, with its score.

    Differences have a scale of their own, given on the colour bar.
    """
    count = len(source)
    figure = _figure(figsize=(6.6, 1.95 * count + 0.7))
    axes = figure.subplots(count, 3, squeeze=False)
    difference = (again - source).float().cpu().abs().amax(1)
    limit = max(float(difference.max()), 1e-6)
    for row in range(count):
        for column, pixels in enumerate((source, again)):
            axes[row, column].imshow(tiled(pixels[row : row + 1], 1), interpolation="nearest")
        image = axes[row, 2].imshow(difference[row], cmap="magma", vmin=0, vmax=limit, interpolation="nearest")
        axes[row, 0].set_ylabel(_shortened(names[row]), fontsize=9)
        axes[row, 2].set_xlabel(scores[row], fontsize=9)
    for ax, name in zip(axes[0], ("source", "reconstruction", "|difference|"), strict=True):
        ax.set_title(name, fontsize=10)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
    bar = figure.colorbar(image, ax=list(axes[:, 2]), shrink=0.9, pad=0.03)
    bar.ax.tick_params(labelsize=8)
    bar.set_label("of values in [−1, 1]", fontsize=8)
    figure.suptitle(title, fontsize=11)
    _save(figure, target)


def _plain(text: str) -> str:
    """Text that is no formula, whatever dollars it has."""
    return text.replace("$", r"\$")


def _shortened(name: str, length: int = 22) -> str:
    name = printable(Path(name))
    return _plain(name if len(name) <= length else f"{name[: length - 9]}…{name[-8:]}")


def _broken(name: str, length: int = 16) -> str:
    return "\n".join(wrap(name, length))


def _gap(pixels: Tensor) -> int:
    return max(pixels.shape[-1] // 32, 1)


def moving_frames(rows: dict[str, Tensor]) -> list[np.ndarray]:
    """Frames ``(H, W, 3)`` in bytes, the models one above the other, small images enlarged, sides even for encoders."""
    out = []
    for i in range(len(next(iter(rows.values())))):
        picture = tiled(torch.stack([frames[i].cpu() for frames in rows.values()]), 1, gap=_gap(next(iter(rows.values()))))
        pixels = np.asarray((picture * 255).round(), dtype=np.uint8)
        scale = max(-(-_SHORT // pixels.shape[1]), 1)
        pixels = pixels.repeat(scale, 0).repeat(scale, 1)
        out.append(np.pad(pixels, ((0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)), mode="edge"))
    return out


def save_gif(frames: Sequence[np.ndarray], target: Path, *, fps: float) -> None:
    """A GIF that runs from A to B and back, for ever."""
    pictures = [Image.fromarray(frame) for frame in [*frames, *frames[-2:0:-1]]]
    with replacing(target) as scratch:
        pictures[0].save(scratch, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)


def encoder() -> str | None:
    """ffmpeg, from the system or from the package imageio-ffmpeg; None without either."""
    if (found := shutil.which("ffmpeg")) is not None:
        return found
    if find_spec("imageio_ffmpeg") is None:
        return None
    import imageio_ffmpeg  # type: ignore[import-not-found]

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None


def save_mp4(frames: Sequence[np.ndarray], target: Path, *, fps: float, ffmpeg: str) -> None:
    """An MP4 (H.264) from A to B.

    Raises:
        RunError: the encoder failed, with its last line.
    """
    height, width = frames[0].shape[:2]
    source: list[Any] = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", fps, "-i", "-"]
    output = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    with replacing(target) as scratch:
        command = [ffmpeg, "-y", "-loglevel", "error", *map(str, source), *output, str(scratch)]
        done = subprocess.run(command, input=b"".join(f.tobytes() for f in frames), capture_output=True, check=False)
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise RunError(f"cannot write {target}: {ffmpeg} says {reason[0]}")
