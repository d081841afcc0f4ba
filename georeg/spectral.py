"""From a map to its spectral moments: the one function that joins manifolds, products and estimators."""

from __future__ import annotations

from torch import Tensor

from georeg.estimators import Estimator, as_estimator
from georeg.kernels.compiling import as_written
from georeg.linearize import Engine, Linearization, Map, linearize
from georeg.manifolds import Euclidean, Manifold
from georeg.manifolds.base import MetricAt
from georeg.moments import SpectralMoments
from georeg.random import Generator


def check_geometry(lin: Linearization, domain: Manifold, codomain: Manifold) -> None:
    """Refuse points off their manifold, and manifolds without directions.

    Raises:
        ValueError: a point off its manifold; a tangent space of dimension 0.
    """
    domain.check_point(lin.x, "x")
    codomain.check_point(lin.value, "f(x)")
    for name, manifold, point in (("x", domain, lin.x), ("f(x)", codomain, lin.value)):
        if manifold.dim(point) < 1:
            raise ValueError(
                f"{name}: got points {tuple(point.shape)} of {manifold}, whose tangent spaces have dimension 0, expected at "
                "least 1: there is no Jacobian to measure"
            )


def metrics_at(lin: Linearization, domain: Manifold, codomain: Manifold) -> tuple[MetricAt, MetricAt]:
    """The two metrics of a linearisation, after :func:`check_geometry`."""
    check_geometry(lin, domain, codomain)
    return domain.at(lin.x), codomain.at(lin.value)


def moments_at(
    lin: Linearization, domain: Manifold, codomain: Manifold, estimator: Estimator, generator: Generator = None
) -> SpectralMoments:
    """Moments of a linearisation between two manifolds."""
    return estimator(lin, *metrics_at(lin, domain, codomain), generator)


@as_written
def spectral_moments(
    f: Map,
    x: Tensor,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    estimator: Estimator | str | None = None,
    generator: Generator = None,
    engine: Engine = "auto",
    chunk_size: int | None = None,
    detach_x: bool = False,
    project: bool = False,
) -> SpectralMoments:
    """τ₁ = Tr R and τ₂ = Tr R² of R = G⁻¹JᵀHJ (Eq. 4 to 6) for each sample of x.

    Args:
        f: the map, (B, ...) ↦ (B, ...).
        x: points ``(B, ...)``.
        domain: manifold of x with metric G; default Euclidean.
        codomain: manifold of f(x) with metric H; default Euclidean.
        estimator: default ``Hutchinson(num_probes=1, distribution="sphere", side="auto")``; a name, such as
            ``"auto"`` or ``"exact"``, takes that estimator with its defaults.
        generator: seeds the probes; a list of one generator per sample makes the draw independent of
            how a batch is split.
        engine, chunk_size, detach_x: see :func:`linearize`.
        project: measure projx∘f instead of f, for a codomain that f(x) does not lie on.

    Returns:
        :class:`SpectralMoments`, differentiable in f's parameters (and in x, if x carries a graph).

    Raises:
        ValueError: x or f(x) off a manifold of fixed radius; a tangent space of dimension 0.

    Example:
        >>> import torch, georeg
        >>> m = georeg.spectral_moments(lambda x: x, torch.eye(3), domain=georeg.Sphere(), estimator=georeg.Exact())
        >>> m.trace.tolist(), m.rank
        ([2.0, 2.0, 2.0], 2)
    """
    codomain = codomain or Euclidean()
    lin = linearize(
        (lambda p: codomain.projx(f(p))) if project else f, x, engine=engine, chunk_size=chunk_size, detach_x=detach_x
    )
    return moments_at(lin, domain or Euclidean(), codomain, as_estimator(estimator), generator)
