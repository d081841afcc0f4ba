"""One training step three ways: diffusers' own, Isometric Diffusion's, and that of the published algorithm."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.functional import jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

import georeg
from georeg_diffusion._compat import diffusers
from georeg_diffusion.cost import Step
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.objective import IsometricDiffusionLoss
from georeg_diffusion.schedule import IsometryGate


def published_loss(network: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    """The isometry loss as published, from its formulas (Eq. 6 and 8): three products, each through a whole U-Net.

    E‖JᵀJ G⁻¹u‖²_G⁻¹ / (E‖J G^(−1/2) u‖²)² in stereographic coordinates z of x, by the double-backward trick.
    """
    space, chart = HSpace(network), georeg.SphereStereographic(radius=x[0].numel() ** 0.5)
    z = chart.from_ambient(_on_sphere(x))
    u = torch.randn_like(z)

    def h(point: Tensor) -> Tensor:
        kept: list[Tensor] = []
        handle = space.module.register_forward_hook(lambda _m, _a, output: kept.append(output))
        try:
            network(chart.to_ambient(point).reshape(x.shape), t)
        finally:
            handle.remove()
        return kept[0]

    with sdpa_kernel(SDPBackend.MATH):
        raised = chart.sharp(z, u)  # G⁻¹ u, of a metric that is a multiple of the identity
        scale = (raised * u).sum(1, keepdim=True).div(u.square().sum(1, keepdim=True)).sqrt()  # G^(−1/2)
        a = jvp(h, z, scale * u, create_graph=True)[1]
        pushed = jvp(h, z, raised, create_graph=True)[1]
        b = vjp(h, z, pushed, create_graph=True)[1]
    return (scale * b).square().sum(1).mean() / a.flatten(1).square().sum(1).mean() ** 2


def _on_sphere(x: Tensor) -> Tensor:
    flat = x.flatten(1)
    return flat * (flat.shape[1] ** 0.5 / flat.norm(dim=1, keepdim=True))


def steps_of(network: nn.Module, batch: int, size: int, device: str, estimator: georeg.Estimator) -> dict[str, Step]:
    """The steps, every sample past the gate."""
    scheduler = diffusers.DDPMScheduler()
    x0, noise = (torch.randn(batch, 3, size, size, device=device) for _ in range(2))
    t = torch.full((batch,), 900)
    objective = IsometricDiffusionLoss(network, scheduler, gate=IsometryGate(weight=1e-2, skip=0.5), estimator=estimator)
    alpha_bar = float(scheduler.alphas_cumprod[900])

    def plain() -> Tensor:
        x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
        return nn.functional.mse_loss(network(x_t, t.to(device)).sample, noise)

    def ours() -> Tensor:
        return objective(x0, t, noise).loss

    def published() -> Tensor:
        x_t = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
        return plain() + 1e-2 * published_loss(network, x_t, t.to(device))

    return {"plain": plain, "ours": ours, "published": published}
