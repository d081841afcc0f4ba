"""The laws of a trace estimator, executed: inherit the suite to test an estimator of your own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from georeg.estimators.base import Estimator, Side
from georeg.linearize import Linearization, linearize
from georeg.manifolds import CustomMetric
from georeg.moments import SpectralMoments
from georeg.random import Generator
from georeg.spectral import moments_at, spectral_moments
from georeg.testing.oracles import dense_moments

SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": torch.ones_like,
    "decaying": lambda index: 1 / index,
    "spike": lambda index: 1 + (len(index) ** 0.5 - 1) * (index == 1).to(index),
}
"""Eigenvalues λ of R at index = 1, …, d, by name."""


def eigenvalues(name: str, d: int) -> Tensor:
    """The d eigenvalues of a spectrum, float64 ``(d,)``."""
    return SPECTRA[name](torch.arange(1, d + 1, dtype=torch.float64))


class Problem:
    """A map ℝⁿ → ℝᵐ between two metrics at x = 0, where R has a given spectrum, moved by parameters θ ``(B, 3)``.

    f(x) = (J + Σ θ_p E_p)x + Σ θ_p c_p with G constant and diagonal and H = diag(exp y), so θ moves R through the
    Jacobian and through the codomain's metric. Each sample has a θ of its own, all zero: a batch is that
    many independent repetitions, each with its own gradient.
    """

    def __init__(self, spectrum: str, batch: int, n: int = 12, m: int = 16) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.weights = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
        U, V = torch.linalg.qr(normal(m, n)).Q, torch.linalg.qr(normal(n, n)).Q
        self.J = (U * eigenvalues(spectrum, n).sqrt()) @ V.mT * self.weights.sqrt()
        self.E, self.c = normal(3, m, n) / (m * n) ** 0.5, normal(3, m) / m**0.5
        self.theta = torch.zeros(batch, 3, dtype=torch.float64, requires_grad=True)
        self.x = torch.zeros(batch, n, dtype=torch.float64)
        self.domain = CustomMetric(lambda x: self.weights.expand_as(x))
        self.codomain = CustomMetric(torch.exp)

    def f(self, x: Tensor) -> Tensor:
        """The map; x has a row for each row of θ."""
        return torch.einsum("bij,bj->bi", self.J + torch.einsum("bp,pij->bij", self.theta, self.E), x) + self.theta @ self.c

    def linearization(self) -> Linearization:
        """A fresh one, whose products are not counted yet."""
        return linearize(self.f, self.x)

    def measure(self, estimator: Estimator, generator: Generator) -> SpectralMoments:
        """The estimator's moments of each sample."""
        return moments_at(self.linearization(), self.domain, self.codomain, estimator, generator)

    def truth(self) -> tuple[Tensor, Tensor]:
        """Dense τ₁ and τ₂ ``(B,)``."""
        return dense_moments(
            self.f, self.x, lambda x: torch.diag_embed(1 / self.weights.expand_as(x)), lambda y: torch.diag_embed(y.exp())
        )

    def gradient(self, moment: Tensor) -> Tensor:
        """∂moment/∂θ of each sample, ``(B, 3)``."""
        return torch.autograd.grad(moment.sum(), self.theta, retain_graph=True)[0]


