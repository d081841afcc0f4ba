"""The scores that stand side by side after a training run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.bundle import Bundle
from georeg_diffusion.data.images import Images
from georeg_diffusion.evaluation.denoising import denoising_loss
from georeg_diffusion.evaluation.feature_moments import FeatureMoments
from georeg_diffusion.evaluation.feature_network import FeatureNetwork, features_of
from georeg_diffusion.evaluation.fid import Fid
from georeg_diffusion.evaluation.generated import generated_features
from georeg_diffusion.evaluation.isometry import Isometry
from georeg_diffusion.evaluation.mcn import Mcn
from georeg_diffusion.evaluation.mrtl import Mrtl
from georeg_diffusion.evaluation.once import Once
from georeg_diffusion.evaluation.reference import Reference
from georeg_diffusion.evaluation.runner import work_off
from georeg_diffusion.evaluation.score import Result, Score
from georeg_diffusion.evaluation.setting import NOISY_HALF, Setting
from georeg_diffusion.evaluation.spectra import Spectra
from georeg_diffusion.evaluation.vor import Vor, VorLog
from georeg_diffusion.progress import console

MAX_SPECTRUM = 768
"""The largest d whose full Jacobians are decomposed after a training; at 32 × 32 in colour, d = 3071, that would take an
hour of CPU time. ``evaluate`` goes further."""

_REAL_BYTES = 2**28

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
    prompt: str | None = None,
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
        prompt: for a model on text.
        device: where to compute.
    """
    bundle.to(device).network.eval()
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    # At most 256 MiB of pixels beyond the images that the geometry needs.
    most = _REAL_BYTES // (4 * images.channels * images.resolution**2)
    real = images.batch(chosen[: max(num_images, min(2048, most))]).to(device)
    batch_size = 64 if bundle.codec is None else 16

    def setting(count: int) -> Setting:
        return Setting(
            bundle=bundle,
            images=Once(lambda: images),
            seed=seed,
            num_samples=count,
            num_inference_steps=num_steps,
            batch_size=batch_size,
            device=device,
            at=at,
            prompt=prompt,
            guidance_scale=1.0 if prompt is not None else None,
        )

    def measured(score: Score, label: str) -> Result:
        return work_off(score, seed, f"{title}: {label}").result

    loss = measured(Isometry(setting(num_images), num_probes=2, fractions=NOISY_HALF), "isometry")
    path = measured(Mrtl(setting(16)), "mRTL")
    scores = {
        "denoising": asdict(
            denoising_loss(
                bundle, real, seed=seed, prompt=prompt, batch_size=2 * batch_size, title=f"{title}: denoising loss"
            )
        )
        | {"protocol": "training images, one stratified timestep each"}
    }
    if loss.value is not None:
        details = loss.details
        pooled = details["pooled_over_t"] | {"n": loss.n, "protocol": f"pooled over samples and t; {loss.protocol}"}
        per_t = dict(zip(map(str, details["timesteps"]), details["isometry"], strict=True))
        scores |= {"isometry": _entry(loss) | {"per_t": per_t}, "isometry_pooled": pooled}
        dimension = int(details["dimension"])
        if dimension <= MAX_SPECTRUM:
            scores |= _spectral(Spectra(setting(8)), measured)
        if "mcn" not in scores:
            reason = (
                f"they need all {dimension} singular values, and more than {MAX_SPECTRUM} take too long"
                if dimension > MAX_SPECTRUM
                else "a Jacobian of the encoder is singular"
            )
            console.print(f"{title}: no condition number, VoR or effective rank: {reason}", style="dim")
    if path.value is not None:
        details = path.details
        rtl = dict(zip((str(round(t)) for t in details["timesteps"]), details["rtl"], strict=True))
        scores["mrtl"] = _entry(path) | {"perfect": details["perfect"], "rtl": rtl}
    if features is not None:
        scores["frechet"] = _entry(measured(_frechet(setting(num_generated), features, real), "samples")) | {"stderr": None}
    return scores


def _spectral(spectra: Spectra, measured: Callable[[Score, str], Result]) -> dict[str, Any]:
    """MCN, both VoR and the effective rank; none of them where a Jacobian is singular."""
    mcn = measured(Mcn(spectra), "spectra")
    if mcn.value is None:
        return {}
    rank = mcn.details["effective_rank"] | {"n": mcn.n, "protocol": f"(Tr R)²/Tr R²; {spectra.where(mcn.n)}"}
    return {
        "mcn": _entry(mcn),
        "vor": _entry(measured(Vor(spectra), "VoR")),
        "vor_log": _entry(measured(VorLog(spectra), "log-VoR")),
        "effective_rank": rank,
    }


def _frechet(setting: Setting, features: FeatureNetwork, real: Tensor) -> Fid:
    moments = FeatureMoments.of(features_of(features, real).cpu())
    reference = Reference(f"{len(real):,} training images", moments.mean, moments.covariance, len(real), None)
    return Fid(generated_features(replace(setting, features=Once(lambda: features))), reference)


def _entry(result: Result) -> dict[str, Any]:
    """As train's ``metrics.json`` has always held it: with a standard error in place of an interval."""
    error = None if result.ci is None else (result.ci[1] - result.ci[0]) / 3.92
    return {"value": result.value, "stderr": error, "n": result.n, "protocol": result.protocol}
