"""Trace estimators: exact and stochastic."""

from georeg.estimators.base import Estimator, Side
from georeg.estimators.exact import Exact
from georeg.estimators.hutchinson import Hutchinson

__all__ = ["Estimator", "Exact", "Hutchinson", "Side"]
