"""What a trace estimator is: it turns products with J and Jᵀ into spectral moments."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor

from georeg.linearize import Linearization
from georeg.manifolds.base import MetricAt, dot, event_dims
from georeg.moments import SpectralMoments
from georeg.random import PROBES, Generator, Probe

Side = Literal["auto", "domain", "codomain"]


class Estimator(ABC):
    """Estimates τ₁ = Tr R and τ₂ = Tr R² of R = G⁻¹JᵀHJ at each sample.

    Laws, executed by the contract tests: unbiased for both moments on any spectrum; deterministic under
    a generator; differentiable in the map's parameters (nothing that carries them is detached);
    ``num_products`` is the number of Jacobian products spent. ``georeg.testing.EstimatorContract`` holds one of
    your own to them.

    Example:
        >>> import torch, georeg
        >>> lin, flat = georeg.linearize(lambda x: 2 * x, torch.ones(1, 3)), georeg.Euclidean()
        >>> m = georeg.Hutchinson(num_probes=8)(lin, flat.at(lin.x), flat.at(lin.value))
        >>> round(m.trace.item(), 4), m.num_products               # Tr 4I, from 8 products with J and 8 with Jᵀ
        (12.0, 16)
    """

    @abstractmethod
    def __call__(
        self, lin: Linearization, domain: MetricAt, codomain: MetricAt, generator: Generator = None
    ) -> SpectralMoments:
        """Moments of the linearisation ``lin`` between two metrics at its points and values."""


class ProbeEstimator(Estimator):
    """An estimator from random probes: what all of those are told, and how that is checked.

    Args:
        num_probes: K.
        distribution: ``"sphere"``, ``"gaussian"`` or ``"rademacher"``, see :func:`georeg.random.white`.
        side: ``"auto"`` (the smaller dimension), ``"domain"`` or ``"codomain"``.

    Raises:
        ValueError: fewer than one probe; an unknown distribution or side.
    """

    def __init__(self, num_probes: int, distribution: Probe, side: Side) -> None:
        if num_probes < 1:
            raise ValueError(f"num_probes: got {num_probes}, expected at least 1")
        if distribution not in PROBES:
            raise ValueError(f"distribution: got {distribution!r}, expected one of {', '.join(PROBES)}")
        check_side(side)
        self.num_probes, self.distribution, self.side = num_probes, distribution, side

    def __repr__(self) -> str:
        return f"{type(self).__name__}(num_probes={self.num_probes}, distribution={self.distribution!r}, side={self.side!r})"


def check_side(side: str) -> None:
    """Refuse an unknown side."""
    if side not in get_args(Side):
        raise ValueError(f"side: got {side!r}, expected 'auto' (the smaller dimension), 'domain' or 'codomain'")


def choose_side(side: Side, domain: MetricAt, codomain: MetricAt) -> Side:
    """The side of the smaller dimension, whose gradients vary least; the codomain (VJP first) on a tie."""
    if side != "auto":
        return side
    return "domain" if domain.dim < codomain.dim else "codomain"


def moment_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which moments are kept: float64, or float32 on a device that has no float64."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def unit(x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``(k, B, *event)`` into a vector of length about 1 and its detached length ``(k, B)``.

    Products are linear, so J v = s·J(v/s) exactly, and neither v nor its square can overflow: τ₂ reaches
    1e17 on real networks, where half precision ends at 6.5e4.
    """
    dims = event_dims(x)
    values = vectors.detach().to(torch.promote_types(vectors.dtype, torch.float32))
    peak = values.abs().amax(dims, keepdim=True) if dims else values.abs()
    peak = torch.where(peak > 0, peak, 1)
    scaled = values / peak
    length = (scaled.square().sum(dims, keepdim=True).sqrt() if dims else scaled.abs()) * peak
    length = torch.where(length > 0, length, 1)
    # In float32: half precision need not hold the length of a vector that it holds.
    scaled = (vectors.to(length.dtype) / length).to(vectors.dtype)
    return scaled, length.reshape(vectors.shape[:2]).to(moment_dtype(x))


def squared_length(x: Tensor, vectors: Tensor, paired: Tensor, scale: Tensor) -> Tensor:
    """scale²·⟨vectors, paired⟩ ``(k, B)`` in the dtype of the moments."""
    return scale.square() * dot(x, vectors, paired).to(scale.dtype)


def variance_of_mean(samples: Tensor) -> Tensor:
    """Estimated variance ``(B,)`` of the mean of k ≥ 2 independent samples ``(k, B)``; B may be 0."""
    k = len(samples)
    return (samples - samples.mean(0)).detach().square().sum(0) / (k * (k - 1))


def standard_error(samples: Tensor) -> Tensor | None:
    """Standard error of the mean over the probes ``(k, B)``; one probe has none."""
    return None if len(samples) < 2 else variance_of_mean(samples).sqrt()
