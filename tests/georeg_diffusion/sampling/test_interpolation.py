"""Paths between noises."""

import math

import pytest
import torch

import georeg
from georeg_diffusion.sampling.interpolation import adjacent_distances, interpolate, pullback_geodesic

G = torch.Generator().manual_seed(0)
X0, X1 = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=G)


def test_ends_are_hit_and_norms_kept_per_sample():
    pole = X0[:1]
    x0 = torch.cat([X0, pole, pole])
    x1 = torch.cat([X1, pole * 1.5 + 1e-9, -2 * pole])  # nearly parallel, antipodal
    path = interpolate(x0, x1, 9)
    assert torch.equal(path[0], x0)
    assert torch.equal(path[-1], x1)
    norms = path.flatten(2).norm(dim=2)
    expected = torch.stack([torch.lerp(norms[0], norms[-1], float(t)) for t in torch.linspace(0, 1, 9)])
    torch.testing.assert_close(norms, expected, rtol=1e-6, atol=1e-9)
    for i in range(len(x0)):
        alone = interpolate(x0[i : i + 1], x1[i : i + 1], 9)[:, 0]
        torch.testing.assert_close(path[:, i], alone, rtol=0, atol=1e-12)


def test_lerp_is_straight():
    torch.testing.assert_close(interpolate(X0, X1, 5, path="lerp")[2], (X0 + X1) / 2)


EVEN = [x / x.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) * 48**0.5 for x in (X0, X1)]  # of one norm


def encode(x):
    return x.flatten(1) @ torch.diag(torch.linspace(1, 3, x[0].numel(), dtype=x.dtype))


def isometry(x):
    return 7 * x.flatten(1).flip(1)


def test_the_geodesic_of_a_scaled_isometry_is_the_slerp():
    slerp = interpolate(*EVEN, 9)
    bent = slerp.clone()
    bent[1:-1] += 0.3 * torch.randn(slerp[1:-1].shape, dtype=slerp.dtype, generator=G)
    found = pullback_geodesic(
        bent * (slerp.flatten(2).norm(dim=2) / bent.flatten(2).norm(dim=2))[..., None, None, None], isometry
    )
    torch.testing.assert_close(found, slerp, rtol=0, atol=1e-3)


def test_the_geodesic_is_shorter_and_even_and_of_the_same_norms():
    slerp, found = interpolate(*EVEN, 17), interpolate(*EVEN, 17, path="geodesic", encode=encode)

    def energy(path):
        return georeg.curve_energy(encode(path.flatten(0, 1)).unflatten(0, path.shape[:2]))

    assert bool((energy(found) < energy(slerp)).all())
    assert torch.equal(found[[0, -1]], slerp[[0, -1]])
    torch.testing.assert_close(found.flatten(2).norm(dim=2), slerp.flatten(2).norm(dim=2))
    speed = adjacent_distances(encode(found.flatten(0, 1)).unflatten(0, found.shape[:2]))
    assert bool((speed.std(0) / speed.mean(0) < 0.02).all())


def test_the_geodesic_on_an_ellipsoid_accelerates_along_its_normal():
    """The unit sphere under diag(1, 2, 3), whose geodesics solve c″ ∥ n."""
    scale = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    x0, x1 = torch.tensor([[1.0, 0.2, 0.1], [0.0, 1.0, 0.5]], dtype=torch.float64).unsqueeze(1)
    x0, x1 = x0 / x0.norm(), x1 / x1.norm()
    path = interpolate(x0, x1, 65, path="geodesic", encode=lambda x: x * scale)
    curve = (path * scale)[:, 0]
    second = curve[2:] - 2 * curve[1:-1] + curve[:-2]
    normal = curve[1:-1] / scale**2
    normal = normal / normal.norm(dim=1, keepdim=True)
    tangential = second - (second * normal).sum(1, keepdim=True) * normal
    assert float(tangential.norm(dim=1).max() / second.norm(dim=1).max()) < 0.05


def test_a_degenerate_encoder_keeps_the_slerp():
    slerp = interpolate(X0, X1, 5)
    assert torch.equal(interpolate(X0, X1, 5, path="geodesic", encode=lambda x: 0 * x), slerp)
    assert pullback_geodesic(slerp[:, :0], encode).shape == slerp[:, :0].shape


def test_errors():
    for arguments, message in [
        ((1, {}), "frames"),
        ((3, {"path": "arc"}), "path"),
        ((3, {"path": "geodesic"}), "encode"),
    ]:
        with pytest.raises(ValueError, match=message):
            interpolate(X0, X1, arguments[0], **arguments[1])
    with pytest.raises(ValueError, match="start"):
        pullback_geodesic(X0[:1], encode)
    assert math.isclose(float(adjacent_distances(torch.tensor([[[0.0]], [[3.0]]]))), 3)
