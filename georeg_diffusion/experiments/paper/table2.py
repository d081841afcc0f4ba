"""Table 2: whether attributes become separable in the noise space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from georeg_diffusion.experiments.finding import Finding
    from georeg_diffusion.experiments.lab import Lab

TITLE = "Linear separability (LS) of X, with a linear and a radial kernel"
SOURCE = "Table 2, Sec. 4.2"
DATA = "digits"

SCORES = ("ls", "ls_radial")
SPLITS: dict[str, dict[str, Any]] = {
    "held-out": {"options": {"ls_split": "held-out"}},
    "in-sample": {"options": {"ls_split": "in-sample"}},
}


def run(lab: Lab) -> Finding:
    """Label the images of base and isometric, and separate their x_T by the labels: by SVMs that saw them, and did not."""
    from georeg_diffusion.experiments import comparison
    from georeg_diffusion.experiments.finding import Finding, Table
    from georeg_diffusion.experiments.replicates import over_seeds
    from georeg_diffusion.experiments.side_by_side import beside_the_paper

    rows, claims, notes = [], [], []
    table = Table("", (), ())
    for split, options in SPLITS.items():
        base = comparison.replicated(lab, SCORES, options=options, **comparison.BASE)
        ours = comparison.replicated(lab, SCORES, options=options)
        table = beside_the_paper(lab, "table2", f"{SOURCE}: {TITLE}", base, ours, SCORES)
        chance = over_seeds([one.get("chance") for one in base.details["ls"]])
        if chance is not None:
            notes.append(f"{split}: an SVM that knows nothing has {chance.value:.3g}; 1 is separable")
        notes += comparison.protocols(base)
        rows += [(f"{row[0]}, {split}", *row[1:]) for row in table.rows]
        claims += [
            comparison.falls(f"LS falls ({split})", base, ours, "ls"),
            comparison.falls(f"LS with a radial kernel falls ({split})", base, ours, "ls_radial"),
        ]
    notes.append(
        "In-sample is the paper's protocol: the SVM predicts the latents that it was fitted to, which in many dimensions it "
        "separates whatever the model; held-out it has not seen them."
    )
    both = Table(table.title, table.columns, tuple(rows), table.caption)
    return Finding(tables=(both,), claims=tuple(claims), notes=tuple(notes))
