"""The volume loss: the variance of the log-determinant."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Unpack

import torch
from torch import Tensor

from georeg.estimators import Exact
from georeg.estimators.base import choose_side, moment_dtype
from georeg.estimators.exact import axes
from georeg.linearize import Linearization
from georeg.moments import safe_ratio
from georeg.random import Generator
from georeg.registry import register
from georeg.regularizer import Options, Regularizer
from georeg.spectral import metrics_at


@dataclass(frozen=True)
class LogVolumes:
    """Log-determinants of R on its d = min(dim M, dim N) directions.

    Attributes:
        log_det: log det R ``(B,)``, 0 where R is singular.
        regular: whether R is regular ``(B,)``.
        rank: d.
        num_products: Jacobian products spent.
    """

    log_det: Tensor
    regular: Tensor
    rank: int
    num_products: int

    def detach(self) -> LogVolumes:
        """The same numbers without their graph."""
        return replace(self, log_det=self.log_det.detach())


@register("functional", "volume")
class VolumeLoss(Regularizer[LogVolumes]):
    """Stretch volume by one factor everywhere: F = Var[log det R] = E[s²] − E[s]², s = log det R.

    det R is the product of the d = min(dim M, dim N) eigenvalues, the squared Jacobian determinant. Exact,
    from d products and a d × d matrix in orthonormal frames: for small d only.

    Minimum: 0, reached by maps that multiply all volumes by one constant, angles or not.

    Invariant to: f → c·f; any map of constant determinant before or behind f (dim M = dim N), isometries and
    coordinates always. The squared mean biases it by −Var[s]/B.

    Args:
        **options: see :class:`Regularizer`. ``estimator`` must be :class:`Exact`. With ``degenerate="zero"``
            a sample with a singular Jacobian is left out.

    Raises:
        ValueError: another estimator; a singular Jacobian.

    Example:
        >>> import torch, georeg
        >>> shear = lambda x: torch.stack([x[:, 0], x[:, 1] + x[:, 0] ** 2], dim=1)      # det J = 1
        >>> georeg.VolumeLoss()(shear, torch.randn(8, 2)).loss.item() < 1e-9
        True

    References:
        Nazari, Damrich & Hamprecht 2023, Geometric autoencoders: what you see is what you decode.
    """

    num_statistics = 3
    undefined = "the Jacobian is singular at one sample at least, so its log-determinant is not finite"
    alone = "0 whatever the map, the variance of one number"

    def __init__(self, **options: Unpack[Options]) -> None:
        super().__init__(**options)
        if options.get("estimator") is None:
            self.estimator = Exact()
        if not isinstance(self.estimator, Exact):
            raise ValueError(f"estimator: got {self.estimator}, expected georeg.Exact(): no probe estimates a determinant")

    def measure(self, lin: Linearization, generator: Generator = None) -> LogVolumes:
        assert isinstance(self.estimator, Exact)
        domain, codomain = metrics_at(lin, self.domain, self.codomain)
        before = lin.num_jvps + lin.num_vjps
        # In orthonormal frames the structural zeros of an embedded tangent space do not appear.
        if choose_side(self.estimator.side, domain, codomain) == "domain":
            columns = lin.jvp(self.domain.lift(lin.x, axes(lin.x.new_zeros(len(lin.x), domain.dim))))
            gram = _gram(columns, codomain.flat(columns))
        else:
            rows = lin.vjp(self.codomain.colift(lin.value, axes(lin.value.new_zeros(len(lin.value), codomain.dim))))
            gram = _gram(rows, domain.sharp(rows))
        regular = _regular(gram.detach(), lin.x.dtype)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        log_det = torch.linalg.slogdet(torch.where(regular[:, None, None], gram, eye)).logabsdet
        return LogVolumes(log_det, regular, gram.shape[-1], lin.num_jvps + lin.num_vjps - before)

    def statistics(self, moments: LogVolumes) -> Tensor:
        s = moments.log_det
        return torch.stack([moments.regular.to(s), s, s.square()], dim=-1)

    def value(self, means: Tensor, rank: int) -> Tensor:
        regular, s, s_sq = means.unbind(-1)
        return safe_ratio(s_sq, regular) - safe_ratio(s, regular).square()

    def defined(self, means: Tensor) -> Tensor:
        return means[..., 0] == 1


def _gram(vectors: Tensor, paired: Tensor) -> Tensor:
    """⟨vectors_i, paired_j⟩ ``(B, d, d)``, symmetrised, of ``(d, B, *event)``."""
    size = vectors.shape[2:].numel()
    left, right = (v.reshape(*v.shape[:2], size).movedim(0, 1).to(moment_dtype(v)) for v in (vectors, paired))
    gram = left @ right.mT
    return (gram + gram.mT) / 2


def _regular(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """Whether the least eigenvalue stands out of rounding ``(B,)``; what is not finite passes, to be seen later."""
    finite = torch.isfinite(gram).all(-1).all(-1)
    spectrum = torch.linalg.eigvalsh(torch.where(finite[:, None, None], gram, 0))
    noise = max(gram.shape[-1] * torch.finfo(gram.dtype).eps, torch.finfo(dtype).eps ** 2)
    return ~finite | (spectrum[:, 0] > noise * spectrum[:, -1])
