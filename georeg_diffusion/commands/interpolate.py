"""``georeg-diffusion interpolate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from georeg_diffusion.commands.options import ModelOptions
from georeg_diffusion.options import argument, option

if TYPE_CHECKING:
    from torch import Tensor

    from georeg_diffusion.denoiser import Denoiser

_PATH = "Path"


@dataclass(frozen=True)
class InterpolateConfig(ModelOptions):
    """Walk from A to B in the latent space, and measure how evenly the images change.

    A and B are seeds (whole numbers), image files (inverted first), or saved latents (FILE.safetensors, or
    FILE.safetensors:N for row N). Written: a strip with the distance between adjacent frames, a GIF, an MP4 where ffmpeg
    is installed, and every frame. With --baseline a second model walks between the same ends.
    """

    a: str = argument("One end: a seed, an image file, or latents.", metavar="A")
    b: str = argument("The other end.", metavar="B")
    path: str = option(
        "slerp",
        "Great circle, straight line, or the shortest path in what the encoder sees (slow).",
        panel=_PATH,
        choices=("slerp", "lerp", "geodesic"),
    )
    frames: int = option(11, "Images on the path, both ends included.", panel=_PATH, minimum=2)
    baseline: str | None = option(None, "A second model, laid above MODEL.", panel=_PATH)
    refine: int = option(5, "Fixed-point refinements of each step when an image is inverted.", panel=_PATH, minimum=0)
    fps: float = option(8.0, "Frames per second of GIF and MP4.", panel=_PATH, minimum=0.5, maximum=50)


CONFIG = InterpolateConfig


def run(config: InterpolateConfig) -> None:
    """Interpolate with one model or two, write the pictures and print how even the steps are."""
    from georeg_diffusion.commands.workspace import names_of, workspace
    from georeg_diffusion.denoiser import conditioned
    from georeg_diffusion.files import write_json
    from georeg_diffusion.progress import console
    from georeg_diffusion.report import panels
    from georeg_diffusion.sampling.interpolation import adjacent_distances

    with workspace(config, "interpolate") as work:
        paths = [config.model] if config.baseline is None else [config.baseline, config.model]
        names = names_of(paths)
        rows, distances, ends = {}, {}, ("", "")
        for name, path in zip(names, paths, strict=True):
            bundle = work.open(path)
            denoiser = conditioned(
                bundle,
                prompt=config.prompt,
                negative_prompt=config.negative_prompt,
                guidance_scale=config.guidance_scale,
                class_label=config.class_label,
                seeds=[config.seed],
            )
            rows[name], ends = _walk(config, denoiser, work.models[path]["sha256"], name)
            distances[name] = adjacent_distances(rows[name][:, None])[:, 0]
            for i, frame in enumerate(rows[name]):
                panels.save_image(frame, work.path(f"frames/{_folder(name)}/{i:03d}.png"))
        shapes = {tuple(frames.shape[1:]) for frames in rows.values()}
        if len(shapes) > 1:
            _refuse_shapes(rows)
        panels.strips(
            rows,
            distances,
            work.path("interpolation.png"),
            title=f"Interpolation of the noise ({config.path}), {config.num_inference_steps} DDIM steps",
            ends=ends,
            path=config.path,
        )
        moving = panels.moving_frames(rows)
        panels.save_gif(moving, work.path("interpolation.gif"), fps=config.fps)
        ffmpeg = panels.encoder()
        if ffmpeg is not None:
            panels.save_mp4(moving, work.path("interpolation.mp4"), fps=config.fps, ffmpeg=ffmpeg)
        else:
            console.print("No MP4: ffmpeg is not installed (pip install imageio-ffmpeg)", style="dim", highlight=False)
        scores = {
            name: {"max": float(d.max()), "mean": float(d.mean()), "variation": panels.variation(d), "distances": d.tolist()}
            for name, d in distances.items()
        }
        write_json(work.path("interpolation.json"), {"path": config.path, "ends": ends, "models": scores})
        _print(scores, config.path)


def _walk(config: InterpolateConfig, denoiser: Denoiser, sha256: str, name: str) -> tuple[Tensor, tuple[str, str]]:
    """Frames ``(S, C, H, W)`` of one model on the CPU, and the names of the ends."""
    import torch

    from georeg_diffusion.errors import UsageError
    from georeg_diffusion.h_space import HSpace
    from georeg_diffusion.progress import console, track
    from georeg_diffusion.sampling.ddim import ddim_sample, ddim_steps
    from georeg_diffusion.sampling.ends import end_of
    from georeg_diffusion.sampling.images import require_finite, writable_shape
    from georeg_diffusion.sampling.interpolation import interpolate

    bundle, steps = denoiser.bundle, config.num_inference_steps
    writable_shape(bundle)
    try:
        schedule = ddim_steps(bundle.scheduler, steps)
    except ValueError as error:
        raise UsageError(f"--num-inference-steps: {error}") from error
    a, b = (end_of(text, denoiser, steps, option=o, refine=config.refine) for text, o in ((config.a, "A"), (config.b, "B")))
    if a.start != b.start:
        raise UsageError(f"A, B: are at different noise levels, {a.start} and {b.start} steps from noise; invert both alike")
    for end in (a, b):
        if end.model not in (None, sha256):
            message = f"{end.name}: was made with another model than {name}"
            console.print(message, style="yellow", highlight=False, markup=False)

    def encode(x: Tensor) -> Tensor:
        parameter = next(bundle.network.parameters())
        t = schedule.timesteps[a.start].to(x.device).expand(len(x))
        return HSpace(bundle.network).encode(x.to(parameter), t, **denoiser.conditioning(len(x))).float()

    if config.path == "geodesic":
        console.print(f"Relaxing the path to a geodesic of {name}", style="dim", highlight=False, markup=False)
    path = interpolate(a.latents, b.latents, config.frames, path=config.path, encode=encode)[:, 0]
    chunks = path.split(config.batch_size)
    images = [ddim_sample(denoiser, x, steps, start=a.start) for x in track(chunks, f"Sampling {name}", len(chunks))]
    found = require_finite(torch.cat(images), [f"{name}, frame {i}" for i in range(config.frames)])
    return found.float().cpu(), (a.name, b.name)


def _folder(name: str) -> str:
    return name.replace("/", "-").lstrip(".") or "model"


def _refuse_shapes(rows: dict[str, Tensor]) -> None:
    from georeg_diffusion.errors import UsageError

    sizes = ", ".join(f"{name} {tuple(frames.shape[1:])}" for name, frames in rows.items())
    raise UsageError(f"--baseline: makes images of another size ({sizes}), expected the same")


def _print(scores: dict[str, dict[str, Any]], path: str) -> None:
    from rich.table import Table
    from rich.text import Text

    from georeg_diffusion.progress import console

    table = Table(title=f"Distance between adjacent frames ({path}, L2)", title_justify="left", title_style="bold")
    table.add_column("model")
    for column in ("mean", "max", "variation (std / mean)"):
        table.add_column(column, justify="right")
    for name, score in scores.items():
        table.add_row(Text(name), f"{score['mean']:.3g}", f"{score['max']:.3g}", f"{score['variation']:.1%}")
    console.print(table)
