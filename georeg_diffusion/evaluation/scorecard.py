"""The scores that stand side by side after a training run."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from georeg import Estimate
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.images import Images
from georeg_diffusion.evaluation.denoising import denoising_loss
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, features_of
from georeg_diffusion.evaluation.frechet import frechet_distance
from georeg_diffusion.evaluation.geometry import MAX_SPECTRUM, geometry
from georeg_diffusion.evaluation.mrtl import mean_relative_trajectory_length
from georeg_diffusion.progress import console, track
from georeg_diffusion.sampling.ddim import ddim_sample

# key, what the table calls it, whether lower is better (None: neither)
ROWS: tuple[tuple[str, str, bool | None], ...] = (
    ("denoising", "denoising loss", True),
    ("isometry", "isometry loss, normalised (perfect: 1)", True),
    ("isometry_pooled", "  the same, pooled over all t", True),
    ("mcn", "mean condition number (MCN)", True),
    ("vor", "variance of Riemannian metric (VoR)", True),
    ("vor_log", "  its scale-free form (log-VoR)", True),
    ("effective_rank", "effective rank of the metric", False),
    ("mrtl", "mean relative trajectory length (mRTL)", True),
    ("frechet", "Fréchet distance", True),
)


def score(
    bundle: Bundle,
    images: Images,
    *,
    seed: int,
    title: str,
    features: FeatureNetwork | None = None,
    num_images: int = 256,
    num_generated: int = 512,
    num_steps: int = 20,
    at: str | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Score one model: values with standard errors, counts and protocol, ready for metrics.json.

    Args:
        bundle: the model.
        images: the real images.
        seed: of all noise, so that models scored at one seed meet the same draws.
        title: of the model, on progress bars.
        features: for the Fréchet distance; None leaves it out.
        num_images: real images whose x_t the geometry is measured at.
        num_generated: generated images of the Fréchet distance.
        num_steps: DDIM steps.
        at: name of the h-space module.
        device: where to compute.
    """
    bundle.network.to(device).eval()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    real = images.batch(chosen[: max(num_images, 2048)]).to(device)
    shape = geometry(bundle, real[:num_images], seed=seed, at=at, title=f"{title}: geometry", num_probes=2, num_spectra=8)
    path = mean_relative_trajectory_length(
        bundle, seed=seed, num_steps=num_steps, at=at, device=device, title=f"{title}: mRTL"
    )
    at_t = f"x_t of {len(real[:num_images])} training images at t = {', '.join(map(str, shape.timesteps))}, tangent space"
    scores = {
        "denoising": _entry(
            denoising_loss(bundle, real, seed=seed, title=f"{title}: denoising loss"),
            "training images, one stratified timestep each",
        ),
        "isometry": _entry(shape.isometry, f"pooled per t, mean over t; {at_t}; 2 fixed-norm probes")
        | {"per_t": dict(zip(map(str, shape.timesteps), [e.value for e in shape.isometry_per_t], strict=True))},
        "isometry_pooled": _entry(shape.isometry_pooled, f"pooled over samples and t; {at_t}"),
        "mrtl": _entry(path.mrtl, f"slerp in {path.segments} segments, {num_steps} DDIM steps")
        | {"perfect": path.perfect, "rtl": dict(zip(map(str, path.timesteps), path.rtl, strict=True))},
    }
    spectral = (
        ("mcn", shape.mcn, f"all {shape.dimension} singular values, un-pooled h; {at_t}"),
        ("vor", shape.vor, f"Eq. 11, per t, mean over t; {at_t}"),
        ("vor_log", shape.vor_log, f"sum of variances of log σ, per t, mean over t; {at_t}"),
        ("effective_rank", shape.effective_rank, f"(Tr R)²/Tr R², at most {shape.dimension}; {at_t}"),
    )
    scores |= {key: _entry(estimate, protocol) for key, estimate, protocol in spectral if estimate is not None}
    if shape.mcn is None:
        console.print(
            f"{title}: no condition number, VoR or effective rank: "
            + (
                f"they need all {shape.dimension} singular values, and more than {MAX_SPECTRUM} take too long"
                if shape.dimension > MAX_SPECTRUM
                else "a Jacobian of the encoder is singular"
            ),
            style="dim",
        )
    if features is not None:
        generated = generate(bundle, num_generated, seed=seed, num_steps=num_steps, device=device, title=f"{title}: samples")
        distance = frechet_distance(features_of(features, real), features_of(features, generated))
        scores["frechet"] = _entry(
            Estimate(distance, None, num_generated), f"{features.name}; {num_generated} images, {num_steps} DDIM steps"
        )
    return scores


def _entry(estimate: Estimate, protocol: str) -> dict[str, Any]:
    return asdict(estimate) | {"protocol": protocol}


def generate(
    bundle: Bundle,
    count: int,
    *,
    seed: int,
    num_steps: int,
    device: torch.device | str = "cpu",
    batch_size: int = 128,
    title: str = "Samples",
) -> Tensor:
    """Generated images ``(count, C, H, W)``; equal seeds start from equal noise."""
    noise = torch.randn(count, *bundle.sample_shape, generator=torch.Generator().manual_seed(seed)).to(device)
    chunks = noise.split(batch_size)
    return torch.cat([ddim_sample(bundle, chunk, num_steps) for chunk in track(chunks, title, len(chunks))])
