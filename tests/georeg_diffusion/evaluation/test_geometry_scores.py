"""Isometry, MCN, VoR and mRTL of encoders whose answer is known."""

import math

import pytest
import torch

import georeg
from georeg import diagnostics
from georeg_diffusion.evaluation.isometry import Isometry
from georeg_diffusion.evaluation.lanczos import mean_log_eigenvalue
from georeg_diffusion.evaluation.mcn import Mcn
from georeg_diffusion.evaluation.mrtl import Mrtl
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.evaluation.spectra import Spectra
from georeg_diffusion.evaluation.vor import Vor, VorLog
from tests.georeg_diffusion.evaluation.contract import run


@pytest.fixture
def setting(linear_bundle, digits):
    """Of a linear encoder on digits of 8 × 8, so that n = 64 and d = 63 on the sphere."""

    def make(matrix, **options):
        parts = {"num_samples": 6, "num_inference_steps": 3, "images": Once(lambda: digits), "at": "mid"}
        return Setting(bundle=linear_bundle(matrix.float(), gain=options.pop("gain", 0.0)), **(parts | options))

    return make


def test_an_isometry_is_perfect(setting):
    one = setting(3 * torch.eye(64))
    loss = run(Isometry(one))
    assert loss.value == pytest.approx(1, abs=1e-4)
    assert loss.details["dimension"] == 63
    assert loss.details["effective_rank"] == pytest.approx([63] * 10, rel=1e-4)
    assert loss.details["timesteps"] == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
    mcn = run(Mcn(Spectra(one)))
    assert mcn.value == pytest.approx(1, abs=1e-4)
    assert mcn.details["timesteps"] == [550, 650, 750, 850, 950]
    assert mcn.details["effective_rank"]["value"] == pytest.approx(63, rel=1e-5)
    assert mcn.details["k_condition"]["value"] == pytest.approx(1, abs=1e-4)
    for score in (Vor, VorLog):
        assert run(score(Spectra(one))).value == pytest.approx(0, abs=1e-8)


def test_mcn_of_a_linear_map_against_the_projected_matrix(setting):
    """κ of A(I − x̂x̂ᵀ) without its structural zero, by SVD, at the very points that the score was measured at."""
    torch.manual_seed(1)
    matrix = torch.randn(64, 64)
    one = setting(matrix, num_samples=3, timesteps=(600,))
    kappas, ranks, spectra = [], [], []
    for row in range(3):
        x = one.noised([row], 600).flatten().double()
        x = x / x.norm()
        sigma = torch.linalg.svdvals(matrix.double() @ (torch.eye(64).double() - torch.outer(x, x)))[:63]
        kappas.append(sigma[0] / sigma[-1])
        ranks.append(sigma.square().sum().square() / sigma.pow(4).sum())
        spectra.append(sigma)
    result = run(Mcn(Spectra(one)))
    assert result.value == pytest.approx(float(torch.stack(kappas).mean()), rel=1e-3)
    assert result.details["effective_rank"]["value"] == pytest.approx(float(torch.stack(ranks).mean()), rel=1e-4)
    assert result.details["sigma_squared"]["value"] == pytest.approx(float(torch.stack(kappas).square().mean()), rel=2e-3)
    sigma = torch.stack(spectra)
    assert run(Vor(Spectra(one))).value == pytest.approx(float(sigma.var(0).sum()), rel=1e-3)
    assert run(VorLog(Spectra(one))).value == pytest.approx(float(sigma.log().var(0).sum()), rel=1e-2)


def test_vor_falls_with_the_scale_and_its_log_form_does_not(setting):
    torch.manual_seed(1)
    matrix = torch.randn(64, 64)
    large, small = setting(matrix), setting(matrix / 10)
    assert run(Vor(Spectra(small))).value == pytest.approx(run(Vor(Spectra(large))).value / 100, rel=1e-2)
    assert run(VorLog(Spectra(small))).value == pytest.approx(run(VorLog(Spectra(large))).value, rel=1e-2)


class Stereographic(torch.nn.Module):
    """z = x′/(r − xₙ), r the norm of x: conformal on each sphere, with scale 1/(r − xₙ)."""

    def forward(self, flat):
        radius = flat.norm(dim=1, keepdim=True)
        return flat[:, :-1] / (radius - flat[:, -1:])


