"""Fig. 4: the schedule against diffusers' and against its formula; norms against theory."""

import math

import numpy as np
import pytest

from georeg_diffusion._compat import diffusers
from georeg_diffusion.data.digits import Digits
from georeg_diffusion.experiments.lab import Lab
from georeg_diffusion.experiments.paper import fig4


@pytest.fixture(scope="module")
def finding(tmp_path_factory, tiny):
    lab = Lab(tiny, (0, 1), tmp_path_factory.mktemp("fig4"), quick=True, experiment="fig4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fig4, "SIZE", 3 * 32**2)
        return fig4.run(lab)


def test_the_schedule_is_diffusers_and_its_own_formula(finding):
    theirs = diffusers.DDPMScheduler()
    beta = np.linspace(1e-4, 0.02, 1000)  # linear in t (Sec. 3.1)
    for t, alpha, alpha_bar, noise, _, _ in finding.tables[0].rows:
        k = int(t)
        assert alpha.value == pytest.approx(float(theirs.alphas[k]))
        assert alpha.value == pytest.approx(1 - beta[k])
        assert alpha_bar.value == pytest.approx(float(theirs.alphas_cumprod[k]), rel=1e-5)
        assert alpha_bar.value == pytest.approx(math.exp(np.log1p(-beta[: k + 1]).sum()), rel=1e-4)
        assert noise.value == pytest.approx(math.sqrt(1 - alpha_bar.value), rel=1e-6)


def test_the_radius_is_the_mean_of_the_chi_distribution(finding):
    n = 3 * 32**2
    for *_, noise, radius, _ in finding.tables[0].rows:
        # E[χ(n)] = √n (1 − 1/(4n) + 1/(32n²) + …), by Stirling
        assert radius.value == pytest.approx(noise.value * math.sqrt(n) * (1 - 1 / (4 * n)), rel=1e-6)


def test_norms_of_noised_digits_follow_from_their_own(finding):
    """E‖x_t‖² = ᾱ_t‖x₀‖² + (1−ᾱ_t) n, so that the ratio falls towards 1 as noise takes over."""
    pixels = Digits(16).pixels[:300]
    square = pixels.square().mean().item()
    ratios = {
        int(t): (cells[1].value, cells[-1].value) for t, *cells in finding.tables[0].rows if cells[-1].value is not None
    }
    assert len(ratios) >= 4
    for t, (alpha_bar, ratio) in ratios.items():
        assert ratio == pytest.approx(math.sqrt(1 + alpha_bar * square / (1 - alpha_bar)), rel=0.04), t


def test_the_claims(finding):
    near_one, mean, variance, sphere = finding.claims
    assert near_one.holds
    assert mean.holds
    assert variance.holds is False  # it is 1/2
    assert sphere.holds
    assert "0.961" in near_one.evidence
    assert finding.pictures[0].read_bytes().startswith(b"\x89PNG")


def test_the_variance_of_a_norm_is_a_half():
    means, variances = zip(*(fig4._chi(256, 4096, seed) for seed in range(2)), strict=True)
    for mean, variance in zip(means, variances, strict=True):
        assert variance == pytest.approx(0.5, abs=4 * 0.5 * (2 / 4096) ** 0.5)
        assert mean == pytest.approx(
            math.sqrt(2) * math.exp(math.lgamma(128.5) - math.lgamma(128)), abs=4 * (0.5 / 4096) ** 0.5
        )
