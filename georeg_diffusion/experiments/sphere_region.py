"""A part of the sphere S²: its points, what is drawn on it, and its great circles."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import georeg

POLE = (0.0, 0.0, 1.0)
"""Of the stereographic chart, where its coordinates are infinite."""


@dataclass(frozen=True)
class Region:
    """The points of the unit sphere within an angle of a centre, the chart's pole (0, 0, 1) not among them.

    Attributes:
        angle: in degrees; up to 90 great circles between its points stay within it.
        centre: a unit vector; by default the south pole.

    Raises:
        ValueError: an angle outside (0, 180); a centre that is no unit vector; a region with the chart's pole in it.

    Example:
        >>> from georeg_diffusion.experiments.sphere_region import Region
        >>> hemisphere = Region(90.0)
        >>> bool((hemisphere.sample(1000)[:, 2] <= 0).all())
        True
    """

    angle: float = 120.0
    centre: tuple[float, float, float] = (0.0, 0.0, -1.0)

    def __post_init__(self) -> None:
        if not 0 < self.angle < 180:
            raise ValueError(f"angle: got {self.angle}, expected degrees above 0 and below 180")
        length = math.hypot(*self.centre)
        if not abs(length - 1) < 1e-6:
            raise ValueError(f"centre: got {self.centre} of length {length:.6g}, expected a unit vector")
        to_pole = math.degrees(math.acos(max(-1.0, min(1.0, self.centre[2]))))
        if not self.angle < to_pole:
            raise ValueError(f"angle: got {self.angle}, expected less than {to_pole:.4g}, at which the chart's pole is")

    def at(self, theta: Tensor, phi: Tensor) -> Tensor:
        """The point at an angle from the centre in a direction, both in radians and of one shape: ``(..., 3)``."""
        across, along, centre = self._frame()
        sine = theta.sin()[..., None]
        return sine * phi.cos()[..., None] * across + sine * phi.sin()[..., None] * along + theta.cos()[..., None] * centre

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Points uniform by area ``(n, 3)``: by Archimedes, the height above the rim's plane is uniform."""
        low = math.cos(math.radians(self.angle))
        height = low + (1 - low) * torch.rand(n, generator=generator)
        return self.at(height.clamp(-1, 1).acos(), 2 * math.pi * torch.rand(n, generator=generator))

    def pairs(self, n: int, generator: torch.Generator | None = None, *, apart: float = 20.0) -> tuple[Tensor, Tensor]:
        """Pairs of points ``(n, 3)`` whose shortest arc stays in the region and is at least ``apart`` degrees long."""
        found: list[tuple[Tensor, Tensor]] = []
        while sum(len(a) for a, _ in found) < n:
            a, b = self.sample(n, generator), self.sample(n, generator)
            far = (a * b).sum(1) < math.cos(math.radians(apart))
            inside = self.contains(georeg.slerp(a, b, torch.linspace(0, 1, 33))).all(0)
            found.append((a[far & inside], b[far & inside]))
        return torch.cat([a for a, _ in found])[:n], torch.cat([b for _, b in found])[:n]

    def contains(self, x: Tensor) -> Tensor:
        """Whether points ``(..., 3)`` of the sphere are in it, up to rounding."""
        return x @ self._frame()[2] >= math.cos(math.radians(self.angle)) - 1e-6

    def equidistant(self, x: Tensor) -> Tensor:
        """Azimuthal equidistant projection from the centre, a cartographer's compromise: ``(B, 3)`` to ``(B, 2)``."""
        across, along, centre = self._frame()
        flat = torch.stack([x @ across, x @ along], dim=1)
        radius = flat.norm(dim=1, keepdim=True)
        direction = flat / radius.clamp_min(torch.finfo(x.dtype).tiny)
        return torch.atan2(radius, (x @ centre)[:, None]) * direction

    def parallels(self, every: float = 15.0) -> list[tuple[float, Tensor]]:
        """Circles around the centre: their distance from it in degrees and their points ``(k, 3)``."""
        phi = torch.linspace(0, 2 * math.pi, 181)
        count = math.floor(self.angle / every + 1e-9)
        return [(k * every, self.at(torch.full_like(phi, math.radians(k * every)), phi)) for k in range(1, count + 1)]

    def meridians(self, every: float = 30.0) -> list[Tensor]:
        """Great circles from the centre to the rim, each ``(k, 3)``."""
        theta = torch.linspace(0.02, math.radians(self.angle), 90)
        return [self.at(theta, torch.full_like(theta, math.radians(k * every))) for k in range(round(360 / every))]

    def discs(self, radius: float = 7.0) -> list[Tensor]:
        """Outlines ``(k, 3)`` of equal discs, in degrees: their images show the distortion (Tissot's indicatrix)."""
        zero = torch.zeros(())
        centres = [(self.at(zero, zero), self.at(zero + math.pi / 2, zero))]
        step = 37.5 if self.angle > 60 else 25.0
        for ring in range(1, math.floor((self.angle - radius) / step + 0.21) + 1):
            theta = torch.tensor(math.radians(min(ring * step, self.angle - 2 * radius)))
            for k in range(count := 6 * min(ring, 2)):
                phi = torch.tensor(2 * math.pi * (k + 0.5) / count)
                centres.append((self.at(theta, phi), self.at(theta + math.pi / 2, phi)))
        turn, r = torch.linspace(0, 2 * math.pi, 49)[:, None], math.radians(radius)
        return [math.cos(r) * c + math.sin(r) * (turn.cos() * e + turn.sin() * torch.linalg.cross(c, e)) for c, e in centres]

    def _frame(self) -> tuple[Tensor, Tensor, Tensor]:
        """An orthonormal basis: across, along and the centre."""
        centre = torch.tensor(self.centre)
        first = torch.tensor([1.0, 0.0, 0.0] if abs(self.centre[0]) < 0.9 else [0.0, 1.0, 0.0])
        across = first - (first @ centre) * centre
        across = across / across.norm()
        return across, torch.linalg.cross(across, centre), centre
