"""A loss of one's own in one file."""

import torch

import georeg


@georeg.register("functional", "log-ratio")
class LogRatio(georeg.SpectralRegularizer):
    """F = log(d E[τ₂] / E[τ₁]²), 0 for scaled isometries."""

    num_statistics = 2
    undefined = "the Jacobian vanishes at every point"

    def statistics(self, moments):
        return torch.stack([moments.trace, moments.trace_sq], dim=-1)

    def value(self, means, rank):
        trace, trace_sq = means.unbind(-1)
        alive = trace != 0  # NaN passes, to be seen
        return (torch.where(alive, rank * trace_sq, 1) / torch.where(alive, trace, 1) ** 2).log()

    def defined(self, means):
        return means[..., 0] > 0
