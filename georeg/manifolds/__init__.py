"""Riemannian manifolds, one geometry a file."""

from georeg.manifolds.base import Manifold, MetricAt
from georeg.manifolds.custom import CustomMetric
from georeg.manifolds.euclidean import Euclidean
from georeg.manifolds.geoopt import from_geoopt
from georeg.manifolds.product import Product
from georeg.manifolds.pullback import PullbackMetric
from georeg.manifolds.sphere import Sphere
from georeg.manifolds.stereographic import SphereStereographic

__all__ = [
    "CustomMetric",
    "Euclidean",
    "Manifold",
    "MetricAt",
    "Product",
    "PullbackMetric",
    "Sphere",
    "SphereStereographic",
    "from_geoopt",
]
