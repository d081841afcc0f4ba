"""How much a metric varies over the points: VoR (Eq. 11), its log form, and Lee et al.'s."""

from __future__ import annotations

import torch
from torch import Tensor

from georeg.diagnostics.conditioning import Spectrum, check_spectrum
from georeg.diagnostics.spectra import MAX_DENSE, singular_values
from georeg.diagnostics.top import bound, finite
from georeg.estimators.base import moment_dtype
from georeg.estimators.exact import axes
from georeg.jackknife import Estimate
from georeg.linearize import Map
from georeg.manifolds import Euclidean, Manifold


def variance_of_metric(sigma: Tensor, *, log: bool = False) -> Estimate:
    """Σ_i Var[σ_i], or Σ_i Var[log σ_i], over samples ``(B, d)``, with its jackknife standard error.

    Args:
        sigma: singular values ``(B, d)``, each row descending.
        log: take logarithms, which makes the score invariant to f → c·f.

    Raises:
        ValueError: fewer than two samples; ``log`` of a 0.

    Example:
        >>> import torch, georeg
        >>> sigma = torch.tensor([[3.0, 1.0], [5.0, 1.0], [4.0, 1.0]])
        >>> print(georeg.diagnostics.variance_of_metric(sigma))
        1 ± 1
    """
    n = len(sigma)
    if n < 2:
        raise ValueError(f"x: got {n} samples, expected at least 2: a variance needs them")
    if log and not bool((sigma > 0).all()):
        raise ValueError("log: got a singular value 0, whose logarithm has no variance; take log=False or the isotropy")
    values = sigma.log() if log else sigma
    centred = values - values.mean(0)
    squares = centred.square().sum(0)
    # Leaving sample i out takes n/(n−1)·(deviation of i)² from the sum of squares, for each singular value.
    without = ((squares - centred.square() * n / (n - 1)) / max(n - 2, 1)).sum(1)
    stderr = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt() if n > 2 else None
    return Estimate(float(squares.sum() / (n - 1)), None if stderr is None else float(stderr), n)


def variance_of_riemannian_metric(
    f: Map,
    x: Tensor,
    *,
    log: bool = False,
    of: Spectrum = "sigma",
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
) -> Estimate:
    """VoR = Σ_i Var[σ_i(J)] over the points (Eq. 11), with its standard error. 0 is homogeneous.

    Args:
        f, x, domain, codomain, chunk_size: see :func:`singular_values`.
        log: Σ_i Var[log σ_i] instead, which is invariant to f → c·f; Eq. 11 is not, and falls when J
            merely shrinks. Show both.
        of: ``"sigma"`` (Eq. 11), or ``"sigma_squared"``, the eigenvalues of the metric.

    Raises:
        ValueError: fewer than two samples; ``log`` of a singular Jacobian; an unknown ``of``.

    Example:
        >>> import torch, georeg
        >>> float(georeg.diagnostics.variance_of_riemannian_metric(lambda x: 5 * x, torch.zeros(5, 2)))
        0.0
    """
    check_spectrum(of)
    sigma = singular_values(f, x, domain=domain, codomain=codomain, chunk_size=chunk_size)
    return variance_of_metric(sigma if of == "sigma" else sigma.square(), log=log)


def affine_invariant_variance(
    f: Map, x: Tensor, *, codomain: Manifold | None = None, chunk_size: int | None = 64
) -> Estimate:
    """Lee et al.'s VoR, E[d²(G(x), Ḡ)], of the induced metric G = JᵀHJ about its mean Ḡ = E[G]. 0 is homogeneous.

    d²(A, B) = Σ_i log² λ_i(B⁻¹A) is the affine-invariant distance of positive matrices, so the score does not
    change when f is scaled or the coordinates of x are mapped linearly. Unlike Eq. 11 it sees the axes of the
    metric turn. The mean adds metrics of different points, which needs one chart: the domain is flat. (The
    authors' code takes singular instead of eigenvalues of Ḡ⁻¹G, which is not invariant.)

    Args:
        f: the map, an immersion, from at most 4096 dimensions.
        x: points ``(B, ...)``.
        codomain: manifold with metric H; default Euclidean.
        chunk_size: columns per vectorised product.

    Raises:
        ValueError: fewer than two samples; a singular metric; NaN or inf; too many dimensions.

    Example:
        >>> import torch, georeg
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> round(float(georeg.diagnostics.affine_invariant_variance(torch.square, x)), 4)     # G = 4, 16; Ḡ = 10
        0.5302

    References:
        Lee, Yoon, Son, Park 2022, Regularized autoencoders for isometric representation learning.
    """
    codomain = codomain or Euclidean()
    if len(x) < 2:
        raise ValueError(f"x: got {len(x)} samples, expected at least 2: a variance needs them")
    with torch.no_grad():
        lin, _ = bound(f, x, Euclidean(), codomain, chunk_size=chunk_size, engine="auto")
        d = Euclidean().dim(x)
        if d > MAX_DENSE:
            raise ValueError(
                f"x: got {d} dimensions, expected at most {MAX_DENSE}: the metric is written down at each point"
            )
        columns = codomain.components(lin.value.detach(), finite(lin.jvp(axes(lin.x.detach()))))
        jacobian = columns.movedim(0, -1).to(moment_dtype(x))
        metric = jacobian.mT @ jacobian
        factor, failed = torch.linalg.cholesky_ex(metric.mean(0))
        half = torch.linalg.solve_triangular(factor, jacobian.mT, upper=False)
        # Singular values of J L⁻ᵀ: squared they are the eigenvalues of Ḡ⁻¹G, without squaring the rounding.
        relative = torch.linalg.svdvals(half)
        if bool(failed) or relative.shape[1] < d or not bool((relative > d * torch.finfo(relative.dtype).eps).all()):
            raise ValueError(
                "f: induces a singular metric JᵀHJ at some point, infinitely far from any other; f must be an immersion"
            )
        return Estimate.of((2 * relative.log()).square().sum(1))
