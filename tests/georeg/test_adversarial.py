"""Whatever is fed in: the right number or a clear error, never NaN nor a gradient that is silently missing."""

import contextlib
import copy
import math
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import georeg
from georeg import diagnostics
from georeg.testing import dense_moments
from tests.conftest import gradients

adversarial = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

LOSSES = [
    georeg.IsometryLoss,
    georeg.ConformalLoss,
    georeg.StrictIsometryLoss,
    georeg.ContractiveLoss,
    georeg.FlatManifoldLoss,
    georeg.PathLengthLoss,
    georeg.VolumeLoss,
]
MODES = {"grad": contextlib.nullcontext, "no_grad": torch.no_grad, "inference": torch.inference_mode}
CLEAR = re.compile(r"^[a-z_()]+: \S|Expected more than 1 value per channel")
"""An error of the library names the argument first; the other one is batch norm's own."""


class Flat(nn.Module):
    """A small network on events of any shape, with dropout or a norm at will."""

    def __init__(self, event, extra=None):
        super().__init__()
        self.size = math.prod(event)
        self.net = nn.Sequential(nn.Linear(self.size, 4), nn.Tanh(), *([extra] if extra else []), nn.Linear(4, 3))

    def forward(self, x):
        return self.net(x.reshape(len(x), self.size))


class Ignores(Flat):
    def forward(self, x):
        return self.net(torch.ones(len(x), self.size, dtype=x.dtype))


class Zero(Flat):
    def forward(self, x):
        return 0 * super().forward(x)


MAPS = {"network": Flat, "ignores x": Ignores, "zero": Zero}


def laid_out(x, layout):
    """The same numbers in another memory layout."""
    if layout == "transposed" and x.ndim > 1:
        return x.movedim(-1, 0).contiguous().movedim(0, -1)
    if layout == "strided":
        return torch.stack([x, x], dim=-1)[..., 0]
    if layout == "expanded":
        return x[:1].expand(x.shape)
    return x


@st.composite
def inputs(draw, dtypes=(torch.float64, torch.float32)):
    event = draw(st.sampled_from([(), (1,), (2,), (5,), (2, 3), (1, 2, 2)]))
    batch = draw(st.sampled_from([1, 2, 3]))
    dtype = draw(st.sampled_from(dtypes))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    x = torch.randn(batch, *event, generator=generator, dtype=torch.float64) * draw(st.sampled_from([1.0, 1e-4, 1e2]))
    return laid_out(x.to(dtype), draw(st.sampled_from(["plain", "transposed", "strided", "expanded"])))


def network(kind, x, extra=None):
    torch.manual_seed(0)
    return MAPS[kind](x.shape[1:], extra).to(x.dtype)


def attempt(call):
    """What a call returns, or the error with which it refuses."""
    try:
        return call(), None
    except (TypeError, ValueError) as error:
        return None, error


def tangent_projector(x):
    u = x.flatten(1)
    u = u / u.norm(dim=1, keepdim=True)
    return torch.eye(u.shape[1], dtype=x.dtype) - u.unsqueeze(2) * u.unsqueeze(1)


