"""Exact against Hutchinson over dimension and probes, each right before it is timed.

pytest benchmarks --benchmark-only          timings, with errors and products beside them in extra_info
pytest benchmarks --benchmark-disable       the smoke run: correctness alone, in seconds
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import georeg
from benchmarks import estimator_variance
from georeg.registry import registered
from georeg.testing import dense_moments

BATCH = 4


def network(d: int) -> tuple[nn.Module, Tensor]:
    """A map ℝᵈ → ℝᵈ with points, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(d, 2 * d), nn.Tanh(), nn.Linear(2 * d, d)).double(), torch.randn(BATCH, d).double()


def step(f: nn.Module, x: Tensor, estimator: georeg.Estimator, seed: int = 0) -> georeg.SpectralMoments:
    """What training does: moments, and the gradient of the ratio of their means."""
    moments = georeg.spectral_moments(f, x, estimator=estimator, generator=torch.Generator().manual_seed(seed))
    f.zero_grad()
    (moments.trace_sq.mean() / moments.trace.mean() ** 2).backward()
    return moments.detach()


def check(f: nn.Module, x: Tensor, estimator: georeg.Estimator, repeats: int = 200) -> dict[str, float]:
    """Assert that both moments are the dense ones within 4 standard errors; return their relative errors."""
    with torch.no_grad():
        m = georeg.spectral_moments(
            f, x.repeat_interleave(repeats, 0), estimator=estimator, generator=torch.Generator().manual_seed(0)
        )
        values = torch.stack([m.trace, m.trace_sq]).reshape(2, BATCH, repeats)
    truth = torch.stack(dense_moments(f, x)).detach()
    error = values.std(-1)
    assert ((values.mean(-1) - truth).abs() <= 4 * error / repeats**0.5 + 1e-9 * truth).all(), f"{estimator} is biased"
    relative = (error / truth).mean(1)
    return {
        "products": m.num_products,
        "relative_error_trace": float(relative[0]),
        "relative_error_trace_sq": float(relative[1]),
    }


@pytest.mark.parametrize("d", [8, 16, 32, 64, 256])
@pytest.mark.parametrize("probes", [None, 1, 4, 8, 16])
def test_exact_against_hutchinson(benchmark, d, probes):
    f, x = network(d)
    estimator = georeg.Exact() if probes is None else georeg.Hutchinson(probes)
    benchmark.group = f"moments and gradient of a small network, d = {d}"
    case = "exact" if probes is None else f"Hutchinson, {probes} probe{'s' * (probes > 1)}"
    benchmark.extra_info.update(
        case=case, dimension=d, estimator=repr(estimator), **check(f, x, estimator, repeats=2 if probes is None else 60)
    )
    moments = benchmark(step, f, x, estimator)
    assert moments.num_products == (d if probes is None else 2 * probes)


@pytest.mark.parametrize("name", registered("estimator"))
def test_each_at_its_defaults(benchmark, name):
    """Every registered estimator, plug-ins included."""
    f, x = network(64)
    estimator = registered("estimator")[name]()
    benchmark.group = "defaults, d = 64"
    benchmark.extra_info.update(case=name, estimator=repr(estimator), **check(f, x, estimator))
    moments = benchmark(step, f, x, estimator)
    assert moments.num_products == benchmark.extra_info["products"]


def test_the_variance_script_runs(tmp_path):
    """Small; and what its table is read for holds: XTrace on a spike, Hutchinson where it is flat."""
    results = estimator_variance.measure(24, 40, budgets=(8, 16))
    estimator_variance.plot(results, 24, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "| XTrace |" in estimator_variance.table(results, (8, 16))

    def trace_sq_error(spectrum: str, estimator: str) -> float:
        return next(rows for (s, e), rows in results.items() if s.startswith(spectrum) and e == estimator)[-1][1][1]

    assert trace_sq_error("one spike", "XTrace") < trace_sq_error("one spike", "Hutchinson, sphere")
    assert trace_sq_error("near-flat", "Hutchinson, sphere") < trace_sq_error("near-flat", "XTrace")
