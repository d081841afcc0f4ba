"""How far a metric is from isotropic: condition number, effective rank, isotropy, k-condition."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from georeg.diagnostics.spectra import singular_values
from georeg.jackknife import Estimate
from georeg.linearize import Map
from georeg.manifolds import Manifold

Spectrum = Literal["sigma", "sigma_squared"]


def check_spectrum(of: str) -> None:
    """Refuse an unknown spectrum."""
    if of not in get_args(Spectrum):
        raise ValueError(
            f"of: got {of!r}, expected 'sigma', the singular values of J (Eq. 10 and 11), or 'sigma_squared', the "
            "eigenvalues of the metric (Lee et al.)"
        )


def condition_number(sigma: Tensor) -> Tensor:
    """σ_max/σ_min per sample ``(B,)`` from singular values ``(B, d)``, descending; inf for a singular Jacobian.

    Example:
        >>> import torch
        >>> from georeg.diagnostics import condition_number
        >>> condition_number(torch.tensor([[3.0, 1.0], [2.0, 2.0], [2.0, 0.0]]))
        tensor([3., 1., inf])
    """
    return torch.where(sigma[:, -1] > 0, sigma[:, 0] / sigma[:, -1], torch.inf)


def effective_rank_of(sigma: Tensor) -> Tensor:
    """(Σσ²)² / Σσ⁴ per sample ``(B,)``: the number of directions that carry the metric, from 1 to d; 0 for J = 0.

    The participation ratio of the eigenvalues σ² of R, from singular values ``(B, d)``, descending.

    Example:
        >>> import torch
        >>> from georeg.diagnostics import effective_rank_of
        >>> effective_rank_of(torch.tensor([[3.0, 1.0], [2.0, 2.0], [2.0, 0.0]]))
        tensor([1.2195, 2.0000, 1.0000])
    """
    power = (sigma / sigma[:, :1].clamp_min(torch.finfo(sigma.dtype).tiny)).square()
    fourth = power.square().sum(1)
    return power.sum(1).square() / torch.where(fourth > 0, fourth, 1)


def isotropy_of(sigma: Tensor) -> Tensor:
    """Effective rank over d, per sample ``(B,)``: 1 for a scaled isometry, 1/d where one direction carries all.

    From singular values ``(B, d)``, descending.

    Example:
        >>> import torch
        >>> from georeg.diagnostics import isotropy_of
        >>> isotropy_of(torch.tensor([[3.0, 1.0], [2.0, 2.0], [2.0, 0.0]]))
        tensor([0.6098, 1.0000, 0.5000])
    """
    return effective_rank_of(sigma) / sigma.shape[1]


def k_condition(sigma: Tensor) -> Tensor:
    """Arithmetic over geometric mean of σ², per sample ``(B,)``: 1 for a scaled isometry, inf for a singular J.

    The d-th root of Kaporin's (Tr R/d)^d / det R: it weighs the whole spectrum, where σ_max/σ_min sees its ends.
    From singular values ``(B, d)``, descending.

    Example:
        >>> import torch
        >>> from georeg.diagnostics import k_condition
        >>> k_condition(torch.tensor([[3.0, 1.0], [2.0, 2.0], [2.0, 0.0]]))
        tensor([1.6667, 1.0000,    inf])

    References:
        Kaporin 1994, New convergence results and preconditioning strategies for the conjugate gradient method.
    """
    power = (sigma / sigma[:, :1].clamp_min(torch.finfo(sigma.dtype).tiny)).square()
    return torch.where(sigma[:, -1] > 0, power.mean(1) / power.log().mean(1).exp(), torch.inf)


def mean_condition_number(
    f: Map,
    x: Tensor,
    *,
    of: Spectrum = "sigma",
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
) -> Estimate:
    """MCN = E[σ_max(J) / σ_min(J)] over the points (Eq. 10), with its standard error. 1 is isotropic.

    Args:
        f, x, domain, codomain, chunk_size: see :func:`singular_values`.
        of: ``"sigma"`` (Eq. 10), or ``"sigma_squared"`` for the condition number of the metric JᵀHJ, its
            square per sample, which Lee et al. (2022) report.

    Raises:
        ValueError: no samples; points off a manifold; NaN or inf; an unknown ``of``.

    Example:
        >>> import torch, georeg
        >>> f, x = lambda x: x * torch.tensor([3.0, 1.0]), torch.zeros(5, 2)
        >>> float(georeg.diagnostics.mean_condition_number(f, x))
        3.0
        >>> float(georeg.diagnostics.mean_condition_number(f, x, of="sigma_squared"))
        9.0

    References:
        Lee, Yoon, Son, Park 2022, Regularized autoencoders for isometric representation learning.
    """
    check_spectrum(of)
    kappa = condition_number(singular_values(f, x, domain=domain, codomain=codomain, chunk_size=chunk_size))
    return Estimate.of(kappa if of == "sigma" else kappa.square())


def effective_rank(
    f: Map,
    x: Tensor,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
) -> Estimate:
    """E[(Tr R)² / Tr R²]: how many of the d directions carry the metric, with its standard error.

    Args:
        f, x, domain, codomain, chunk_size: see :func:`singular_values`.

    Raises:
        ValueError: no samples; points off a manifold; NaN or inf.

    Example:
        >>> import torch, georeg
        >>> float(georeg.diagnostics.effective_rank(lambda x: 5 * x, torch.zeros(5, 2)))
        2.0
    """
    return Estimate.of(effective_rank_of(singular_values(f, x, domain=domain, codomain=codomain, chunk_size=chunk_size)))


def isotropy(
    f: Map,
    x: Tensor,
    *,
    domain: Manifold | None = None,
    codomain: Manifold | None = None,
    chunk_size: int | None = 64,
) -> Estimate:
    """E[(Tr R)² / (d Tr R²)], the effective rank as a share of d, with its standard error. 1 is isotropic.

    Its reciprocal at each point is the normalised conformal loss.

    Args:
        f, x, domain, codomain, chunk_size: see :func:`singular_values`.

    Raises:
        ValueError: no samples; points off a manifold; NaN or inf.

    Example:
        >>> import torch, georeg
        >>> float(georeg.diagnostics.isotropy(lambda x: x * torch.tensor([1.0, 0.0]), torch.zeros(5, 2)))
        0.5
    """
    return Estimate.of(isotropy_of(singular_values(f, x, domain=domain, codomain=codomain, chunk_size=chunk_size)))
