"""IsometryLoss against the dense loss in float64: values, gradients, invariances, bad input."""

import math
import warnings

import pytest
import torch
from torch import nn

import georeg
from georeg.testing import dense_moments
from tests.conftest import gradients

N, M, B = 5, 3, 6
R = 1.7

DOMAINS = {
    "euclidean": georeg.Euclidean(),
    "sphere": georeg.Sphere(),
    "stereographic": georeg.SphereStereographic(R),
    "conformal": georeg.CustomMetric(lambda x: 1 + x.square().sum(1)),
    "diagonal": georeg.CustomMetric(lambda x: 1 + x**2),
}


def network(n=N, m=M):
    return nn.Sequential(nn.Linear(n, 7), nn.Tanh(), nn.Linear(7, m)).double()


def points(batch=B, n=N, radius=None):
    x = torch.randn(batch, n, dtype=torch.float64)
    return x if radius is None else radius * x / x.norm(dim=1, keepdim=True)


def exact(**options):
    return georeg.IsometryLoss(estimator=georeg.Exact(), **options)


def tangent_projector(x):
    u = x / x.norm(dim=1, keepdim=True)
    return torch.eye(x.shape[1], dtype=x.dtype) - u.unsqueeze(2) * u.unsqueeze(1)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("sphere", [False, True])
def test_values_and_gradients_equal_the_dense_loss(normalize, sphere):
    f, x = network(), points()
    out = exact(normalize=normalize, domain=georeg.Sphere() if sphere else None)(f, x)
    t1, t2 = dense_moments(f, x, tangent_projector if sphere else None)
    dense = (M if normalize else 1) * t2.mean() / t1.mean() ** 2
    torch.testing.assert_close(out.loss, dense, rtol=1e-12, atol=0)
    ours, theirs = gradients(out.loss, f.parameters()), gradients(dense, f.parameters())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)
    assert (out.count, out.moments.rank) == (B, M)