def test_a_stereographic_map_is_isotropic_and_not_homogeneous(setting):
    one = setting(torch.eye(64))
    one.bundle.network.mid = Stereographic()
    mcn = run(Mcn(Spectra(one)))
    assert mcn.value == pytest.approx(1, abs=1e-4)
    # Its 63 singular values are 1/(r − xₙ), so VoR is 63 times their variance, by hand from the points.
    scales = torch.stack([1 / (x.norm() - x[-1]) for x in (one.noised([i], 750).flatten().double() for i in range(6))])
    narrow = setting(torch.eye(64), timesteps=(750,))
    narrow.bundle.network.mid = Stereographic()
    assert run(Vor(Spectra(narrow))).value == pytest.approx(63 * float(scales.var()), rel=1e-3)
    assert run(VorLog(Spectra(narrow))).value == pytest.approx(63 * float(scales.log().var()), rel=1e-3)


def test_a_singular_encoder_has_no_condition_number_and_says_why(setting):
    matrix = torch.diag(torch.tensor([0.0] * 10 + [1.0] * 54))
    one = setting(matrix)
    mcn = run(Mcn(Spectra(one)))
    assert mcn.value is None or mcn.value > 1e5  # zero up to rounding
    constant = setting(torch.zeros(64, 64))
    assert "singular" in run(Mcn(Spectra(constant))).protocol
    assert run(Mcn(Spectra(constant))).value is None
    assert "singular" in run(VorLog(Spectra(constant))).protocol
    assert "does not depend on x_t" in run(Isometry(constant)).protocol
    assert run(Isometry(constant)).value is None


def test_beyond_dense_it_is_unconverged_and_not_something_else(setting, monkeypatch):
    sigma = torch.logspace(0, -3, 64)
    one = setting(torch.diag(sigma), num_samples=2, timesteps=(600,))
    smallest = diagnostics.smallest_singular  # as on a large network, where a few steps of Lanczos do not reach it
    monkeypatch.setattr(diagnostics, "smallest_singular", lambda *a, **k: smallest(*a, **k, max_iterations=1))
    result = run(Mcn(Spectra(one, max_dense=8)))
    monkeypatch.undo()
    whole = run(Mcn(Spectra(one)))
    assert result.value is None
    assert "unconverged" in result.protocol
    assert 1 < result.details["k_condition"]["value"] <= whole.details["k_condition"]["value"] * 1.05
    assert result.details["sigma_min_is"] == "an upper bound"
    assert 1 < result.details["lower_bound"] < whole.value
    assert result.details["residual"][0] > 1e-2 * result.details["sigma_min"][0]
    easy = setting(torch.diag(torch.linspace(1, 3, 64)), num_samples=2, timesteps=(600,))
    got, exact = run(Mcn(Spectra(easy, max_dense=8))), run(Mcn(Spectra(easy)))
    assert got.value == pytest.approx(exact.value, rel=2e-2)
    assert "products with J alone" in got.protocol
    assert got.details["effective_rank"]["value"] == pytest.approx(exact.details["effective_rank"]["value"], rel=0.05)
    for score in (Vor, VorLog):
        whole, vor = run(score(Spectra(easy))), run(score(Spectra(easy, max_dense=8)))
        assert vor.value is None
        assert vor.n == 2
        assert "needs all singular values" in vor.protocol
        assert vor.details["effective_rank"] == pytest.approx(exact.details["effective_rank"]["value"], rel=0.05)
        assert 0 < vor.details["lower_bound"]["value"] <= whole.value
        again = score(Spectra(easy, max_dense=8))
        again.load_state({name: one.clone() for name, one in _worked(score(Spectra(easy, max_dense=8))).state().items()})
        assert again.compute() == vor


def _worked(score):
    run(score)
    return score


def test_the_largest_singular_values_beyond_dense_are_those_of_the_dense_jacobian(setting):
    torch.manual_seed(2)
    one = setting(torch.randn(64, 64), num_samples=2, timesteps=(600,))
    sigma = Spectra(one)(0)["sigma"]
    leading = Spectra(one, max_dense=8)(0)["leading"]
    torch.testing.assert_close(leading.double(), sigma[..., :8].double(), rtol=1e-3, atol=0)


def test_the_k_condition_by_quadrature_against_the_spectrum():
    sigma = torch.linspace(0.5, 3, 40, dtype=torch.float64)
    x = torch.zeros(2, 40, dtype=torch.float64)
    draws = [torch.Generator().manual_seed(i) for i in range(2)]
    mean, log = mean_log_eigenvalue(lambda x: x * sigma, x, num_probes=200, num_steps=40, generator=draws)
    torch.testing.assert_close(mean, sigma.square().mean().expand(2), rtol=0.03, atol=0)
    torch.testing.assert_close(log, sigma.square().log().mean().expand(2), rtol=0, atol=0.05)
    _, few = mean_log_eigenvalue(lambda x: x * sigma, x, num_probes=200, num_steps=3, generator=draws)
    assert bool((few > log - 0.05).all()), "the quadrature bounds the logarithm from above"


