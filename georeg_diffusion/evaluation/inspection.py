"""The geometry of a frozen model at each timestep, a few images and one timestep at a time."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from georeg_diffusion.evaluation.batches import batches, indices, num_pieces
from georeg_diffusion.evaluation.geometry import Geometry, geometry_of, largest_at, moments_at
from georeg_diffusion.evaluation.isometry import PROFILE, mean_over_t
from georeg_diffusion.evaluation.points import Points, real_points
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.evaluation.skip import TOLERANCE, excess_energy, suggested_skip
from georeg_diffusion.schedule import coefficients, network_timesteps, radius_at

PIECE = 4
"""Images of one piece of work, at one timestep."""

_CURVE = 96


class Inspection(Score):
    """The geometry of x_t ↦ h against t, and the p from which on it is worth regularising.

    Pieces of work are ordered by images first: a run that is stopped early has seen all timesteps at fewer images. The
    result's value is the normalised isometry loss, mean over the measured t > pT with the suggested p (t > T/2 where
    no p can be suggested); its details hold everything else, see :meth:`compute`.

    Args:
        setting: the model.
        points: where it is measured; default x_t of the setting's real images.
        num_probes: of τ₁ and τ₂ at each point.
        top: how many of the largest singular values.
        spectrum_images: the number of images at which those are taken.
        tolerance: of the rule for p, see :func:`georeg_diffusion.evaluation.skip.skip_for`.

    Raises:
        RunError: there are no real images.
        ValueError: a number that is too small.
    """

    name: ClassVar[str] = "inspect"
    label: ClassVar[str] = "isometry loss above pT, normalised (perfect: 1)"
    lower_is_better: ClassVar[bool | None] = True

    def __init__(
        self,
        setting: Setting,
        points: Points | None = None,
        *,
        num_probes: int = 4,
        top: int = 4,
        spectrum_images: int = 4,
        tolerance: float = TOLERANCE,
    ) -> None:
        for name, number, least in (("num_probes", num_probes, 1), ("top", top, 1), ("spectrum_images", spectrum_images, 0)):
            if number < least:
                raise ValueError(f"{name}: got {number}, expected at least {least}")
        self.setting, self.num_probes, self.top, self.spectrum_images = setting, num_probes, top, spectrum_images
        self.tolerance = tolerance
        self.points = points or real_points(setting, setting.count(32, 32))
        self.timesteps = self.points.timesteps or setting.at_timesteps(PROFILE)
        self._found: dict[int, list[dict[str, Tensor]]] = {t: [] for t in self.timesteps}
        self._clean: tuple[list[int], Tensor] | None = None

    @classmethod
    def of(cls, setting: Setting) -> Self:
        return cls(setting)

    def pieces(self) -> int:
        return num_pieces(self.points.count, PIECE) * len(self.timesteps)

    def update(self, piece: int) -> None:
        group, at = divmod(piece, len(self.timesteps))
        rows, t = indices(group, self.points.count, PIECE), self.timesteps[at]
        x0 = self._x0(rows)
        parts = [
            self._moments(batch, x0[batch[0] - rows[0] : batch[-1] - rows[0] + 1], t)
            for batch in batches(rows, self.setting.batch_size)
        ]
        measured = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        # One by one: block Lanczos ends when all of a batch have converged, so a batch would show in the last digits.
        tops = [self._largest(row, x0[i : i + 1], t) for i, row in enumerate(rows) if row < self.spectrum_images]
        if tops:
            measured |= {key: torch.cat([one[key] for one in tops]) for key in tops[0]}
        self._found[t].append(measured)

    def _x0(self, rows: list[int]) -> Tensor:
        """Clean samples of a piece; those of the last one are kept, because the next timestep takes the same."""
        if self._clean is None or self._clean[0] != rows:
            parts = [self.points.clean(batch) for batch in batches(rows, self.setting.batch_size)]
            self._clean = rows, torch.cat(parts)
        return self._clean[1]

    def _moments(self, rows: list[int], x0: Tensor, t: int) -> dict[str, Tensor]:
        setting = self.setting
        encode = setting.encoder(t, [setting.seed + row for row in rows])
        x = setting.diffused(x0, rows, t)
        found = moments_at(encode, x, num_probes=self.num_probes, generator=setting.draws(rows, t, 1))
        return found | {"energy": x0.flatten(1).double().square().mean(1).cpu()}

    def _largest(self, row: int, x0: Tensor, t: int) -> dict[str, Tensor]:
        setting = self.setting
        x = setting.diffused(x0, [row], t)
        found = largest_at(setting.encoder(t, [setting.seed + row]), x, self.top, generator=setting.draws([row], t, 2))
        return {"sigma": found["sigma"], "converged": found["converged"].to(torch.uint8)}

    def compute(self) -> Result:
        """Details: ``profile``, an entry for each timestep; ``suggested_skip``; ``curve``, the radius that is expected."""
        setting, state = self.setting, self._by_timestep()
        count = max((len(one["trace"]) for one in state.values()), default=0)
        if not count:
            return Result(None, None, 0, setting.seed, f"{self.points.where}; nothing was measured")
        energies = max((one["energy"] for one in state.values()), key=len)
        skip = suggested_skip(setting.bundle.scheduler, energies, tolerance=self.tolerance) if bool(energies.any()) else None
        found = {t: geometry_of(one) for t, one in state.items()}
        rank = next((int(one["rank"][0]) for one in state.values()), 0)
        details: dict[str, Any] = {
            "dimension": rank,
            "ambient_dimension": self._n,
            "points": self.points.where,
            "suggested_skip": None if skip is None else asdict(skip),
            "profile": [self._entry(t, state.get(t), found.get(t)) for t in self.timesteps],
            "curve": self._curve(energies),
        }
        p = 0.5 if skip is None or skip.value is None else skip.value
        counted = [t for t in state if found[t] is not None and self._gate(t) > p]
        protocol = (
            f"{self.points.where}; tangent space of the sphere, d = {rank}; {self.num_probes} fixed-norm probes; {self.top} "
            f"largest singular values of {min(self.spectrum_images, count)} images by block Lanczos"
        )
        if not counted:
            reason = (
                "h does not depend on x_t, or is not finite" if None in found.values() else f"no t > {p:g} T was measured"
            )
            return Result(None, None, count, setting.seed, f"{protocol}; {reason}", details)
        common = min(len(state[t]["trace"]) for t in counted)
        both = torch.stack([torch.stack([state[t]["trace"][:common], state[t]["trace_sq"][:common]], 1) for t in counted], 1)
        named = ", ".join(map(str, counted))
        return Result.of(
            mean_over_t(both, rank), seed=setting.seed, protocol=f"mean over t = {named}; {protocol}", details=details
        )

    @property
    def _n(self) -> int:
        return int(torch.Size(self.setting.bundle.sample_shape).numel())

    def _step(self, t: int) -> Tensor:
        return network_timesteps(self.setting.bundle.scheduler, torch.tensor([t]))

    def _gate(self, t: int) -> float:
        """t/T as the gate sees it."""
        return float(self._step(t)) / self.setting.total

    def _entry(self, t: int, measured: dict[str, Tensor] | None, found: Geometry | None) -> dict[str, Any]:
        scheduler, step = self.setting.bundle.scheduler, self._step(t)
        entry: dict[str, Any] = {
            "timestep": t,
            "fraction": self._gate(t),
            "noise": float(coefficients(scheduler, step)[1]),
            "images": 0 if measured is None else len(measured["trace"]),
            "spectrum_images": 0 if measured is None or "sigma" not in measured else len(measured["sigma"]),
        }
        if measured is not None:
            radius = float(radius_at(scheduler, self._n, step))
            ratio = (measured["sphericity"] * self._n).sqrt() / radius
            entry["radius_ratio"] = {"value": float(ratio.mean()), "std": float(ratio.std()) if len(ratio) > 1 else None}
        return entry | (
            dict.fromkeys(_MEASURED) if found is None else {name: _plain(getattr(found, name)) for name in _MEASURED}
        )

    def _curve(self, energies: Tensor) -> dict[str, list[float]]:
        """√(1 + excess), the mean ‖x_t‖/r_t up to O(1/n), at fractions t/T."""
        scheduler, total = self.setting.bundle.scheduler, self.setting.total
        steps = network_timesteps(scheduler, torch.linspace(0, total - 1, min(_CURVE, total)).long())
        # Nothing is left of the noise at s = 0, where the ratio has no bound.
        steps = steps[coefficients(scheduler, steps)[1] > 0]
        ratio = (1 + excess_energy(scheduler, steps, float(energies.mean()))).sqrt()
        return {"fraction": (steps.double() / total).tolist(), "radius_ratio": ratio.tolist()}

    def _by_timestep(self) -> dict[int, dict[str, Tensor]]:
        merged = {}
        for t, parts in self._found.items():
            if parts:
                keys = dict.fromkeys(key for part in parts for key in part)
                merged[t] = {key: torch.cat([part[key] for part in parts if key in part]) for key in keys}
        return merged

    def state(self) -> dict[str, Tensor]:
        return {f"{t}/{key}": value for t, found in self._by_timestep().items() for key, value in found.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        loaded: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            t, key = name.split("/")
            loaded.setdefault(int(t), {})[key] = value
        self._found = {t: [loaded[t]] if t in loaded else [] for t in self.timesteps}


_MEASURED = (
    "isometry",
    "conformality",
    "effective_rank",
    "scale",
    "sphericity",
    "sphericity_std",
    "singular_values",
    "unconverged",
)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return {"value": value.value, "stderr": value.stderr} if hasattr(value, "stderr") else value