@adversarial
@given(
    x=inputs(dtypes=(torch.float64, torch.float32, torch.bfloat16, torch.float16)),
    kind=st.sampled_from(list(MAPS)),
    mode=st.sampled_from(list(MODES)),
    engine=st.sampled_from(["reverse", "forward"]),
    side=st.sampled_from(["domain", "codomain"]),
    on_sphere=st.booleans(),
    requires_grad=st.booleans(),
)
def test_exact_moments_equal_the_dense_ones(x, kind, mode, engine, side, on_sphere, requires_grad):
    f = network(kind, x)
    x = x.detach().requires_grad_() if requires_grad else x
    options = {"domain": georeg.Sphere() if on_sphere else None, "estimator": georeg.Exact(side), "engine": engine}
    with MODES[mode]():
        m, error = attempt(lambda: georeg.spectral_moments(f, x, **options))
    assert (error is not None) == (on_sphere and x[0].numel() == 1)
    if error is not None:
        assert CLEAR.match(str(error)), error
        return
    double = copy.deepcopy(f).double()
    points = x.detach().double().reshape(len(x), -1)
    trace, trace_sq = dense_moments(double, points, tangent_projector if on_sphere else None)
    # Rounding is relative to the weights and to the whole Jacobian, not to what saturation and the sphere leave of it.
    tolerance = 30 * torch.finfo(x.dtype).eps * (1 + dense_moments(double, points)[0].sqrt())
    for ours, expected, power in ((m.trace, trace, 1 / 2), (m.trace_sq, trace_sq, 1 / 4)):
        assert ours.shape == (len(x),)
        assert ours.isfinite().all()
        assert ((ours.clamp_min(0) ** power - expected.clamp_min(0) ** power).abs() <= tolerance).all()
    if mode == "grad" and kind == "network":
        assert gradients(m.trace_sq.sum(), f.parameters()).isfinite().all()
    assert m.trace.requires_grad == (mode == "grad" and m.trace.grad_fn is not None)


@adversarial
@given(
    x=inputs(),
    kind=st.sampled_from(list(MAPS)),
    loss=st.sampled_from(LOSSES),
    degenerate=st.sampled_from(["raise", "zero"]),
    on_sphere=st.booleans(),
    extra=st.sampled_from([None, nn.Dropout(0.5), nn.BatchNorm1d(4), nn.LayerNorm(4)]),
)
@pytest.mark.filterwarnings("ignore:x. a batch of one", "ignore:.*batch of one", "ignore::UserWarning")
def test_every_loss_is_finite_with_a_gradient_or_says_why_not(x, kind, loss, degenerate, on_sphere, extra):
    f = network(kind, x, copy.deepcopy(extra))
    out, error = attempt(lambda: loss(domain=georeg.Sphere() if on_sphere else None, degenerate=degenerate)(f, x))
    if error is not None:
        assert CLEAR.match(str(error)), error
        return
    assert out.loss.isfinite()
    assert out.loss.requires_grad
    grad = gradients(out.loss, f.parameters())
    assert grad.isfinite().all()


@adversarial
@given(x=inputs(), kind=st.sampled_from(["network", "zero"]), on_sphere=st.booleans(), mode=st.sampled_from(list(MODES)))
def test_scores_are_numbers_or_refused(x, kind, on_sphere, mode):
    f = network(kind, x)
    domain = georeg.Sphere() if on_sphere else None
    with MODES[mode]():
        sigma, error = attempt(lambda: diagnostics.singular_values(f, x, domain=domain))
        assert (error is not None) == (on_sphere and x[0].numel() == 1)
        if error is not None:
            assert CLEAR.match(str(error)), error
            return
        top = diagnostics.top_singular(f, x, 1, domain=domain)
        low = diagnostics.smallest_singular(f, x, domain=domain, max_dense=0)
    assert sigma.isfinite().all()
    precision = 4 * torch.finfo(x.dtype).eps ** 0.5
    assert ((top.values[:, 0] - sigma[:, 0]).abs() <= precision * sigma[:, 0]).all()
    assert (low.upper_bound >= sigma[:, -1] - precision * sigma[:, 0]).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("make", LOSSES)
def test_points_that_are_not_finite_are_refused_by_every_loss(make, bad):
    x = torch.randn(4, 3)
    x[1, 2] = bad
    f = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 3))  # (a tanh is flat at ∞, which is a number)
    with pytest.raises(ValueError, match="not finite|NaN"):
        make()(f, x)


