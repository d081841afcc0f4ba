"""Scores of the toy autoencoders over seeds: their table, and what they say of the paper's claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

import georeg
from georeg_diffusion.experiments.finding import Cell, Claim, Table
from georeg_diffusion.experiments.replicates import in_words, is_below_zero, over_seeds, paired
from georeg_diffusion.experiments.sphere_autoencoder import Map, Trained, reconstruction_error, scores_of
from georeg_diffusion.experiments.sphere_region import Region

LOSSES = {"none": "Reconstruction only", "flat": "Isometry, G = I in chart", "sphere": "Isometry, sphere's metric"}
"""The three losses of Fig. 2, by their metric."""

COLUMNS = {
    "error": "error",
    "loss": "isometry loss",
    "condition": "condition",
    "log_vor": "log-VoR",
    "rtl": "geodesic RTL",
    "distances": "spread",
}
HOW_TO_READ = (
    "At held-out points, by the exact Jacobian and the sphere's metric. Error: E‖x̂ − x‖². Spread: standard deviation of "
    "log(distance in the plane / on the sphere). An isometry, of which there is none (Gauss), has loss, condition number "
    "and RTL (length over chord of a great circle's image) 1, log-VoR and spread 0. Mean ± standard error over seeds."
)

Scores = Mapping[str, float]

_SEED = 30_000  # of points that no training sees


def scores_of_trained(trained: Trained, region: Region, *, points: int) -> dict[str, float]:
    """All of :data:`COLUMNS`, at points that it was not trained on."""
    held_out = region.sample(points, torch.Generator().manual_seed(_SEED))
    error = reconstruction_error(trained.encoder, trained.decoder, held_out)
    return {"error": error, **scores_of(trained.encoder, region, points=points)}


def scores_of_maps(region: Region, *, points: int) -> dict[str, dict[str, float]]:
    """Of two maps that are not trained: stereographic, and azimuthal equidistant around the region's centre."""
    maps: dict[str, Map] = {
        "map: stereographic": georeg.SphereStereographic(radius=1.0).from_ambient,
        "map: equidistant": region.equidistant,
    }
    return {name: scores_of(f, region, points=points) for name, f in maps.items()}


def table_of(title: str, rows: Mapping[str, Sequence[Scores]], *, caption: str = HOW_TO_READ) -> Table:
    """Means over seeds with standard errors; a score that a row lacks is a dash.

    Args:
        title: of the table.
        rows: scores of each seed, by what they are of.
        caption: below it.
    """
    cells: list[tuple[Cell | str, ...]] = [
        (name, *(Cell.of(over_seeds([one.get(key) for one in scores])) for key in COLUMNS)) for name, scores in rows.items()
    ]
    return Table(title, ("", *COLUMNS.values()), tuple(cells), caption)


def less(text: str, after: Sequence[Scores], before: Sequence[Scores], score: str, *, called: str = "") -> Claim:
    """A claim that a score is less in ``after`` than in ``before``, seed by seed.

    Args:
        text: the claim.
        after, before: scores of each seed.
        score: the one that is meant.
        called: what the evidence calls it; by default as :data:`COLUMNS` does.
    """
    difference = paired([one[score] for one in before], [one[score] for one in after])
    values = " against ".join(f"{Cell.of(over_seeds([one[score] for one in scores]))}" for scores in (after, before))
    return Claim(text, is_below_zero(difference), f"{called or COLUMNS[score]} {values}, difference {in_words(difference)}")


def alike(text: str, shares: Sequence[float], *, limit: float = 0.1) -> Claim:
    """A claim that two ways of training end alike: what is left between them is less than a tenth of what training gained.

    Args:
        text: the claim.
        shares: (loss of one − loss of the other) / (loss without − loss of the other), of each seed.
        limit: that tenth.

    Example:
        >>> from georeg_diffusion.experiments.sphere_scores import alike
        >>> [alike("", shares).holds for shares in ([0.01, 0.02, 0.0], [0.5, 0.6, 0.55], [0.0, 0.2, 0.1])]
        [True, False, None]
    """
    found = over_seeds(shares)
    beyond = (
        None if found is None else is_below_zero(over_seeds([abs(found.value) - limit + s - found.value for s in shares]))
    )
    return Claim(
        text, beyond, f"of the gain of the isometry loss, the two differ by {in_words(found)} (alike: below {limit:g})"
    )
