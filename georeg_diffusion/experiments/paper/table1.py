"""Table 1: what the isometry loss does to the scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Base against isometric: FID, PPL, mRTL, MCN, VoR"
SOURCE = "Table 1, Sec. 4.2"
DATA = "digits"

SCORES = ("fid", "ppl", "mrtl", "mcn", "vor", "vor_log", "isometry")


def run(lab: Lab) -> Finding:
    """Train base and isometric with every seed, score both, and put the paper's numbers beside them."""
    from georeg_diffusion.experiments import comparison
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.side_by_side import beside_the_paper

    base = comparison.replicated(lab, SCORES, **comparison.BASE)
    ours = comparison.replicated(lab, SCORES)
    claims = (
        comparison.falls("PPL falls", base, ours, "ppl"),
        comparison.falls("mRTL falls", base, ours, "mrtl"),
        comparison.falls("MCN falls", base, ours, "mcn"),
        comparison.falls("VoR falls (on CIFAR-10 it rises in the paper)", base, ours, "vor"),
        comparison.rises("FID rises: a slight sacrifice", base, ours, "fid"),
    )
    notes = (
        "log-VoR and the isometry loss are not in the paper. VoR falls with the square of J's scale, log-VoR does not.",
        *comparison.protocols(base, ours),
    )
    table = beside_the_paper(lab, "table1", f"{SOURCE}: {TITLE}", base, ours, SCORES)
    return Finding(tables=(table,), claims=claims, notes=notes)
