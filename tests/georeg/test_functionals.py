"""What is particular to one loss; the laws that all losses share are in test_functional_contract.py."""

import math

import pytest
import torch
from torch import nn

import georeg
from georeg.registry import registered
from georeg.testing import dense_operator
from tests.conftest import gradients

N, M, B = 4, 3, 6
LOSSES = registered("functional")
EXACT = {name: {} if name == "path_length" else {"estimator": georeg.Exact()} for name in LOSSES}


def network(n=N, m=M):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(n, 7), nn.Tanh(), nn.Linear(7, m)).double()


def points(batch=B, n=N):
    return torch.randn(batch, n, dtype=torch.float64)


def orthogonal(n):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q


def build(name, **options):
    """The loss with an exact operator (path lengths have none: fixed probes by seed), without running means."""
    momentum = {"momentum": None} if name == "path_length" else {}
    return LOSSES[name](**{**EXACT[name], **momentum, **options})


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def evaluate(name, f, x, groups=None, **options):
    return build(name, **options)(f, x, groups, generator=seeded()).loss


def spectrum(f, x, metric=None):
    """The d largest eigenvalues of R ``(B, d)``, differentiable, from the symmetric square root form."""
    J = torch.stack([torch.autograd.functional.jacobian(lambda s: f(s[None])[0], s, create_graph=True) for s in x])
    gram = J @ J.mT if J.shape[1] <= J.shape[2] else J.mT @ J
    return torch.linalg.eigvalsh(gram)


def test_path_length_equals_stylegan2s_formula():
    """E(‖Jᵀu‖ − a)² with a held fixed: value at the first step, gradient also later, when a lags behind."""
    f, batches = network(), [points() for _ in range(3)]
    loss, a, weight = georeg.PathLengthLoss(momentum=0.9), 0.0, 0.0
    for step, x in enumerate(batches):
        out = loss(f, x, generator=seeded(step))
        u = georeg.Euclidean().random_cotangent(f(x), 1, seeded(step), probe="sphere")[0]
        J = torch.stack([torch.autograd.functional.jacobian(lambda s: f(s[None])[0], s, create_graph=True) for s in x])
        length = torch.einsum("bij,bi->bj", J, u).norm(dim=1)
        a, weight = 0.9 * a + length.detach().sum(), 0.9 * weight + len(x)
        expected = (length - a / weight).square().mean()
        if step == 0:
            torch.testing.assert_close(out.loss, expected, rtol=1e-10, atol=0)
        ours, theirs = gradients(out.loss, f.parameters()), gradients(expected, f.parameters())
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)
        assert out.moments.num_products == 1


def mapped(matrix, shift=0.0):
    return lambda x: x @ matrix.mT + shift


def scaled_by_x(x):
    """R = c(x)² I: an inversion, conformal everywhere and isometric nowhere."""
    return x / x.square().sum(1, keepdim=True)


def test_gaussian_path_lengths_keep_the_variance_of_chi():
    """Var[χ_d] with E[χ_d] = √2 Γ((d+1)/2)/Γ(d/2): the floor the docstring names."""
    c, x = 3.0, torch.zeros(20_000, N, dtype=torch.float64)
    loss = georeg.PathLengthLoss(momentum=None, estimator=georeg.Hutchinson(distribution="gaussian"))
    with torch.no_grad():
        estimate = loss(lambda p: c * p, x, generator=seeded()).estimate()
    mean = math.sqrt(2) * math.gamma((N + 1) / 2) / math.gamma(N / 2)
    assert abs(estimate.value - c**2 * (N - mean**2)) < 4 * estimate.stderr


def test_path_lengths_behind_an_isometry_are_the_same_in_distribution():
    stretch, x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)), torch.zeros(4000, M, dtype=torch.float64)
    maps = mapped(stretch), mapped(orthogonal(M) @ stretch @ orthogonal(M))
    a, b = (build("path_length")(f, x, generator=seeded(s)).estimate() for s, f in enumerate(maps))
    assert abs(a.value - b.value) < 4 * math.hypot(a.stderr, b.stderr)
    assert a.value > 20 * a.stderr


