"""Every loss: its value and gradient on the dense operator, its minimum, its invariances, its pooled gradients."""

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


DENSE = {
    "isometry": lambda e, d: e.square().sum(1).mean() / e.sum(1).mean() ** 2,
    "conformal": lambda e, d: (e.square().sum(1) / e.sum(1) ** 2).mean(),
    "strict": lambda e, d: (e - 1).square().sum(1).mean() / d,
    "contractive": lambda e, d: e.sum(1).mean(),
    "flat": lambda e, d: (e - e.sum(1).mean() / d).square().sum(1).mean(),
    "volume": lambda e, d: e.log().sum(1).var(correction=0),
}


def test_the_registry_finds_every_loss():
    assert set(LOSSES) == {*DENSE, "path_length"}
    assert {cls.__name__ for cls in LOSSES.values()} <= set(georeg.__all__)


@pytest.mark.parametrize("m", [M, 6])
@pytest.mark.parametrize("name", DENSE)
def test_values_and_gradients_equal_the_eigenvalue_formula(name, m):
    f, x = network(m=m), points()
    ours, theirs = evaluate(name, f, x), DENSE[name](spectrum(f, x), min(N, m))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    torch.testing.assert_close(gradients(ours, f.parameters()), gradients(theirs, f.parameters()), rtol=1e-8, atol=1e-11)


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


def shear(x):
    return torch.cat([x[:, :-1], x[:, -1:] + x[:, :1] ** 2 + x[:, 1:2] ** 3], dim=1)


PROJECTION = torch.eye(M, N, dtype=torch.float64)
MINIMA = [
    ("isometry", lambda: mapped(3 * orthogonal(N)), 1 / N),
    ("isometry", lambda: mapped(3 * PROJECTION @ orthogonal(N)), 1 / M),
    ("conformal", lambda: scaled_by_x, 1 / N),
    ("conformal", lambda: mapped(3 * PROJECTION @ orthogonal(N)), 1 / M),
    ("strict", lambda: mapped(orthogonal(N), 1.0), 0),
    ("strict", lambda: mapped(PROJECTION @ orthogonal(N)), 0),
    ("contractive", lambda: lambda x: 0 * x + 2, 0),
    ("flat", lambda: mapped(3 * PROJECTION @ orthogonal(N)), 0),
    ("flat", lambda: lambda x: 0 * x, 0),
    ("path_length", lambda: mapped(3 * PROJECTION @ orthogonal(N)), 0),
    ("path_length", lambda: lambda x: 0 * x, 0),
    ("volume", lambda: shear, 0),
    ("volume", lambda: mapped(torch.randn(N, N, dtype=torch.float64)), 0),
]


@pytest.mark.parametrize(("name", "make", "floor"), MINIMA)
def test_the_minimum_of_the_docstring_is_reached_and_nothing_lies_below(name, make, floor):
    assert evaluate(name, make(), points()).item() == pytest.approx(floor, abs=1e-12)
    for _ in range(5):
        f = network(m=N)
        with torch.no_grad():
            f[2].weight.mul_(torch.rand(1).item() * 3)
        assert evaluate(name, f, points()).item() > floor + 1e-6


def test_what_each_minimum_is_not():
    """The inversion, the shear and the zero map tell the losses apart."""
    x = points()
    assert evaluate("isometry", scaled_by_x, x) > 1.01 / N
    assert evaluate("flat", scaled_by_x, x) > 0.01
    assert evaluate("volume", scaled_by_x, x) > 0.01
    assert evaluate("conformal", shear, x) > 1.01 / N
    assert evaluate("strict", lambda p: 0 * p, x).item() == 1
    assert evaluate("strict", lambda p: 2 * p, x).item() == pytest.approx(9)


def test_gaussian_path_lengths_keep_the_variance_of_chi():
    """Var[χ_d] with E[χ_d] = √2 Γ((d+1)/2)/Γ(d/2): the floor the docstring names."""
    c, x = 3.0, torch.zeros(20_000, N, dtype=torch.float64)
    loss = georeg.PathLengthLoss(momentum=None, estimator=georeg.Hutchinson(distribution="gaussian"))
    with torch.no_grad():
        estimate = loss(lambda p: c * p, x, generator=seeded()).estimate()
    mean = math.sqrt(2) * math.gamma((N + 1) / 2) / math.gamma(N / 2)
    assert abs(estimate.value - c**2 * (N - mean**2)) < 4 * estimate.stderr


DEGREE = {"isometry": 0, "conformal": 0, "volume": 0, "contractive": 2, "path_length": 2, "flat": 4, "strict": None}


