"""Losses as functions of pooled spectral moments, one a file."""

from georeg.functionals.base import Estimate, Functional, jackknife
from georeg.functionals.isometry import Isometry

__all__ = ["Estimate", "Functional", "Isometry", "jackknife"]
