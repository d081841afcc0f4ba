"""The error of the stochastic trace estimator (Eq. 8), measured and by theory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import georeg
from georeg.random import Probe

PROBES: tuple[Probe, ...] = ("gaussian", "sphere", "rademacher")


def trace_errors(
    a: Tensor, numbers: Sequence[int], *, repeats: int, probe: Probe = "gaussian", generator: torch.Generator | None = None
) -> Tensor:
    """Errors of (1/N) Σ vᵢᵀA vᵢ − Tr A for each N, independent repeats: ``(len(numbers), repeats)``.

    Args:
        a: a square matrix.
        numbers: of probes N, each at least 1.
        repeats: of each.
        probe: ``"gaussian"`` (the paper's), ``"sphere"`` (of fixed norm √dim) or ``"rademacher"``.
        generator: of the probes.

    Raises:
        ValueError: a matrix that is not square; an unknown probe.

    Example:
        >>> import torch
        >>> from georeg_diffusion.experiments.trace_error import trace_errors
        >>> trace_errors(3 * torch.eye(4), [1, 8], repeats=2, probe="rademacher")       # exact where A is diagonal
        tensor([[0., 0.],
                [0., 0.]])
    """
    _check(a, probe)
    space, origin = georeg.Euclidean(), a.new_zeros(1, len(a))
    errors = torch.empty(len(numbers), repeats, dtype=a.dtype)
    for row, number in zip(errors, numbers, strict=True):
        for k in range(repeats):
            v = space.random_tangent(origin, number, generator, probe=probe)[:, 0]
            row[k] = ((v @ a) * v).sum(1).mean() - a.trace()
    return errors


def probe_variance(a: Tensor, probe: Probe = "gaussian") -> float:
    """Variance of vᵀAv for one probe, with S = (A + Aᵀ)/2 because vᵀAv = vᵀSv; N probes have it over N.

    =========== ============================== =====================
    probe       variance
    =========== ============================== =====================
    gaussian    2‖S‖²                          Isserlis
    rademacher  2(‖S‖² − Σ Sᵢᵢ²)               Hutchinson 1989
    sphere      2d/(d+2) · (‖S‖² − (Tr S)²/d)  zero where S = c·I
    =========== ============================== =====================

    ‖·‖ is Frobenius'.

    Raises:
        ValueError: a matrix that is not square; an unknown probe.

    Example:
        >>> import torch
        >>> from georeg_diffusion.experiments.trace_error import probe_variance
        >>> a = torch.tensor([[1.0, 2.0], [0.0, 1.0]])                       # S has 1 on the diagonal and off it
        >>> [round(probe_variance(a, probe), 4) for probe in ("gaussian", "rademacher", "sphere")]
        [8.0, 4.0, 2.0]
    """
    _check(a, probe)
    s = ((a + a.mT) / 2).double()
    square, d = s.square().sum(), len(s)
    if probe == "gaussian":
        return float(2 * square)
    if probe == "rademacher":
        return float(2 * (square - s.diagonal().square().sum()))
    return float(2 * d / (d + 2) * (square - s.trace().square() / d))


def slope_of(numbers: Sequence[int], errors: Tensor) -> georeg.Estimate:
    """Slope of log(root mean square error) against log N, by least squares, with the jackknife's standard error.

    Args:
        numbers: N of each row, two different ones at least.
        errors: ``(len(numbers), repeats)``, at least two repeats.

    Raises:
        ValueError: too few numbers or repeats.
    """
    if len(set(numbers)) < 2 or errors.shape[1] < 2:
        raise ValueError(f"errors: got shape {tuple(errors.shape)}, expected two different N and two repeats at least")
    x = torch.tensor(numbers, dtype=torch.float64).log()
    weights = (x - x.mean()) / (x - x.mean()).square().sum()
    squares = errors.double().square()
    n = squares.shape[1]
    whole = weights @ squares.mean(1).log() / 2
    without = weights @ ((squares.sum(1, keepdim=True) - squares) / (n - 1)).log() / 2  # (repeats,)
    stderr = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return georeg.Estimate(float(whole), float(stderr), n)


def _check(a: Tensor, probe: Probe) -> None:
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not len(a):
        raise ValueError(f"a: got shape {tuple(a.shape)}, expected a square matrix")
    if probe not in PROBES:
        raise ValueError(f"probe: got {probe!r}, expected one of {', '.join(PROBES)}")
