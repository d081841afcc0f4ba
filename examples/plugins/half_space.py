"""A manifold of one's own in one file: hyperbolic space as the half-space model."""

import torch

import georeg


@georeg.register("manifold", "half-space")
class HalfSpace(georeg.Manifold):
    """{x : x_d > 0} with the hyperbolic metric G(x) = I / x_d²."""

    def _height(self, x):
        return x.flatten(1)[:, -1].reshape(-1, *[1] * (x.ndim - 1))  # x_d, broadcast over the event

    def dim(self, x):
        return x.shape[1:].numel()

    def flat(self, x, vector):
        return vector / self._height(x) ** 2

    def sharp(self, x, covector):
        return covector * self._height(x) ** 2

    def projx(self, x):
        flat = x.flatten(1)
        return torch.cat([flat[:, :-1], flat[:, -1:].clamp_min(0.1)], dim=1).reshape(x.shape)

    def proju(self, x, vector):
        return vector
