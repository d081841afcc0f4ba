"""How even the images along a slerp of noise are (Fig. 6)."""

from __future__ import annotations

from typing import ClassVar, Self

import torch
from torch import Tensor

import georeg
from georeg import Estimate, register
from georeg_diffusion.evaluation.batches import batches
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting

FRAMES = 17
"""Images of each path, both ends included."""


@register("score", "interpolation")
class Interpolation(Score):
    """E[max_i d(c_{i+1}, c_i)] between adjacent frames c of slerps of x_T: the most abrupt change of a path (Fig. 6).

    Details: the mean distance at each position, its mean over the path, and its variation (standard deviation over
    mean), which is 0 for a path of even steps and does not depend on the scale of d.

    Args:
        setting: the model; one slerp is one piece of work. Its ends are those of mRTL's of the same number.
        frames: S ≥ 3.

    Raises:
        ValueError: fewer than three frames.

    References:
        Hahm et al. 2024, Sec. 4.3 and Fig. 6.
    """

    name: ClassVar[str] = "interpolation"
    label: ClassVar[str] = "interpolation: largest step between frames"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(self, setting: Setting, *, frames: int = FRAMES) -> None:
        if frames < 3:
            raise ValueError(f"frames: got {frames}, expected at least 3, two steps to compare")
        self.setting, self.frames = setting, frames
        self.distance = setting.distance()
        self.num_pairs, self.num_steps = setting.count(32, 1000), setting.steps(20, 20)
        self.parts: list[Tensor] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting)

    def pieces(self) -> int:
        return self.num_pairs

    @torch.no_grad()
    def update(self, piece: int) -> None:
        setting = self.setting
        (draw,) = setting.draws([piece])
        ends = torch.randn(2, 1, *setting.bundle.sample_shape, generator=draw).double()
        path = georeg.slerp(ends[0], ends[1], torch.linspace(0, 1, self.frames, dtype=torch.float64))[:, 0]
        images = []
        for rows in batches(list(range(self.frames)), setting.batch_size):
            x = path[rows].to(setting.device, setting.precision)
            images.append(setting.bundle.decode(setting.decode(x, [setting.seed + piece] * len(rows), self.num_steps)))
        frames = torch.cat(images)
        steps = [self.distance(frames[rows], frames[[i + 1 for i in rows]]) for rows in self._steps()]
        self.parts.append(torch.cat(steps).double().cpu().unsqueeze(0))

    def _steps(self) -> list[list[int]]:
        return list(batches(list(range(self.frames - 1)), self.setting.batch_size))

    def compute(self) -> Result:
        setting = self.setting
        d = torch.cat(self.parts) if self.parts else torch.empty(0, self.frames - 1, dtype=torch.float64)
        n = len(d)
        protocol = (
            f"mean over {n:,} slerps of x_T of the largest of {self.frames - 1} distances between adjacent frames; "
            f"{self.distance.name}; {self.num_steps} DDIM steps"
        )
        if not n:
            return Result(None, None, 0, setting.seed, f"{protocol}; nothing was measured")
        if not bool(torch.isfinite(d).all()):
            return Result(None, None, n, setting.seed, f"{protocol}; images or distances are not finite")
        mean = d.mean(1)
        variation = torch.where(mean > 0, d.std(1, correction=0) / torch.where(mean > 0, mean, 1), 0)
        details = {
            "measure": self.distance.name,
            "adjacent": d.mean(0).tolist(),
            "adjacent_stderr": (d.std(0) / n**0.5).tolist() if n > 1 else None,
            "mean": _entry(mean),
            "variation": _entry(variation),
        }
        return Result.of(Estimate.of(d.amax(1)), seed=setting.seed, protocol=protocol, details=details)

    def state(self) -> dict[str, Tensor]:
        return {"distances": torch.cat(self.parts)} if self.parts else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.parts = [state["distances"]] if state else []


def _entry(values: Tensor) -> dict[str, float | None]:
    estimate = Estimate.of(values)
    return {"value": estimate.value, "stderr": estimate.stderr}