@pytest.mark.parametrize("estimator", [georeg.Exact(), georeg.Hutchinson(2)])
@pytest.mark.parametrize("c", [1e-3, 1e4])
def test_invariance_to_scale_and_the_gradients_scaling(c, estimator):
    """F(c·f) = F(f). Scaling the last layer's W by c divides its own gradient by c and leaves the others."""
    f, x = network(), points()

    def run():
        loss = georeg.IsometryLoss(estimator=estimator)(f, x, generator=torch.Generator().manual_seed(3)).loss
        both = gradients(loss, [f[0].weight, f[2].weight])
        return loss, both[: f[0].weight.numel()], both[f[0].weight.numel() :]

    before = run()
    with torch.no_grad():
        f[2].weight.mul_(c)
    after = run()
    torch.testing.assert_close(after[0], before[0], rtol=1e-11, atol=0)
    torch.testing.assert_close(after[1], before[1], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(after[2] * c, before[2], rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("estimator", [georeg.Exact(), georeg.Hutchinson()])
@pytest.mark.parametrize("radius", [None, R])
def test_the_spheres_identity_embedding_is_perfect(estimator, radius):
    loss = georeg.IsometryLoss(domain=georeg.Sphere(radius), estimator=estimator, normalize=True)
    assert abs(loss(lambda x: x, points(radius=R)).loss.item() - 1) < 1e-12
    # ... and in the ambient metric it is not, once the map drops the radius: J = P/‖x‖ has a kernel.
    flat = georeg.IsometryLoss(estimator=georeg.Exact(), normalize=True)
    assert flat(lambda x: x / x.norm(dim=1, keepdim=True), points(radius=R)).loss.item() == pytest.approx(N / (N - 1))


@pytest.mark.parametrize("chart", ["scaled", "unit"])
@pytest.mark.parametrize("radius", [0.3, 1.0, 12.0])
def test_stereographic_chart_and_intrinsic_sphere_agree(chart, radius):
    f, x = network(), points(radius=radius)
    metric = georeg.SphereStereographic(radius, chart=chart)
    z = metric.from_ambient(x)
    intrinsic = exact(domain=georeg.Sphere())(f, x)
    charted = exact(domain=metric)(lambda p: f(metric.to_ambient(p)), z)
    torch.testing.assert_close(charted.moments.trace, intrinsic.moments.trace, rtol=1e-10, atol=0)
    torch.testing.assert_close(charted.moments.trace_sq, intrinsic.moments.trace_sq, rtol=1e-10, atol=0)
    torch.testing.assert_close(charted.loss, intrinsic.loss, rtol=1e-10, atol=0)
    ours, theirs = gradients(charted.loss, f.parameters()), gradients(intrinsic.loss, f.parameters())
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_the_papers_chart_with_the_papers_metric_is_wrong_unless_r_is_one():
    """Eq. 2's chart z = x′/(r − xₙ) beside Eq. 3's metric: a perfect isometry no longer reads 1."""

    def mixed(radius):
        x = points(radius=radius)
        unit = georeg.SphereStereographic(radius, chart="unit")
        loss = exact(domain=georeg.SphereStereographic(radius, chart="scaled"), normalize=True)
        return loss(unit.to_ambient, unit.from_ambient(x)).loss.item()

    assert mixed(1.0) == pytest.approx(1, abs=1e-12)
    assert mixed(3.0) > 1.1


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("side", ["domain", "codomain"])
def test_parameters_receive_a_gradient_with_every_domain_metric(domain, side):
    """The published baselines' Euclidean variant dropped the graph and trained nothing."""
    f, x = network(), points()
    georeg.IsometryLoss(domain=DOMAINS[domain], estimator=georeg.Hutchinson(side=side))(f, x).loss.backward()
    for name, parameter in f.named_parameters():
        if name != "2.bias":  # a shift has no Jacobian
            assert parameter.grad.abs().max() > 1e-6, name


def test_the_graph_of_x_is_kept_unless_detached():
    f, encoder, data = network(), network(4, N), points(n=4)
    t1, t2 = dense_moments(f, encoder(data))
    expected = gradients(t2.mean() / t1.mean() ** 2, encoder.parameters())
    torch.testing.assert_close(
        gradients(exact()(f, encoder(data)).loss, encoder.parameters()), expected, rtol=1e-9, atol=1e-13
    )
    assert gradients(exact(detach_x=True)(f, encoder(data)).loss, encoder.parameters()).abs().max() == 0


def test_of_graph_equals_a_call():
    f, x = network(), points().requires_grad_()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        y = f(x)
    shared = exact(codomain=georeg.Sphere(1.0), project=True)
    torch.testing.assert_close(shared.of_graph(x, y).loss, shared(f, x).loss, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("ratio", "pooled"), [(4, 1.36), (16, 128.5 / 72.25)])
def test_groups_pool_each_scale_by_itself(ratio, pooled):
    """R = cI with c = 1 and 4: d(½·d(1 + 16))/(½·d(1 + 4))² = 8.5/6.25 = 1.36 pooled, 1 per group."""
    x = points(batch=8)
    labels = torch.arange(8) % 2
    scale = torch.where(labels == 1, ratio**0.5, 1.0).double().unsqueeze(1)
    loss = exact(normalize=True)
    assert loss(lambda p: scale * p, x).loss.item() == pytest.approx(pooled, rel=1e-12)
    assert loss(lambda p: scale * p, x, labels).loss.item() == pytest.approx(1, rel=1e-12)


def test_grouped_loss_is_the_mean_of_the_groups_losses_by_count():
    f, x = network(), points(batch=7)
    labels = torch.tensor([0, 3, 0, 3, 3, 0, 3])  # groups 1 and 2 stay empty
    whole = exact()(f, x, labels).loss
    parts = sum((labels == g).double().sum() / 7 * exact()(f, x[labels == g]).loss for g in (0, 3))
    torch.testing.assert_close(whole, parts, rtol=1e-12, atol=0)
    ours, theirs = gradients(whole, f.parameters()), gradients(parts, f.parameters())
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("options", [{}, {"degenerate": "zero"}, {"momentum": 0.9, "num_groups": 3}, {"scope": "global"}])
def test_an_empty_batch_gives_an_exact_zero_with_a_graph(options):
    f = network()
    loss = georeg.IsometryLoss(**options)
    out = loss(f, points(0), torch.zeros(0, dtype=torch.long) if "num_groups" in options else None)
    assert out.loss.item() == 0
    assert out.count == 0
    out.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in f.parameters())


@pytest.mark.parametrize("f", [lambda x: torch.ones(len(x), 3), lambda x: 0 * x, lambda x: x.detach().sin()])
def test_degenerate_maps_raise_or_give_zero_but_never_nan(f):
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match="vanishes"):
        georeg.IsometryLoss()(f, x)
    out = georeg.IsometryLoss(degenerate="zero")(f, x)
    assert out.loss.item() == 0


