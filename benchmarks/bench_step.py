"""One training step of a diffusion model: plain, with the isometry loss, and with the published algorithm.

The loss is compared with the dense Jacobian in float64 before any step is timed.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import georeg
from georeg.kernels.triton.support import SWITCH
from georeg_diffusion import HSpace, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.experiments import networks
from georeg_diffusion.experiments.steps import steps_of

TORCHS = "ours, torch's operators"
CASES = ("plain", "ours", "ours, half gated", "ours, recomputed", "ours, recomputed, 4 probes", TORCHS, "published")
ON_A_GPU = ("ours, no Triton",)


@pytest.fixture(scope="module")
def checked():
    """τ₁ and τ₂ of the objective's own path are the dense Jacobian's, within four standard errors and exactly."""
    torch.manual_seed(0)
    network = networks.encoder(8).double()
    x, t = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.full((2,), 900)
    space, sphere = HSpace(network), georeg.Sphere()

    def f(points):
        return space.encode(points, t.repeat_interleave(len(points) // 2))

    exact = georeg.spectral_moments(f, x, domain=sphere, estimator=georeg.Exact())
    for i in range(2):
        dense = torch.autograd.functional.jacobian(lambda p: space.encode(p, t[:1]).flatten(), x[i : i + 1]).flatten(1)
        radial = x[i].flatten() / x[i].norm()
        tangential = dense - torch.outer(dense @ radial, radial)
        gram = tangential @ tangential.mT
        torch.testing.assert_close(exact.trace[i], gram.trace(), rtol=1e-9, atol=0)
        torch.testing.assert_close(exact.trace_sq[i], gram.square().sum(), rtol=1e-9, atol=0)
    repeats = 200
    drawn = georeg.spectral_moments(
        f, x.repeat_interleave(repeats, 0), domain=sphere, estimator=georeg.Hutchinson(),
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    for found, truth in ((drawn.trace, exact.trace), (drawn.trace_sq, exact.trace_sq)):
        values = found.detach().reshape(2, repeats)
        assert ((values.mean(1) - truth).abs() <= 4 * values.std(1) / repeats**0.5).all()


@pytest.mark.parametrize("case", [*CASES, *ON_A_GPU])
def test_step(measure, checked, case, device, is_smoke, monkeypatch):
    if case in ON_A_GPU:
        if device == "cpu":
            pytest.skip("for a GPU")
        monkeypatch.setenv(SWITCH, "0")
    if case == TORCHS:
        monkeypatch.setattr("georeg.kernels.install._Fused", nullcontext)
        monkeypatch.setattr("georeg.kernels.install._Replacing", nullcontext)
    torch.manual_seed(0)
    size, batch = (8, 2) if is_smoke else (32, 8 if device == "cpu" else 128)
    with torch.device(device):
        network = networks.encoder(8) if is_smoke else networks.small_unet()
    estimator = georeg.Hutchinson(num_probes=4 if "4 probes" in case else 1)
    steps = steps_of(network, batch, size, device, estimator)
    name = "ours" if case in (TORCHS, *ON_A_GPU) else case
    if name in steps:
        step = steps[name]
    else:
        objective = IsometricDiffusionLoss(
            network, diffusers.DDPMScheduler(), gate=IsometryGate(weight=1e-2, skip=0.5), estimator=estimator,
            recompute="recomputed" in case, chunk_size=1 if "recomputed" in case else None,
        )  # fmt: skip
        t = torch.tensor([900] * (batch // 2) + [900 if "half" not in case else 10] * (batch // 2))
        x0, noise = torch.randn(2, batch, 3, size, size, device=device)

        def step():
            return objective(x0, t, noise).loss

    measure(
        step, group=f"a training step, small U-Net at {size}², batch {batch}, {device}", case=case,
        rounds=3 if "recomputed" in case else 7, setup=network.zero_grad,
        against=steps["ours"] if case == "published" else None,
    )  # fmt: skip
