"""``georeg-diffusion invert``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from georeg_diffusion.commands.options import ModelOptions
from georeg_diffusion.options import argument, option

if TYPE_CHECKING:
    from torch import Tensor

    from georeg_diffusion.commands.workspace import Workspace
    from georeg_diffusion.denoiser import Denoiser

_INVERSION = "Inversion"
_SHOWN = 8


@dataclass(frozen=True)
class InvertConfig(ModelOptions):
    """Find the noise that images come from, by inverting DDIM, and see how well it gives them back.

    Written: latents/NAME.safetensors for each image (for `interpolate` and `edit`), its reconstruction, and a picture of
    sources, reconstructions and differences. Plain inversion drifts; --refine mends that at N more evaluations a step.
    """

    images: tuple[str, ...] = argument("Image files.", metavar="IMAGE...", many=True)
    portion: float = option(
        1.0, "Share of the steps to invert, from the image towards noise.", panel=_INVERSION, minimum=0.001, maximum=1
    )
    refine: int = option(0, "Fixed-point refinements of each step.", panel=_INVERSION, minimum=0)


CONFIG = InvertConfig


def run(config: InvertConfig) -> None:
    """Invert batch by batch; files that cannot be read are named, and the others go on."""
    import torch

    from georeg_diffusion.commands.workspace import workspace
    from georeg_diffusion.denoiser import conditioned
    from georeg_diffusion.errors import RunError
    from georeg_diffusion.files import write_json
    from georeg_diffusion.progress import console, progress
    from georeg_diffusion.report.panels import reconstructions
    from georeg_diffusion.sampling.images import read_image

    with workspace(config, "invert") as work:
        bundle = work.open(config.model)
        denoiser = conditioned(
            bundle,
            prompt=config.prompt,
            negative_prompt=config.negative_prompt,
            guidance_scale=config.guidance_scale,
            class_label=config.class_label,
            seeds=[config.seed],
        )
        unreadable: list[str] = []
        entries: list[dict[str, Any]] = []
        shown: list[Tensor] = []
        with progress("Inverting", len(config.images)) as bar:
            for first in range(0, len(config.images), config.batch_size):
                files = config.images[first : first + config.batch_size]
                readable: list[tuple[str, Tensor]] = []
                for file in files:
                    try:
                        readable.append((file, read_image(file, bundle)))
                    except RunError as error:
                        unreadable.append(str(error))
                        console.print(f"Skipped: {error}", style="yellow", highlight=False, markup=False)
                if readable:
                    batch = torch.cat([pixels for _, pixels in readable])
                    again = _invert(config, work, denoiser, [file for file, _ in readable], batch, entries)
                    shown.append(torch.stack([batch, again])[:, : max(_SHOWN - sum(s.shape[1] for s in shown), 0)])
                for _ in files:
                    bar.advance()
        if not entries:
            raise RunError(f"none of the {len(config.images)} images could be read; the first: {unreadable[0]}")
        source, again = torch.cat(shown, dim=1)
        reconstructions(
            source,
            again,
            work.path("reconstructions.png"),
            names=[Path(entry["image"]).name for entry in entries[: len(source)]],
            scores=[_score(entry) for entry in entries[: len(source)]],
            title=f"DDIM inversion, {config.num_inference_steps} steps, {_how(config)}",
        )
        write_json(work.path("inversion.json"), {"images": entries, "unreadable": unreadable})
        _print(entries, config)
    if unreadable:
        raise RunError(f"{len(unreadable)} of {len(config.images)} images could not be read: {'; '.join(unreadable)}")


def _invert(
    config: InvertConfig,
    work: Workspace,
    denoiser: Denoiser,
    files: list[str],
    pixels: Tensor,
    entries: list[dict[str, Any]],
) -> Tensor:
    """Reconstructions of one batch on the CPU; writes latents and images, and adds to ``entries``."""
    import torch

    from georeg_diffusion.errors import UsageError
    from georeg_diffusion.report.panels import save_image
    from georeg_diffusion.sampling.ddim import ddim, ddim_steps
    from georeg_diffusion.sampling.images import require_finite
    from georeg_diffusion.sampling.inversion import ddim_invert
    from georeg_diffusion.sampling.latents import LatentsInfo, save_latents

    bundle, count = denoiser.bundle, config.num_inference_steps
    try:
        steps = ddim_steps(bundle.scheduler, count)
    except ValueError as error:
        raise UsageError(f"--num-inference-steps: {error}") from error
    with torch.no_grad():
        # Not in half precision, in which rounding would add up over the steps.
        latents = bundle.encode(pixels.to(work.device, torch.promote_types(torch.float32, work.dtype)))
        found = ddim_invert(denoiser, steps, latents, portion=config.portion, refine=config.refine)
        require_finite(found.latents, files)
        again = bundle.decode(ddim(denoiser, steps, found.latents, start=found.start)).float().cpu()
        codec = bundle.decode(latents).float().cpu() if bundle.codec is not None else None
    taken = {entry["name"] for entry in entries}
    for i, file in enumerate(files):
        name, number = Path(file).stem, 1
        while name in taken:
            number += 1
            name = f"{Path(file).stem}-{number}"
        taken.add(name)
        info = LatentsInfo(work.models[config.model]["sha256"], count, found.start, "ddim", (Path(file).name,))
        save_latents(work.path(f"latents/{name}.safetensors"), found.latents[i : i + 1], info)
        save_image(again[i], work.path(f"reconstructions/{name}.png"))
        entry: dict[str, Any] = {"image": file, "name": name, **_errors(pixels[i], again[i])}
        if codec is not None:
            entry["codec"] = _errors(pixels[i], codec[i])
        entries.append(entry)
    return require_finite(again, files)


def _errors(source: Tensor, again: Tensor) -> dict[str, float | None]:
    """Mean-squared error of values in [−1, 1], and PSNR = 10 log₁₀(2²/MSE) in dB, None where there is no error."""
    mse = float((again - source).double().square().mean())
    return {"mse": mse, "psnr": 10 * math.log10(4 / mse) if mse > 0 and math.isfinite(mse) else None}


def _decibel(entry: dict[str, Any]) -> str:
    return "exact" if entry["mse"] == 0 else "-" if entry["psnr"] is None else f"{entry['psnr']:.1f} dB"


def _score(entry: dict[str, Any]) -> str:
    return f"MSE {entry['mse']:.2g}, PSNR {_decibel(entry)}"


def _how(config: InvertConfig) -> str:
    part = "" if config.portion == 1 else f"{config.portion:.0%} of the way, "
    return part + ("plain" if not config.refine else f"{config.refine} refinement{'s' if config.refine > 1 else ''} a step")


def _print(entries: list[dict[str, Any]], config: InvertConfig) -> None:
    from rich.table import Table
    from rich.text import Text

    from georeg_diffusion.data.folder import printable
    from georeg_diffusion.progress import console

    title = f"Reconstruction after inversion ({config.num_inference_steps} steps, {_how(config)})"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("image")
    for column in ("MSE of [−1, 1]", "PSNR", *(["PSNR of the codec alone"] if "codec" in entries[0] else [])):
        table.add_column(column, justify="right")
    for entry in entries:
        codec = [_decibel(entry["codec"])] if "codec" in entry else []
        table.add_row(Text(printable(Path(Path(entry["image"]).name))), f"{entry['mse']:.3g}", _decibel(entry), *codec)
    console.print(table)
