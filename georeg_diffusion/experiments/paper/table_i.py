"""Table I: the isometry loss on a latent diffusion model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "A latent diffusion model (LDM), base against isometric"
SOURCE = "Table I, App. F"
DATA = "digits"

SCORES = ("fid", "ppl", "mrtl", "mcn", "vor", "vor_log", "isometry")


def run(lab: Lab) -> Finding:
    """Train base and isometric on latents with every seed, score both, and put the paper's numbers beside them."""
    from georeg_diffusion.experiments import comparison
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.side_by_side import beside_the_paper

    start, about = _latents(lab)
    base = comparison.replicated(lab, SCORES, **start, **comparison.BASE)
    ours = comparison.replicated(lab, SCORES, **start)
    claims = (
        comparison.falls("PPL falls", base, ours, "ppl"),
        comparison.falls("mRTL falls", base, ours, "mrtl"),
        comparison.falls("MCN falls", base, ours, "mcn"),
        comparison.falls("VoR falls", base, ours, "vor"),
        comparison.rises("FID rises slightly", base, ours, "fid"),
    )
    table = beside_the_paper(lab, "tableI", f"{SOURCE}: {TITLE}", base, ours, SCORES, prefix="LDM ")
    notes = (about, "The DDPM rows of the paper's table are those of Table 1.", *comparison.protocols(base))
    return Finding(tables=(table,), claims=claims, notes=notes)


def _latents(lab: Lab) -> tuple[dict[str, Any], str]:
    """What makes the model one on latents, and what to say of it.

    Raises:
        UsageError: a given model that has no autoencoder.
    """
    from georeg_diffusion.bundle import load
    from georeg_diffusion.errors import UsageError
    from georeg_diffusion.experiments.autoencoder import signal_to_noise

    if lab.recipe.pretraining_steps is None:
        given = str(lab.pretrained(lab.seeds[0]))
        codec = load(given).codec
        if codec is None:
            raise UsageError(
                f"--pretrained: {given} works on pixels, expected a latent diffusion model, such as that of --dataset "
                "ldm-celebahq256"
            )
        return {}, f"The latents are those of {given}'s own {type(codec).__name__}."
    folder, images = lab.autoencoder()
    return {"vae": str(folder)}, (
        f"The autoencoder was trained in place, one for all seeds, for {lab.recipe.autoencoder_steps:,} steps: "
        f"{images.channels} × {images.resolution}² to 4 × {images.resolution // 2}², PSNR "
        f"{signal_to_noise(folder, images):.1f} dB. The paper's LDM has a VQ model's latents of 3 × 64²."
    )
