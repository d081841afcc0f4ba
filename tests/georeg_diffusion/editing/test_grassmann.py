"""Angles, geodesics and means of subspaces against scipy and closed forms."""

import math

import pytest
import torch
from scipy.linalg import subspace_angles

from georeg_diffusion.editing.grassmann import frechet_mean, grassmann_exp, grassmann_log, principal_angles


def random_basis(n, k, seed, count=1):
    g = torch.Generator().manual_seed(seed)
    found = torch.linalg.qr(torch.randn(count, n, k, dtype=torch.float64, generator=g)).Q
    return found[0] if count == 1 else found


def projector(X):
    return X @ X.mT


def lines(angles):
    return torch.tensor([[math.cos(a), math.sin(a)] for a in angles], dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize(("n", "k"), [(9, 3), (30, 1), (4, 4), (5, 4), (3, 2)])
def test_angles_are_scipys(n, k):
    X, Y = random_basis(n, k, 0), random_basis(n, k, 1)
    expected = torch.from_numpy(subspace_angles(X.numpy(), Y.numpy()).copy())
    torch.testing.assert_close(principal_angles(X, Y), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-5, 0.5, math.pi / 2 - 1e-6, math.pi / 2])
def test_small_and_right_angles_keep_their_digits(angle):
    eye = torch.eye(5, dtype=torch.float64)
    Y = torch.stack([math.cos(angle) * eye[0] + math.sin(angle) * eye[2], eye[1]], dim=1)
    torch.testing.assert_close(
        principal_angles(eye[:, :2], Y), torch.tensor([angle, 0.0], dtype=torch.float64), rtol=1e-9, atol=1e-15
    )


