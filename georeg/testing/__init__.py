"""Dense oracles and contract suites that your own manifold, estimator or map can inherit."""

from georeg.testing.oracles import dense_jacobian, dense_moments, dense_operator

__all__ = ["dense_jacobian", "dense_moments", "dense_operator"]
