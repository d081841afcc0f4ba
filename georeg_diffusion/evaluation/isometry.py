"""How close the encoder is to a scaled isometry, and what its points and its spectrum are like, against t."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from georeg import Estimate, SpectralMoments, jackknife, register
from georeg_diffusion.evaluation.batches import batches, indices, num_pieces
from georeg_diffusion.evaluation.geometry import ISOMETRY, geometry_of, moments_at
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import NOISY_HALF, Setting

PIECE = 16
"""Images of one piece of work, each at all timesteps."""

PROFILE = (0.05, 0.15, 0.25, 0.35, 0.45, *NOISY_HALF)
"""Where the profile is measured, as fractions of T."""


@register("score", "isometry")
class Isometry(Score):
    """d·E[τ₂]/E[τ₁]² of the encoder x_t ↦ h (Eq. 6), pooled over images within each t, mean over t > T/2. 1 is perfect.

    The details hold the profile over all t: the loss, the conformal loss d·E[τ₂/τ₁²], the effective rank E[τ₁²/τ₂]
    and the sphericity ‖x_t‖²/n, where the paper takes x_t to be on a sphere.

    Args:
        setting: the model.
        num_probes: of τ₁ and τ₂ at each point.
        num_images: default 128, the paper's protocol 1,000.
        fractions: of T, where the profile is measured; the setting's ``timesteps`` go before.

    Raises:
        RunError: there are no real images.

    References:
        Hahm et al. 2024, Eq. 6.
    """

    name: ClassVar[str] = "isometry"
    label: ClassVar[str] = "isometry loss, normalised (perfect: 1)"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(
        self,
        setting: Setting,
        *,
        num_probes: int = 4,
        fractions: tuple[float, ...] = PROFILE,
    ) -> None:
        self.setting, self.num_probes = setting, num_probes
        self.num_images = setting.num_real(setting.count(128, 1000))
        self.timesteps = setting.at_timesteps(fractions)
        self.parts: list[dict[str, Tensor]] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting)

    def pieces(self) -> int:
        return num_pieces(self.num_images, PIECE)

    def update(self, piece: int) -> None:
        rows = indices(piece, self.num_images, PIECE)
        for batch in batches(rows, self.setting.batch_size):
            each = [self._at(batch, t) for t in self.timesteps]
            self.parts.append({key: torch.stack([one[key] for one in each], 1) for key in each[0]})

    def _at(self, rows: list[int], t: int) -> dict[str, Tensor]:
        setting = self.setting
        x = setting.noised(rows, t)
        encode = setting.encoder(t, [setting.seed + row for row in rows])
        return moments_at(encode, x, num_probes=self.num_probes, generator=setting.draws(rows, t, 1))

    def compute(self) -> Result:
        setting = self.setting
        state = self.state()
        n = len(state["trace"]) if state else 0
        where = f"true x_t of {n:,} images of {setting.images().name}"
        if not n:
            return Result(None, None, 0, setting.seed, f"{where}; nothing was measured")
        rank = int(state["rank"][0, 0])
        counted = [i for i, t in enumerate(self.timesteps) if setting.timesteps or t > setting.total / 2]
        named = ", ".join(str(self.timesteps[i]) for i in counted)
        protocol = (
            f"pooled per t, mean over t; {where} at t = {named}; tangent space of the sphere, d = {rank}; "
            f"{self.num_probes} fixed-norm probes"
        )
        trace, square = state["trace"], state["trace_sq"]
        if not bool(torch.isfinite(trace + square).all()) or not bool((trace.sum(0) > 0).all()):
            return Result(None, None, n, setting.seed, f"{protocol}; τ₁ is 0 or not finite: h does not depend on x_t")
        at_each = [geometry_of({key: value[:, i] for key, value in state.items()}) for i in range(len(self.timesteps))]
        found = [one for one in at_each if one is not None]  # all of them: τ₁ is finite and not 0, as was just seen
        pooled = jackknife(ISOMETRY, SpectralMoments(trace[:, counted].flatten(), square[:, counted].flatten(), rank))
        details = {
            "timesteps": self.timesteps,
            "isometry": [one.isometry.value for one in found],
            "isometry_stderr": [one.isometry.stderr for one in found],
            "conformality": [one.conformality.value for one in found],
            "effective_rank": [one.effective_rank.value for one in found],
            "dimension": rank,
            "sphericity": [one.sphericity.value for one in found],
            "sphericity_std": [one.sphericity_std for one in found],
            "pooled_over_t": {"value": pooled.value, "stderr": pooled.stderr},
        }
        both = torch.stack([trace[:, counted], square[:, counted]], 2)
        return Result.of(mean_over_t(both, rank), seed=setting.seed, protocol=protocol, details=details)

    def state(self) -> dict[str, Tensor]:
        if not self.parts:
            return {}
        return {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.parts = [state] if state else []


def mean_over_t(moments: Tensor, rank: int) -> Estimate:
    """Jackknifed mean over t of the pooled loss, from ``(n, T, 2)``: an image is left out at all timesteps at once."""
    n, total = len(moments), moments.sum(0)
    whole = ISOMETRY.value(total / n, rank).mean()
    if n == 1:
        return Estimate(float(whole), None, 1)
    without = ISOMETRY.value((total - moments) / (n - 1), rank).mean(1)
    value = n * whole - (n - 1) * without.mean()
    return Estimate(float(value), float(((n - 1) / n * (without - without.mean()).square().sum()).sqrt()), n)