@pytest.mark.parametrize(("n", "k"), [(9, 3), (30, 1), (5, 4), (4, 4)])
def test_log_and_exp_invert_each_other(n, k):
    X, Y = random_basis(n, k, 2), random_basis(n, k, 3)
    tangent = grassmann_log(X, Y)
    torch.testing.assert_close(X.T @ tangent, torch.zeros(k, k, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(projector(grassmann_exp(X, tangent)), projector(Y), rtol=0, atol=1e-10)
    torch.testing.assert_close(tangent.norm(), principal_angles(X, Y).norm())
    half = grassmann_exp(X, 0.5 * tangent)
    torch.testing.assert_close(principal_angles(X, half), 0.5 * principal_angles(X, Y), rtol=0, atol=1e-10)
    back = grassmann_log(X, grassmann_exp(X, 0.3 * tangent))
    torch.testing.assert_close(back, 0.3 * tangent, rtol=0, atol=1e-10)


def test_exp_is_the_geodesic_of_projectors():
    """expm([B, P]) P expm(−[B, P]) with B = ΔXᵀ + XΔᵀ, the same geodesic without a basis."""
    X = random_basis(6, 2, 4)
    tangent = 0.4 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    tangent = tangent - X @ (X.T @ tangent)
    P, B = projector(X), tangent @ X.T + X @ tangent.T
    turn = torch.linalg.matrix_exp(B @ P - P @ B)
    torch.testing.assert_close(projector(grassmann_exp(X, tangent)), turn @ P @ turn.T)


def test_the_basis_of_a_subspace_does_not_matter():
    X, Y, turn = random_basis(7, 3, 6), random_basis(7, 3, 7), random_basis(3, 3, 8)
    torch.testing.assert_close(principal_angles(X @ turn, Y), principal_angles(X, Y))
    torch.testing.assert_close(grassmann_log(X @ turn, Y), grassmann_log(X, Y) @ turn)
    bases = random_basis(20, 3, 9, count=5)
    turned = torch.stack([b @ random_basis(3, 3, 10 + i) for i, b in enumerate(bases)])
    torch.testing.assert_close(
        projector(frechet_mean(turned).basis), projector(frechet_mean(bases).basis), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("extra", [0, 6])
def test_mean_of_lines_in_a_plane_is_the_mean_of_their_angles(extra):
    """Gr(1, 2) is a circle; the chordal mean, where it starts, is not the answer."""
    angles = [0.1, 0.2, 0.25, 0.9]
    found = frechet_mean(torch.nn.functional.pad(lines(angles), (0, 0, 0, extra)))
    mean = sum(angles) / 4
    direction = found.basis[:2, 0]
    assert math.atan(float(direction[1] / direction[0])) == pytest.approx(mean, abs=1e-10)
    expected = torch.tensor([[abs(a - mean)] for a in angles], dtype=torch.float64)
    torch.testing.assert_close(found.angles, expected, rtol=0, atol=1e-9)
    assert found.converged
    chordal = torch.linalg.eigh(projector(lines(angles)).mean(0)).eigenvectors[:, 1]
    assert abs(math.atan(float(chordal[1] / chordal[0])) - mean) > 1e-3


def test_mean_of_products_of_planes_is_the_product_of_means():
    """Span of one line in each of three planes: the angles average plane by plane."""
    g = torch.Generator().manual_seed(0)
    angles = 0.5 * torch.rand(5, 3, dtype=torch.float64, generator=g)
    eye = torch.eye(6, dtype=torch.float64)

    def subspace(a):
        return torch.stack([a[i].cos() * eye[2 * i] + a[i].sin() * eye[2 * i + 1] for i in range(3)], dim=1)

    found = frechet_mean(torch.stack([subspace(a) for a in angles]))
    torch.testing.assert_close(projector(found.basis), projector(subspace(angles.mean(0))), rtol=0, atol=1e-9)


def test_mean_is_the_midpoint_and_the_minimum_and_follows_rotations():
    X, Y = random_basis(12, 3, 20), grassmann_exp(random_basis(12, 3, 20), 0.2 * torch.ones(12, 3, dtype=torch.float64))
    middle = grassmann_exp(X, 0.5 * grassmann_log(X, Y))
    torch.testing.assert_close(projector(frechet_mean(torch.stack([X, Y])).basis), projector(middle), rtol=0, atol=1e-8)
    g = torch.Generator().manual_seed(1)
    bases = torch.stack([grassmann_exp(X, 0.1 * torch.randn(12, 3, dtype=torch.float64, generator=g)) for _ in range(6)])
    found = frechet_mean(bases)

    def cost(M):
        return float(principal_angles(M.expand_as(bases), bases).square().sum())

    for _ in range(20):
        tangent = 1e-2 * torch.randn(12, 3, dtype=torch.float64, generator=g)
        assert cost(grassmann_exp(found.basis, tangent)) > cost(found.basis)
    turn = random_basis(12, 12, 21)
    torch.testing.assert_close(projector(frechet_mean(turn @ bases).basis), turn @ projector(found.basis) @ turn.T)


def test_identical_orthogonal_and_single_subspaces():
    X = random_basis(8, 2, 30)
    for bases in (X[None], X.expand(4, -1, -1)):
        found = frechet_mean(bases)
        torch.testing.assert_close(projector(found.basis), projector(X))
        assert float(found.angles.max()) < 1e-7
    across = frechet_mean(torch.eye(2, dtype=torch.float64).T.unsqueeze(-1))  # many means; any, but finite
    assert bool(torch.isfinite(across.basis).all())
    assert frechet_mean(random_basis(8, 2, 31, count=3).float()).basis.dtype == torch.float32
    assert frechet_mean(random_basis(4, 4, 32, count=3)).converged  # the whole space


def test_errors():
    X = random_basis(5, 2, 40)
    for bad in (X[None][:0], X):
        with pytest.raises(ValueError, match="bases"):
            frechet_mean(bad)
    for a, b in ((X, X[:4]), (X.T, X.T), (X.long(), X.long()), (2 * X, X), (X, X * float("nan"))):
        with pytest.raises(ValueError, match="X, Y|orthonormal"):
            principal_angles(a, b)
    with pytest.raises(ValueError, match="tangent"):
        grassmann_exp(X, X[:3])