@pytest.mark.parametrize("name", LOSSES)
def test_scaling_of_the_map(name):
    """F(c·f) = c^degree F(f); the strict loss has no such law."""
    f, x, c = network(), points(), 1.7
    before, after = evaluate(name, f, x), evaluate(name, lambda p: c * f(p), x)
    if DEGREE[name] is None:
        assert abs(after / before - 1) > 0.1
    else:
        torch.testing.assert_close(after, c ** DEGREE[name] * before, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", LOSSES)
def test_isometries_before_and_behind_change_nothing(name):
    f, x = network(), points()
    before, behind = orthogonal(N), orthogonal(M)
    if name == "path_length":  # behind f in distribution only, since the probes there are random
        f, x = mapped(torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))), torch.zeros(4000, M)
        turned = mapped(behind @ torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)) @ orthogonal(M))
        a, b = (build(name)(g, x.double(), generator=seeded(s)).estimate() for s, g in enumerate([f, turned]))
        assert abs(a.value - b.value) < 4 * math.hypot(a.stderr, b.stderr)
        assert a.value > 20 * a.stderr
        return
    moved = evaluate(name, lambda p: f(p @ before) @ behind, x @ before.mT)
    torch.testing.assert_close(moved, evaluate(name, f, x), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", [n for n in LOSSES if n != "path_length"])
def test_coordinates_on_either_side_change_nothing(name):
    """The sphere in a chart, and the codomain in other coordinates with the metric that belongs to them."""
    radius, f, x = 1.6, network(), points()
    x = radius * x / x.norm(dim=1, keepdim=True)
    chart, A = georeg.SphereStereographic(radius), torch.randn(M, M, dtype=torch.float64)
    inverse = torch.linalg.inv(A)
    metric = georeg.CustomMetric(lambda y: (inverse.mT @ inverse).expand(len(y), M, M))
    moved = evaluate(name, lambda z: f(chart.to_ambient(z)) @ A.mT, chart.from_ambient(x), domain=chart, codomain=metric)
    torch.testing.assert_close(moved, evaluate(name, f, x, domain=georeg.Sphere()), rtol=1e-9, atol=1e-12)


def test_conformal_loss_ignores_a_conformal_change_of_metric():
    f, x = network(), points()
    changed = evaluate("conformal", f, x, domain=georeg.CustomMetric(lambda p: 1 + p.square().sum(1)))
    torch.testing.assert_close(changed, evaluate("conformal", f, x), rtol=1e-12, atol=0)
    assert abs(evaluate("isometry", f, x, domain=georeg.CustomMetric(lambda p: 1 + p.square().sum(1))) / changed - 1) > 1e-3


def test_volume_ignores_maps_of_constant_determinant():
    f, x, A = network(m=N), points(), torch.randn(N, N, dtype=torch.float64)
    torch.testing.assert_close(evaluate("volume", lambda p: f(p) @ A.mT, x), evaluate("volume", f, x), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(evaluate("volume", lambda p: shear(f(p)), x), evaluate("volume", f, x), rtol=1e-9, atol=1e-12)


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


@pytest.mark.parametrize("name", LOSSES)
def test_degenerate_maps_never_give_nan(name):
    f = nn.Linear(N, M).double()
    nn.init.zeros_(f.weight)
    for x in (points(), points(0)):
        loss = evaluate(name, f, x, degenerate="zero")
        loss.backward()
        assert loss.item() == (1 if name == "strict" and len(x) else 0)
        assert f.weight.grad is None or f.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_nan_is_refused_and_shows_where_it_is_not_checked(name):
    x = points()
    x[1, 1] = math.nan
    with pytest.raises(ValueError, match="not finite"):
        evaluate(name, torch.exp, x)
    assert evaluate(name, torch.exp, x, degenerate="zero").isnan()


@pytest.mark.parametrize("name", LOSSES)
def test_meta_device(name):
    out = build(name, degenerate="zero")(network().to("meta"), torch.empty(B, N, dtype=torch.float64, device="meta"))
    out.loss.backward()
    assert out.loss.shape == ()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_float32_at_extreme_scales(name, scale):
    f, x = network(), points()
    expected = evaluate(name, lambda p: scale * f(p), x)
    loss = evaluate(name, lambda p: scale * f.float()(p), x.float())
    assert loss.dtype == torch.float32
    if name != "path_length":  # float32 draws other probes
        torch.testing.assert_close(loss.double(), expected, rtol=2e-4, atol=1e-30)
    assert gradients(loss, f.parameters()).isfinite().all()


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
