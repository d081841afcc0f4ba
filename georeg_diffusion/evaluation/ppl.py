"""PPL: how far the image moves for a small step along a slerp of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from georeg import register
from georeg_diffusion.codec import decode as codec_decode
from georeg_diffusion.errors import RunError
from georeg_diffusion.evaluation.feature_network import full_precision
from georeg_diffusion.evaluation.path_length import PROTOCOLS, path_distances, trimmed_mean
from georeg_diffusion.evaluation.perceptual import PerceptualDistance
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting

PIECE = 32
"""Pairs of one piece of work; not the batch size, which may change when a run is taken up again."""


@register("score", "ppl")
class Ppl(Score):
    """E[d(G(x(t)), G(x(t + ε)))/ε^k] over slerps x between standard normal ends in X.

    ``full``: t uniform in [0, 1]; ``end``: t = 0. Pair i draws its ends and its t from seed + i alone.

    Args:
        decode: G, (x_T ``(B, C, H, W)``, the seed of each row) ↦ images ``(B, C, H, W)``, without noise of its own,
            without clipping, in x_T's precision. The seed is that of the pair, for conditions that are drawn.
        distance: d.
        shape: of one x_T.
        num_pairs: N.
        seed: of pair 0.
        protocol: ``"stylegan2"`` (d/ε², percentiles 1 to 99) or ``"paper"`` (d/ε, as Sec. 4.1 prints it).
        sampling: ``"full"`` or ``"end"``.
        epsilon: default that of the protocol, 1e-4.
        batch_size: images at once. Networks round differently in batches of another size: in float32 that moved the
            digits' PPL by 0.14 %, in float64 by nothing.
        device: where G is.
        dtype: of x_T, float32 or float64; half precision cannot resolve ε. On the digits (20 DDIM steps) a float32
            distance is off by 1.4 % at most and the mean by 0.1 to 0.2 %; float64 takes four times as long.
        how: the sampler's part of the protocol, such as ``"100 DDIM steps"``.

    Raises:
        ValueError: an unknown protocol or sampling.

    References:
        Karras et al. 2019, A style-based generator architecture, Sec. 4.1; Hahm et al. 2024, Sec. 4.1.
    """

    name: ClassVar[str] = "ppl"
    label: ClassVar[str] = "perceptual path length (PPL)"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(
        self,
        decode: Callable[[Tensor, Sequence[int]], Tensor],
        distance: PerceptualDistance,
        shape: tuple[int, ...],
        *,
        num_pairs: int,
        seed: int = 0,
        protocol: str = "stylegan2",
        sampling: str = "full",
        epsilon: float | None = None,
        batch_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        how: str = "",
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol: got {protocol!r}, expected one of {', '.join(PROTOCOLS)}")
        if sampling not in ("full", "end"):
            raise ValueError(f"sampling: got {sampling!r}, expected 'full' or 'end'")
        if dtype == torch.float64:  # a copy: FID may use the same network in float32
            distance = replace(distance, network=deepcopy(distance.network).double())
        self.decode, self.distance, self.shape = decode, distance, shape
        self.num_pairs, self.seed, self.sampling, self.how = num_pairs, seed, sampling, how
        self.protocol = PROTOCOLS[protocol] if epsilon is None else replace(PROTOCOLS[protocol], epsilon=epsilon)
        self.batch_size, self.dtype, self.device = batch_size, dtype, device
        self.distances: list[Tensor] = []

    @classmethod
    def of(cls, setting: Setting) -> Self:
        if setting.dtype not in (torch.float32, torch.float64):
            raise RunError(f"PPL: got a network in {setting.dtype}, whose rounding exceeds ε = 1e-4; take --dtype float32")
        steps = setting.steps(20, 100)

        def decode(x_T: Tensor, seeds: Sequence[int]) -> Tensor:
            x0, codec = setting.decode(x_T, seeds, steps), setting.bundle.codec
            return x0 if codec is None else codec_decode(codec, x0)

        return cls(
            decode,
            setting.distance(),
            setting.bundle.sample_shape,
            num_pairs=setting.count(256, 50_000),
            seed=setting.seed,
            protocol=setting.options.get("ppl", "stylegan2"),
            sampling=setting.options.get("ppl_sampling", "full"),
            batch_size=setting.batch_size,
            dtype=setting.dtype,
            device=setting.device,
            how=f"{steps} DDIM steps",
        )

    def pieces(self) -> int:
        return -(-self.num_pairs // PIECE)

    def update(self, piece: int) -> None:
        seeds = range(self.seed + piece * PIECE, self.seed + min((piece + 1) * PIECE, self.num_pairs))
        pairs = max(self.batch_size // 2, 1)
        for first in range(0, len(seeds), pairs):
            self.distances.append(self._of(list(seeds[first : first + pairs])))

    def _of(self, seeds: list[int]) -> Tensor:
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        ends = torch.stack([torch.randn(2, *self.shape, generator=draw) for draw in draws], dim=1)
        t = torch.stack([torch.rand((), generator=draw, dtype=torch.float64) for draw in draws])
        t = torch.zeros_like(t) if self.sampling == "end" else t

        def decode(x: Tensor) -> Tensor:
            return self.decode(x.to(self.device), [*seeds, *seeds])

        with torch.no_grad(), full_precision(torch.device(self.device)):
            return path_distances(
                decode, self.distance, ends[0], ends[1], t, epsilon=self.protocol.epsilon, dtype=self.dtype
            ).cpu()

    def compute(self) -> Result:
        d = torch.cat(self.distances) if self.distances else torch.empty(0, dtype=torch.float64)
        count, rule = len(d), self.protocol
        precision = str(self.dtype).removeprefix("torch.")
        text = (
            f"{rule.describe()}; {self.distance.name}; {self.sampling} sampling along slerps in X; {count:,} pairs, "
            f"{self.how + ', ' if self.how else ''}{precision}, not clipped"
        )
        if count == 0:
            return Result(None, None, 0, self.seed, f"{text}; no pair was measured")
        if not bool(torch.isfinite(d).all()):
            bad = int((~torch.isfinite(d)).sum())
            return Result(None, None, count, self.seed, f"{text}; {bad} distances are not finite")
        estimate = trimmed_mean(d / rule.epsilon**rule.power, rule.percentiles)
        details = {
            "measure": self.distance.name,
            "mean_of_all": float(d.mean()) / rule.epsilon**rule.power,
            "epsilon": rule.epsilon,
        }
        if rule.power == 1:
            details["per_epsilon_squared"] = float(d.mean()) / rule.epsilon**2
            text += "; d is a squared distance, so that d/ε is proportional to ε"
        return Result.of(estimate, seed=self.seed, protocol=text, details=details)

    def state(self) -> dict[str, Tensor]:
        return {"distances": torch.cat(self.distances)} if self.distances else {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.distances = [state["distances"]] if state else []
