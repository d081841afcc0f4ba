"""Every manifold obeys the contract; its geometry equals closed forms and geoopt's."""

import geoopt
import pytest
import torch

import georeg
from georeg.registry import registered
from georeg.testing import ManifoldContract


def spd(y):
    """A matrix metric that depends on the point."""
    flat = y.flatten(1)
    a = torch.stack([torch.sin(flat * (k + 1)) for k in range(flat.shape[1])], dim=-1)
    return a @ a.mT + torch.eye(flat.shape[1], dtype=y.dtype)


MORE_EVENTS = ((4,), (2, 2), (1,))
SUITES = {
    "euclidean": {"manifold": georeg.Euclidean(), "events": MORE_EVENTS},
    "sphere": {"manifold": georeg.Sphere(), "events": ((4,), (2, 2), (2,))},
    "fixed_sphere": {"manifold": georeg.Sphere(1.7), "events": ((4,), (2, 2), (2,))},
    "stereographic": {"manifold": georeg.SphereStereographic(1.7), "events": MORE_EVENTS},
    "stereographic_unit": {"manifold": georeg.SphereStereographic(1.7, chart="unit"), "events": MORE_EVENTS},
    "poincare_ball": {"manifold": georeg.SphereStereographic(curvature=-0.02), "events": MORE_EVENTS},
    "scalar": {"manifold": georeg.CustomMetric(lambda y: 1 + y.flatten(1).square().sum(1)), "events": MORE_EVENTS},
    "diagonal": {"manifold": georeg.CustomMetric(lambda y: 1 + y.flatten(1) ** 2), "events": MORE_EVENTS},
    "matrix": {"manifold": georeg.CustomMetric(spd), "events": MORE_EVENTS},
}
# A registered manifold that the table does not name (a plug-in's, or a new file's) is tried as it comes.
SUITES |= {name: {"manifold": cls()} for name, cls in registered("manifold").items() if name not in SUITES}
for _name, _attributes in SUITES.items():
    _class = "Test" + _name.title().replace("_", "")
    globals()[_class] = type(_class, (ManifoldContract,), _attributes)


def points(n=3, d=4):
    return torch.randn(n, d, dtype=torch.float64)


@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("probe", ["gaussian", "sphere", "rademacher"])
def test_cotangent_probes_pass_gradcheck_in_x(name, probe):
    manifold = SUITES[name]["manifold"]
    x = manifold.projx(points(2, 3)).requires_grad_()

    def draw(p):
        return manifold.random_cotangent(p, 2, torch.Generator().manual_seed(0), probe=probe)

    assert draw(x).requires_grad or name == "euclidean"
    if name != "euclidean":
        assert torch.autograd.gradcheck(draw, (x,))


class Detached(georeg.Sphere):
    """Breaks one law: its probes lose their graph."""

    def random_cotangent(self, x, k, generator=None, *, probe="gaussian"):
        return super().random_cotangent(x, k, generator, probe=probe).detach()


class Recoloured(georeg.CustomMetric):
    """Breaks one law: the norm is fixed after colouring."""

    def random_tangent(self, x, k, generator=None, *, probe="gaussian"):
        v = super().random_tangent(x, k, generator)
        return v / v.norm(dim=-1, keepdim=True) * x.shape[1] ** 0.5 if probe == "sphere" else v


class Ambient(georeg.Sphere):
    """Breaks one law: √n instead of √(n−1)."""

    def random_tangent(self, x, k, generator=None, *, probe="gaussian"):
        return super().random_tangent(x, k, generator, probe=probe) * (4 / 3) ** 0.5


def broken(**methods):
    """Flat space with some methods replaced."""
    return type("Broken", (georeg.Euclidean,), methods)()


def swap(x, v):
    return v.flip(-1) if v.ndim == 2 else v


