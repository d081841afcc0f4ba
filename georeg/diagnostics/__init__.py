"""Scores of a map's geometry."""

from georeg.diagnostics.conditioning import (
    condition_number,
    effective_rank,
    effective_rank_of,
    isotropy,
    isotropy_of,
    k_condition,
    mean_condition_number,
)
from georeg.diagnostics.smallest import SmallestSingular, smallest_singular
from georeg.diagnostics.spectra import singular_values
from georeg.diagnostics.top import TopSingular, top_singular
from georeg.diagnostics.trajectories import great_circle_ratio, relative_trajectory_length
from georeg.diagnostics.variance import affine_invariant_variance, variance_of_metric, variance_of_riemannian_metric

__all__ = [
    "SmallestSingular",
    "TopSingular",
    "affine_invariant_variance",
    "condition_number",
    "effective_rank",
    "effective_rank_of",
    "great_circle_ratio",
    "isotropy",
    "isotropy_of",
    "k_condition",
    "mean_condition_number",
    "relative_trajectory_length",
    "singular_values",
    "smallest_singular",
    "top_singular",
    "variance_of_metric",
    "variance_of_riemannian_metric",
]
