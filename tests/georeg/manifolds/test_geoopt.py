"""geoopt's manifolds obey our laws, also where geoopt's own formulas do not."""

import geoopt
import pytest
import torch

import georeg
from georeg.testing import ManifoldContract
from tests.georeg.manifolds.moments import assert_hutchinson_is_unbiased, assert_moments_equal_the_dense_operators


def double(value):
    """geoopt keeps a positive curvature as an inverse softplus: in float32 it is not quite the number given."""
    return torch.tensor(value, dtype=torch.float64)


MANIFOLDS = {
    "Euclidean": (geoopt.Euclidean(1), ((4,), (2, 2))),
    "EuclideanScalars": (geoopt.Euclidean(), ((4,),)),
    "Sphere": (geoopt.Sphere(), ((4,), (2, 3))),
    "SphereProjection": (geoopt.SphereProjection(k=0.5), ((4,), (2, 2))),
    "PoincareBall": (geoopt.PoincareBall(c=double(0.02)), ((4,), (2, 2))),
    "Lorentz": (geoopt.Lorentz(), ((4,), (2, 3))),
    "EuclideanStiefel": (geoopt.EuclideanStiefel(), ((4, 2),)),
    "CanonicalStiefel": (geoopt.CanonicalStiefel(), ((4, 2),)),
    "SymmetricPositiveDefinite": (geoopt.SymmetricPositiveDefinite(), ((3, 3),)),
    "BirkhoffPolytope": (geoopt.BirkhoffPolytope(), ((3, 3),)),
    "Scaled": (geoopt.Scaled(geoopt.Sphere(), 2.0), ((4,),)),
    "Product": (geoopt.ProductManifold((geoopt.Sphere(), 3), (geoopt.PoincareBall(c=0.02), 2)), ((5,),)),
}


class GeooptContract(ManifoldContract):
    def points(self, event, dtype):
        with torch.random.fork_rng([]):
            torch.manual_seed(2)
            try:
                x = self.manifold.manifold.random(3, *event)
            except NotImplementedError:
                x = torch.randn(3, *event)
        return self.manifold.projx(x.detach().as_subclass(torch.Tensor).to(dtype))


for _name, (_manifold, _events) in MANIFOLDS.items():
    globals()[f"Test{_name}"] = type(
        f"Test{_name}", (GeooptContract,), {"manifold": georeg.from_geoopt(_manifold), "events": _events}
    )
# Its projection is an iteration that stops at 1e-6 or so.
TestBirkhoffPolytope.tolerance = ManifoldContract.tolerance | {torch.float64: 1e-5}  # noqa: F821


def sphere(x):
    return torch.eye(x.shape[1], dtype=x.dtype) - x.unsqueeze(2) * x.unsqueeze(1)


def lorentz(x):
    eta = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=x.dtype))
    normal = x @ eta
    normal = normal / normal.norm(dim=1, keepdim=True)
    tangent = torch.eye(4, dtype=x.dtype) - normal.unsqueeze(2) * normal.unsqueeze(1)
    return tangent @ eta @ tangent


def ball(x):
    return torch.diag_embed((2 / (1 - 0.02 * x.square().sum(1)))[:, None].expand_as(x) ** 2)


@pytest.mark.parametrize(("name", "matrix"), [("Sphere", sphere), ("Lorentz", lorentz), ("PoincareBall", ball)])
def test_moments_equal_the_dense_operators(name, matrix):
    manifold = georeg.from_geoopt(MANIFOLDS[name][0].double())
    assert_moments_equal_the_dense_operators(manifold, matrix, 4, embed=manifold.projx)
    assert_hutchinson_is_unbiased(manifold, 4, embed=manifold.projx)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (geoopt.Sphere(), georeg.Sphere(1.0)),
        (geoopt.SphereProjection(k=0.25), georeg.SphereStereographic(2.0)),
        (geoopt.PoincareBall(c=double(0.25)), georeg.SphereStereographic(curvature=-0.25)),
        (
            geoopt.ProductManifold((geoopt.Sphere(), 2), (geoopt.Euclidean(1), 2)),
            georeg.Product([georeg.Sphere(1.0), georeg.Euclidean()], sizes=[2, 2]),
        ),
    ],
)
def test_what_both_libraries_have_agrees(theirs, ours):
    theirs = georeg.from_geoopt(theirs.double())
    x, v = ours.projx(0.5 * torch.randn(3, 4, dtype=torch.float64)), torch.randn(3, 4, dtype=torch.float64)
    assert theirs.dim(x) == ours.dim(x)
    for method in ("flat", "sharp", "proju"):
        torch.testing.assert_close(getattr(theirs, method)(x, v), getattr(ours, method)(x, v), rtol=1e-7, atol=1e-10)


def test_gradients_are_finite_where_geoopts_are_not():
    theirs = geoopt.Sphere()
    x, zero = torch.eye(3)[:1], torch.zeros(1, 3, requires_grad=True)
    assert torch.isnan(torch.autograd.grad(theirs.norm(x, zero).sum(), zero)[0]).all()
    assert torch.isnan(torch.autograd.grad(theirs.projx(zero).sum(), zero)[0]).all()
    ours = georeg.from_geoopt(theirs)
    assert (torch.autograd.grad(ours.norm(x, zero).sum(), zero)[0] == 0).all()
    batch = torch.cat([zero, 2 * x])
    projected = ours.projx(batch)
    torch.testing.assert_close(projected[1:], x)
    assert torch.isfinite(torch.autograd.grad(projected.sum(), zero)[0]).all()
    same = x.clone().requires_grad_()
    gradient = torch.autograd.grad(ours.norm(x, same - x).sum() + ours.inner(x, same - x, same - x).sum(), same)[0]
    assert (gradient == 0).all()


def test_gradients_survive_torchscripts_profiler():
    """From its third call on a scripted formula runs optimised, which loses gradients inside torch.func.grad."""
    manifold = georeg.from_geoopt(geoopt.PoincareBall(c=double(0.02)).double())
    for _ in range(5):
        x, v = torch.randn(2, 3, 4, dtype=torch.float64)
        ours, truth = (
            torch.autograd.grad(g(x.requires_grad_()).square().sum(), x)[0]
            for g in (lambda p, v=v: manifold.flat(p, v), lambda p, v=v: (ball(p) @ v.unsqueeze(2)).squeeze(2))
        )
        torch.testing.assert_close(ours, truth, rtol=1e-9, atol=1e-12)


def test_the_callers_vectors_and_the_global_generator_are_left_alone():
    manifold = georeg.from_geoopt(geoopt.Lorentz())
    x = manifold.projx(torch.randn(2, 4))
    v = torch.randn(2, 4)
    before, state = v.clone(), torch.get_rng_state()
    manifold.sharp(x, v)
    assert torch.equal(v, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_not_a_geoopt_manifold_or_not_on_it_is_refused():
    for bad in (georeg.Sphere(), geoopt.Sphere, None):
        with pytest.raises(TypeError, match="manifold: got"):
            georeg.from_geoopt(bad)
    sphere_ = georeg.from_geoopt(geoopt.Sphere())
    for x in (torch.ones(1, 3), torch.full((1, 3), float("nan"))):
        with pytest.raises(ValueError, match=r"f\(x\): got points off geoopt's Sphere"):
            sphere_.check_point(x, "f(x)")