class EstimatorContract:
    """Executes every law in the docstring of :class:`georeg.Estimator`. For pytest, but without importing it.

    Attributes:
        estimator: your class, or a function that makes one; of the arguments ``num_probes`` and ``side`` it is given
            those that it takes.
        num_probes: how many probes the tests of the mean give it.
        repeats: independent estimates in the tests of the mean, and of the coverage.

    Example:
        A whole test file is such a class; pytest runs its tests, and each can be called:

        >>> import georeg
        >>> from georeg.testing import EstimatorContract
        >>> class TestGram(EstimatorContract):
        ...     estimator = georeg.Gram
        >>> TestGram().test_products_are_counted()
    """

    estimator: Callable[..., Estimator]
    num_probes: ClassVar[int] = 8
    repeats: ClassVar[tuple[int, int]] = (1000, 200)

    def build(self, num_probes: int, side: Side = "auto") -> Estimator:
        """Your estimator with these options."""
        make: Any = inspect.getattr_static(type(self), "estimator")  # a plain function must not become a method
        options = {"num_probes": num_probes, "side": side}
        return make(**{name: options[name] for name in inspect.signature(make).parameters if name in options})

    @staticmethod
    def generator(seed: int = 0) -> torch.Generator:
        """A seeded generator."""
        return torch.Generator().manual_seed(seed)

    def cases(self) -> Iterator[tuple[str, Estimator]]:
        """A spectrum and an estimator, on either side."""
        for spectrum in SPECTRA:
            for side in ("domain", "codomain"):
                yield spectrum, self.build(self.num_probes, side)

    def test_values_and_gradients_are_unbiased(self) -> None:
        """Within 4 standard errors of the dense truth, on three spectra and either side."""
        for spectrum, estimator in self.cases():
            problem, one = Problem(spectrum, self.repeats[0]), Problem(spectrum, 1)
            moments = problem.measure(estimator, self.generator())
            for name, estimates, truth in zip(("τ₁", "τ₂"), (moments.trace, moments.trace_sq), one.truth(), strict=True):
                for what, samples, expected in (
                    (name, estimates.detach().unsqueeze(1), truth.detach().unsqueeze(1)),
                    (f"the gradient of {name}", problem.gradient(estimates), one.gradient(truth)),
                ):
                    error = (samples.mean(0) - expected[0]).abs()
                    allowed = 4 * samples.std(0) / len(samples) ** 0.5 + 1e-9 * truth.detach()
                    worst = 4 * (error / allowed).max().item()
                    assert worst <= 4, f"{estimator}: {what} is {worst:.1f} standard errors off on the {spectrum} spectrum"

    def test_reported_error_covers_the_truth(self) -> None:
        """At 128 probes in 160 dimensions a nominal 95% interval holds the truth in 88 to 99% of the repetitions."""
        d, estimator = 160, self.build(128)
        zeros = torch.zeros(self.repeats[1], d, dtype=torch.float64)
        for spectrum in SPECTRA:
            scale = eigenvalues(spectrum, d).sqrt()
            with torch.no_grad():
                m = spectral_moments(scale.mul, zeros, estimator=estimator, generator=self.generator())
            truths = scale.square().sum(), scale.square().square().sum()
            for name, estimates, error, truth in zip(
                ("τ₁", "τ₂"), (m.trace, m.trace_sq), (m.trace_stderr, m.trace_sq_stderr), truths, strict=True
            ):
                off = (estimates - truth).abs()
                if off.max() <= 1e-9 * truth:
                    continue  # nothing but rounding to cover
                assert error is not None, f"{estimator}: reports no error for {name} from 128 probes"
                coverage = (off <= 1.96 * error).double().mean().item()
                assert 0.88 <= coverage <= 0.99, (
                    f"{estimator}: the 95% interval of {name} covers {100 * coverage:.0f}% on the {spectrum} spectrum"
                )

    def test_products_are_counted(self) -> None:
        """``num_products`` is what the linearisation was asked for, whatever it was asked before."""
        for spectrum, estimator in self.cases():
            problem = Problem(spectrum, 2)
            lin = problem.linearization()
            lin.vjp(torch.ones_like(lin.value).unsqueeze(0))
            moments = moments_at(lin, problem.domain, problem.codomain, estimator, self.generator())
            spent = lin.num_jvps + lin.num_vjps - 1
            assert moments.num_products == spent, f"{estimator}: counts {moments.num_products} products and took {spent}"

    def test_a_seed_decides_the_estimate(self) -> None:
        """The same one repeats it, and one generator for each sample gives what a loop over the samples gives."""
        for spectrum, estimator in self.cases():
            problem, one = Problem(spectrum, 4), Problem(spectrum, 1)
            first, second = (problem.measure(estimator, self.generator(5)) for _ in range(2))
            together = problem.measure(estimator, [self.generator(i) for i in range(4)])
            alone = [one.measure(estimator, [self.generator(i)]) for i in range(4)]
            for name in ("trace", "trace_sq"):
                assert torch.equal(getattr(first, name), getattr(second, name)), f"{estimator}: {name} ignores its generator"
                loop = torch.cat([getattr(m, name) for m in alone])
                torch.testing.assert_close(getattr(together, name), loop, rtol=1e-10, atol=0)

    def test_moments_scale_with_the_map(self) -> None:
        """τ₁ by c² and τ₂ by c⁴ when f is multiplied by c; the errors likewise, and the rank not at all."""
        for spectrum, estimator in self.cases():
            problem = Problem(spectrum, 3)
            plain = problem.measure(estimator, self.generator())
            problem.J = 1e3 * problem.J
            scaled = problem.measure(estimator, self.generator())
            assert scaled.rank == plain.rank == 12, f"{estimator}: the rank is {scaled.rank}, expected min(12, 16)"
            torch.testing.assert_close(scaled.trace, 1e6 * plain.trace, rtol=1e-9, atol=0)
            torch.testing.assert_close(scaled.trace_sq, 1e12 * plain.trace_sq, rtol=1e-9, atol=0)