@pytest.mark.parametrize("make", LOSSES)
def test_half_precision_gives_float32_losses_with_gradients(make):
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.randn(4, 3).to(dtype)
        f = network("network", x)
        out = make(estimator=georeg.Exact()) if make not in (georeg.PathLengthLoss, georeg.VolumeLoss) else make()
        loss = out(f, x).loss
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        assert gradients(loss, f.parameters()).isfinite().all()


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_sphere_has_no_pole(axis, sign):
    """At every coordinate axis, both ends, the identity is an isometry and the gradient in x is finite."""
    x = (sign * torch.eye(3, dtype=torch.float64)[axis : axis + 1]).requires_grad_()
    scale = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for estimator in (georeg.Exact(), georeg.Hutchinson(3, "sphere")):
        m = georeg.spectral_moments(lambda p: p * scale, x, domain=georeg.Sphere(1.0), estimator=estimator)
        torch.testing.assert_close(m.trace, torch.tensor([2.0]).double())
        assert all(g.isfinite().all() for g in torch.autograd.grad(m.trace_sq.sum(), [x, scale]))


@pytest.mark.parametrize("norm", [1e-4, 1.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_tangent_projection_in_half_precision_at_any_norm(dtype, norm):
    """‖x‖² leaves float16 at ‖x‖ = 256 and vanishes below 1e-4: the radial direction must go all the same."""
    x = torch.nn.functional.normalize(torch.randn(3, 8), dim=1).mul(norm).to(dtype)
    for v in (x, georeg.Sphere().random_tangent(x, 50)):
        projected = georeg.Sphere().proju(x, v)
        assert projected.dtype == dtype
        cosine = (projected.double() * x.double()).sum(-1) / x.double().norm(dim=-1)
        assert (cosine.abs() <= 4 * torch.finfo(dtype).eps * v.double().norm(dim=-1)).all()
    m = georeg.spectral_moments(lambda p: p, x, domain=georeg.Sphere(), estimator=georeg.Exact())
    torch.testing.assert_close(m.trace, torch.full((3,), 7.0).double(), rtol=4 * torch.finfo(dtype).eps, atol=0)


def test_the_origin_and_the_pole_of_a_chart_are_finite_or_refused():
    zero = torch.zeros(2, 3, dtype=torch.float64)
    m = georeg.spectral_moments(lambda p: 2 * p, zero, domain=georeg.Sphere(), estimator=georeg.Exact())
    assert m.trace.isfinite().all()
    with pytest.raises(ValueError, match="x: got points with norms 0 to 0"):
        georeg.spectral_moments(lambda p: 2 * p, zero, domain=georeg.Sphere(1.0))
    with pytest.raises(ValueError, match="x: got the pole"):
        georeg.SphereStereographic().from_ambient(torch.tensor([[0.0, 0.0, 1.0]]))
    far = torch.full((1, 2), 1e8, dtype=torch.float64)  # next to the pole
    m = georeg.spectral_moments(lambda p: p, far, domain=georeg.SphereStereographic(), estimator=georeg.Exact())
    assert m.trace.isfinite().all()


def test_dimension_zero_is_refused_where_there_is_nothing_to_measure():
    """S⁰ is two points: no tangent, no Jacobian."""
    x = torch.ones(2, 1)
    with pytest.raises(ValueError, match="tangent spaces have dimension 0"):
        diagnostics.mean_condition_number(torch.sin, x, domain=georeg.Sphere())
    with pytest.raises(ValueError, match=CLEAR):
        georeg.IsometryLoss(domain=georeg.Sphere())(torch.sin, x)


def test_integer_points_and_outputs_and_tuples_are_refused_by_a_loss():
    x = torch.randn(3, 2)
    for f, points, error in (
        (torch.sin, x.long(), "x: got dtype torch.int64"),
        (lambda p: p.argmax(1), x, "f: returned dtype torch.int64"),
        (lambda p: (p, p), x, "f: returned tuple"),
        (lambda p: p.sum(), x, r"f: returned shape \(\)"),
    ):
        with pytest.raises((TypeError, ValueError), match=error):
            georeg.IsometryLoss()(f, points)