def test_a_zero_map_with_parameters_gives_a_zero_gradient():
    f = nn.Linear(4, 3)
    nn.init.zeros_(f.weight)
    georeg.IsometryLoss(degenerate="zero")(f, torch.randn(5, 4)).loss.backward()
    assert not f.weight.grad.any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_input_is_refused(bad):
    x = points()
    x[2, 1] = bad
    loss = exact(momentum=0.9)
    loss(torch.exp, points())
    kept = loss.running.numerator.clone()
    with pytest.raises(ValueError, match="not finite"):
        loss(torch.exp, x)
    assert torch.equal(loss.running.numerator, kept), "a bad batch must not enter the running means"
    # Unchecked, it shows in the loss, which a GradScaler can skip, and the running means stay sound.
    unchecked = exact(momentum=0.9, degenerate="zero")
    assert not unchecked(torch.exp, x).loss.isfinite()
    assert unchecked(torch.exp, points()).loss.isfinite()


def test_a_batch_of_one_says_that_it_is_the_conformal_loss():
    f, x = network(), points(1)
    with pytest.warns(UserWarning, match="conformal"):
        exact()(f, x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact(momentum=0.9)(f, x)
        exact()(f, points(2))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_graph(mode):
    f, x = network(), points()
    expected = exact()(f, x).loss
    with mode():
        loss = exact()(f, x.clone()).loss
    assert not loss.requires_grad
    torch.testing.assert_close(loss.clone(), expected.detach(), rtol=1e-12, atol=0)


def test_autocast():
    f, x = network().float(), points().float()
    reference = georeg.IsometryLoss(estimator=georeg.Exact())(f, x).loss
    expected = gradients(reference, f.parameters())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = georeg.IsometryLoss(estimator=georeg.Exact())(f, x).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=3e-2, atol=0)
    assert torch.cosine_similarity(gradients(loss, f.parameters()), expected, dim=0) > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """τ₂ of this map is 1e9, far beyond float16."""
    f, x = network().float(), points().float()
    with torch.no_grad():
        f[2].weight.mul_(100)
    reference = georeg.IsometryLoss(normalize=True, estimator=georeg.Exact())(f, x).loss
    loss = georeg.IsometryLoss(normalize=True, estimator=georeg.Exact())(f.to(dtype), x.to(dtype)).loss
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, reference, rtol=5e-2, atol=0)
    loss.backward()
    assert f[0].weight.grad.isfinite().all()
    assert f[0].weight.grad.any()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("codomain", DOMAINS)
def test_meta_device(domain, codomain):
    """No branch on values: the loss can be planned without data."""
    f = network().to("meta")
    loss = georeg.IsometryLoss(
        domain=DOMAINS[domain], codomain=DOMAINS[codomain], degenerate="zero", momentum=0.9, num_groups=4
    ).to("meta")
    out = loss(f, torch.empty(B, N, device="meta", dtype=torch.float64), torch.zeros(B, dtype=torch.long, device="meta"))
    out.loss.backward()
    assert out.loss.shape == ()
    assert f[0].weight.grad.shape == f[0].weight.shape


def test_functional_call_under_grad_equals_autograd():
    f, x = network(), points()
    expected = gradients(exact()(f, x).loss, f.parameters())
    ours = torch.func.grad(lambda p: exact()(lambda q: torch.func.functional_call(f, p, (q,)), x).loss)(
        dict(f.named_parameters())
    )
    torch.testing.assert_close(torch.cat([g.flatten() for g in ours.values()]), expected, rtol=1e-9, atol=1e-13)


def test_an_ensemble_under_vmap():
    """One loss and one gradient for each of three networks at once."""
    networks, x = [network() for _ in range(3)], points()
    stacked, _ = torch.func.stack_module_state(networks)

    def loss(parameters):
        return exact(domain=georeg.Sphere())(lambda q: torch.func.functional_call(networks[0], parameters, (q,)), x).loss

    grads, values = torch.func.vmap(torch.func.grad_and_value(loss))(stacked)
    for i, f in enumerate(networks):
        expected = exact(domain=georeg.Sphere())(f, x).loss
        torch.testing.assert_close(values[i], expected.detach(), rtol=1e-12, atol=0)
        ours = torch.cat([grads[name][i].flatten() for name, _ in f.named_parameters()])
        torch.testing.assert_close(ours, gradients(expected, f.parameters()), rtol=1e-9, atol=1e-13)


