"""DDIM: against diffusers' step, and its inversion against closed forms on a linear-Gaussian model."""

import pytest
import torch

from georeg_diffusion._compat import diffusers
from georeg_diffusion.sampling.ddim import ddim, ddim_steps
from georeg_diffusion.sampling.inversion import ddim_invert

X = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def scheduler_of(kind="epsilon", **kwargs):
    return diffusers.DDPMScheduler(prediction_type=kind, clip_sample=False, **kwargs)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(
    ("spacing", "offset", "to_one"), [("leading", 0, True), ("leading", 1, False), ("trailing", 0, True)]
)
def test_a_step_is_that_of_diffusers(kind, spacing, offset, to_one):
    config = {"timestep_spacing": spacing, "steps_offset": offset, "set_alpha_to_one": to_one}
    theirs = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False, **config)
    theirs.set_timesteps(20)
    steps, x, y = ddim_steps(theirs, 20), X, X
    assert steps.timesteps.tolist() == theirs.timesteps.tolist()
    for i, t in enumerate(theirs.timesteps):
        prediction = torch.tanh(x)
        x = theirs.step(prediction, t, x).prev_sample
        y = steps.alpha[i] * y + steps.beta[i] * prediction
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)  # their table is float32
        y = x


def test_flow_matching_is_eulers_rule():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(8)
    x = X.float()
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x), t, x).prev_sample
    steps = ddim_steps(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), 8)
    torch.testing.assert_close(ddim(lambda x, t: torch.tanh(x), steps, X.float()), x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_steps", [7, 10, 50])
def test_linspace_leads_to_its_own_timesteps(num_steps):
    """An exact ε keeps x_t = a·x₀ + s·ε on the grid, so the last step returns x₀, whatever the spacing."""
    noise = torch.flip(X, [0])
    for spacing in ("leading", "linspace", "trailing"):
        scheduler = scheduler_of(timestep_spacing=spacing)
        steps = ddim_steps(scheduler, num_steps)
        alpha_bar = scheduler.alphas_cumprod.double()[steps.timesteps[0].long()]
        x = alpha_bar.sqrt() * X + (1 - alpha_bar).sqrt() * noise
        torch.testing.assert_close(ddim(lambda x, t: noise, steps, x), X, rtol=0, atol=1e-9)


def test_zero_terminal_signal():
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    steps = ddim_steps(scheduler, 10)
    assert torch.isfinite(steps.alpha).all()
    with pytest.raises(ValueError, match="ε-prediction"):
        ddim_steps(diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 10)


def test_errors():
    for number in (0, 1001):
        with pytest.raises(ValueError, match="num_steps"):
            ddim_steps(scheduler_of(), number)
    steps = ddim_steps(scheduler_of(), 5)
    assert ddim(torch.tanh, steps, X, start=5) is X
    with pytest.raises(ValueError, match="start"):
        ddim(torch.tanh, steps, X, start=6)
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="portion"):
            ddim_invert(torch.tanh, steps, X, portion=bad)
    with pytest.raises(ValueError, match="refine"):
        ddim_invert(torch.tanh, steps, X, refine=-1)


def linear_gaussian(scheduler, variance):
    """The exact network of data N(0, v): E[ε | x_t] = s·x/(a²v + s²), and likewise for x₀ and v."""
    alpha_bar = scheduler.alphas_cumprod.double()

    def predict(x, t):
        a, s = alpha_bar[int(t)].sqrt(), (1 - alpha_bar[int(t)]).sqrt()
        noise, data = s * x / (a**2 * variance + s**2), a * variance * x / (a**2 * variance + s**2)
        kind = scheduler.config.prediction_type
        return noise if kind == "epsilon" else data if kind == "sample" else a * noise - s * data

    return predict


def test_plain_inversion_is_the_product_of_its_step_factors():
    """With ε̂ = c·x of the next level's timestep at the present x: x_t = (a/a′)(1 − s′c)x + s·c·x."""
    scheduler, variance = scheduler_of(), torch.tensor([0.3, 1.0, 2.5, 0.1], dtype=torch.float64)
    steps, factor = ddim_steps(scheduler, 50), torch.ones(4, dtype=torch.float64)
    a_before, s_before = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    for t in reversed(range(0, 1000, 20)):
        t = 980 - t
        alpha_bar = scheduler.alphas_cumprod.double()[t]
        a, s = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        c = s / (alpha_bar * variance + 1 - alpha_bar)
        factor = factor * (a / a_before * (1 - s_before * c) + s * c)
        a_before, s_before = a, s
    found = ddim_invert(linear_gaussian(scheduler, variance), steps, X)
    assert found.start == 0
    torch.testing.assert_close(found.latents, X * factor, rtol=1e-10, atol=1e-10)


def round_trip(scheduler, variance, num_steps, **kwargs):
    steps, predict = ddim_steps(scheduler, num_steps), linear_gaussian(scheduler, variance)
    found = ddim_invert(predict, steps, X, **kwargs)
    return float((ddim(predict, steps, found.latents, start=found.start) - X).norm() / X.norm())


def test_the_round_trip_improves_as_one_over_steps():
    """The first step, from t = 0 to clean data, does not shrink with K; set_alpha_to_one=False has none."""
    scheduler, variance = diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=False), 0.25
    coarse, fine = (round_trip(scheduler, variance, k) for k in (100, 1000))
    assert 7 < coarse / fine < 14


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("portion", [1.0, 0.6])
def test_refinement_makes_it_exact(kind, portion):
    scheduler = (
        scheduler_of(kind)
        if kind != "sample"
        else diffusers.DDIMScheduler(prediction_type="sample", set_alpha_to_one=False, clip_sample=False)
    )
    plain = round_trip(scheduler, 0.5, 50, portion=portion)
    refined = round_trip(scheduler, 0.5, 50, portion=portion, refine=40)
    assert plain > 1e-3
    assert refined < 1e-8


def test_flow_matching_inverts_too():
    steps = ddim_steps(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), 20)

    def velocity(x, t):
        sigma = float(t) / 1000
        return x * (sigma - (1 - sigma) * 0.5) / ((1 - sigma) ** 2 * 0.5 + sigma**2)

    found = ddim_invert(velocity, steps, X, refine=60)
    torch.testing.assert_close(ddim(velocity, steps, found.latents), X, rtol=0, atol=1e-6)


def test_refinement_does_no_harm_where_it_cannot_converge():
    """At Lipschitz constant 40 the fixed point is not attracting; the kept solution is no worse than the plain one."""
    steps = ddim_steps(scheduler_of(), 10)

    def predict(x, t):
        return torch.sin(40 * x)

    def residual(refine):
        z = ddim_invert(predict, steps, X, portion=0.1, refine=refine).latents
        return (ddim(predict, steps, z, start=9) - X).flatten(1).norm(dim=1)

    assert bool(torch.isfinite(residual(30)).all())
    assert bool((residual(30) <= residual(1) * 1.01 + 1e-6).all())


def test_portion_stops_early():
    steps = ddim_steps(scheduler_of(), 10)
    assert ddim_invert(lambda x, t: x, steps, X, portion=0.3).start == 7
    assert ddim_invert(lambda x, t: x, steps, X, portion=0.01).start == 9
    seen = []
    ddim(lambda x, t: x, steps, X, start=7, visit=lambda x, t: seen.append(int(t)))
    assert seen == [200, 100, 0]
