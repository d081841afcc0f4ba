"""The objective with recomputation: the same losses and gradients, less memory, on any device."""

import pytest
import torch

import georeg
from benchmarks.step_cost import steps_of
from georeg_diffusion import IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.cost import peak_bytes_of
from georeg_diffusion.experiments.networks import small_unet as cost_unet

from .conftest import small_unet

STEPS = torch.tensor([10, 600, 700, 800, 999, 100])


def gradients(network, x0, **options):
    objective = IsometricDiffusionLoss(
        network, diffusers.DDPMScheduler(), gate=IsometryGate(weight=1.0), estimator=georeg.Hutchinson(4), **options
    )
    arguments = {"class_labels": torch.tensor([0, 1, 2, 0, 1, 2])} if network.config.num_class_embeds else {}
    out = objective(x0, timesteps=STEPS, generator=torch.Generator().manual_seed(1), **arguments)
    found = torch.autograd.grad(out.loss, list(network.parameters()), materialize_grads=True)
    return [out.loss.detach(), out.denoising.detach(), out.functional, torch.tensor(out.gated), *found]


@pytest.mark.parametrize("metric", ["sphere", "ambient", "isodiff"])
@pytest.mark.parametrize("chunk_size", [None, 3, 9])
def test_losses_and_gradients_are_the_same(metric, chunk_size):
    torch.manual_seed(0)
    network = small_unet(num_class_embeds=3).double()
    x0 = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    expected = gradients(network, x0, metric=metric)
    found = gradients(network, x0, metric=metric, recompute=True, chunk_size=chunk_size)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("gate", [IsometryGate(skip=1.0), IsometryGate(weight=0.0)])
def test_nobody_gated(gate):
    objective = IsometricDiffusionLoss(small_unet(), diffusers.DDPMScheduler(), gate=gate, recompute=True)
    out = objective(torch.randn(6, 1, 8, 8), timesteps=STEPS)
    assert out.gated == 0
    assert out.loss == out.denoising


def test_on_the_meta_device():
    network = small_unet().to("meta")
    objective = IsometricDiffusionLoss(network, diffusers.DDPMScheduler(), recompute=True)
    objective(torch.randn(6, 1, 8, 8, device="meta"), timesteps=STEPS).loss.backward()
    assert all(p.grad.is_meta for p in network.parameters() if p.grad is not None)


@pytest.mark.slow
def test_peak_memory_of_the_cost_tables_network():
    """The figures of docs/performance.md: at most 1.6 plain steps, and 32 probes within 15 % of one."""
    torch.manual_seed(0)
    network = cost_unet()
    x0, noise, t = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32), torch.full((4,), 900)

    def peak(step):
        network.zero_grad(set_to_none=True)
        return peak_bytes_of(step)

    def recomputed(probes):
        objective = IsometricDiffusionLoss(
            network, diffusers.DDPMScheduler(), estimator=georeg.Hutchinson(probes), recompute=True
        )
        return peak(lambda: objective(x0, t, noise).loss)

    plain = peak(steps_of(network, 4, 32, "cpu", georeg.Hutchinson())["plain"])
    one = recomputed(1)
    assert one <= 1.6 * plain
    assert recomputed(8) <= 1.15 * one
