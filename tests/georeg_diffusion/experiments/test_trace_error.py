"""Errors of the trace estimator against theory and against a plain loop."""

import pytest
import torch

from georeg_diffusion.experiments.trace_error import PROBES, probe_variance, slope_of, trace_errors


def matrix(kind, d=48):
    a = torch.randn(d, d, dtype=torch.float64)
    return {"general": a, "symmetric": (a + a.mT) / 2, "near identity": 3 * torch.eye(d, dtype=torch.float64) + 0.1 * a}[
        kind
    ]


def test_errors_equal_a_plain_loop():
    a, numbers = matrix("general", 7), [1, 5]
    fast = trace_errors(a, numbers, repeats=3, generator=torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    for row, number in zip(fast, numbers, strict=True):
        for error in row:
            probes = torch.randn(number, 1, 7, generator=generator, dtype=torch.float64)[:, 0]
            expected = sum(float(v @ a @ v) for v in probes) / number - float(a.diagonal().sum())
            assert error.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", ["general", "symmetric", "near identity"])
@pytest.mark.parametrize("probe", PROBES)
def test_variance_is_that_of_theory_over_n(probe, kind):
    a, numbers, repeats = matrix(kind), [1, 4, 16], 1500
    errors = trace_errors(a, numbers, repeats=repeats, probe=probe, generator=torch.Generator().manual_seed(1))
    variance = probe_variance(a, probe) / torch.tensor(numbers, dtype=a.dtype)
    squares = errors.square()
    assert (squares.mean(1) - variance).abs().le(4 * squares.std(1) / repeats**0.5).all()
    assert (errors.mean(1).abs() <= 4 * (variance / repeats).sqrt()).all()


def test_gaussian_variance_from_the_eigenvalues():
    """vᵀSv = Σ λᵢ gᵢ² with gᵢ² ~ χ²(1), of variance 2: another derivation, in another basis."""
    a = matrix("general")
    eigenvalues = torch.linalg.eigvalsh((a + a.mT) / 2)
    assert probe_variance(a) == pytest.approx(2 * eigenvalues.square().sum().item())


def test_rademacher_variance_by_enumeration():
    """All sign vectors of a small dimension, with equal probability."""
    a = matrix("general", 6)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 6)
    values = torch.einsum("ki,ij,kj->k", signs, a, signs)
    assert values.mean().item() == pytest.approx(a.trace().item())
    assert probe_variance(a, "rademacher") == pytest.approx(values.var(correction=0).item())


def test_fixed_norm_variance_from_the_moments_of_the_sphere():
    """E[v_i² v_j²] = d/(d+2) for i ≠ j and 3d/(d+2) for i = j, where ‖v‖² = d, in S's eigenbasis."""
    a = matrix("general", 9)
    eigenvalues = torch.linalg.eigvalsh((a + a.mT) / 2)
    d = len(eigenvalues)
    fourth = (torch.ones(d, d, dtype=torch.float64) + 2 * torch.eye(d, dtype=torch.float64)) * d / (d + 2)
    expected = eigenvalues @ fourth @ eigenvalues - eigenvalues.sum() ** 2
    assert probe_variance(a, "sphere") == pytest.approx(expected.item())


def test_a_multiple_of_the_identity_has_no_variance_for_fixed_norm():
    a = 2.5 * torch.eye(16, dtype=torch.float64)
    assert probe_variance(a, "sphere") == pytest.approx(0, abs=1e-12)
    assert trace_errors(a, [1, 3], repeats=5, probe="sphere").abs().max() < 1e-12
    assert probe_variance(a) == pytest.approx(2 * 16 * 2.5**2)


def test_only_the_symmetric_part_counts():
    a = matrix("general")
    symmetric = (a + a.mT) / 2
    for probe in PROBES:
        of_a, of_s = (
            trace_errors(m, [4], repeats=8, probe=probe, generator=torch.Generator().manual_seed(1)) for m in (a, symmetric)
        )
        torch.testing.assert_close(of_a, of_s, rtol=1e-9, atol=1e-9)
        assert probe_variance(a, probe) == pytest.approx(probe_variance(symmetric, probe))


@pytest.mark.parametrize("power", [0.0, -0.5, -1.0])
def test_slope_of_a_power_law_and_its_standard_error(power):
    """Of Gaussian errors with σ = N^power; over many data sets the slope's spread is its standard error's."""
    numbers = [1, 2, 4, 8, 16, 32]
    sigma = torch.tensor(numbers, dtype=torch.float64).pow(power)[:, None]
    found = [slope_of(numbers, sigma * torch.randn(len(numbers), 40, dtype=torch.float64)) for _ in range(200)]
    values, errors = (torch.tensor([getattr(one, key) for one in found]) for key in ("value", "stderr"))
    assert (values.mean() - power).abs() < 4 * values.std() / 200**0.5
    assert errors.mean().item() == pytest.approx(values.std().item(), rel=0.25)


def test_slope_of_exact_data():
    errors = torch.tensor([[1.0, -1.0], [0.5, 0.5], [0.25, -0.25]])
    found = slope_of([1, 2, 4], errors)
    assert found.value == pytest.approx(-1)
    assert found.stderr == pytest.approx(0, abs=1e-12)


def test_what_has_no_trace_or_slope_is_refused():
    with pytest.raises(ValueError, match=r"a: got shape \(2, 3\), expected a square matrix"):
        trace_errors(torch.ones(2, 3), [1], repeats=1)
    with pytest.raises(ValueError, match="probe: got 'uniform', expected one of gaussian, sphere, rademacher"):
        probe_variance(torch.eye(2), "uniform")
    with pytest.raises(ValueError, match="two different N and two repeats"):
        slope_of([4, 4], torch.ones(2, 5))
    with pytest.raises(ValueError, match="two different N and two repeats"):
        slope_of([1, 2], torch.ones(2, 1))
