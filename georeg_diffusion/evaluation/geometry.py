"""The geometry of a frozen encoder at points: how far from a scaled isometry, in how many directions, and how stretched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import georeg
from georeg import Estimate, SpectralMoments, diagnostics, jackknife
from georeg.linearize import Map
from georeg.random import Generator

TOLERANCE = 1e-2
"""Of the largest singular values' residuals; the values err by its square, 1e-4."""

_MAX_ITERATIONS = 20

ISOMETRY = georeg.IsometryLoss(normalize=True)
"""d·E[τ₂]/E[τ₁]² (Eq. 6), for its formula."""

_CONFORMAL = georeg.ConformalLoss(normalize=True)


@dataclass(frozen=True)
class Geometry:
    """What a set of points says about the encoder, each number with its standard error over the points.

    Attributes:
        isometry: d·E[τ₂]/E[τ₁]² (Eq. 6); 1 for a scaled isometry, d where one direction carries everything.
        conformality: d·E[τ₂/τ₁²]; 1 where J stretches all directions alike, even if more at one point than at another.
        effective_rank: E[τ₁²/τ₂], of d directions.
        scale: c = E[√(τ₁/d)], the factor of the scaled isometry that J is nearest to.
        sphericity: ‖x‖²/n.
        sphericity_std: its standard deviation over points, None of a single one.
        dimension: d = min(dim X, dim H).
        singular_values: the largest of J, σ₁ ≥ σ₂ ≥ …, over c; all 1 for a scaled isometry. Empty if none were asked for.
        unconverged: how many of them are lower bounds only.
    """

    isometry: Estimate
    conformality: Estimate
    effective_rank: Estimate
    scale: Estimate
    sphericity: Estimate
    sphericity_std: float | None
    dimension: int
    singular_values: tuple[Estimate, ...] = ()
    unconverged: int = 0


def geometry(
    encode: Map,
    x: Tensor,
    *,
    num_probes: int = 4,
    top: int = 4,
    domain: georeg.Manifold | None = None,
    generator: Generator = None,
) -> Geometry:
    """The geometry of x ↦ h at points, nothing trained.

    Args:
        encode: the map, ``(B, ...)`` ↦ ``(B, ...)``, such as ``lambda x: HSpace(unet).encode(x, t)``.
        x: points ``(B, ...)``.
        num_probes: of τ₁ and τ₂ at each point.
        top: how many of the largest singular values to take, matrix-free, at every point; 0 for none.
        domain: of x; default the sphere through each point.
        generator: seeds the probes; a list of one for each point makes the result independent of batches.

    Raises:
        ValueError: no points; NaN or inf; h does not depend on x.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.geometry import geometry
        >>> found = geometry(lambda x: 3 * x, torch.randn(8, 20, generator=torch.Generator().manual_seed(0)), top=2)
        >>> round(found.isometry.value, 4), found.dimension, [round(one.value, 3) for one in found.singular_values]
        (1.0, 19, [1.0, 1.0])

    References:
        Hahm et al. 2024, Eq. 6.
    """
    if not len(x):
        raise ValueError("x: got no points, expected at least one")
    measured = moments_at(encode, x, num_probes=num_probes, domain=domain, generator=generator)
    if top:
        measured |= largest_at(encode, x, top, domain=domain, generator=generator)
    found = geometry_of(measured)
    if found is None:
        raise ValueError("encode: J is 0 or not finite at these points, expected a map whose output depends on x")
    return found


def moments_at(
    encode: Map, x: Tensor, *, num_probes: int, domain: georeg.Manifold | None = None, generator: Generator = None
) -> dict[str, Tensor]:
    """τ₁, τ₂, d and ‖x‖²/n of each point, ``(B,)`` in float64 on the CPU."""
    with torch.no_grad():
        moments = georeg.spectral_moments(
            encode,
            x,
            domain=domain or georeg.Sphere(),
            estimator=georeg.Hutchinson(num_probes),
            generator=generator,
            chunk_size=1,
        )
    return {
        "trace": moments.trace.double().cpu(),
        "trace_sq": moments.trace_sq.double().cpu(),
        "rank": torch.full((len(x),), moments.rank),
        "sphericity": x.flatten(1).square().mean(1).double().cpu(),
    }


def largest_at(
    encode: Map, x: Tensor, k: int, *, domain: georeg.Manifold | None = None, generator: Generator = None
) -> dict[str, Tensor]:
    """The k largest singular values (d where there are no more) and whether they converged, ``(B, k)`` on the CPU."""
    domain = domain or georeg.Sphere()
    with torch.no_grad():
        d = min(domain.dim(x), encode(x[:1])[0].numel())
    found = diagnostics.top_singular(
        encode,
        x,
        min(k, d),
        domain=domain,
        tolerance=TOLERANCE,
        max_iterations=_MAX_ITERATIONS,
        chunk_size=1,
        generator=generator,
    )
    return {"sigma": found.values.cpu(), "converged": found.converged.cpu()}


def geometry_of(measured: Mapping[str, Tensor]) -> Geometry | None:
    """The geometry from what :func:`moments_at` and :func:`largest_at` found, the latter at the first points or at none.

    None where τ₁ is 0 at all points, or anything is not finite.
    """
    trace, square, spheres = measured["trace"], measured["trace_sq"], measured["sphericity"]
    if not bool(torch.isfinite(trace + square).all()) or not float(trace.sum()) > 0:
        return None
    d = int(measured["rank"][0])
    moments = SpectralMoments(trace, square, d)
    scale = (trace / d).sqrt()
    sigma = measured.get("sigma")
    return Geometry(
        isometry=jackknife(ISOMETRY, moments),
        conformality=jackknife(_CONFORMAL, moments),
        effective_rank=Estimate.of(torch.where(square > 0, trace.square() / square, 0)),
        scale=Estimate.of(scale),
        sphericity=Estimate.of(spheres),
        sphericity_std=float(spheres.std()) if len(spheres) > 1 else None,
        dimension=d,
        singular_values=() if sigma is None else tuple(Estimate.of(one / scale.mean()) for one in sigma.unbind(1)),
        unconverged=0 if sigma is None else int((~measured["converged"].bool()).sum()),
    )