def test_grad_scaler():
    """The scaled loss's gradient, unscaled, is the gradient; an overflow skips the step and leaves the state sound."""
    f, x = network().float(), points().float()
    optimizer, scaler = torch.optim.SGD(f.parameters(), lr=1.0), torch.amp.GradScaler("cpu", init_scale=2.0**16)
    loss = exact(momentum=0.9, degenerate="zero")
    expected = gradients(exact()(f, x).loss, f.parameters())
    scaler.scale(loss(f, x).loss).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in f.parameters() if p.grad is not None]), expected[:-M])
    before, kept = [p.clone() for p in f.parameters()], loss.running.numerator.clone()
    optimizer.zero_grad()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(loss(lambda p: f(p) * torch.where(p[:, :1] > 0, p[:, :1] / 0, 1), x.abs()).loss).backward()
    scaler.step(optimizer)
    assert all(torch.equal(p, q) for p, q in zip(f.parameters(), before, strict=True))
    assert torch.equal(loss.running.numerator, kept)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"domain": georeg.Sphere}, TypeError, "domain: got <class .*an instance"),
        ({"codomain": 3}, TypeError, "codomain: got 3"),
        ({"estimator": georeg.Hutchinson}, TypeError, "estimator: got <class"),
        ({"scope": "world"}, ValueError, "scope: got 'world'"),
        ({"degenerate": "ignore"}, ValueError, "degenerate: got 'ignore'"),
        ({"momentum": 1.0}, ValueError, "momentum: got 1.0"),
    ],
)
def test_bad_options_are_named(options, error, match):
    with pytest.raises(error, match=match):
        georeg.IsometryLoss(**options)


@pytest.mark.parametrize(
    ("groups", "options", "match"),
    [
        (torch.zeros(3, dtype=torch.long), {}, "one integer label for each of the 6"),
        (torch.zeros(B), {}, "integer label"),
        (torch.full((B,), -1), {}, "labels from -1"),
        (torch.full((B,), 5), {"num_groups": 4}, r"in \[0, 4\)"),
        (torch.zeros(B, dtype=torch.long), {"momentum": 0.9}, "num_groups: got None"),
        (torch.zeros(B, dtype=torch.long), {"scope": "global"}, "num_groups: got None"),
    ],
)
def test_bad_groups_are_named(groups, options, match):
    with pytest.raises(ValueError, match=match):
        georeg.IsometryLoss(**options)(network(), points(), groups)


def square(x):
    """f′ = x, so that τ₁ = x² and τ₂ = x⁴."""
    return x.square() / 2


def bias(n):
    """E[F] − F, plain and jackknifed, for n draws of x = 1 or, once in 20, 2: exact, by the binomial count of twos."""
    p = 0.05
    weights = torch.tensor([math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)], dtype=torch.float64)
    outs = [exact()(square, 1 + (torch.arange(n) < k).double().unsqueeze(1)) for k in range(n + 1)]
    population = (1 - p + 16 * p) / (1 - p + 4 * p) ** 2
    return tuple(
        (weights * torch.tensor(values, dtype=torch.float64)).sum().item() - population
        for values in ([out.loss.item() for out in outs], [out.estimate().value for out in outs])
    )


def test_the_jackknife_removes_the_ratios_bias_of_order_one_over_n():
    (plain, corrected), (plain_2, corrected_2) = bias(20), bias(40)
    assert plain / plain_2 == pytest.approx(2, rel=0.1)
    assert corrected / corrected_2 == pytest.approx(4, rel=0.1)
    assert abs(corrected_2) < abs(plain_2) / 15


def test_the_jackknifes_standard_error_is_the_spread_of_repeated_draws():
    draws = [exact()(square, (0.3 * torch.randn(64, 1, dtype=torch.float64)).exp()).estimate() for _ in range(400)]
    values = torch.tensor([d.value for d in draws])
    mean_square = torch.tensor([d.stderr**2 for d in draws]).mean()
    spread = values.var()
    # The relative standard error of a variance from 400 near-normal draws is √(2/399) = 7%, plus the jackknife's own.
    assert abs(mean_square / spread - 1) < 4 * 0.08
    with pytest.warns(UserWarning, match="conformal"):
        assert exact()(square, points(1, 1)).estimate().stderr is None


def test_a_graph_that_was_run_on_points_with_a_graph_cannot_be_detached_from_it():
    encoder, decoder, loss = nn.Linear(3, 3), nn.Linear(3, 4), georeg.IsometryLoss(detach_x=True)
    z = encoder(torch.randn(4, 3))
    with pytest.raises(ValueError, match="detach_x: got True with points that carry a graph"):
        loss.of_graph(z, decoder(z))
    z = z.detach().requires_grad_()
    assert loss.of_graph(z, decoder(z)).loss.isfinite()
