"""VoR: how much the encoder's metric varies from image to image."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

from georeg import Estimate, diagnostics, register
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.evaluation.spectra import LEADING, Spectra


@register("score", "vor")
class Vor(Score):
    """Σᵢ Var[σᵢ(J)] of the encoder x_t ↦ h over images (Eq. 11), within each timestep, mean over those. 0 is homogeneous.

    It falls with the square of J's scale: see ``vor_log``. Where d is too large for all singular values there is no
    value; the details give the sum over the largest 8, a lower bound, and the effective rank, under their own names.

    Args:
        spectra: the singular values.

    References:
        Hahm et al. 2024, Eq. 11.
    """

    name: ClassVar[str] = "vor"
    label: ClassVar[str] = "variance of Riemannian metric (VoR)"
    lower_is_better: ClassVar[bool | None] = True
    log: ClassVar[bool] = False
    formula: ClassVar[str] = "sum of Var[σ]"

    def __init__(self, spectra: Spectra) -> None:
        self.spectra = spectra
        self.parts: list[Tensor] = []
        self.seen = 0
        self.beyond: list[dict[str, Tensor]] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(Spectra(setting))

    def pieces(self) -> int:
        return self.spectra.pieces()

    def update(self, piece: int) -> None:
        found = self.spectra(piece)
        self.seen += len(next(iter(found.values())))
        if "sigma" in found:
            self.parts.append(found["sigma"].double())
        else:
            self.beyond.append({key: found[key] for key in ("leading", "effective_rank")})

    def compute(self) -> Result:
        seed = self.spectra.setting.seed
        n = sum(len(part) for part in self.parts)
        protocol = f"{self.formula}, within each t, mean over t; {self.spectra.where(n)}"
        if self.seen > n:
            protocol = f"{self.formula}, within each t, mean over t; {self.spectra.where(self.seen)}"
            text = (
                f"{protocol}; not measured: it needs all singular values, and there are more than {self.spectra.max_dense}; "
                f"see the sum over the largest {LEADING}, a lower bound, and the effective rank"
            )
            return Result(None, None, self.seen, seed, text, self._beyond())
        if n < 2:
            return Result(None, None, n, seed, f"{protocol}; a variance needs at least 2 images")
        sigma = torch.cat(self.parts)
        d = sigma.shape[2]
        protocol = f"{protocol}; all {d} singular values"
        if self.log and not bool((sigma > 0).all()):
            bad = int((sigma[..., -1] <= 0).sum())
            return Result(None, None, n, seed, f"{protocol}; {bad} Jacobians are singular, whose logarithm has no variance")
        per_t = [diagnostics.variance_of_metric(sigma[:, i], log=self.log) for i in range(sigma.shape[1])]
        ranks = diagnostics.effective_rank_of(sigma.flatten(0, 1)).reshape(n, -1).mean(1)
        squares = sigma.square()
        details: dict[str, object] = {
            "timesteps": self.spectra.timesteps,
            "per_t": [one.value for one in per_t],
            "effective_rank": Estimate.of(ranks).value,
            "sigma_squared": _mean_over_t(squares, self.log).value,
        }
        if not self.log:
            details["spectrum"] = [_spectrum(sigma[:, i]) for i in range(sigma.shape[1])]
        return Result.of(_mean_over_t(sigma, self.log), seed=seed, protocol=protocol, details=details)

    def _beyond(self) -> dict[str, object]:
        """What is known without all singular values."""
        state = self.state()
        leading, ranks = state["leading"], state["effective_rank"]
        partial = _mean_over_t(leading, self.log) if len(leading) > 1 and bool((leading > 0).all()) else None
        return {
            "timesteps": self.spectra.timesteps,
            "effective_rank": Estimate.of(ranks.mean(1)).value,
            "lower_bound": None if partial is None else {"value": partial.value, "stderr": partial.stderr, "of": LEADING},
        }

    def state(self) -> dict[str, Tensor]:
        state = {"seen": torch.tensor([self.seen])} if self.seen else {}
        if self.beyond:
            state |= {key: torch.cat([one[key] for one in self.beyond]) for key in self.beyond[0]}
        return state | ({"sigma": torch.cat(self.parts)} if self.parts else {})

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.parts = [state["sigma"]] if "sigma" in state else []
        self.beyond = [{key: state[key] for key in ("leading", "effective_rank")}] if "leading" in state else []
        self.seen = int(state["seen"]) if "seen" in state else 0


@register("score", "vor_log")
class VorLog(Vor):
    """Σᵢ Var[log σᵢ(J)]: VoR without the scale of J, which f → c·f does not change."""

    name: ClassVar[str] = "vor_log"
    label: ClassVar[str] = "  its scale-free form (log-VoR)"
    log: ClassVar[bool] = True
    formula: ClassVar[str] = "sum of Var[log σ]"


def _mean_over_t(sigma: Tensor, log: bool) -> Estimate:
    """Of ``(n, T, d)``; an image is left out at all its timesteps at once, for they are not independent."""
    steps = sigma.shape[1]
    total = diagnostics.variance_of_metric(sigma.flatten(1), log=log)
    return Estimate(total.value / steps, None if total.stderr is None else total.stderr / steps, total.n)


def _spectrum(sigma: Tensor) -> dict[str, list[float]]:
    """Median and quartiles over images of at most 64 singular values ``(n, d)``, for a plot."""
    d = sigma.shape[1]
    index = torch.linspace(0, d - 1, min(d, 64)).round().long()
    low, middle, high = torch.quantile(sigma[:, index], torch.tensor([0.25, 0.5, 0.75], dtype=sigma.dtype), dim=0)
    return {"index": (index + 1).tolist(), "low": low.tolist(), "median": middle.tolist(), "high": high.tolist()}
