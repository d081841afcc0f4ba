"""Trace estimators: exact and stochastic."""

from georeg.estimators.auto import Auto, as_estimator
from georeg.estimators.base import Estimator, Side
from georeg.estimators.epperly2024xtrace import XTrace
from georeg.estimators.exact import Exact
from georeg.estimators.gram import Gram
from georeg.estimators.hutchinson import Hutchinson
from georeg.estimators.meyer2021hutchpp import HutchPP

__all__ = ["Auto", "Estimator", "Exact", "Gram", "HutchPP", "Hutchinson", "Side", "XTrace", "as_estimator"]
