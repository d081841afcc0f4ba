"""What a score may need: the model, what it is compared with, what measures it, and how."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.backbones import family_of, unwrapped
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.images import Images
from georeg_diffusion.denoiser import Denoiser, conditioned
from georeg_diffusion.errors import RunError, UsageError
from georeg_diffusion.evaluation.classifier import Classifier
from georeg_diffusion.evaluation.feature_network import FeatureNetwork
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.perceptual import PerceptualDistance
from georeg_diffusion.evaluation.reference import Reference
from georeg_diffusion.evaluation.weights import weights_hash
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from georeg_diffusion.sampling.noise import seeded_noise
from georeg_diffusion.schedule import network_timesteps, noised_at

NOISY_HALF = (0.55, 0.65, 0.75, 0.85, 0.95)
"""Where geometry is measured, as fractions of T: where Eq. 7 acts with p = 1/2."""

PROTOCOLS = ("default", "paper")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One model, ready to be scored. Equal seeds give every model the same draws.

    Attributes:
        bundle: the model, in evaluation mode, on the device.
        images: real images at the model's resolution, or the reason why there are none.
        features: what FID and KID measure images by.
        distance: what PPL and the inversion measure images by.
        classifier: whose labels linear separability takes.
        reference: features of real images.
        protocol: ``"default"`` or ``"paper"``, whose sizes are the paper's.
        seed: of all noise; sample i has seed + i.
        num_samples: of every score; None takes each score's own number under the protocol.
        num_inference_steps: of every score; None takes each score's own number under the protocol.
        batch_size: samples that go through the network at once. No result depends on it.
        device: where to compute.
        timesteps: where geometry is measured; None takes 0.55 T, 0.65 T, …, 0.95 T.
        compat: ``"isodiff"`` measures MCN and VoR as the published code does.
        at: name of the h-space module; None takes the family's default.
        prompt, negative_prompt, guidance_scale, class_label: conditions, see :func:`georeg_diffusion.denoiser.conditioned`.
        options: what one score alone takes, such as ``{"ppl": "paper"}``, by the score's name.
        shared: what scores of this model hand to each other in memory.
        cache: folder for what is expensive and shared between scores and sittings; None keeps nothing.

    Raises:
        ValueError: an unknown protocol or ``compat``; a number below 1.
    """

    bundle: Bundle
    images: Once[Images] = field(default_factory=lambda: Once.missing("there are no real images; name some by --reference"))
    features: Once[FeatureNetwork] = field(default_factory=lambda: Once.missing("there are no features; see --features"))
    distance: Once[PerceptualDistance] = field(
        default_factory=lambda: Once.missing("there is no perceptual distance; see --lpips-backbone")
    )
    classifier: Once[Classifier] = field(default_factory=lambda: Once.missing("there is no classifier; see --classifier"))
    reference: Once[Reference] = field(
        default_factory=lambda: Once.missing("there are no real images; name some by --reference")
    )
    protocol: str = "default"
    seed: int = 0
    num_samples: int | None = None
    num_inference_steps: int | None = None
    batch_size: int = 16
    device: torch.device | str = "cpu"
    timesteps: tuple[int, ...] | None = None
    compat: str | None = None
    at: str | None = None
    prompt: str | None = None
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    class_label: int | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    shared: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    cache: Path | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ValueError(f"protocol: got {self.protocol!r}, expected one of {', '.join(PROTOCOLS)}")
        if self.compat not in (None, "isodiff"):
            raise ValueError(f"compat: got {self.compat!r}, expected None or 'isodiff'")
        for name in ("num_samples", "num_inference_steps", "batch_size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name}: got {number}, expected at least 1")
        total = self.total
        wrong = [t for t in self.timesteps or () if not 0 <= t < total]
        if wrong or self.timesteps == ():
            got = wrong[0] if wrong else "none"
            raise UsageError(f"--timesteps: got {got}, expected numbers from 0 to {total - 1}")

    @property
    def total(self) -> int:
        """T, the timesteps of the model's schedule."""
        return int(self.bundle.scheduler.config.num_train_timesteps)

    def count(self, default: int, paper: int) -> int:
        """Samples of a score: as asked for, or its own number under the protocol."""
        return self.num_samples or (paper if self.protocol == "paper" else default)

    def steps(self, default: int, paper: int) -> int:
        """DDIM steps of a score, likewise; at most T."""
        asked = self.num_inference_steps or (paper if self.protocol == "paper" else default)
        if asked > self.total:
            raise UsageError(f"--num-inference-steps: got {asked}, expected at most {self.total}, the model's timesteps")
        return asked

    def at_timesteps(self, fractions: Sequence[float] = NOISY_HALF) -> list[int]:
        """Timesteps as asked for, or at fractions of T, ascending."""
        return sorted(set(self.timesteps or (int(fraction * self.total) for fraction in fractions)))

    @property
    def dtype(self) -> torch.dtype:
        """Of the network."""
        parameter = next(self.bundle.network.parameters(), None)
        return torch.float32 if parameter is None else parameter.dtype

    @property
    def precision(self) -> torch.dtype:
        """Of the samples: the network's, float32 or better."""
        return torch.promote_types(self.dtype, torch.float32)

    @cached_property
    def _is_drawn(self) -> bool:
        network = unwrapped(self.bundle.network)
        return self.class_label is None and family_of(network).num_classes(network) is not None

    @cached_property
    def _shared(self) -> Denoiser:
        return self._conditioned([self.seed])

    def _conditioned(self, seeds: Sequence[int]) -> Denoiser:
        return conditioned(
            self.bundle,
            prompt=self.prompt,
            negative_prompt=self.negative_prompt,
            guidance_scale=self.guidance_scale,
            class_label=self.class_label,
            seeds=seeds,
        )

    def denoiser(self, seeds: Sequence[int]) -> Denoiser:
        """The model under its conditions; a class that is drawn follows from each sample's seed alone."""
        return self._conditioned(seeds) if self._is_drawn else self._shared

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """Standard normal x_T ``(B, C, H, W)``, on the device."""
        return seeded_noise(self.bundle.sample_shape, seeds).to(self.device, self.precision)

    def decode(
        self, x_T: Tensor, seeds: Sequence[int], num_steps: int, visit: Callable[[Tensor, Tensor], object] | None = None
    ) -> Tensor:
        """x₀, or latents of it, by DDIM from x_T, unclipped. ``seeds`` are those of the conditions."""
        return ddim(self.denoiser(seeds), ddim_steps(self.bundle.scheduler, num_steps), x_T, visit=visit)

    def sample(self, seeds: Sequence[int], num_steps: int) -> Tensor:
        """Images ``(B, C, H, W)`` in [−1, 1], image i from its seed alone."""
        with torch.no_grad():
            return self.bundle.decode(self.decode(self.noise(seeds), seeds, num_steps))

    def encode_at(self, x: Tensor, step: Tensor, seeds: Sequence[int]) -> Tensor:
        """h of x ``(B, ...)`` at the network's timestep, un-pooled, under the conditions of these samples.

        Products with the Jacobian may run several copies of the samples at once, one after the other.
        """
        denoiser = self.denoiser(seeds)
        copies = len(x) // max(len(seeds), 1)
        if denoiser.num_rows > 1 and copies > 1:
            denoiser = denoiser.rows(list(range(len(seeds))) * copies)
        conditions = denoiser.conditioning(len(x), like=x)
        return self._space.encode(x.to(self.dtype), step.to(x.device).expand(len(x)), **conditions)

    @cached_property
    def _space(self) -> HSpace:
        return HSpace(self.bundle.network, self.at)

    def encoder(self, t: int, seeds: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """The map x_t ↦ h at one timestep of the schedule."""
        step = network_timesteps(self.bundle.scheduler, torch.tensor([t]))[0]
        return lambda x: self.encode_at(x, step, seeds)

    @cached_property
    def _order(self) -> list[int]:
        count = len(self.images())
        return torch.randperm(count, generator=torch.Generator().manual_seed(self.seed)).tolist()

    def num_real(self, wanted: int) -> int:
        """At most as many real images as there are.

        Raises:
            RunError: there are none, or not of the model's size.
        """
        images, shape = self.images(), self.image_shape
        if (images.channels, images.resolution, images.resolution) != shape:
            raise RunError(
                f"--reference: the images are {images.channels} × {images.resolution} × {images.resolution}, expected "
                f"{' × '.join(map(str, shape))} as the model makes them"
            )
        return min(wanted, len(images))

    def real(self, rows: Sequence[int]) -> Tensor:
        """Real images ``(B, C, H, W)``, in an order that follows from the seed."""
        return self.images().batch([self._order[row] for row in rows]).to(self.device, self.precision)

    def noised(self, rows: Sequence[int], t: int) -> Tensor:
        """x_t of real images; the noise of image i at t follows from seed + i and t alone."""
        with torch.no_grad():
            return self.diffused(self.bundle.encode(self.real(rows)), rows, t)

    def diffused(self, x0: Tensor, rows: Sequence[int], t: int) -> Tensor:
        """x_t of clean samples, with the noise of :meth:`noised`."""
        noise = torch.stack([torch.randn(x0.shape[1:], generator=draw) for draw in self.draws(rows, t)])
        steps = network_timesteps(self.bundle.scheduler, torch.full((len(x0),), t))
        return noised_at(self.bundle.scheduler, x0, noise.to(x0), steps)

    def draws(self, rows: Sequence[int], *stream: int) -> list[torch.Generator]:
        """A generator for each sample, that follows from seed + i and the stream's numbers alone."""

        def seed_of(row: int) -> int:
            text = " ".join(map(str, (self.seed + row, *stream)))
            return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

        return [torch.Generator().manual_seed(seed_of(row)) for row in rows]

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images that the model makes."""
        if self.bundle.codec is None:
            return self.bundle.sample_shape
        with torch.no_grad():
            blank = torch.zeros(1, *self.bundle.sample_shape, device=self.device)
            channels, height, width = self.bundle.decode(blank).shape[1:]
        return channels, height, width

    @cached_property
    def key(self) -> str:
        """A hash of all that generated images and h depend on beside seeds and steps."""
        parts = (self.prompt, self.negative_prompt, self.guidance_scale, self.class_label, self.at, str(self.dtype))
        scheduler = sorted((k, str(v)) for k, v in dict(self.bundle.scheduler.config).items() if not k.startswith("_"))
        codec = "" if self.bundle.codec is None else weights_hash(self.bundle.codec)
        text = f"{weights_hash(self.bundle.network)} {codec} {parts} {scheduler}"
        return hashlib.sha256(text.encode()).hexdigest()
