"""The estimator that a budget calls for."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from georeg.estimators.base import Estimator, Side, check_side, choose_side
from georeg.estimators.epperly2024xtrace import XTrace
from georeg.estimators.exact import Exact
from georeg.estimators.hutchinson import Hutchinson
from georeg.linearize import Linearization
from georeg.manifolds.base import MetricAt
from georeg.moments import SpectralMoments
from georeg.random import Generator
from georeg.registry import lookup, register

XTRACE_FROM = 16
"""Products from which XTrace's moments vary less than Hutchinson's unless the spectrum is flat, whatever the dimension."""


@register("estimator", "auto")
class Auto(Estimator):
    """The estimator with the least variance for a budget of P Jacobian products on a side of dimension d.

    ============  =============================  =============================================================
    budget        estimator                      because
    ============  =============================  =============================================================
    P ≥ d         ``Exact()``                    d products are all there is to know
    16 ≤ P < d    ``XTrace(P // 2)``             on spectra with large eigenvalues the least variance, by 2 to
                                                 600 times; on near-flat ones twice Hutchinson's, which is small
    P < 16        ``Hutchinson(P // 2)``         a sketch that small finds nothing
    ============  =============================  =============================================================

    Measured for d = 48, 128 and 384 by ``benchmarks/estimator_variance.py``; see docs/estimators.md. That is for the
    *values*. The gradient of the isometry loss varies least with Hutchinson on all but spiked spectra, so for
    training with many probes name ``Hutchinson(K)`` itself.

    Args:
        num_products: P ≥ 2; no more than that is spent.
        side: see :class:`Hutchinson`.

    Raises:
        ValueError: fewer than two products; an unknown side.

    Example:
        >>> import georeg
        >>> [georeg.Auto(budget).choose(128) for budget in (4, 32, 128)]
        [Hutchinson(num_probes=2, distribution='sphere', side='auto'),
         XTrace(num_probes=16, distribution='sphere', side='auto'), Exact(side='auto')]
    """

    def __init__(self, num_products: int = 2, side: Side = "auto") -> None:
        if num_products < 2:
            raise ValueError(f"num_products: got {num_products}, expected at least 2: one probe takes two products")
        check_side(side)
        self.num_products, self.side = num_products, side

    def choose(self, dim: int) -> Estimator:
        """The estimator for a side of dimension ``dim``."""
        if self.num_products >= dim:
            return Exact(self.side)
        if self.num_products < XTRACE_FROM:
            return Hutchinson(self.num_products // 2, side=self.side)
        return XTrace(2 * (self.num_products // 4), side=self.side)

    def __call__(
        self, lin: Linearization, domain: MetricAt, codomain: MetricAt, generator: Generator = None
    ) -> SpectralMoments:
        dim = (codomain if choose_side(self.side, domain, codomain) == "codomain" else domain).dim
        return self.choose(dim)(lin, domain, codomain, generator)

    def __repr__(self) -> str:
        return f"Auto(num_products={self.num_products}, side={self.side!r})"


def as_estimator(estimator: Estimator | str | None) -> Estimator:
    """An estimator as it is, a registered one with its defaults by name, or ``Hutchinson()`` for None.

    Raises:
        TypeError: anything else.
        ValueError: an unknown name.
    """
    if estimator is None:
        return Hutchinson()
    if isinstance(estimator, str):
        return cast(Callable[[], Estimator], lookup("estimator", estimator))()
    if not isinstance(estimator, Estimator):
        raise TypeError(
            f"estimator: got {estimator!r}, expected an estimator such as georeg.Hutchinson(num_probes=4), or a name such "
            "as 'auto'"
        )
    return estimator
