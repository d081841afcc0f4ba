"""The training objective on every family of networks, every schedule and every weighting."""

import pytest
import torch

import georeg
from georeg_diffusion import Bundle, HSpace, IsometricDiffusionLoss, IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.schedule import loss_weights, noised_at, target_at
from georeg_diffusion.training.config import TrainConfig
from georeg_diffusion.training.phase import make_objective
from tests.conftest import gradients
from tests.georeg_diffusion.networks import NETWORKS, conditioning_of, latents, plain, sd3

STEPS = torch.tensor([10, 400, 700, 990])


def schedule_of(name):
    if name == "sd3":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.DDPMScheduler(prediction_type="v_prediction")


def made(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    c = {k: v.double() if v.is_floating_point() else v for k, v in conditioning_of(name, 4).items()}
    x0, noise = latents(4)[0].double(), latents(4, seed=7)[0].double()
    return network, x0, noise, c


@pytest.mark.parametrize("weighting", ["uniform", "min-snr"])
@pytest.mark.parametrize("name", NETWORKS)
def test_both_losses_and_their_gradients_are_those_made_by_hand(name, weighting):
    network, x0, noise, c = made(name)
    scheduler = schedule_of(name)
    objective = IsometricDiffusionLoss(
        network, scheduler, gate=IsometryGate(0.1, 0.5), timestep_bins=0, momentum=None, loss_weighting=weighting
    )
    out = objective(x0, STEPS, noise, torch.Generator().manual_seed(3), **c)

    x_t, target = noised_at(scheduler, x0, noise, STEPS), target_at(scheduler, x0, noise, STEPS)
    by_name = {"dit": "hidden_states", "sd3": "hidden_states"}.get(name, "sample")
    prediction = network(**{by_name: x_t}, timestep=STEPS, **c).sample[:, :2]
    each = (prediction - target).square().mean((1, 2, 3))
    denoising = (loss_weights(scheduler, STEPS, weighting) * each).mean()
    gated = slice(2, 4)
    isometry = georeg.IsometryLoss(domain=georeg.Sphere(), normalize=True)(
        lambda z: HSpace(network).encode(z, STEPS[gated], **{k: v[gated] for k, v in c.items()}),
        x_t[gated],
        generator=torch.Generator().manual_seed(3),
    ).loss
    torch.testing.assert_close(out.denoising, denoising, rtol=1e-9, atol=0)
    torch.testing.assert_close(out.functional, isometry.detach(), rtol=1e-9, atol=0)
    parameters = list(network.parameters())
    torch.testing.assert_close(
        gradients(out.loss, parameters), gradients(denoising + 0.1 * 0.5 * isometry, parameters), rtol=1e-7, atol=1e-10
    )


def test_a_flow_takes_fractions_of_a_step_and_its_last_one():
    network, x0, noise, c = made("sd3")
    objective = IsometricDiffusionLoss(network, schedule_of("sd3"), gate=IsometryGate(skip=0.5))
    out = objective(x0, torch.tensor([0.0, 500.0, 500.5, 1000.0]), noise, **c)
    assert out.gated == 2
    assert torch.isfinite(out.loss)
    for wrong in (torch.tensor([0.0, 1.0, 2.0, 1000.5]), torch.tensor([-1.0, 1.0, 2.0, 3.0])):
        with pytest.raises(ValueError, match=r"expected them in \[0, 1000\]"):
            objective(x0, wrong, noise, **c)
    drawn = objective(x0, noise=noise, generator=torch.Generator().manual_seed(0), **c)
    assert torch.isfinite(drawn.loss)


def test_a_diffusion_takes_whole_steps_only():
    objective = IsometricDiffusionLoss(plain(), diffusers.DDPMScheduler())
    with pytest.raises(ValueError, match="expected 4 integers"):
        objective(latents(4)[0], torch.rand(4))
    with pytest.raises(ValueError, match=r"got 1000 to 1000, expected them in \[0, 1000\)"):
        objective(latents(4)[0], torch.full((4,), 1000))


def test_the_whole_objective_of_a_flow_runs_on_the_meta_device():
    network = sd3().to("meta")
    c = {k: v.to("meta") for k, v in conditioning_of("sd3", 4).items()}
    objective = IsometricDiffusionLoss(network, schedule_of("sd3"), loss_weighting="snr")
    objective(torch.empty(4, 2, 8, 8, device="meta"), STEPS, **c).loss.backward()


def test_unknown_weightings_are_refused():
    with pytest.raises(ValueError, match="loss_weighting: got 'log', expected one of uniform, snr, min-snr"):
        IsometricDiffusionLoss(plain(), diffusers.DDPMScheduler(), loss_weighting="log")


def test_the_trainers_option_reaches_the_objective():
    bundle = Bundle(plain(), diffusers.DDPMScheduler())
    assert make_objective(bundle, TrainConfig(loss_weighting="min-snr"), 0.1).loss_weighting == "min-snr"
    assert make_objective(bundle, TrainConfig(), 0.1).loss_weighting == "uniform"