BROKEN = [
    (Detached(), "test_gradient_through_the_metric_of_cotangents"),
    (Recoloured(lambda x: 1 + x**2), "test_probe_moments"),
    (Ambient(), "test_probe_moments"),
    (Ambient(), "test_fixed_norm_probes"),
    (broken(proju=lambda self, x, v: v / 2), "test_tangent_projection"),
    (broken(proju=lambda self, x, v: v.roll(1, -1)), "test_tangent_projection"),
    (broken(dim=lambda self, x: x.shape[1] - 1), "test_tangent_projection"),
    (broken(flat=lambda self, x, v: 2 * v), "test_sharp_inverts_flat"),
    (broken(flat=lambda self, x, v: v + v.roll(1, -1)), "test_metric_is_symmetric_and_positive"),
    (broken(flat=lambda self, x, v: -v), "test_metric_is_symmetric_and_positive"),
    (broken(projx=lambda self, x: x / 2), "test_point_projection"),
    (broken(inner=lambda self, x, a, b: (a * b).mean(1)), "test_inner_and_norm"),
    (broken(norm=lambda self, x, v: v.norm(dim=-1) + v.abs().sum(-1).sqrt()), "test_inner_and_norm"),
    (broken(norm=lambda self, x, v: v.square().sum(-1).sqrt()), "test_inner_and_norm"),
    (broken(lift=lambda self, x, w: 2 * w), "test_frames"),
    (broken(components=lambda self, x, v: -v), "test_frames"),
    (broken(cocomponents=lambda self, x, v: 2 * v), "test_frames"),
    (
        broken(random_tangent=lambda self, x, k, g=None, *, probe="gaussian": torch.randn(k, *x.shape)),
        "test_probes_are_determined_by_the_generator",
    ),
    (
        broken(random_cotangent=lambda self, x, k, g=None, *, probe="gaussian": torch.ones(k, *x.shape, dtype=x.dtype)),
        "test_probes_are_determined_by_the_generator",
    ),
    (broken(sharp=lambda self, x, v: swap(x, v)), "test_leading_probe_axes"),
    (broken(flat=lambda self, x, v: v.to(x.dtype)), "test_vectors_wider_than_the_points"),
    (broken(flat=lambda self, x, v: v * (1 + x.mean())), "test_samples_do_not_mix"),
    (broken(dim=lambda self, x: x.numel() // max(len(x), 1)), "test_empty_batch"),
    (broken(lift=lambda self, x, w: 2 * w), "test_overrides_agree_with_the_derived_defaults"),
    (broken(norm=lambda self, x, v: 2 * v.norm(dim=-1)), "test_overrides_agree_with_the_derived_defaults"),
    (broken(flat=lambda self, x, v: v * v.norm(dim=-1, keepdim=True) ** 0.5), "test_gradients_are_finite_at_zero_vectors"),
]


@pytest.mark.parametrize(("manifold", "law"), BROKEN)
def test_the_contract_finds_what_is_broken(manifold, law):
    suite = type("Broken", (ManifoldContract,), {"manifold": manifold, "events": ((4,),)})()
    with pytest.raises(AssertionError):
        getattr(suite, law)()


def test_every_law_is_seen_to_fail():
    laws = {name for name in vars(ManifoldContract) if name.startswith("test_")}
    assert laws == {law for _, law in BROKEN}


def test_a_probe_from_the_seed_that_drew_the_point_is_still_tangent():
    """The noise is then parallel to x, and projecting it would leave rounding errors only."""
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    v = georeg.Sphere().random_tangent(x, 1, torch.Generator().manual_seed(0), probe="sphere")[0]
    assert ((v * x).sum(1).abs() < 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", SUITES)
def test_half_precision_is_factorised_in_single(name, dtype):
    manifold = SUITES[name]["manifold"]
    x = manifold.projx(points(3, 3).to(dtype))
    v = points(3, 3)
    for method in ("flat", "sharp", "proju"):
        half = getattr(manifold, method)(x, v.to(dtype))
        assert half.dtype == dtype
        torch.testing.assert_close(half.double(), getattr(manifold, method)(x.double(), v), rtol=0.1, atol=0.1)
    w = points(5, 3 * manifold.dim(x)).reshape(5, 3, -1)
    for draw in (manifold.random_tangent(x, 5), manifold.random_cotangent(x, 5), manifold.lift(x, w), manifold.colift(x, w)):
        assert draw.dtype == dtype
        assert torch.isfinite(draw).all()


@pytest.mark.parametrize("name", SUITES)
def test_moments_inside_torch_func(name):
    """Checks of values are left out there, where values cannot be read."""
    manifold = SUITES[name]["manifold"]
    x = manifold.projx(points(6, 3)).reshape(2, 3, 3)

    def moment(p):
        lin = georeg.linearize(lambda q: q.sin(), p, engine="forward")
        manifold.check_point(p)
        at = manifold.at(p)
        return georeg.Exact("domain")(lin, at, georeg.Euclidean().at(lin.value)).trace_sq.sum()

    torch.testing.assert_close(torch.func.vmap(moment)(x), torch.stack([moment(p) for p in x]))
    leaf = x[0].clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(moment)(x[0]), torch.autograd.grad(moment(leaf), leaf)[0])


# --- Stereographic charts -------------------------------------------------------------------------------------------


def ambient_jacobian(chart, z):
    return torch.stack([torch.autograd.functional.jacobian(lambda s: chart.to_ambient(s[None])[0], p) for p in z])


@pytest.mark.parametrize("kind", ["scaled", "unit"])
@pytest.mark.parametrize("radius", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("d", [1, 3])
def test_both_charts_are_isometries_onto_the_sphere(kind, radius, d):
    chart, z = georeg.SphereStereographic(radius, chart=kind), points(4, d)
    x, J = chart.to_ambient(z), ambient_jacobian(chart, z)
    torch.testing.assert_close(x.norm(dim=1), torch.full_like(x[:, 0], radius), rtol=1e-12, atol=0)
    torch.testing.assert_close(chart.from_ambient(x), z, rtol=1e-10, atol=1e-12)
    G = chart.flat(z, torch.eye(d, dtype=z.dtype)[:, None].expand(d, 4, d)).permute(1, 2, 0)
    torch.testing.assert_close(J.mT @ J, G, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(G[:, 0, 0], chart.conformal_factor(z) ** 2, rtol=1e-12, atol=0)


@pytest.mark.parametrize("radius", [0.4, 2.5])
def test_the_scaled_chart_is_geoopts(radius):
    """geoopt projects from the south pole: its last ambient coordinate has the other sign."""
    theirs = geoopt.SphereProjection(k=torch.tensor(1 / radius**2, dtype=torch.float64))
    ours, z = georeg.SphereStereographic(radius), points()
    torch.testing.assert_close(ours.conformal_factor(z), theirs.lambda_x(z), rtol=1e-12, atol=0)
    mirror = torch.tensor([1.0, 1, 1, 1, -1], dtype=torch.float64)
    x = ours.to_ambient(z)
    torch.testing.assert_close(x * mirror, theirs.inv_sproj(z), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.from_ambient(x), theirs.sproj(x * mirror), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(ours.sharp(z, z), theirs.egrad2rgrad(z, z), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.inner(z, z, z), theirs.inner(z, z, z, keepdim=True).squeeze(-1), rtol=1e-12, atol=0)


@pytest.mark.parametrize("curvature", [-0.25, -4.0])
def test_the_poincare_ball_is_geoopts_and_an_isometry_onto_the_hyperboloid(curvature):
    theirs = geoopt.PoincareBall(c=torch.tensor(-curvature, dtype=torch.float64))
    ours = georeg.SphereStereographic(curvature=curvature)
    noise = points(50) * 0.6 * ours.radius
    z = ours.projx(noise)
    torch.testing.assert_close(z, theirs.projx(noise), rtol=1e-12, atol=0)
    assert (z != noise).any()
    torch.testing.assert_close(ours.conformal_factor(z), theirs.lambda_x(z), rtol=1e-9, atol=0)
    torch.testing.assert_close(ours.sharp(z, noise), theirs.egrad2rgrad(z, noise), rtol=1e-9, atol=0)
    z = z[ours.conformal_factor(z) < 20]
    x = ours.to_ambient(z)
    torch.testing.assert_close(x, theirs.inv_sproj(z), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours.from_ambient(x), z, rtol=1e-9, atol=1e-12)
    J = ambient_jacobian(ours, z)
    minkowski = torch.diag(torch.tensor([1.0, 1, 1, 1, -1], dtype=torch.float64))
    G = torch.diag_embed((ours.conformal_factor(z) ** 2)[:, None].expand_as(z))
    torch.testing.assert_close(J.mT @ minkowski @ J, G, rtol=1e-9, atol=1e-9)


def test_the_poincare_ball_refuses_what_is_outside():
    ball = georeg.SphereStereographic(curvature=-0.25)
    inside = torch.tensor([[1.99, 0.0]])
    ball.check_point(inside)
    for bad in (torch.tensor([[2.0, 0.0]]), inside * float("nan")):
        with pytest.raises(ValueError, match=r"f\(x\): got a point of norm .* inside the Poincaré ball"):
            georeg.spectral_moments(lambda x, bad=bad: x * 0 + bad, inside, codomain=ball)
    with pytest.raises(ValueError, match="off the hyperboloid"):
        ball.from_ambient(-ball.to_ambient(inside))
    zero = torch.zeros(1, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(ball.projx(zero).sum(), zero)
    assert (gradient == 1).all()
    half = ball.projx(torch.full((1, 2), 5.0).bfloat16())
    ball.check_point(half)


def test_the_unit_charts_metric_is_not_the_scaled_ones():
    """Eq. 2's chart with Eq. 3's metric, as the paper prints them, is no isometry unless r = 1."""
    z = points()
    unit, scaled = (georeg.SphereStereographic(2.0, chart=c).conformal_factor(z) for c in ("unit", "scaled"))
    assert ((unit - scaled).abs() > 1e-3).all()
    J = ambient_jacobian(georeg.SphereStereographic(2.0, chart="unit"), z)
    torch.testing.assert_close(J.mT @ J, torch.diag_embed((unit**2)[:, None].expand_as(z)), rtol=1e-10, atol=1e-12)


def test_origin_pole_and_antipodes():
    chart = georeg.SphereStereographic(2.0)
    origin = torch.zeros(1, 2, dtype=torch.float64)
    south = torch.tensor([[0.0, 0, -2]], dtype=torch.float64)
    torch.testing.assert_close(chart.to_ambient(origin), south)
    torch.testing.assert_close(chart.conformal_factor(origin), torch.full((1,), 2.0, dtype=torch.float64))
    with pytest.raises(ValueError, match="pole"):
        chart.from_ambient(-south)
    z = points(4, 2)
    antipode = chart.from_ambient(-chart.to_ambient(z))
    torch.testing.assert_close(antipode, -4 * z / z.square().sum(1, keepdim=True), rtol=1e-10, atol=1e-12)
    far = torch.full((1, 2), 1e150, dtype=torch.float64)
    assert torch.isfinite(chart.to_ambient(far)).all()


def test_sphere_at_the_poles_the_origin_and_antipodes():
    sphere, x = georeg.Sphere(), torch.eye(3, dtype=torch.float64)
    for p in (x, -x):
        v = sphere.random_tangent(p, 4)
        assert ((v * p).sum(-1).abs() < 1e-12).all()
        torch.testing.assert_close(sphere.proju(p, v), v)
    zero = torch.zeros(1, 3, requires_grad=True)
    for out in (sphere.proju(zero, torch.ones(1, 3)), georeg.Sphere(2.0).projx(zero), sphere.random_tangent(zero, 2)):
        assert torch.isfinite(out).all()
        gradient = torch.autograd.grad(out.sum(), zero, allow_unused=True, materialize_grads=True)[0]
        assert torch.isfinite(gradient).all()


# --- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: georeg.Sphere(0.0), ValueError, "radius: got 0.0"),
        (lambda: georeg.Sphere(float("nan")), ValueError, "radius: got nan"),
        (lambda: georeg.SphereStereographic(-1.0), ValueError, "radius: got -1.0"),
        (lambda: georeg.SphereStereographic(chart="polar"), ValueError, "chart: got 'polar'"),
        (lambda: georeg.SphereStereographic(curvature=0.0), ValueError, "curvature: got 0.0"),
        (lambda: georeg.SphereStereographic(curvature=float("nan")), ValueError, "curvature: got nan"),
        (lambda: georeg.SphereStereographic(1.0, curvature=1.0), ValueError, "one of the two"),
        (lambda: georeg.SphereStereographic(curvature=-1.0, chart="unit"), ValueError, "chart: got 'unit'"),
        (lambda: georeg.CustomMetric(3), TypeError, "fn: got int"),
        (lambda: georeg.CustomMetric(lambda x: 1.0).flat(points(), points()), TypeError, "fn: returned float"),
        (lambda: georeg.CustomMetric(lambda x: x[:, :2]).flat(points(), points()), ValueError, "fn: returned shape"),
        (lambda: georeg.CustomMetric(lambda x: 0 * x).flat(points(), points()), ValueError, "expected positive"),
        (
            lambda: georeg.CustomMetric(lambda x: -torch.eye(4).double().expand(3, 4, 4)).sharp(points(), points()),
            ValueError,
            "not positive definite",
        ),
    ],
)
def test_bad_arguments_are_named(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_points_off_a_fixed_sphere_are_refused(dtype):
    x = georeg.Sphere(3.0).projx(points(5, 8)).to(dtype)
    georeg.Sphere(3.0).check_point(x)
    for bad in (x * 1.05, x * float("nan")):
        with pytest.raises(ValueError, match=r"name: got points with norms .* project first"):
            georeg.Sphere(3.0).check_point(bad, "name")
    with pytest.raises(ValueError, match="expected"):
        georeg.SphereStereographic(3.0).from_ambient(x * 1.05)
    with pytest.raises(ValueError, match="flatten"):
        georeg.SphereStereographic(3.0).from_ambient(x[None])
