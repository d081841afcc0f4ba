"""τ cannot overflow: products are scaled to unit length before they are squared, and moments are kept in float64."""

import pytest
import torch

import georeg

MATRIX = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))


def ratio(scale, dtype, estimator):
    weight = (MATRIX * scale).to(dtype).requires_grad_()
    loss = georeg.IsometryLoss(estimator=estimator)
    x = torch.ones(4, 9, dtype=dtype)
    out = loss(lambda p: p @ weight.T, x, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(out.loss, weight)
    return out, gradient


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
@pytest.mark.parametrize("scale", [1e-18, 1e-8, 1e8, 1e18, 1e30])
def test_the_ratio_is_scale_free_far_beyond_float32_s_squares(scale, estimator):
    """(1e30)⁴ = 1e120; float32 ends at 3e38. The gradient goes as 1/scale."""
    out, gradient = ratio(scale, torch.float32, estimator)
    expected, slope = ratio(1.0, torch.float32, estimator)
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double() * scale, slope.double(), rtol=1e-3, atol=1e-5 * float(slope.abs().max()))
    tau = out.moments.trace_sq
    assert tau.dtype == torch.float64
    assert torch.isfinite(tau).all()
    torch.testing.assert_close(tau, expected.moments.trace_sq * scale**4, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.float16, 1e3), (torch.bfloat16, 1e12), (torch.bfloat16, 1e-12)])
def test_half_precision_never_sees_tau(dtype, scale):
    """In float16, which ends at 65504, τ₂ is about 1e15 here."""
    out, gradient = ratio(scale, dtype, "hutchinson")
    expected, _ = ratio(1.0, dtype, "hutchinson")
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(out.loss, expected.loss, rtol=0.05, atol=0)
