"""MCN: the mean condition number of the encoder."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from georeg import Estimate, register
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.evaluation.spectra import TOLERANCE, Spectra, extremes


@register("score", "mcn")
class Mcn(Score):
    """E[σ_max(J)/σ_min(J)] of the encoder x_t ↦ h over images and stated timesteps (Eq. 10). 1 is isotropic.

    Where d is too large for all singular values and the smallest does not converge, there is no value: the protocol
    says so, and the details give a lower bound, the k-condition and the effective rank under their own names.

    Args:
        spectra: the singular values.

    References:
        Hahm et al. 2024, Eq. 10; Lee et al. 2022, who take the squares: ``details["sigma_squared"]``.
    """

    name: ClassVar[str] = "mcn"
    label: ClassVar[str] = "mean condition number (MCN)"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(self, spectra: Spectra) -> None:
        self.spectra = spectra
        self.parts: list[dict[str, Tensor]] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(Spectra(setting))

    def pieces(self) -> int:
        return self.spectra.pieces()

    def update(self, piece: int) -> None:
        found = self.spectra(piece)
        dense = torch.tensor([float(found["sigma"].shape[2]) if "sigma" in found else 0.0])
        self.parts.append({**extremes(found), "dense": dense})

    def compute(self) -> Result:
        seed = self.spectra.setting.seed
        if not self.parts:
            return Result(None, None, 0, seed, f"{self.spectra.where(0)}; nothing was measured")
        state = self.state()
        top, low, residual = state["top"], state["low"], state["residual"]
        n, dense = len(top), int(state["dense"][0])
        how = (
            f"all {dense} singular values"
            if dense
            else "σ_max and σ_min from products with J alone (block Lanczos; σ_min is the smallest Ritz value)"
        )
        protocol = f"σ_max/σ_min, mean; {how}; {self.spectra.where(n)}"
        rank, condition = state["effective_rank"], state["k_condition"]
        details: dict[str, object] = {
            "timesteps": self.spectra.timesteps,
            "effective_rank": _entry(Estimate.of(rank.mean(1))),
            "k_condition": _entry(Estimate.of(condition.mean(1))) if bool(condition.isfinite().all()) else None,
            "sigma_max": top.mean(0).tolist(),
            "sigma_min": low.mean(0).tolist(),
        }
        if not dense:
            details |= {"residual": residual.mean(0).tolist(), "k_condition_is": "a lower bound, by Lanczos quadrature"}
        unsure = int((residual > TOLERANCE * low).sum())
        if unsure:
            bound = (top / low).mean() if bool((low > 0).all()) else torch.tensor(torch.inf)
            details |= {"sigma_min_is": "an upper bound", "lower_bound": float(bound) if bool(bound.isfinite()) else None}
            text = (
                f"{protocol}; unconverged: at {unsure} of {top.numel()} points the smallest singular value is not known to "
                f"within {TOLERANCE:.0%}; see the k-condition and the effective rank"
            )
            return Result(None, None, n, seed, text, details)
        singular = int((low <= 0).sum())
        if singular:
            text = f"{protocol}; {singular} of {top.numel()} Jacobians are singular, their condition number is infinite"
            return Result(None, None, n, seed, text, details | {"singular": singular})
        kappa = top / low
        details |= {"per_t": kappa.mean(0).tolist(), "sigma_squared": _entry(Estimate.of(kappa.square().mean(1)))}
        return Result.of(Estimate.of(kappa.mean(1)), seed=seed, protocol=protocol, details=details)

    def state(self) -> dict[str, Tensor]:
        if not self.parts:
            return {}
        return {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.parts = [state] if state else []


def _entry(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "stderr": estimate.stderr}
