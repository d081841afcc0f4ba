"""The mathematics of the perceptual path length: pairs of points on a slerp, their distance, and its trimmed mean."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import georeg
from georeg import Estimate


@dataclass(frozen=True)
class PathProtocol:
    """What is divided by what, and which pairs count.

    Attributes:
        name: of the protocol.
        epsilon: ε, length of the step along t in [0, 1].
        power: the distance is divided by ε to this power. LPIPS is a *squared* distance, so that 2 converges as
            ε → 0 and 1 is proportional to ε.
        percentiles: distances below the first or above the second are discarded; None keeps all.
    """

    name: str
    epsilon: float
    power: int
    percentiles: tuple[float, float] | None

    def describe(self) -> str:
        """The formula, as a protocol quotes it."""
        trim = "all kept" if self.percentiles is None else "percentiles {:g} to {:g} kept".format(*self.percentiles)
        return f"{self.name}: d/ε{'²' if self.power == 2 else ''} at ε = {self.epsilon:g}, {trim}"


PROTOCOLS = {
    "stylegan2": PathProtocol("stylegan2", 1e-4, 2, (1.0, 99.0)),
    # Sec. 4.1 of the paper prints 1/ε and no ε; that of Karras et al. 2019 is taken. Its tables (648 for the base
    # model) have the size of d/ε².
    "paper": PathProtocol("paper", 1e-4, 1, None),
}


def path_points(x0: Tensor, x1: Tensor, t: Tensor, epsilon: float) -> Tensor:
    """Points at t and t + ε of the slerp between each pair ``(B, ...)``, t ``(B,)``: ``(2, B, ...)`` in float64.

    The slerp takes each event as one vector, whatever its shape, (C, H, W) included. In float32 the step of 1e-4
    would keep three to four digits.

    Raises:
        ValueError: not one t for each pair.
    """
    if t.shape != x0.shape[:1]:
        raise ValueError(f"t: got shape {tuple(t.shape)}, expected one for each of {len(x0)} pairs")
    a, b = x0.double(), x1.double()
    steps = [georeg.slerp(a[i : i + 1], b[i : i + 1], torch.stack([s, s + epsilon]))[:, 0] for i, s in enumerate(t.double())]
    return torch.stack(steps, dim=1) if steps else torch.empty(2, *a.shape, dtype=torch.float64)


def path_distances(
    decode: Callable[[Tensor], Tensor],
    distance: Callable[[Tensor, Tensor], Tensor],
    x0: Tensor,
    x1: Tensor,
    t: Tensor,
    *,
    epsilon: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """d(G(x(t)), G(x(t + ε))) along slerps, ``(B,)`` in float64, not yet divided by a power of ε.

    Args:
        decode: G, latents ``(2B, ...)`` ↦ images ``(2B, C, H, W)``, all first points before all second ones.
        distance: d of two batches of images, ``(B,)``.
        x0, x1: end points ``(B, ...)``.
        t: ``(B,)`` in [0, 1].
        epsilon: ε > 0.
        dtype: of the latents that G gets.

    Raises:
        ValueError: ε ≤ 0, or half precision, whose rounding exceeds the step.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.path_length import path_distances
        >>> x0, x1 = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        >>> squared = lambda a, b: (a - b).square().sum(1)
        >>> d = path_distances(lambda x: 2 * x, squared, x0, x1, torch.tensor([0.3]), epsilon=1e-4, dtype=torch.float64)
        >>> round(float(d) / 1e-8, 3)                       # (2 · 3 · π/2)²
        88.826

    References:
        Karras et al. 2019, A style-based generator architecture, Sec. 4.1; Karras et al. 2020.
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon: got {epsilon}, expected a number above 0")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: got {dtype}, expected float32 or float64; half precision cannot resolve the step")
    points = path_points(x0, x1, t, epsilon).to(dtype)
    first, second = decode(points.flatten(0, 1)).chunk(2)
    return distance(first, second).double()


def trimmed_mean(values: Tensor, percentiles: tuple[float, float] | None) -> Estimate:
    """Mean of the values between two percentiles, with its standard error; n counts all values.

    The lower percentile is rounded down and the upper one up to a value, both included, as in StyleGAN2 and
    torch-fidelity; torchmetrics rounds both down and so drops one value more. The standard error is that of a
    trimmed mean, winsorised deviation over (share kept)·√n: the deviation of the values kept would be too small.

    Raises:
        ValueError: no values.

    References:
        Tukey & McLaughlin 1963; Wilcox, Introduction to robust estimation, Sec. 3.3.
    """
    if percentiles is None or len(values) == 0:
        return Estimate.of(values)
    low = torch.quantile(values, percentiles[0] / 100, interpolation="lower")
    high = torch.quantile(values, percentiles[1] / 100, interpolation="higher")
    kept = values[(values >= low) & (values <= high)]
    n = len(values)
    error = float(values.clamp(low, high).std()) / (len(kept) / n * n**0.5) if n > 1 else None
    return Estimate(float(kept.mean()), error, n)
