"""What DDIM inversion keeps of an image."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from georeg import Estimate, register
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.batches import batches, indices, num_pieces
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from georeg_diffusion.sampling.inversion import ddim_invert

PIECE = 4
"""Images of one piece of work, each at all numbers of steps."""

STEPS = (5, 10, 20, 50, 100)
"""Numbers of DDIM steps at which images are inverted, as far as the score's own number, which comes last."""


@register("score", "inversion")
class Inversion(Score):
    """E‖x̂₀ − x₀‖² per pixel in [−1, 1], x̂₀ sampled from the noise that plain DDIM inversion finds for a real x₀.

    Details: the mean-squared error, the PSNR = 10 log₁₀(2²/MSE) in dB and a perceptual distance, where there is one,
    against the number of steps. With an autoencoder the errors are those of images, its own included.

    Args:
        setting: the model.

    Raises:
        RunError: there are no real images.

    References:
        Song et al. 2021, Denoising diffusion implicit models.
    """

    name: ClassVar[str] = "inversion"
    label: ClassVar[str] = "inversion: squared error of reconstructions"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.num_images, last = setting.num_real(setting.count(64, 1000)), setting.steps(50, 100)
        self.steps = [*(one for one in STEPS if one < last), last]
        self.missing = ""
        try:
            self.distance = setting.distance()
        except RunError as error:
            self.missing = " ".join(str(error).split())
        self.parts: list[Tensor] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting)

    def pieces(self) -> int:
        return num_pieces(self.num_images, PIECE)

    @torch.no_grad()
    def update(self, piece: int) -> None:
        for rows in batches(indices(piece, self.num_images, PIECE), self.setting.batch_size):
            self.parts.append(torch.stack([self._errors(rows, count) for count in self.steps], dim=1))

    def _errors(self, rows: list[int], count: int) -> Tensor:
        """Squared error and distance ``(n, 2)`` of images at one number of steps."""
        setting, images = self.setting, self.setting.real(rows)
        denoiser, steps = setting.denoiser([setting.seed + row for row in rows]), ddim_steps(setting.bundle.scheduler, count)
        noise = ddim_invert(denoiser, steps, setting.bundle.encode(images).to(setting.precision)).latents
        again = setting.bundle.decode(ddim(denoiser, steps, noise))
        squared = (again - images).double().square().flatten(1).mean(1)
        apart = torch.zeros_like(squared) if self.missing else self.distance(again, images).to(squared)
        return torch.stack([squared, apart], dim=1).cpu()

    def compute(self) -> Result:
        setting = self.setting
        errors = torch.cat(self.parts) if self.parts else torch.empty(0, len(self.steps), 2, dtype=torch.float64)
        n = len(errors)
        protocol = (
            f"{n:,} images of {setting.images().name}, inverted and sampled in {self.steps[-1]} DDIM steps, plain; squared "
            "error of values in [−1, 1]"
        )
        if not n:
            return Result(None, None, 0, setting.seed, f"{protocol}; nothing was measured")
        if not bool(torch.isfinite(errors).all()):
            return Result(None, None, n, setting.seed, f"{protocol}; reconstructions are not finite")
        squared = errors[..., 0]
        details: dict[str, object] = {
            "steps": self.steps,
            "mse": squared.mean(0).tolist(),
            "mse_stderr": _stderr(squared),
            "psnr": (10 * (4 / squared).log10()).mean(0).tolist() if bool((squared > 0).all()) else None,
        }
        if self.missing:
            details["caution"] = f"no perceptual distance: {self.missing}"
        else:
            apart = errors[..., 1]
            details |= {"measure": self.distance.name, "distance": apart.mean(0).tolist(), "distance_stderr": _stderr(apart)}
        return Result.of(Estimate.of(squared[:, -1]), seed=setting.seed, protocol=protocol, details=details)

    def state(self) -> dict[str, Tensor]:
        return {"errors": torch.cat(self.parts)} if self.parts else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.parts = [state["errors"]] if state else []


def _stderr(values: Tensor) -> list[float] | None:
    return (values.std(0) / len(values) ** 0.5).tolist() if len(values) > 1 else None
