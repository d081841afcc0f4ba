"""XTrace (Epperly, Tropp, Webber 2024): every probe sketches for all others and is tested against their sketch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from georeg.estimators.base import ProbeEstimator, Side, variance_of_mean
from georeg.estimators.whitened import Whitened, resphered
from georeg.linearize import Linearization
from georeg.manifolds.base import MetricAt
from georeg.moments import SpectralMoments
from georeg.random import Generator, Probe
from georeg.registry import register


def left_out(R: Tensor) -> Tensor:
    """Unit columns s_i ``(B, k, k)``, Q s_i being what the range of Y = QR loses when column i is left out of Y.

    s_i is orthogonal to all columns of R but the i-th: the normalised columns of R⁻ᵀ. Where Y has lost rank,
    R is moved by rounding's own size, and s_i lies in the null space of Yᵀ, as it should.
    """
    diagonal = R.diagonal(dim1=1, dim2=2).abs()
    largest = diagonal.amax(1, keepdim=True)
    floor = torch.finfo(R.dtype).eps * torch.where(largest > 0, largest, 1)
    shifted = R + torch.diag_embed(torch.where(diagonal < floor, floor, 0))
    identity = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device).expand_as(R)
    inverse = torch.linalg.solve_triangular(shifted.mT, identity, upper=False)
    return inverse / torch.linalg.vector_norm(inverse, dim=1, keepdim=True)


@dataclass(frozen=True)
class Split:
    """How each probe falls into what the others span, and the rest. No graph.

    Attributes:
        S: see :func:`left_out`.
        P: ⟨ω_i, Q s_j⟩ ``(B, k, k)``.
        norms: ‖r_i‖² ``(B, k)``.
        dim: dimension of the space of r_i, d − k + 1.
        probe: the distribution, see :func:`resphered`.
    """

    S: Tensor
    P: Tensor
    norms: Tensor
    dim: int
    probe: str

    @property
    def scale(self) -> Tensor:
        """Factors of the quadratic forms of r_i ``(B, k)``."""
        return resphered(self.norms, self.dim, self.probe)

    def covariance(self, M: Tensor, N: Tensor, b: Tensor) -> Tensor:
        """Covariance ``(B,)`` of two of the k estimates of Tr B, unbiased; B is A or A².

        Let t_i^(j) be the estimate i from a basis without both i and j, and ε = t − Tr B. Given all probes but
        j, ε_j has mean 0, so E[ε_i^(j) ε_j] = E[ε_i^(j) ε_j^(i)] = 0 and E[ε_i ε_j] = E[δ_ij δ_ji] with
        δ_ij = t_i − t_i^(j). Without j the basis also loses u = (s_j − ρs_i)/√(1−ρ²), ρ = ⟨s_i, s_j⟩, and r_i
        gains the part of ω_i along u.

        Args:
            M: s_iᵀBs_j ``(B, k, k)``.
            N: r_iᵀBs_j ``(B, k, k)``.
            b: r_iᵀBr_i ``(B, k)``.
        """
        rho = self.S.mT @ self.S
        length = 1 - rho.square()
        inverse = torch.where(length > 1e-10, 1 / length.clamp_min(1e-10), 0)  # equal s_i: Y has lost rank, B s_i = 0
        M_ii, M_jj = (M.diagonal(dim1=1, dim2=2).unsqueeze(axis) for axis in (2, 1))
        along = self.P - rho * self.P.diagonal(dim1=1, dim2=2).unsqueeze(2)
        cross = along * (N - rho * N.diagonal(dim1=1, dim2=2).unsqueeze(2)) * inverse
        u = (M_jj - 2 * rho * M + rho.square() * M_ii) * inverse
        along = along.square() * inverse
        rescaled = resphered(self.norms.unsqueeze(2) + along, self.dim + 1, self.probe)
        delta = (self.scale * b).unsqueeze(2) + u - rescaled * (b.unsqueeze(2) + 2 * cross + along * u)
        k = b.shape[1]
        pairs = (delta * delta.mT).sum((1, 2)) - delta.diagonal(dim1=1, dim2=2).square().sum(1)
        return pairs / (k * (k - 1))

    def standard_error(self, estimates: Tensor, M: Tensor, N: Tensor, b: Tensor) -> Tensor:
        """Standard error ``(B,)`` of the mean of the estimates ``(B, k)``: Var = s²/k + covariance, at least s²/k."""
        return (variance_of_mean(estimates.mT) + self.covariance(M, N, b).clamp_min(0)).sqrt()


@register("estimator", "xtrace")
class XTrace(ProbeEstimator):
    """τ₁ and τ₂ from K products of A, the symmetric form of R (see :class:`georeg.estimators.whitened.Whitened`).

    k = K/2 probes ω_i give Y = A Ω = QR and Z = A Q. With Q_i an orthonormal basis of Y without column i and
    r_i = (I − Q_iQ_iᵀ)ω_i, each i gives one estimate,

        τ₁ ≈ Tr(Q_iᵀA Q_i) + r_iᵀA r_i,   τ₂ ≈ ‖A Q_i‖² + ‖A r_i‖²,

    and their mean is returned. Q_iQ_iᵀ = QQᵀ − Q s_i s_iᵀQᵀ, so Y and Z are all that is needed. Q_i does not
    depend on ω_i, which makes each unbiased. *What is differentiated:* A in Y and Z; Q, s_i and ω_i, components in
    an orthonormal frame, carry no graph, which leaves the gradient unbiased for the same reason as in :class:`HutchPP`.

    The standard error allows for the covariance of the k estimates, which share each other's probes: without it,
    as in the paper, it is two thirds of the error (measured), and a 95% interval covers 80%.

    Args:
        num_probes: K ≥ 4, even: products of A, each of two Jacobian products. Where K reaches the dimension of
            the side, its axes are used instead: exact, at 2·dim products.
        distribution: ``"sphere"`` (default) fixes the norm of r_i (the paper's normalisation), so that nothing
            varies where R is a multiple of the identity; ``"gaussian"``; ``"rademacher"``.
        side: see :class:`Hutchinson`. The metric of that side is factorised.

    Raises:
        ValueError: fewer than four probes or an odd number; an unknown distribution or side.

    Example:
        >>> import torch, georeg
        >>> spike = torch.cat([torch.tensor([100.0]), torch.ones(31)])
        >>> m = georeg.spectral_moments(lambda x: spike * x, torch.zeros(1, 32), estimator=georeg.XTrace(8))
        >>> round(m.trace.item()), m.num_products
        (10031, 16)

    References:
        Epperly, Tropp, Webber 2024, XTrace: making the most of every sample in stochastic trace estimation.
    """

    def __init__(self, num_probes: int = 12, distribution: Probe = "sphere", side: Side = "auto") -> None:
        if num_probes < 4 or num_probes % 2:
            raise ValueError(f"num_probes: got {num_probes}, expected an even number, at least 4: half sketch, half project")
        super().__init__(num_probes, distribution, side)

    def __call__(
        self, lin: Linearization, domain: MetricAt, codomain: MetricAt, generator: Generator = None
    ) -> SpectralMoments:
        A = Whitened(lin, domain, codomain, self.side)
        if self.num_probes >= A.dim:
            return A.exact()
        k = self.num_probes // 2
        omega = A.probes(k, self.distribution, generator)
        Y = A(omega)
        with torch.no_grad():
            Q, R = torch.linalg.qr(Y)
            S = left_out(R)
            W = Q.mT @ omega
            C = W - S * (S * W).sum(1, keepdim=True)  # Q_iQ_iᵀω_i = Q c_i
            r = omega - Q @ C
            split = Split(S, W.mT @ S, r.square().sum(1), A.dim - k + 1, self.distribution)
        Z = A(Q)
        Ar, As = Y - Z @ C, Z @ S
        trace, trace_stderr = self._mean(split, (Q * Z).sum((1, 2)), Q @ S, As, r, Ar)
        trace_sq, trace_sq_stderr = self._mean(split, Z.square().sum((1, 2)), As, As, Ar, Ar)
        return SpectralMoments(trace, trace_sq, A.rank, trace_stderr, trace_sq_stderr, A.num_products)

    @staticmethod
    def _mean(split: Split, projected: Tensor, s: Tensor, Bs: Tensor, r: Tensor, Br: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard error ``(B,)`` of projected − sᵀBs + scale·rᵀBr over the columns."""
        tested = (r * Br).sum(1)
        estimates = projected.unsqueeze(1) - (s * Bs).sum(1) + split.scale * tested
        with torch.no_grad():
            error = split.standard_error(estimates, s.mT @ Bs, r.mT @ Bs, tested)
        return estimates.mean(1), error