@pytest.mark.parametrize("name", LOSSES)
def test_what_a_constant_map_costs(name):
    """Its distance from an isometry, and elsewhere nothing, also where "zero" leaves it out."""
    assert evaluate(name, lambda p: 0 * p, points(), degenerate="zero").item() == (1 if name == "strict" else 0)


def test_flat_is_the_isometry_loss_times_a_scale():
    """1/d + F/E[τ₁]², as the docstring says."""
    f, x = network(), points()
    flat, trace = evaluate("flat", f, x), evaluate("contractive", f, x)
    torch.testing.assert_close(1 / M + flat / trace**2, evaluate("isometry", f, x), rtol=1e-12, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_conformal_probe_bias(distribution):
    """[3τ₂Var τ̂₁/τ₁⁴ − 2Cov(τ̂₁, τ̂₂)/τ₁³]/K: more samples do not help; of either sign."""
    A = torch.diag(torch.tensor([1.0, 0.8, 0.6, 0.4], dtype=torch.float64))
    truth, zeros = evaluate("conformal", mapped(A), points(1)).item(), torch.zeros(100_000, N, dtype=torch.float64)
    with torch.no_grad():
        single = georeg.spectral_moments(mapped(A), zeros, estimator=georeg.Hutchinson(1, distribution))
    t1, t2 = single.trace.mean(), single.trace_sq.mean()
    covariance = torch.cov(torch.stack([single.trace, single.trace_sq]))
    first_order = (3 * t2 * covariance[0, 0] / t1**4 - 2 * covariance[0, 1] / t1**3).item()
    assert (first_order > 0) == (distribution == "gaussian")
    for k in (16, 64):
        loss = georeg.ConformalLoss(estimator=georeg.Hutchinson(k, distribution))
        with torch.no_grad():
            estimate = loss(mapped(A), zeros[:40_000], generator=seeded()).estimate()
        assert abs(estimate.value - truth) > 4 * estimate.stderr
        assert abs(estimate.value - truth - first_order / k) < 4 * estimate.stderr + 3 * abs(first_order) / k**2


def test_conformal_has_no_probe_bias_at_the_optimum():
    x = points()
    loss = georeg.ConformalLoss(normalize=True)
    assert loss(scaled_by_x, x).loss.item() == pytest.approx(1, abs=1e-12)


def half_dead(x):
    """Zero Jacobian where the first coordinate is negative."""
    return torch.where(x[:, :1] > 0, x * x.exp(), 0 * x)


@pytest.mark.parametrize("name", ["conformal", "volume"])
def test_a_sample_without_a_ratio_is_refused_or_left_out(name):
    x = points(8)
    x[:, 0] = torch.tensor([1.0, -1.0] * 4, dtype=torch.float64) * x[:, 0].abs()
    with pytest.raises(ValueError, match="one sample at least"):
        evaluate(name, half_dead, x)
    left = evaluate(name, half_dead, x, degenerate="zero")
    torch.testing.assert_close(left, evaluate(name, half_dead, x[::2]), rtol=1e-12, atol=0)


def test_wrong_estimators_are_named():
    with pytest.raises(ValueError, match=r"estimator: got Hutchinson.*Exact"):
        georeg.VolumeLoss(estimator=georeg.Hutchinson())
    with pytest.raises(ValueError, match=r"estimator: got Exact.*Hutchinson"):
        georeg.PathLengthLoss(estimator=georeg.Exact())
    with pytest.raises(ValueError, match="every: got 0"):
        georeg.PathLengthLoss(every=0)


def test_volume_takes_tangent_frames_where_the_sphere_has_a_structural_zero():
    """det R over the tangent space: the oracle drops the zero eigenvalue of the radial direction."""
    f, x = network(m=5), points()
    u = x / x.norm(dim=1, keepdim=True)
    P = torch.eye(N, dtype=torch.float64) - u.unsqueeze(2) * u.unsqueeze(1)
    operator = P @ dense_operator(f, x) @ P
    expected = torch.linalg.eigvalsh(operator)[:, 1:].log().sum(1).var(correction=0)
    ours = evaluate("volume", f, x, domain=georeg.Sphere())
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients(ours, f.parameters()), gradients(expected, f.parameters()), rtol=1e-7, atol=1e-11)


