"""Traces of functions of R = G⁻¹JᵀHJ by stochastic Lanczos quadrature."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg import Manifold
from georeg.diagnostics.top import bound, pullback_operator, pushforward_operator
from georeg.linearize import Map
from georeg.manifolds import Euclidean
from georeg.random import Generator


def mean_log_eigenvalue(
    f: Map,
    x: Tensor,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    num_probes: int = 4,
    num_steps: int = 24,
    generator: Generator = None,
) -> tuple[Tensor, Tensor]:
    """Tr R/d and Tr log R/d ``(B,)`` each, on the smaller side; mean over exp of log is the k-condition.

    zᵀ φ(R) z/‖z‖² = ∫φ dμ ≈ Σ w_k φ(θ_k), with the Ritz values θ_k and the squared first components w_k of their
    vectors after m steps of Lanczos from z. The first is then the estimate of Hutchinson exactly. The second is an
    upper bound at each z, because all even derivatives of the logarithm are negative: the k-condition is bounded
    from below, and meets its value once m resolves the small end of the spectrum.

    Args:
        f, x, domain, codomain: see :func:`georeg.diagnostics.singular_values`.
        num_probes: of the trace.
        num_steps: m.
        generator: seeds the probes.

    Raises:
        ValueError: points off a manifold; NaN or inf.

    Example:
        >>> import torch
        >>> from georeg_diffusion.evaluation.lanczos import mean_log_eigenvalue
        >>> mean, log = mean_log_eigenvalue(lambda x: 3 * x, torch.zeros(1, 40))
        >>> round(float(mean / log.exp()), 6)               # the k-condition of an isometry
        1.0

    References:
        Ubaru, Chen, Saad 2017, Fast estimation of tr(f(A)) via stochastic Lanczos quadrature; Golub & Meurant 2010.
    """
    domain, codomain = domain or Euclidean(), codomain or Euclidean()
    with torch.no_grad():
        lin, d = bound(f, x, domain, codomain, chunk_size=1, engine="auto")
        point, value = lin.x.detach(), lin.value.detach()
        on_domain = domain.dim(point) <= codomain.dim(value)
        space = domain.at(point) if on_domain else codomain.at(value)
        operator = (pullback_operator if on_domain else pushforward_operator)(lin, domain, codomain)

        def dot(a: Tensor, b: Tensor) -> Tensor:
            return (a * space.flat(b)).flatten(2).sum(2).double()

        def scaled(v: Tensor, by: Tensor) -> Tensor:
            return v * by.to(v.dtype).reshape(*by.shape, *(1,) * (v.ndim - 2))

        v = space.random_tangent(num_probes, generator)
        v = scaled(v, dot(v, v).rsqrt())
        basis, diagonal, off = [v], [], []
        for _ in range(min(num_steps, d)):
            w = operator(basis[-1]).to(v.dtype)
            diagonal.append(dot(w, basis[-1]))
            for _ in range(2):  # full reorthogonalisation: twice is enough
                for q in basis:
                    w = w - scaled(q, dot(w, q))
            off.append(dot(w, w).clamp_min(0).sqrt())
            safe = off[-1] > 1e-10 * diagonal[0].abs()
            basis.append(scaled(w, torch.where(safe, 1 / torch.where(safe, off[-1], 1), 0)))
            off[-1] = torch.where(safe, off[-1], 0)
        matrix = torch.diag_embed(torch.stack(diagonal, -1))
        if len(diagonal) > 1:
            beside = torch.stack(off[:-1], -1)
            matrix = matrix + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        theta, vectors = torch.linalg.eigh(matrix)
        weights = vectors[..., 0, :].square()
        tiny = torch.finfo(v.dtype).eps ** 2 * theta[..., -1:].clamp_min(torch.finfo(torch.float64).tiny)
        logs = torch.where(weights > 1e-20, weights * theta.clamp_min(tiny).log(), 0).sum(-1)
        return (weights * theta).sum(-1).mean(0), logs.mean(0)
