"""Losses and moments under torch.func: equal to plain autograd, by the engine that allows it."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

import georeg
from georeg.linearize.forward import ForwardLinearization
from georeg.linearize.reverse import ReverseLinearization
from tests.conftest import gradients
from tests.georeg.test_moments import spd

N, M, B = 4, 3, 5

GEOMETRIES = {
    "euclidean": {},
    "sphere": {"domain": georeg.Sphere(), "codomain": georeg.CustomMetric(spd)},
    "stereographic": {"domain": georeg.SphereStereographic(radius=2.0), "codomain": georeg.CustomMetric(lambda y: 1 + y**2)},
    "projected": {"domain": georeg.Sphere(1.0), "codomain": georeg.Sphere(1.0), "project": True},
}
ESTIMATORS = {
    "exact": georeg.Exact(),
    "codomain": georeg.Hutchinson(2, side="codomain"),
    "domain": georeg.Hutchinson(2, "gaussian", side="domain"),
}
LOSSES = [
    georeg.IsometryLoss,
    georeg.ConformalLoss,
    georeg.StrictIsometryLoss,
    georeg.ContractiveLoss,
    georeg.FlatManifoldLoss,
]


@pytest.fixture
def network():
    return nn.Sequential(nn.Linear(N, 6), nn.Tanh(), nn.Linear(6, M)).double()


@pytest.fixture
def x():
    return nn.functional.normalize(torch.randn(B, N, dtype=torch.float64), dim=1)


def seeded():
    return torch.Generator().manual_seed(3)


def flat(tree):
    return torch.cat([leaf.flatten() for leaf in tree.values()])


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_grad_of_a_loss_equals_autograd(network, x, geometry, estimator):
    regularizer = georeg.IsometryLoss(estimator=ESTIMATORS[estimator], **GEOMETRIES[geometry])
    parameters = dict(network.named_parameters())

    def loss(p):
        return regularizer(lambda q: functional_call(network, p, (q,)), x, generator=seeded()).loss

    expected = gradients(regularizer(network, x, generator=seeded()).loss, network.parameters())
    torch.testing.assert_close(flat(grad(loss)(parameters)), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", LOSSES)
def test_every_loss_under_grad(network, x, make):
    parameters = dict(network.named_parameters())
    ours = grad(lambda p: make()(lambda q: functional_call(network, p, (q,)), x, generator=seeded()).loss)(parameters)
    expected = gradients(make()(network, x, generator=seeded()).loss, network.parameters())
    torch.testing.assert_close(flat(ours), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_vmap_of_grad_equals_a_loop(network, x, geometry, estimator):
    """Per-sample gradients, with one generator that every sample sees from its start."""
    options = GEOMETRIES[geometry] | {"estimator": ESTIMATORS[estimator]}
    parameters = dict(network.named_parameters())

    def trace_sq(p, sample):
        f = lambda q: functional_call(network, p, (q,))  # noqa: E731
        return georeg.spectral_moments(f, sample.unsqueeze(0), generator=seeded(), **options).trace_sq.squeeze(0)

    ours = vmap(grad(trace_sq), in_dims=(None, 0), randomness="same")(parameters, x)
    for i, sample in enumerate(x):
        moments = georeg.spectral_moments(network, sample.unsqueeze(0), generator=seeded(), **options)
        expected = gradients(moments.trace_sq.sum(), network.parameters())
        torch.testing.assert_close(flat({k: v[i] for k, v in ours.items()}), expected, rtol=1e-8, atol=1e-10)


def test_random_probes_inside_vmap_need_a_choice(network, x):
    """vmap must be told whether samples share their probes: torch says so, and both choices work."""
    estimate = lambda s: georeg.spectral_moments(network, s.unsqueeze(0)).trace  # noqa: E731
    with pytest.raises(RuntimeError, match="randomness error mode.*'same' or 'different'"):
        vmap(estimate)(x)
    same = x[:1].expand(4, N)
    assert vmap(estimate, randomness="same")(same).unique().numel() == 1
    assert vmap(estimate, randomness="different")(same).unique().numel() == 4


@pytest.mark.parametrize("make", [georeg.PathLengthLoss, lambda: georeg.IsometryLoss(momentum=0.9)])
def test_running_means_inside_vmap_are_refused(network, x, make):
    regularizer = make()
    call = lambda s: regularizer(network, s.unsqueeze(0)).loss  # noqa: E731
    with pytest.raises(ValueError, match=r"momentum: running means are one state.*\.eval\(\)"):
        vmap(call, randomness="different")(x)
    regularizer.eval()
    assert vmap(call, randomness="different")(x).isfinite().all()


@pytest.mark.parametrize("make", [georeg.PathLengthLoss, lambda: georeg.IsometryLoss(momentum=0.9)])
def test_running_means_inside_grad_are_refused(network, x, make):
    regularizer, parameters = make(), dict(network.named_parameters())
    call = lambda p: regularizer(lambda s: functional_call(network, p, (s,)), x).loss  # noqa: E731
    with pytest.raises(ValueError, match=r"momentum: running means are one state.*\.eval\(\)"):
        torch.func.grad(call)(parameters)
    regularizer.eval()
    assert all(g.isfinite().all() for g in torch.func.grad(call)(parameters).values())


def test_jacrev_hessian_and_jvp_of_moments(network, x):
    parameters = dict(network.named_parameters())

    def trace(p):
        return georeg.spectral_moments(lambda q: functional_call(network, p, (q,)), x, estimator=georeg.Exact()).trace

    jacobian = jacrev(trace)(parameters)
    tangent = {k: torch.randn_like(v) for k, v in parameters.items()}
    pushed = jvp(trace, (parameters,), (tangent,))[1]
    expected = sum((jacobian[k] * tangent[k]).flatten(1).sum(1) for k in parameters)
    torch.testing.assert_close(pushed, expected, rtol=1e-9, atol=1e-12)
    name = "0.bias"
    curvature = hessian(lambda b: trace(parameters | {name: b}).sum())(parameters[name])
    step = 1e-5 * torch.eye(6, dtype=torch.float64)
    differences = [
        (jacrev(trace)(parameters | {name: parameters[name] + s})[name].sum(0)
         - jacrev(trace)(parameters | {name: parameters[name] - s})[name].sum(0)) / 2e-5
        for s in step
    ]  # fmt: skip
    torch.testing.assert_close(curvature, torch.stack(differences), rtol=1e-6, atol=1e-8)


def test_the_engine_is_chosen_by_itself(network, x):
    engines = []

    def value(p):
        lin = georeg.linearize(network, p)
        engines.append(type(lin))
        return lin.value.sum()

    value(x)
    grad(value)(x)
    vmap(lambda s: value(s.unsqueeze(0)))(x)
    assert engines == [ReverseLinearization, ForwardLinearization, ForwardLinearization]
    with pytest.raises(ValueError, match="engine: got 'reverse' inside a torch.func transform"):
        grad(lambda p: georeg.linearize(network, p, engine="reverse").value.sum())(x)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_bfloat16_autocast_agrees_with_float32(x, geometry):
    """The network runs in bfloat16, the moments do not; gradients point the same way."""
    f = nn.Sequential(nn.Linear(N, 32), nn.SiLU(), nn.Linear(32, M))
    regularizer = georeg.IsometryLoss(estimator=georeg.Exact(), **GEOMETRIES[geometry])
    single = regularizer(f, x.float()).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = regularizer(f, x.float())
    assert half.moments.trace_sq.dtype == torch.float64
    assert half.loss.dtype == torch.float32
    torch.testing.assert_close(half.loss, single, rtol=0.05, atol=0)
    ours, expected = gradients(half.loss, f.parameters()), gradients(single, f.parameters())
    assert nn.functional.cosine_similarity(ours, expected, dim=0) > 0.99


def test_grad_scaler_scales_and_unscales_the_whole_gradient(network, x):
    regularizer, optimizer = georeg.IsometryLoss(estimator=georeg.Exact()), torch.optim.SGD(network.parameters(), lr=0.0)
    expected = gradients(regularizer(network, x).loss, network.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    scaler.scale(regularizer(network, x).loss).backward()
    scaled = torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])
    assert scaled.abs().max() > 1000 * expected.abs().max()
    scaler.unscale_(optimizer)
    ours = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in network.parameters()])
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-12)
