"""The exact Jacobian against Hutchinson with 8 probes: moments of a U-Net encoder and their gradient, 8² to 32².

The exact one takes min(dim x, dim h) products, Hutchinson 16; its noise is docs/estimators.md's.
"""

from __future__ import annotations

import pytest
import torch

import georeg
from georeg_diffusion import HSpace
from georeg_diffusion.experiments import networks

CASES = {
    "exact": georeg.Exact,
    "Hutchinson, 8 probes": lambda: georeg.Hutchinson(8),
    "Hutchinson, 1 probe": georeg.Hutchinson,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [8, 16, 32])
def test_exact_against_hutchinson(measure, case, size, device, is_smoke):
    if is_smoke and size > 8:
        pytest.skip("the smoke run keeps to 8²")
    torch.manual_seed(0)
    with torch.device(device):
        network = networks.encoder(size)
    space, t = HSpace(network), torch.full((2,), 900, device=device)
    x = torch.randn(2, 3, size, size, device=device)
    loss = georeg.IsometryLoss(domain=georeg.Sphere(), estimator=CASES[case](), recompute=True, chunk_size=32)

    def step():
        return loss(lambda p: space.encode(p, t[: len(p)]), x).loss

    with torch.no_grad():
        h = space.encode(x, t)
    products = min(x[0].numel() - 1, h[0].numel())
    if size == 8:
        with torch.backends.cudnn.flags(allow_tf32=False):
            _agrees_with_the_dense_jacobian(space, x, t)
    measure(
        step, group=f"loss of an encoder at {size}², batch 2, {device}", case=case, rounds=1 if case == "exact" else 5,
        is_vectorised=True, dimension=products, products=products if case == "exact" else 2 * CASES[case]().num_probes,
    )  # fmt: skip


def _agrees_with_the_dense_jacobian(space, x, t):
    exact = georeg.spectral_moments(
        lambda p: space.encode(p, t[: len(p)]), x, domain=georeg.Sphere(), estimator=georeg.Exact(), chunk_size=32
    )
    dense = torch.autograd.functional.jacobian(lambda p: space.encode(p, t[:1]).flatten(), x[:1]).flatten(1)
    radial = x[0].flatten() / x[0].norm()
    dense = (dense - torch.outer(dense @ radial, radial)).double()
    torch.testing.assert_close(exact.trace[0].detach().double(), dense.square().sum(), rtol=1e-4, atol=0)
    torch.testing.assert_close(exact.trace_sq[0].detach().double(), (dense @ dense.mT).square().sum(), rtol=1e-4, atol=0)
