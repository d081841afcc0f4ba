"""Directions of most stretch against the dense Jacobian's SVD; the global ones against known subspaces."""

import pytest
import torch

from georeg_diffusion import Bundle, Denoiser
from georeg_diffusion.editing.encoder import encoder_at
from georeg_diffusion.editing.global_basis import global_basis
from georeg_diffusion.editing.grassmann import principal_angles
from georeg_diffusion.editing.local_basis import local_basis, with_sign
from tests.georeg_diffusion.networks import NETWORKS, conditioning_of, latents

K = 3


def dense(encode, x, k):
    """Left and right singular vectors of J P, P the projection onto the tangent space, and its values, per sample."""
    out = []
    for i in range(len(x)):
        J = torch.autograd.functional.jacobian(lambda p: encode(p[None])[0].flatten(), x[i]).flatten(1)
        unit = x[i].flatten() / x[i].norm()
        U, S, Vh = torch.linalg.svd(J @ (torch.eye(len(unit), dtype=x.dtype) - torch.outer(unit, unit)), full_matrices=False)
        out.append((U[:, :k], S[:k], Vh[:k].T))
    return [torch.stack(parts) for parts in zip(*out, strict=True)]


def columns(vectors):
    return vectors.flatten(2).permute(1, 2, 0)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_basis_spans_what_the_dense_svd_spans(unet, scheduler):
    unet.double()
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    encode = encoder_at(Denoiser(Bundle(unet, scheduler)), 700)
    basis = local_basis(encode, x, K, tolerance=1e-7, generator=torch.Generator().manual_seed(0))
    left, values, right = dense(encode, x, K)
    torch.testing.assert_close(basis.values, values, rtol=1e-9, atol=0)
    assert float(principal_angles(columns(basis.x_vectors), right).max()) < 1e-6
    assert float(principal_angles(columns(basis.h_vectors), left).max()) < 1e-6
    assert bool(basis.converged.all())
    for i in range(K):  # one by one, with the sign of their own
        torch.testing.assert_close(columns(basis.x_vectors)[..., i], columns(with_sign(right.permute(2, 0, 1)))[..., i])
    along = (basis.x_vectors.flatten(2) * x.flatten(1)).sum(2)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)
    step = 1e-5 * basis.x_vectors[0]
    pushed = (encode(x + step) - encode(x - step)) / 2e-5
    torch.testing.assert_close(basis.values[:, 0].reshape(-1, 1, 1, 1) * basis.h_vectors[0], pushed, rtol=0, atol=1e-7)


def test_the_basis_depends_neither_on_the_start_nor_on_the_batch(unet, scheduler):
    x = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    encode = encoder_at(Denoiser(Bundle(unet, scheduler)), 700)
    found = [local_basis(encode, x, 2, generator=torch.Generator().manual_seed(s)).x_vectors for s in (0, 1)]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-3)
    alone = local_basis(encode, x[1:2], 2, generator=torch.Generator().manual_seed(5)).x_vectors
    torch.testing.assert_close(found[0][:, 1:2], alone, rtol=0, atol=2e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_with_a_condition_for_each_sample(name):
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    x, _ = latents(2)
    conditioning = {
        key: value.double() if value.is_floating_point() else value for key, value in conditioning_of(name, 2).items()
    }
    denoiser = Denoiser(Bundle(network, None), conditioning)
    encode = encoder_at(denoiser, 500)
    basis = local_basis(encode, x.double(), 2, generator=torch.Generator().manual_seed(0))
    for i in range(2):
        alone = local_basis(encoder_at(denoiser.rows([i]), 500), x[i : i + 1].double(), 2)
        torch.testing.assert_close(basis.values[i : i + 1], alone.values, rtol=1e-6, atol=1e-12)


def test_degenerate_maps():
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flat = local_basis(lambda x: 0 * x, x, 2)
    assert bool((flat.values == 0).all())
    assert bool((flat.h_vectors == 0).all())
    torch.testing.assert_close(flat.x_vectors.norm(dim=2), torch.ones(2, 2, dtype=torch.float64))
    with pytest.raises(ValueError, match="k: got 6"):
        local_basis(lambda x: x, x, 6)
    with pytest.raises(ValueError, match="finite"):
        local_basis(lambda x: x.sqrt(), x, 1)


def planted(noise, seed=0, n=40, samples=12):
    """Local bases near the span of two axes, the second stretched more."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(n, 2, dtype=torch.float64, generator=g)).Q
    bases, values = [], []
    for _ in range(samples):
        near = axes + noise * torch.randn(n, 2, dtype=torch.float64, generator=g)
        metric = torch.linalg.qr(near).Q @ torch.diag(torch.tensor([2.0, 5.0], dtype=torch.float64))
        U, S, _ = torch.linalg.svd(metric, full_matrices=False)
        bases.append(U * torch.randn(2, dtype=torch.float64, generator=g).sign())
        values.append(S)
    return axes, torch.stack(bases).permute(2, 0, 1), torch.stack(values)


def test_global_directions_find_the_planted_ones_in_order():
    axes, vectors, values = planted(0.0)
    found = global_basis(vectors, values)
    assert found.vectors.shape == (2, 1, 40)
    torch.testing.assert_close(found.vectors[:, 0].abs(), axes.flip(1).T.abs(), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.values, torch.tensor([[5.0, 2.0]], dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(found.angles.max()) < 1e-7
    axes, vectors, values = planted(0.03)
    noisy = global_basis(vectors, values)
    error = principal_angles(noisy.vectors[:, 0].T, axes).max()
    assert float(error) < 0.6 * float(noisy.angles.max(1).values.min())  # nearer than any single one
    with pytest.raises(ValueError, match="values"):
        global_basis(vectors, values.T)
