"""The samples that are edited, on their way from noise to images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from georeg_diffusion.denoiser import Denoiser
from georeg_diffusion.editing.h_edit import HEdit, sample_with_h
from georeg_diffusion.progress import track
from georeg_diffusion.sampling.ddim import DDIMSteps, ddim

Interval = tuple[float, float]


@dataclass(frozen=True)
class Subjects:
    """Samples at one step of DDIM, each with its conditions.

    Attributes:
        denoiser: the model; its conditions have one row, or one for each sample.
        steps: of DDIM.
        latents: x_t ``(B, C, H, W)`` at ``steps.timesteps[start]``.
        start: the step from which sampling leads on.
        names: of the samples, for pictures.
        batch_size: samples that go through the network at once.

    Example:
        >>> import torch
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.editing.subjects import Subjects
        >>> from georeg_diffusion.sampling.ddim import ddim_steps
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> denoiser = Denoiser(Bundle(unet, diffusers.DDPMScheduler()))
        >>> subjects = Subjects(denoiser, ddim_steps(denoiser.bundle.scheduler, 4), torch.randn(2, 1, 8, 8))
        >>> subjects.until(2).timestep, subjects.images().shape
        (250.0, torch.Size([2, 1, 8, 8]))
    """

    denoiser: Denoiser
    steps: DDIMSteps
    latents: Tensor
    start: int = 0
    names: tuple[str, ...] = ()
    batch_size: int = 16

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def timestep(self) -> float:
        """t of the latents."""
        return float(self.steps.timesteps[self.start])

    def nearest_step(self, t: float) -> int:
        """The number of the step nearest to t, from ``start`` on.

        Raises:
            ValueError: t outside the schedule.
        """
        total = int(self.denoiser.bundle.scheduler.config.num_train_timesteps)
        if not 0 <= t <= total:
            raise ValueError(f"t: got {t:g}, expected a timestep from 0 to {total}")
        return self.start + int((self.steps.timesteps[self.start :].double() - t).abs().argmin())

    def interval(self, low: float | None = None, high: float | None = None) -> Interval:
        """Lowest and highest t of an edit of h; by default from here down to T/2.

        Raises:
            ValueError: no step lies there.
        """
        left = self.steps.timesteps[self.start :].tolist()
        total = int(self.denoiser.bundle.scheduler.config.num_train_timesteps)
        high = self.timestep if high is None else high
        low = min(total / 2, high) if low is None else low
        if not any(low <= t <= high for t in left):
            raise ValueError(f"no step lies from {high:g} down to {low:g}; they go from {left[0]:g} down to {left[-1]:g}")
        return low, high

    def until(self, step: int) -> Subjects:
        """The same samples further on, plainly denoised up to a step.

        Raises:
            ValueError: a step before the present one, or behind the last.
        """
        if not self.start <= step < len(self.steps):
            raise ValueError(f"step: got {step}, expected a step from {self.start} to {len(self.steps) - 1}")
        s = self.steps
        some = DDIMSteps(s.timesteps[:step], s.alpha[:step], s.beta[:step], s.inverse[:step])
        parts = [ddim(self.rows(rows).denoiser, some, self.latents[rows], start=self.start) for rows in self.chunks()]
        return replace(self, latents=torch.cat(parts) if parts else self.latents, start=step)

    def rows(self, rows: Sequence[int]) -> Subjects:
        """Some of the samples, in any order and any number of times."""
        return replace(
            self,
            denoiser=self.denoiser.rows(list(rows)),
            latents=self.latents[list(rows)],
            names=tuple(self.names[i] for i in rows) if self.names else (),
        )

    def chunks(self) -> list[list[int]]:
        """Row numbers, as many at a time as go through the network at once."""
        numbers = list(range(len(self)))
        return [numbers[first : first + self.batch_size] for first in range(0, len(self), self.batch_size)]

    def images(self, description: str = "Sampling") -> Tensor:
        """Images ``(B, C, H, W)`` in [−1, 1] on the CPU, by plain DDIM from where the samples are."""
        return self._images(description, lambda part, _rows: ddim(part.denoiser, self.steps, part.latents, start=self.start))

    def images_with_h(
        self,
        edit_of: Callable[[list[int]], HEdit],
        *,
        interval: Interval,
        asymmetric: bool = True,
        at: str | None = None,
        description: str = "Sampling",
    ) -> Tensor:
        """As :meth:`images`, with h edited inside an interval of timesteps; ``edit_of`` gives the edit of some rows."""
        return self._images(
            description,
            lambda part, rows: sample_with_h(
                part.denoiser,
                self.steps,
                part.latents,
                edit_of(rows),
                interval=interval,
                asymmetric=asymmetric,
                start=self.start,
                at=at,
            ),
        )

    @torch.no_grad()
    def _images(self, description: str, sample: Callable[[Subjects, list[int]], Tensor]) -> Tensor:
        chunks, decode = self.chunks(), self.denoiser.bundle.decode
        parts = [decode(sample(self.rows(rows), rows)).float().cpu() for rows in track(chunks, description, len(chunks))]
        return torch.cat(parts)
