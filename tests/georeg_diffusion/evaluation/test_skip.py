"""The suggested p against its own statement, computed another way, and against noised samples."""

import math

import numpy as np
import pytest
import torch

from georeg_diffusion._compat import diffusers
from georeg_diffusion.evaluation.skip import excess_energy, skip_for, suggested_skip
from georeg_diffusion.schedule import noised_at

ENERGY, TOLERANCE = 0.4, 0.1


def first_open(alpha_bar, energy=ENERGY):
    """The first t from which on ᾱ ≤ tolerance/(energy + tolerance), by a loop from the end."""
    t = len(alpha_bar)
    while t and alpha_bar[t - 1] <= TOLERANCE / (energy + TOLERANCE):
        t -= 1
    return t


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("total", [1000, 50])
def test_p_is_the_smallest_hundredth_that_keeps_the_rule(schedule, total):
    scheduler = diffusers.DDPMScheduler(beta_schedule=schedule, num_train_timesteps=total)
    alpha_bar = np.cumprod(1 - scheduler.betas.double().numpy())
    first, p = first_open(alpha_bar), skip_for(scheduler, ENERGY)
    if first >= total:
        assert p is None
        return
    opened = [t for t in range(total) if t > p * total]
    assert opened[0] >= first
    assert first > (p - 0.01) * total + 1e-9 or any(t < first for t in range(total) if t > (p - 0.01) * total)
    assert p == pytest.approx(round(p, 2))


def test_of_the_papers_schedule_and_natural_images_it_is_about_the_papers_half():
    """E‖x₀‖²/n of photographs in [−1, 1] is between 0.2 and 0.4."""
    scheduler = diffusers.DDPMScheduler()
    assert 0.3 < skip_for(scheduler, 0.2) < skip_for(scheduler, 0.4) <= 0.5


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_of_a_flow_p_is_its_sigma(shift):
    """(1 − σ)² m ≤ τ σ² where σ ≥ √m/(√m + √τ), with or without a shift."""
    sigma = math.sqrt(ENERGY) / (math.sqrt(ENERGY) + math.sqrt(TOLERANCE))
    p = skip_for(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), ENERGY)
    assert p == pytest.approx(math.ceil(100 * sigma) / 100, abs=0.0101)
    assert p >= sigma - 0.01


def test_the_excess_is_that_of_noised_samples():
    scheduler = diffusers.DDPMScheduler()
    draw = torch.Generator().manual_seed(0)
    x0 = ENERGY**0.5 * torch.randn(64, 4096, generator=draw).sign()
    for t in (200, 400, 600):
        steps = torch.full((64,), t)
        x_t = noised_at(scheduler, x0, torch.randn(64, 4096, generator=draw), steps)
        energies = x_t.square().mean(1) / (1 - scheduler.alphas_cumprod[t]) - 1
        error = float(energies.std() / 8)
        expected = float(excess_energy(scheduler, steps[:1], ENERGY))
        assert abs(float(energies.mean()) - expected) < 4 * error


def test_extremes():
    scheduler = diffusers.DDPMScheduler()
    assert skip_for(scheduler, 0.0) == 0
    assert skip_for(scheduler, 1e9) is None
    zero_snr = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    assert skip_for(zero_snr, ENERGY) <= 1
    assert (
        skip_for(scheduler, ENERGY, tolerance=1e-2) > skip_for(scheduler, ENERGY) > skip_for(scheduler, ENERGY, tolerance=1)
    )


def test_its_interval_follows_from_the_images():
    scheduler = diffusers.DDPMScheduler()
    energies = torch.tensor([0.1, 0.3, 0.5, 0.7], dtype=torch.float64)
    found = suggested_skip(scheduler, energies)
    error = float(energies.std() / 2)
    assert found.value == skip_for(scheduler, 0.4)
    assert found.low == skip_for(scheduler, 0.4 - 1.96 * error)
    assert found.high == skip_for(scheduler, 0.4 + 1.96 * error)
    assert found.low < found.value < found.high
    alone = suggested_skip(scheduler, energies[:1])
    assert (alone.low, alone.high) == (None, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-0.1, 0.1), "energy"), ((math.nan, 0.1), "energy"), ((0.4, 0), "tolerance"), ((0.4, math.inf), "tolerance")],
)
def test_bad_input(arguments, message):
    energy, tolerance = arguments
    with pytest.raises(ValueError, match=message):
        skip_for(diffusers.DDPMScheduler(), energy, tolerance=tolerance)
