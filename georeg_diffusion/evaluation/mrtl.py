"""Mean relative trajectory length (Sec. 4.1): how straight a slerp in X becomes in H."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

import georeg
from georeg import Estimate, diagnostics
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.progress import progress
from georeg_diffusion.sampling.ddim import ddim_sample


@dataclass(frozen=True)
class TrajectoryLength:
    """mRTL of one model.

    Attributes:
        mrtl: mean over the sampling timesteps of RTL(t), with the standard error over pairs.
        rtl: RTL(t) for each reverse step, in sampling order.
        timesteps: of the reverse steps.
        perfect: what a perfect isometry of the sphere has along these slerps, arc over chord; 1 is not the target.
        segments: S, pieces of each path.
    """

    mrtl: Estimate
    rtl: list[float]
    timesteps: list[int]
    perfect: float
    segments: int


@torch.no_grad()
def mean_relative_trajectory_length(
    bundle: Bundle,
    *,
    num_pairs: int = 16,
    segments: int = 16,
    num_steps: int = 20,
    seed: int = 0,
    at: str | None = None,
    device: torch.device | str = "cpu",
    title: str = "mRTL",
) -> TrajectoryLength:
    """RTL(t) = E[Σᵢ‖h_t(sᵢ₊₁) − h_t(sᵢ)‖ / ‖h_t(s_S) − h_t(s₀)‖] along slerps of x_T, each denoised by DDIM.

    Args:
        bundle: the model, in evaluation mode.
        num_pairs: pairs of end points, standard normal.
        segments: S ≥ 1; RTL grows with S to the length of the curve.
        num_steps: DDIM steps.
        seed: of the end points.
        at: name of the h-space module.
        device: where the model is.
        title: on the progress bar.
    """
    generator = torch.Generator().manual_seed(seed)
    ends = torch.randn(2, num_pairs, *bundle.sample_shape, generator=generator).to(device)
    path = georeg.slerp(ends[0], ends[1], torch.linspace(0, 1, segments + 1, device=device))
    cosine = torch.nn.functional.cosine_similarity(ends[0].flatten(1), ends[1].flatten(1))
    # Segments of one pair go through the network together, so that the memory is that of segments + 1 samples.
    encoder = HSpace(bundle.network, at)
    ratios: list[Tensor] = []
    timesteps: list[int] = []
    with progress(title, num_pairs) as bar:
        for pair in range(num_pairs):
            rtl: list[Tensor] = []
            timesteps = []

            def visit(x: Tensor, t: Tensor, rtl: list[Tensor] = rtl, timesteps: list[int] = timesteps) -> None:
                h = encoder.encode(x, t.to(x.device))
                rtl.append(diagnostics.relative_trajectory_length(h.unsqueeze(1)))
                timesteps.append(int(t))

            ddim_sample(bundle, path[:, pair], num_steps, visit)
            ratios.append(torch.cat(rtl))
            bar.advance()
    values = torch.stack(ratios).double()
    means = values.mean(1)
    return TrajectoryLength(
        Estimate.of(means),
        values.mean(0).tolist(),
        timesteps,
        float(diagnostics.great_circle_ratio(torch.arccos(cosine.double())).mean()),
        segments,
    )