def test_the_published_procedure_is_at_noise_and_pools(setting):
    """h of 64 channels and no positions; at noise, flat: the singular values are those of the matrix, every time."""
    matrix = torch.diag(torch.linspace(1, 5, 64))
    result = run(Mcn(Spectra(setting(matrix, compat="isodiff"))))
    assert result.value == pytest.approx(5, rel=1e-4)
    assert "compat=isodiff" in result.protocol
    assert "pure noise" in result.protocol
    assert run(Vor(Spectra(setting(matrix, compat="isodiff")))).value == pytest.approx(0, abs=1e-8)


def test_sphericity_is_the_points_own(setting):
    one = setting(torch.eye(64), timesteps=(700,))
    result = run(Isometry(one))
    norms = torch.stack([one.noised([i], 700).square().mean() for i in range(6)])
    assert result.details["sphericity"][0] == pytest.approx(float(norms.mean()), rel=1e-5)
    assert result.details["sphericity_std"][0] == pytest.approx(float(norms.std()), rel=1e-4)


def test_an_image_counts_once_however_many_timesteps(setting):
    torch.manual_seed(1)
    one = setting(torch.randn(64, 64))
    for score in (Mcn(Spectra(one)), Vor(Spectra(one)), Isometry(one)):
        assert run(score).n == 6


def test_mrtl_of_the_identity_is_that_of_its_own_path(setting):
    """gain 0: DDIM only rescales x, so h runs along the slerp itself at every step."""
    result = run(Mrtl(setting(2 * torch.eye(64), num_samples=4), segments=64))
    assert result.value == pytest.approx(result.details["path"], rel=1e-4)
    assert result.value == pytest.approx(result.details["perfect"], rel=0.05)
    assert len(result.details["rtl"]) == len(result.details["timesteps"]) == 3
    assert result.details["timesteps"] == sorted(result.details["timesteps"], reverse=True)


def test_arc_over_chord_and_its_convergence_in_segments():
    """Ends of equal norm at angle θ: a polyline of S chords of an arc has length 2S sin(θ/2S)."""
    ends = torch.zeros(2, 1, 64, dtype=torch.float64)
    ends[0, 0, 0], ends[1, 0, 1] = 3.0, 3.0
    path = georeg.slerp(ends[0], ends[1], torch.linspace(0, 1, 17, dtype=torch.float64))
    expected = [2 * s * math.sin(math.pi / 4 / s) / (2 * math.sin(math.pi / 4)) for s in (16, 8, 4)]
    assert Mrtl._ratios(None, path).tolist() == pytest.approx(expected, rel=1e-9)


def test_mrtl_of_a_straight_image_is_one(setting):
    """A map to one dimension whose image does not turn back is straight."""

    class Monotone(torch.nn.Module):
        def forward(self, flat):
            return flat[:, :1] ** 3

    one = setting(torch.eye(64), num_samples=3)
    one.bundle.network.mid = Monotone()
    result = run(Mrtl(one))
    ends = [torch.randn(2, 1, 1, 8, 8, generator=one.draws([i])[0]).double() for i in range(3)]
    turning = []
    for a, b in ends:
        line = georeg.slerp(a, b, torch.linspace(0, 1, 17, dtype=torch.float64))[:, 0, 0, 0, 0] ** 3
        turning.append(float(line.diff().abs().sum() / (line[-1] - line[0]).abs()))
    assert result.value == pytest.approx(sum(turning) / 3, rel=1e-3)
    assert min(turning) == pytest.approx(1, abs=1e-9)


def test_mrtl_in_half_precision_is_warned_of(setting):
    one = setting(torch.eye(64), num_samples=2)
    assert "caution" not in run(Mrtl(one)).details
    one.bundle.network.to(torch.bfloat16)
    assert "measured in bfloat16" in run(Mrtl(one)).details["caution"]


@pytest.mark.parametrize("segments", [0, 3, 6])
def test_segments_that_cannot_be_halved_twice(setting, segments):
    with pytest.raises(ValueError, match="multiple of 4"):
        Mrtl(setting(torch.eye(64)), segments=segments)
