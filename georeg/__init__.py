"""Geometry regularisation for PyTorch: pull any map towards a scaled isometry, right and fast."""

from georeg import diagnostics
from georeg.accumulate import accumulate
from georeg.curves import Geodesic, curve_energy, curve_length, geodesic
from georeg.estimators import Auto, Estimator, Exact, Gram, Hutchinson, HutchPP, XTrace
from georeg.functionals import (
    ConformalLoss,
    ContractiveLoss,
    FlatManifoldLoss,
    IsometryLoss,
    PathLengthLoss,
    StrictIsometryLoss,
    VolumeLoss,
)
from georeg.geodesics import lerp, slerp
from georeg.jackknife import Estimate, jackknife
from georeg.linearize import Linearization, linearize, linearize_graph
from georeg.manifolds import (
    CustomMetric,
    Euclidean,
    Manifold,
    Product,
    PullbackMetric,
    Sphere,
    SphereStereographic,
    from_geoopt,
)
from georeg.mixup import mixup_latents
from georeg.moments import SpectralMoments
from georeg.registry import register
from georeg.regularizer import LossOutput, Regularizer, SpectralRegularizer
from georeg.spectral import spectral_moments

__version__ = "0.1.0"

__all__ = [
    "Auto",
    "ConformalLoss",
    "ContractiveLoss",
    "CustomMetric",
    "Estimate",
    "Estimator",
    "Euclidean",
    "Exact",
    "FlatManifoldLoss",
    "Geodesic",
    "Gram",
    "HutchPP",
    "Hutchinson",
    "IsometryLoss",
    "Linearization",
    "LossOutput",
    "Manifold",
    "PathLengthLoss",
    "Product",
    "PullbackMetric",
    "Regularizer",
    "SpectralMoments",
    "SpectralRegularizer",
    "Sphere",
    "SphereStereographic",
    "StrictIsometryLoss",
    "VolumeLoss",
    "XTrace",
    "accumulate",
    "curve_energy",
    "curve_length",
    "diagnostics",
    "from_geoopt",
    "geodesic",
    "jackknife",
    "lerp",
    "linearize",
    "linearize_graph",
    "mixup_latents",
    "register",
    "slerp",
    "spectral_moments",
]
