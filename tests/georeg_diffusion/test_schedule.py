import pytest
import torch
from scipy.stats import chi

from georeg_diffusion import IsometryGate
from georeg_diffusion._compat import diffusers
from georeg_diffusion.schedule import alphas_cumprod, noised, sphere_radius, training_target

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
