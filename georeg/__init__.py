"""Geometry regularisation for PyTorch: pull any map towards a scaled isometry, right and fast."""

from georeg import diagnostics
from georeg.estimators import Estimator, Exact, Hutchinson
from georeg.functionals import Estimate, jackknife
from georeg.geodesics import lerp, slerp
from georeg.linearize import Linearization, linearize, linearize_graph
from georeg.manifolds import CustomMetric, Euclidean, Manifold, Product, Sphere, SphereStereographic
from georeg.moments import SpectralMoments
from georeg.registry import register
from georeg.regularizer import IsometryLoss, LossOutput
from georeg.spectral import spectral_moments

__version__ = "0.1.0"

__all__ = [
    "CustomMetric",
    "Estimate",
    "Estimator",
    "Euclidean",
    "Exact",
    "Hutchinson",
    "IsometryLoss",
    "Linearization",
    "LossOutput",
    "Manifold",
    "Product",
    "SpectralMoments",
    "Sphere",
    "SphereStereographic",
    "diagnostics",
    "jackknife",
    "lerp",
    "linearize",
    "linearize_graph",
    "register",
    "slerp",
    "spectral_moments",
]