def test_the_jackknife_turns_the_volume_loss_into_the_unbiased_variance():
    """The bias −Var[s]/B of the docstring, removed exactly since F is quadratic in the means."""
    f, x = network(), points()
    estimate = georeg.VolumeLoss()(f, x).estimate()
    assert estimate.value == pytest.approx(spectrum(f, x).log().sum(1).var(correction=1).item(), rel=1e-10)
    assert estimate.n == B


def test_lazy_path_length_rests_and_then_counts_for_all():
    f, x, runs = network(), points(), []

    def counted(p):
        runs.append(1)
        return f(p)

    loss = georeg.PathLengthLoss(every=4, momentum=None)
    plain = georeg.PathLengthLoss(momentum=None)(f, x, generator=seeded()).loss
    losses = [loss(counted, x, generator=seeded()) for _ in range(8)]
    assert len(runs) == 2
    assert [out.loss.item() != 0 for out in losses] == [True, False, False, False] * 2
    torch.testing.assert_close(sum(out.loss for out in losses) / 8, plain, rtol=1e-12, atol=0)
    losses[1].loss.backward()  # a zero with a graph
    loss.eval()
    torch.testing.assert_close(loss(f, x, generator=seeded()).loss, plain, rtol=1e-12, atol=0)


def test_one_file_loss_of_ones_own():
    class Norm(georeg.SpectralRegularizer):
        num_statistics = 1

        def statistics(self, moments):
            return moments.trace.sqrt().unsqueeze(-1)

        def value(self, means, rank):
            return means[..., 0] ** 2

    f, x = network(), points()
    expected = spectrum(f, x).sum(1).sqrt().mean() ** 2
    torch.testing.assert_close(Norm(estimator=georeg.Exact())(f, x).loss, expected, rtol=1e-12, atol=0)


def relaxed_distortion_measure(func, z, v):
    """Lee et al. (2021): E[vᵀ(JᵀJ)²v] / E[vᵀJᵀJv]² with v ~ N(0, I), from their formula, one v per sample."""
    Jv = torch.autograd.functional.jvp(func, z, v, create_graph=True)[1]
    JTJv = torch.autograd.functional.vjp(func, z, Jv, create_graph=True)[1]
    return JTJv.square().sum(1).mean() / Jv.square().sum(1).mean() ** 2


def test_agrees_with_the_relaxed_distortion_measure_at_equal_probes():
    decoder, z = network(2, 9), georeg.mixup_latents(points(B, 2), 0.2, generator=seeded())
    v = torch.randn(1, B, 2, dtype=torch.float64, generator=seeded(9))[0]
    theirs = relaxed_distortion_measure(decoder, z, v)
    ours = georeg.IsometryLoss(estimator=georeg.Hutchinson(1, "gaussian", "domain"))(decoder, z, generator=seeded(9)).loss
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    ours, theirs = gradients(ours, decoder.parameters()), gradients(theirs, decoder.parameters())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("eta", [0.0, 0.2])
def test_mixup_latents_lie_on_lines_through_pairs(eta):
    z = points(2000, 1).requires_grad_()
    mixed = georeg.mixup_latents(z, eta, generator=seeded())
    assert torch.equal(mixed, georeg.mixup_latents(z, eta, generator=seeded()))
    partner = z[torch.randperm(len(z), generator=seeded())]
    alpha = ((mixed - partner) / (z - partner)).detach()
    alpha = alpha[torch.isfinite(alpha)]
    assert alpha.min() >= -eta - 1e-6
    assert alpha.max() <= 1 + eta + 1e-6
    assert abs(alpha.mean() - 0.5) < 4 * alpha.std() / len(alpha) ** 0.5
    assert alpha.std() == pytest.approx((1 + 2 * eta) / 12**0.5, rel=0.05)
    assert mixed.requires_grad
    with pytest.raises(ValueError, match="eta: got -1"):
        georeg.mixup_latents(z, -1)
