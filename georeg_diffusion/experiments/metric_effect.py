"""How much the choice of the metric G changes the isometry loss, against the dimension n: measured, and in theory.

Three metrics on x in Rⁿ near the sphere: the sphere's, G = I in stereographic coordinates (what the paper calls G = I),
and G = I in the ambient space. All vanish into one another as n grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import georeg
from georeg_diffusion.experiments.finding import Cell, Table
from georeg_diffusion.experiments.replicates import over_seeds
from georeg_diffusion.latent_metrics import latent_manifold

CASES = ((3, 2, "S²"), (64, 32, "8²"), (256, 32, "16²"), (1024, 32, "32²"))
"""n, dimension m of h, and what has that n."""

_WIDTH, _PART = 256, 128


def flat_theory(n: int) -> float:
    """E[λ⁴]/E[λ²]² − 1 of the conformal factor λ = 1 − xₙ/r of stereographic coordinates, x uniform on the sphere.

    With u = xₙ/r, E u² = 1/n and E u⁴ = 3/(n(n+2)): E λ² = 1 + 1/n, E λ⁴ = 1 + 6/n + 3/(n(n+2)). R in flat coordinates
    is λ²R, so where λ does not depend on R the ratio E[τ₂]/E[τ₁]² grows by this share; about 4/n.

    Example:
        >>> from georeg_diffusion.experiments.metric_effect import flat_theory
        >>> round(flat_theory(3), 3), round(flat_theory(256), 4), round(flat_theory(1024), 4)
        (0.8, 0.0155, 0.0039)
    """
    return (1 + 6 / n + 3 / (n * (n + 2))) / (1 + 1 / n) ** 2 - 1


def ambient_theory(n: int, m: int, rank: float) -> float:
    """Excess of the normalised loss in the ambient space over that on the sphere, where x is no special direction of J.

    Projecting a random direction out of A = JᵀJ leaves E Tr PAP = τ₁(1 − 1/n) and
    E Tr (PAP)² = τ₂(1 − 2/n) + (τ₁² + 2τ₂)/(n(n+2)), since E (xᵀAx)² = (τ₁² + 2τ₂)/(n(n+2)) for a unit x.

    Args:
        n: dimension of x.
        m: dimension of h.
        rank: E[τ₁²]/E[τ₂] in the ambient space.

    Example:
        >>> from georeg_diffusion.experiments.metric_effect import ambient_theory
        >>> round(ambient_theory(256, 256, 256.0), 12)                      # an isometry is one in both
        0.0
    """
    on_sphere = (1 - 2 / n + (rank + 2) / (n * (n + 2))) / (1 - 1 / n) ** 2
    return min(n, m) / (min(n - 1, m) * on_sphere) - 1


@dataclass(frozen=True)
class Effect:
    """Excess of the normalised isometry loss over that with the sphere's metric, as a share.

    Attributes:
        flat: with G = I in stereographic coordinates.
        ambient: with G = I in the ambient space.
        rank: E[τ₁²]/E[τ₂] in the ambient space.
    """

    flat: float
    ambient: float
    rank: float


def measure(n: int, m: int, *, seed: int, points: int = 4096) -> Effect:
    """The effect for random smooth encoders f(x) = W sin(Vx + b), by exact traces at points uniform on the sphere.

    With uniform phases b no direction is special to them, as the theory assumes; each 128 points have an encoder of their
    own, because on S² a single one stretches some places more than others.

    Args:
        n: dimension of x, on the sphere of radius √n.
        m: dimension of h.
        seed: of encoders and points.
        points: how many.
    """
    draw = torch.Generator().manual_seed(seed)
    found: dict[str, list[georeg.SpectralMoments]] = {"sphere": [], "stereographic-flat": [], "ambient": []}
    for _ in range(-(-points // _PART)):
        encode = _encoder(n, m, draw)
        x = torch.randn(_PART, n, generator=draw, dtype=torch.float64)
        x = x * math.sqrt(n) / x.norm(dim=1, keepdim=True)
        for metric, parts in found.items():
            with torch.no_grad():
                parts.append(georeg.spectral_moments(encode, x, domain=latent_manifold(metric), estimator=georeg.Exact()))
    losses, rank = {}, math.nan
    for metric, parts in found.items():
        trace, square = (torch.cat([getattr(part, name) for part in parts]) for name in ("trace", "trace_sq"))
        losses[metric] = parts[0].rank * float(square.mean() / trace.mean() ** 2)
        rank = float(trace.square().mean() / square.mean())  # of the last, the ambient one
    return Effect(losses["stereographic-flat"] / losses["sphere"] - 1, losses["ambient"] / losses["sphere"] - 1, rank)


def _encoder(n: int, m: int, draw: torch.Generator) -> Callable[[Tensor], Tensor]:
    v = torch.randn(n, _WIDTH, generator=draw, dtype=torch.float64) / math.sqrt(n)
    b = 2 * math.pi * torch.rand(_WIDTH, generator=draw, dtype=torch.float64)
    w = torch.randn(_WIDTH, m, generator=draw, dtype=torch.float64) / math.sqrt(_WIDTH)
    return lambda x: (x @ v + b).sin() @ w


def effects(seeds: Sequence[int], *, points: int = 4096) -> dict[int, list[Effect]]:
    """The effect for each n of :data:`CASES` and each seed; the smaller n is, the more points, since each costs less.

    Args:
        seeds: of the replicates.
        points: at the largest n, and up to eight times as many at the others.
    """
    more = {n: min(8, CASES[-1][0] // n) * points for n, _, _ in CASES}
    return {n: [measure(n, m, seed=seed, points=more[n]) for seed in seeds] for n, m, _ in CASES}


def table(found: dict[int, list[Effect]]) -> Table:
    """Measured beside theory, a row for each n."""
    rows: list[tuple[Cell | str, ...]] = []
    for n, m, what in CASES:
        flat, ambient = (over_seeds([getattr(one, name) for one in found[n]]) for name in ("flat", "ambient"))
        rank = sum(one.rank for one in found[n]) / len(found[n])
        rows.append(
            (
                f"{n} ({what})",
                *(Cell.of(flat), Cell(flat_theory(n)), Cell(4 / n)),
                *(Cell.of(ambient), Cell(ambient_theory(n, m, rank))),
            )
        )
    columns = ("n", "I, flat chart − sphere", "theory", "4/n", "I, pixels − sphere", "theory ")
    count = len(found[CASES[0][0]])
    caption = (
        "Excess of the normalised isometry loss over the sphere's, as a share of it; exact traces of "
        f"random smooth encoders at points uniform on the sphere, ± standard error over {count} sets of them. "
        "At 256², n = 196,608: 2e-5."
    )
    return Table("The metric's effect against n (not in the paper)", columns, tuple(rows), caption)
