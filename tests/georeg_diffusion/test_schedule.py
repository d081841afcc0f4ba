import pytest
import torch
from scipy.stats import chi

from georeg_diffusion import IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.denoiser import predicted_x0
from georeg_diffusion.schedule import (
    alphas_cumprod,
    coefficients,
    loss_weights,
    network_timesteps,
    noised,
    noised_at,
    radius_at,
    sphere_radius,
    target_at,
    training_target,
)

STEPS = torch.tensor([0, 250, 999])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_are_those_of_diffusers(prediction_type):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type)
    x0, noise = torch.randn(2, 3, 1, 4, 4).double()
    alpha_bar = alphas_cumprod(scheduler, STEPS)
    torch.testing.assert_close(noised(x0, noise, alpha_bar), scheduler.add_noise(x0, noise, STEPS), rtol=1e-6, atol=1e-6)
    expected = {
        "epsilon": noise,
        "sample": x0,
        "v_prediction": scheduler.get_velocity(x0, noise, STEPS),
    }[prediction_type]
    torch.testing.assert_close(training_target(x0, noise, alpha_bar, prediction_type), expected, rtol=1e-6, atol=1e-6)


def test_the_scheduler_keeps_its_tables_where_they_are():
    scheduler = diffusers.DDPMScheduler()
    x0 = torch.empty(3, 1, 4, 4, device="meta")
    assert noised(x0, x0, alphas_cumprod(scheduler, STEPS)).device.type == "meta"
    assert scheduler.alphas_cumprod.device.type == "cpu"


def test_the_gate_opens_strictly_above_p_times_t():
    steps = torch.arange(1000)
    assert IsometryGate(skip=0.5).open(steps, 1000).nonzero().flatten().tolist() == list(range(501, 1000))
    assert not IsometryGate(skip=1.0).open(steps, 1000).any()
    assert IsometryGate(skip=0.0).open(steps, 1000).sum() == 999


