"""mRTL: how straight a slerp in X becomes in H."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

import georeg
from georeg import Estimate, diagnostics, register
from georeg_diffusion.evaluation.batches import batches
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting

SEGMENTS = 16
"""S, pieces of each path; divisible by 4, so that S/2 and S/4 come from the same points."""


@register("score", "mrtl")
class Mrtl(Score):
    """E_t E[Σᵢ‖h_t(sᵢ₊₁) − h_t(sᵢ)‖/‖h_t(s_S) − h_t(s₀)‖] along slerps s of x_T, each point denoised by DDIM (Sec. 4.1).

    Length over chord of a polyline of S segments, which grows with S to the length of the curve; the details hold
    it for S, S/2 and S/4, and RTL(t) at each reverse step (Fig. 5). A perfect isometry of the sphere has arc over
    chord θ/(2 sin(θ/2)), about 1.11 for noises, and not 1: ``details["perfect"]``.

    Args:
        setting: the model; one pair is one piece of work.
        segments: S.

    Raises:
        ValueError: S that 4 does not divide.

    References:
        Hahm et al. 2024, Sec. 4.1 and Fig. 5.
    """

    name: ClassVar[str] = "mrtl"
    label: ClassVar[str] = "mean relative trajectory length (mRTL)"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(self, setting: Setting, *, segments: int = SEGMENTS) -> None:
        if segments < 4 or segments % 4:
            raise ValueError(f"segments: got {segments}, expected a multiple of 4")
        self.setting, self.segments = setting, segments
        self.num_pairs, self.num_steps = setting.count(32, 1000), setting.steps(20, 20)
        self.parts: list[dict[str, Tensor]] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting)

    def pieces(self) -> int:
        return self.num_pairs

    @torch.no_grad()
    def update(self, piece: int) -> None:
        setting, count = self.setting, self.segments + 1
        seed = setting.seed + piece
        (draw,) = setting.draws([piece])
        ends = torch.randn(2, 1, *setting.bundle.sample_shape, generator=draw).double()
        path = georeg.slerp(ends[0], ends[1], torch.linspace(0, 1, count, dtype=torch.float64))
        angle = torch.arccos(cosine_similarity(ends[0].flatten(1), ends[1].flatten(1)))
        steps: dict[float, list[Tensor]] = {}
        for rows in batches(list(range(count)), setting.batch_size):
            seeds = [seed] * len(rows)

            def visit(x: Tensor, t: Tensor, seeds: list[int] = seeds) -> None:
                steps.setdefault(float(t), []).append(setting.encode_at(x, t, seeds).float().cpu())

            setting.decode(path[rows, 0].to(setting.device, setting.precision), seeds, self.num_steps, visit)
        h = [torch.cat(parts).unsqueeze(1) for parts in steps.values()]
        self.parts.append(
            {
                "rtl": torch.stack([self._ratios(one) for one in h], 1).unsqueeze(0),
                "angle": angle,
                "path": self._ratios(path).unsqueeze(0),
                "timesteps": torch.tensor([list(steps)], dtype=torch.float64),
            }
        )

    def _ratios(self, path: Tensor) -> Tensor:
        """RTL with S, S/2 and S/4 segments ``(3,)``."""
        return torch.cat([diagnostics.relative_trajectory_length(path[::every]) for every in (1, 2, 4)]).double()

    def compute(self) -> Result:
        state, setting, s = self.state(), self.setting, self.segments
        n = len(state["rtl"]) if state else 0
        protocol = f"{n:,} slerps of x_T in {s} segments, each point denoised in {self.num_steps} DDIM steps; un-pooled h"
        if not n:
            return Result(None, None, 0, setting.seed, f"{protocol}; nothing was measured")
        rtl = state["rtl"]
        if not bool(torch.isfinite(rtl).all()):
            return Result(None, None, n, setting.seed, f"{protocol}; h is not finite, or returns to where it began")
        curve = rtl[:, 0]
        details: dict[str, object] = {
            "perfect": float(diagnostics.great_circle_ratio(state["angle"]).mean()),
            "path": float(state["path"][:, 0].mean()),
            "segments": {str(s // every): float(rtl[:, i].mean()) for i, every in enumerate((1, 2, 4))},
            "timesteps": state["timesteps"][0].tolist(),
            "rtl": curve.mean(0).tolist(),
            "rtl_stderr": (curve.std(0) / n**0.5).tolist() if n > 1 else None,
        }
        if setting.dtype.itemsize < 4:
            details["caution"] = (
                f"measured in {str(setting.dtype).removeprefix('torch.')}, whose rounding makes paths in h zigzag "
                "and so longer; take --dtype float32"
            )
            protocol += f"; {details['caution']}"
        return Result.of(Estimate.of(curve.mean(1)), seed=setting.seed, protocol=protocol, details=details)

    def state(self) -> dict[str, Tensor]:
        if not self.parts:
            return {}
        return {key: torch.cat([part[key] for part in self.parts]) for key in self.parts[0]}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.parts = [state] if state else []
