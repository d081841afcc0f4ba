"""Scores of a map's geometry."""

from georeg.diagnostics.spectra import (
    condition_number,
    effective_rank,
    effective_rank_of,
    mean_condition_number,
    singular_values,
    variance_of_metric,
    variance_of_riemannian_metric,
)
from georeg.diagnostics.trajectories import great_circle_ratio, relative_trajectory_length

__all__ = [
    "condition_number",
    "effective_rank",
    "effective_rank_of",
    "great_circle_ratio",
    "mean_condition_number",
    "relative_trajectory_length",
    "singular_values",
    "variance_of_metric",
    "variance_of_riemannian_metric",
]
