"""Singular values of the encoder x_t ↦ h at numbered images, measured once for MCN and both VoR."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import georeg
from georeg import diagnostics
from georeg_diffusion.evaluation.batches import batches, indices, num_pieces
from georeg_diffusion.evaluation.lanczos import mean_log_eigenvalue
from georeg_diffusion.evaluation.setting import Setting
from georeg_diffusion.files import replacing

LEADING = 8
"""The largest singular values that are taken where not all of them can be."""

MAX_DENSE = 4096
"""The largest d whose Jacobians are written down."""

TOLERANCE = 1e-2
"""A matrix-free smallest singular value counts where its residual is below this share of it."""

_PROBES = 16


class Spectra:
    """What is known of the singular values at ``num_images`` images, each at every timestep.

    Measured on the tangent space of the sphere through x_t, with the whole of h; with ``compat="isodiff"`` as the
    published code does, at pure noise in place of x_t, in flat pixel space, with h averaged over its positions.

    Args:
        setting: the model.
        max_dense: the largest d for which all singular values are taken; beyond that the largest and the smallest
            come from products with J alone, and with them the effective rank and the k-condition.

    Raises:
        RunError: there are no real images.
    """

    def __init__(self, setting: Setting, *, max_dense: int = MAX_DENSE) -> None:
        self.setting, self.max_dense = setting, max_dense
        wanted = setting.count(32, 1000)
        self.is_compat = setting.compat == "isodiff"
        self.num_images = wanted if self.is_compat else setting.num_real(wanted)
        self.timesteps = setting.at_timesteps()
        self.manifold: georeg.Manifold = georeg.Euclidean() if self.is_compat else georeg.Sphere()

    @property
    def piece(self) -> int:
        """Images of one piece of work, each at all timesteps; one where each takes minutes, so that little is lost."""
        return 4 if math.prod(self.setting.bundle.sample_shape) <= 1024 else 1

    def pieces(self) -> int:
        """Number of pieces."""
        return num_pieces(self.num_images, self.piece)

    def where(self, count: int) -> str:
        """Where it was measured, for a protocol."""
        at = f"t = {', '.join(map(str, self.timesteps))}"
        if self.is_compat:
            return (
                f"compat=isodiff: {count:,} draws of pure noise in place of x_t, {at}; h averaged over its positions; flat "
                "pixel space, as the published code measures"
            )
        return (
            f"true x_t of {count:,} images of {self.setting.images().name}, {at}; un-pooled h; tangent space of the sphere"
        )

    def __call__(self, piece: int) -> dict[str, Tensor]:
        """Of a piece's images: ``sigma (n, T, d)`` descending, or where d is too large ``leading (n, T, 8)`` and what
        :func:`extremes` gives."""
        name = self._name(piece)
        if name in self.setting.shared:
            return self.setting.shared[name]
        target = None if self.setting.cache is None else self.setting.cache / f"{name}.safetensors"
        found = None
        if target is not None and target.is_file():
            try:
                found = load_file(target)
            except (OSError, SafetensorError):
                found = None  # damaged: measured anew
        if found is None:
            rows = indices(piece, self.num_images, self.piece)
            parts = [self._of(batch) for batch in batches(rows, self.setting.batch_size)]
            found = {key: torch.cat([part[key] for part in parts]).cpu().contiguous() for key in parts[0]}
            if target is not None:
                with replacing(target) as scratch:
                    save_file(found, scratch)
        self.setting.shared[name] = found
        return found

    def _name(self, piece: int) -> str:
        setting = self.setting
        rows = indices(piece, self.num_images, self.piece)
        images = "noise" if self.is_compat else setting.images().name
        text = f"{setting.key} {images} {setting.seed} {rows} {self.timesteps} {self.max_dense} {setting.compat}"
        return f"spectra-{hashlib.sha256(text.encode()).hexdigest()[:32]}"

    def _of(self, rows: list[int]) -> dict[str, Tensor]:
        each = [self._at(rows, t) for t in self.timesteps]
        return {key: torch.stack([one[key] for one in each], dim=1) for key in each[0]}

    def _at(self, rows: list[int], t: int) -> dict[str, Tensor]:
        setting = self.setting
        seeds = [setting.seed + row for row in rows]
        encode = setting.encoder(t, seeds)
        x = setting.noise(seeds) if self.is_compat else setting.noised(rows, t)
        f: Callable[[Tensor], Tensor] = (lambda x: _pooled(encode(x))) if self.is_compat else encode
        with torch.no_grad():
            d = min(self.manifold.dim(x), f(x)[0].numel())  # all rows: each may have a condition of its own
        if d <= self.max_dense:
            return {"sigma": diagnostics.singular_values(f, x, domain=self.manifold, chunk_size=32)}
        return self._extremes(f, x, setting.draws(rows, t, 1))

    def _extremes(self, f: Callable[[Tensor], Tensor], x: Tensor, draws: list[torch.Generator]) -> dict[str, Tensor]:
        """From products with J: the largest singular values ``(n, 8)``; σ_max, σ_min with its residual, effective rank
        and k-condition ``(n,)`` each."""
        top = diagnostics.top_singular(f, x, LEADING, domain=self.manifold, chunk_size=1, generator=draws)
        low = diagnostics.smallest_singular(
            f, x, domain=self.manifold, max_dense=0, tolerance=TOLERANCE, chunk_size=1, generator=draws
        )
        with torch.no_grad():
            moments = georeg.spectral_moments(
                f, x, domain=self.manifold, estimator=georeg.Hutchinson(_PROBES), generator=draws, chunk_size=1
            )
        mean, log = mean_log_eigenvalue(f, x, domain=self.manifold, generator=draws)
        return {
            "leading": top.values.double(),
            "top": top.values[:, 0].double(),
            "low": low.upper_bound.double(),
            "residual": low.residual.double(),
            "effective_rank": (moments.trace.square() / moments.trace_sq).double(),
            "k_condition": mean / log.exp(),
        }


def extremes(spectra: dict[str, Tensor]) -> dict[str, Tensor]:
    """σ_max, σ_min, residual, effective rank and k-condition ``(n, T)`` each, from all singular values where there are."""
    if "sigma" not in spectra:
        return {key: value for key, value in spectra.items() if key != "leading"}
    sigma = spectra["sigma"]
    n, steps, d = sigma.shape
    flat = sigma.reshape(n * steps, d)
    return {
        "top": sigma[..., 0].double(),
        "low": sigma[..., -1].double(),
        "residual": torch.zeros(n, steps, dtype=torch.float64),
        "effective_rank": diagnostics.effective_rank_of(flat).reshape(n, steps).double(),
        "k_condition": diagnostics.k_condition(flat).reshape(n, steps).double(),
    }


def _pooled(h: Tensor) -> Tensor:
    return h.flatten(2).mean(2) if h.ndim > 2 else h
