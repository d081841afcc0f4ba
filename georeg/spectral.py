"""From a map to its spectral moments: the one function that joins manifolds, products and estimators."""

from __future__ import annotations

from torch import Tensor

from georeg.estimators import Estimator, Hutchinson
from georeg.linearize import Engine, Linearization, Map, linearize
from georeg.manifolds import Euclidean, Manifold
from georeg.moments import SpectralMoments
from georeg.random import Generator


def moments_at(
    lin: Linearization, domain: Manifold, codomain: Manifold, estimator: Estimator, generator: Generator = None
) -> SpectralMoments:
    """Moments of a linearisation, after checking that its points lie on the manifolds."""
    domain.check_point(lin.x, "x")
    codomain.check_point(lin.value, "f(x)")
    return estimator(lin, domain.at(lin.x), codomain.at(lin.value), generator)


def spectral_moments(
    f: Map,
    x: Tensor,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    estimator: Estimator | None = None,
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
        estimator: default ``Hutchinson(num_probes=1, distribution="sphere", side="auto")``.
        generator: seeds the probes; a list of one generator per sample makes the draw independent of
            how a batch is split.
        engine, chunk_size, detach_x: see :func:`linearize`.
        project: measure projx∘f instead of f, for a codomain that f(x) does not lie on.

    Returns:
        :class:`SpectralMoments`, differentiable in f's parameters (and in x, if x carries a graph).

    Raises:
        ValueError: x or f(x) off a manifold of fixed radius.

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
    return moments_at(lin, domain or Euclidean(), codomain, estimator or Hutchinson(), generator)