@pytest.mark.parametrize("arguments", [{"weight": -1}, {"weight": float("nan")}, {"skip": 1.5}, {"skip": float("nan")}])
def test_a_bad_gate_is_refused_by_name(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        IsometryGate(**arguments)


@pytest.mark.parametrize("n", [1, 2, 17, 3072])
def test_the_sphere_radius_is_the_mean_of_a_chi_distribution(n):
    assert float(sphere_radius(n, 0.36)) == pytest.approx(0.8 * chi(n).mean(), rel=1e-10)


def test_noise_concentrates_at_the_sphere_radius():
    norms = torch.randn(4000, 256, dtype=torch.float64).norm(dim=1)
    assert abs(norms.mean() - sphere_radius(256, 0.0)) < 4 * norms.std() / 4000**0.5


DIFFUSIONS = {
    "linear": {},
    "scaled-linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero terminal SNR": {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"},
}


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_the_radius_follows_from_each_schedules_own_table(name):
    """Against the noise part of the scheduler's own x_t at x₀ = 0."""
    scheduler = diffusers.DDIMScheduler(**DIFFUSIONS[name])
    noise = torch.randn(3, 500, dtype=torch.float64)
    x_t = scheduler.add_noise(torch.zeros_like(noise), noise, STEPS)
    expected = x_t.norm(dim=1) / noise.norm(dim=1) * chi(500).mean()
    torch.testing.assert_close(radius_at(scheduler, 500, STEPS), expected, rtol=1e-5, atol=1e-6)
    if name == "zero terminal SNR":
        assert radius_at(scheduler, 500, STEPS)[-1] == sphere_radius(500, 0.0)


def test_flow_matching_is_diffusers_own():
    """x_t as the scheduler scales noise; the Euler step along the target from x_t to 0 ends at the data."""
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    x0, noise = torch.randn(2, 4, 1, 4, 4)
    t = scheduler.timesteps[[0, 100, 700, 999]]
    x_t = noised_at(scheduler, x0, noise, t)
    torch.testing.assert_close(x_t, scheduler.scale_noise(x0, t, noise), rtol=1e-5, atol=1e-6)
    sigma = (t / 1000).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(x_t - sigma * target_at(scheduler, x0, noise, t), x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x_t[0], noise[0], rtol=1e-5, atol=1e-5)  # time runs from data at 0 to noise at T
    assert float(radius_at(scheduler, 10_000, torch.tensor([250.0]))) == pytest.approx(25, rel=1e-4)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_draws_of_a_flow_are_its_own_timesteps(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    ours = network_timesteps(scheduler, torch.arange(1000))
    torch.testing.assert_close(ours.flip(0), scheduler.timesteps, rtol=1e-5, atol=1e-4)
    draws = torch.arange(1000)
    assert network_timesteps(diffusers.DDPMScheduler(), draws) is draws


def test_at_a_timestep_it_is_the_diffusions_formula():
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction")
    x0, noise = torch.randn(2, 3, 1, 4, 4)
    alpha_bar = alphas_cumprod(scheduler, STEPS)
    assert torch.equal(noised_at(scheduler, x0, noise, STEPS), noised(x0, noise, alpha_bar))
    assert torch.equal(target_at(scheduler, x0, noise, STEPS), training_target(x0, noise, alpha_bar, "v_prediction"))


SCHEDULERS = {
    kind: diffusers.DDIMScheduler(prediction_type=kind, beta_schedule="scaled_linear")
    for kind in ("epsilon", "sample", "v_prediction")
} | {"flow": diffusers.FlowMatchEulerDiscreteScheduler()}


@pytest.mark.parametrize("weighting", ["snr", "min-snr"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_weights_are_those_of_the_error_of_x0(kind, weighting):
    """From a perturbed prediction: weight · (its error) = w(SNR) · (error of the x̂₀ it implies)."""
    scheduler, t = SCHEDULERS[kind], torch.tensor([5, 300, 900])
    x0, noise, slip = torch.randn(3, 3, 2, 4, 4, dtype=torch.float64)
    x_t, target = noised_at(scheduler, x0, noise, t), target_at(scheduler, x0, noise, t)
    wrong = target + slip
    error, error_x0 = (e.square().flatten(1).sum(1) for e in (wrong - target, predicted_x0(scheduler, wrong, x_t, t) - x0))
    a, s = coefficients(scheduler, t)
    snr = (a / s) ** 2
    expected = (snr if weighting == "snr" else snr.clamp_max(5)) * error_x0
    torch.testing.assert_close(loss_weights(scheduler, t, weighting) * error, expected, rtol=1e-6, atol=0)


def test_min_snr_is_diffusers_training_scripts_formula():
    t = torch.arange(1000)
    for kind, divide in (("epsilon", lambda snr: snr), ("v_prediction", lambda snr: snr + 1), ("sample", torch.ones_like)):
        scheduler = SCHEDULERS[kind]
        snr = diffusers.training_utils.compute_snr(scheduler, t).double()
        expected = snr.clamp_max(5.0) / divide(snr)
        torch.testing.assert_close(loss_weights(scheduler, t, "min-snr"), expected, rtol=1e-4, atol=1e-6)


def test_weights_are_finite_at_zero_terminal_snr_and_at_a_flows_ends():
    for kind in ("epsilon", "sample", "v_prediction"):
        scheduler = diffusers.DDIMScheduler(prediction_type=kind, rescale_betas_zero_snr=True)
        for weighting in ("uniform", "snr", "min-snr"):
            assert torch.isfinite(loss_weights(scheduler, torch.arange(1000), weighting)).all()
    flow = diffusers.FlowMatchEulerDiscreteScheduler()
    assert loss_weights(flow, torch.tensor([0, 1000]), "snr").tolist() == [1, 0]
    assert loss_weights(flow, torch.tensor([0, 1000]), "min-snr").tolist() == [0, 0]


def test_unknown_weightings_and_schedulers_are_refused():
    with pytest.raises(ValueError, match="weighting: got 'log', expected one of uniform, snr, min-snr"):
        loss_weights(diffusers.DDPMScheduler(), STEPS, "log")
    with pytest.raises(ValueError, match="gamma: got 0"):
        loss_weights(diffusers.DDPMScheduler(), STEPS, "min-snr", gamma=0)
    with pytest.raises(ValueError, match="prediction_type: the scheduler says 'other'"):
        loss_weights(diffusers.DDPMScheduler(prediction_type="other"), STEPS, "snr")
    with pytest.raises(ValueError, match="EDMEulerScheduler, which has no"):
        noised_at(diffusers.EDMEulerScheduler(), torch.ones(3, 1), torch.ones(3, 1), STEPS)
