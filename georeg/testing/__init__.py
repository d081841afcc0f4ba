"""Dense oracles and contract suites that your own manifold, estimator or loss can inherit."""

from georeg.testing.estimator_contract import EstimatorContract
from georeg.testing.functional_contract import FunctionalContract
from georeg.testing.manifold_contract import ManifoldContract
from georeg.testing.oracles import dense_jacobian, dense_moments, dense_operator
from georeg.testing.samplewise import assert_samplewise

__all__ = [
    "EstimatorContract",
    "FunctionalContract",
    "ManifoldContract",
    "assert_samplewise",
    "dense_jacobian",
    "dense_moments",
    "dense_operator",
]
