"""Denoising and isometry in one forward pass: L = L_dsm + λ·(gated/B)·F (Eq. 7)."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import georeg
from georeg.kernels import first_order, fused
from georeg.kernels.compiling import as_written
from georeg.linearize.base import differentiable_attention
from georeg.moments import Scope
from georeg.random import Generator
from georeg_diffusion.backbones import predict
from georeg_diffusion.batch import generators_of, out_of_inference_mode, random_noise, random_timesteps, rows_of
from georeg_diffusion.functionals import make_regularizer
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.latent_metrics import isodiff_point, latent_manifold
from georeg_diffusion.schedule import (
    LOSS_WEIGHTINGS,
    IsometryGate,
    is_flow,
    loss_weights,
    network_timesteps,
    noised_at,
    per_sample,
    target_at,
)


@dataclass(frozen=True)
class ObjectiveOutput:
    """What one step of the objective gives.

    Attributes:
        loss: ``denoising + isometry``, the scalar to differentiate.
        denoising: mean-squared error of the prediction over the whole batch, each sample's times λ(t).
        isometry: the term λ·(gated/B)·F, whose expectation is λ E_t[1(t > pT) L_iso(t)]; an exact 0 with a graph
            when no sample passes the gate.
        functional: F itself, detached: the (normalised) isometry loss of the gated samples, 0 without any.
        gated: number of samples of this process past the gate.
        moments: spectral moments of the gated samples, None without any.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion import IsometricDiffusionLoss, IsometryGate
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> objective = IsometricDiffusionLoss(unet, diffusers.DDPMScheduler(), gate=IsometryGate(skip=1.0))
        >>> out = objective(torch.randn(2, 1, 8, 8))
        >>> out.gated, out.isometry.item(), bool(out.loss == out.denoising), out.moments      # none pays at p = 1
        (0, 0.0, True, None)
    """

    loss: Tensor
    denoising: Tensor
    isometry: Tensor
    functional: Tensor
    gated: int
    moments: georeg.SpectralMoments | None


class IsometricDiffusionLoss(nn.Module):
    """The training objective of Isometric Diffusion for any diffusers network and scheduler.

    One forward pass serves both losses. The batch is split *before* the first convolution into samples
    past the gate, whose graph is differentiated twice, and the rest, which cost what they always did.

    Args:
        network: the denoising network, such as ``diffusers.UNet2DModel``.
        noise_scheduler: gives ᾱ_t, the number of timesteps and the prediction type.
        gate: λ and p, see :class:`IsometryGate`.
        normalize: multiply F by d, so that 1 is perfect; λ = 1e-4 on the bare ratio, as printed in the paper,
            weighs almost nothing.
        timestep_bins: K > 0: the ratio is pooled within K bins of t, because τ's scale changes with t (a
            perfect isometry at every t would read 1.36 when the scales differ fourfold). 0 pools over all t.
        scope: ``"batch"`` or ``"global"``, the expectations over this process's samples or over all ranks of
            torch.distributed: every rank then calls the objective at each step, and the average of their gradients,
            which is what DDP takes, is the gradient of the whole batch, also with unequal batches and with empty ones.
            :func:`georeg.accumulate` with ``objective.regularizer`` pools over micro-batches (of one size) too.
        momentum: decay of the running means that make small bins usable; None for none.
        metric: see :mod:`georeg_diffusion.latent_metrics`.
        regularizer: which loss takes the place of Eq. 6, see :func:`georeg_diffusion.functionals.names`: ``"conformal"``
            lets the scale vary over x, ``"strict"`` fixes it at 1, ``"path-length"`` is StyleGAN2's. Beside the isometry
            and the conformal loss they have the size of J in them, and so want a λ of their own.
        codomain: manifold of h, default Euclidean.
        estimator: default one fixed-norm Hutchinson probe on the smaller side.
        at: name of the h-space module, see :class:`HSpace`.
        loss_weighting: λ(t) of the denoising loss, ``"uniform"``, ``"snr"`` or ``"min-snr"``, see
            :func:`georeg_diffusion.schedule.loss_weights`.
        recompute: take the isometry loss in passes of its own, a chunk at a time, instead of sharing the denoising
            loss's: less memory, which grows with neither the batch nor the probes, for more work; gradients are
            the same.
        chunk_size: with ``recompute``, the (sample, probe) pairs at a time, default 1; without, probes per
            vectorised product.

    Raises:
        ValueError: a negative number of bins; an unknown metric, regularizer, scope, weighting or h-space module.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion import IsometricDiffusionLoss
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2)
        >>> objective = IsometricDiffusionLoss(unet, diffusers.DDPMScheduler())
        >>> out = objective(torch.randn(4, 1, 8, 8), timesteps=torch.tensor([10, 300, 600, 900]))
        >>> out.loss.backward()
        >>> out.gated
        2

    References:
        Hahm et al., Isometric Diffusion, Eq. 1, 6 and 7.
    """

    def __init__(
        self,
        network: nn.Module,
        noise_scheduler: Any,
        *,
        gate: IsometryGate | None = None,
        normalize: bool = True,
        timestep_bins: int = 20,
        scope: Scope = "batch",
        momentum: float | None = 0.9,
        metric: str = "sphere",
        regularizer: str = "isometry",
        codomain: georeg.Manifold | None = None,
        estimator: georeg.Estimator | None = None,
        at: str | None = None,
        loss_weighting: str = "uniform",
        recompute: bool = False,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        if timestep_bins < 0:
            raise ValueError(f"timestep_bins: got {timestep_bins}, expected 0 (pool over all t) or a number of bins")
        if loss_weighting not in LOSS_WEIGHTINGS:
            raise ValueError(f"loss_weighting: got {loss_weighting!r}, expected one of {', '.join(LOSS_WEIGHTINGS)}")
        self.loss_weighting = loss_weighting
        self.network = network
        self.noise_scheduler = noise_scheduler
        self.gate = gate or IsometryGate()
        self.metric = metric
        self.timestep_bins = timestep_bins
        self.h_space = HSpace(network, at)
        self.regularizer = make_regularizer(
            regularizer,
            domain=latent_manifold(metric),
            codomain=codomain,
            estimator=estimator,
            normalize=normalize,
            scope=scope,
            momentum=momentum,
            num_groups=max(timestep_bins, 1),
            degenerate="zero",
            recompute=recompute,
            chunk_size=chunk_size,
        )
        # Running means live where the network does, or each step would wait for a copy to the host.
        parameter = next(network.parameters(), None)
        if parameter is not None:
            self.regularizer.to(parameter.device)

    @property
    def num_train_timesteps(self) -> int:
        """T of the scheduler."""
        return int(self.noise_scheduler.config.num_train_timesteps)

    @as_written
    def forward(
        self,
        x0: Tensor,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
        generator: Generator = None,
        *,
        isometry_scale: float = 1.0,
        isometry_rows: Tensor | None = None,
        **conditioning: Any,
    ) -> ObjectiveOutput:
        """One training step's losses.

        Args:
            x0: clean images or latents ``(B, ...)``.
            timesteps: ``(B,)`` in [0, T), best on the CPU (elsewhere the gate costs a synchronisation); default
                uniform. For flow matching t = σT in [0, T], also fractions; default uniform before the shift.
            noise: ε, default standard normal.
            generator: seeds timesteps, noise and probes; a list of one per sample makes the step independent of
                how a batch is split.
            isometry_scale: factor of the isometry term; 0 leaves it out and costs nothing, which with weight k on
                every k-th step gives lazy regularisation.
            isometry_rows: booleans ``(B,)``, best on the CPU: samples that may enter the isometry term, such as those
                whose condition was not dropped; default all.
            **conditioning: passed to the network; tensors with B rows are split along with the batch.

        Raises:
            ValueError: timesteps or ``isometry_rows`` of the wrong shape, type or range.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self(
                    *map(out_of_inference_mode, (x0, timesteps, noise)),
                    generator,
                    isometry_scale=isometry_scale,
                    isometry_rows=isometry_rows,
                    **out_of_inference_mode(conditioning),
                )
        steps = self._checked_timesteps(timesteps, len(x0), generator)
        noise = random_noise(x0, generator) if noise is None else noise
        target = target_at(self.noise_scheduler, x0, noise, steps)
        x_t = noised_at(self.noise_scheduler, x0, noise, steps)
        inputs = {"sample": x_t, "timestep": steps.to(x0.device), **conditioning}

        # The batch is split before the first convolution: only samples past the gate pay for their Jacobian.
        is_active = isometry_scale != 0 and self.gate.weight != 0
        is_open = self.gate.open(steps, self.num_train_timesteps) & is_active
        if isometry_rows is not None:
            if isometry_rows.shape != (len(x0),) or isometry_rows.dtype != torch.bool:
                raise ValueError(
                    f"isometry_rows: got shape {tuple(isometry_rows.shape)} of {isometry_rows.dtype}, expected {len(x0)} "
                    "booleans"
                )
            is_open = is_open & isometry_rows.cpu()
        gated, rest = is_open.nonzero().flatten(), (~is_open).nonzero().flatten()
        squared_error = x0.new_zeros((), dtype=torch.promote_types(x0.dtype, torch.float32))
        is_global = self.regularizer.scope == "global" and dist.is_available() and dist.is_initialized()
        prediction, result = x0, None
        # Gated samples first: in the first pass of georeg.accumulate, where they run alone, their dropout must be the same.
        if len(gated):
            probes, bins, paying = generators_of(generator, gated), self._bins(steps[gated]), rows_of(inputs, gated, len(x0))
            if self.regularizer.recompute:
                result = self._recomputed(paying, bins, probes)
            elif self.regularizer.is_collecting:
                result = self.regularizer.of_graph(*self._encode(paying), bins, generator=probes)
            else:
                prediction, latent, feature = self._predict_and_encode(paying)
                squared_error = self._squared_error(prediction, rows_of(target, gated, len(x0)), steps[gated])
                result = self.regularizer.of_graph(latent, feature, bins, generator=probes)
        elif is_active and is_global:
            result = self._join_without_samples(inputs, len(x0))
        alone = torch.arange(len(x0)) if self.regularizer.recompute else rest
        if len(alone) and not self.regularizer.is_collecting:
            prediction = self._predict(rows_of(inputs, alone, len(x0)))
            squared_error = squared_error + self._squared_error(prediction, rows_of(target, alone, len(x0)), steps[alone])
        if not len(x0):  # DDP waits for a gradient of every parameter from every rank
            squared_error = sum((p.flatten()[:0].sum().to(squared_error) for p in self.network.parameters()), squared_error)

        world, mean_batch = 1, squared_error.new_full((), len(x0))
        if is_global:
            world = dist.get_world_size()
            if not self._is_accumulating():
                dist.all_reduce(mean_batch)
                mean_batch = mean_batch / world
        mean_batch = mean_batch.clamp_min(1 / world)
        denoising = squared_error / (mean_batch * max(x0[:1].numel(), 1))
        if result is None:
            isometry, functional = prediction[:0].sum().to(denoising), torch.zeros_like(denoising)
        else:
            share = result.count.to(denoising) / (mean_batch * world)
            isometry = self.gate.weight * isometry_scale * share * result.loss.to(denoising)
            functional = result.loss.detach() / (self.regularizer.share or 1)
        moments = result.moments if result is not None and len(gated) else None
        return ObjectiveOutput(denoising + isometry, denoising, isometry, functional, len(gated), moments)

    def _checked_timesteps(self, timesteps: Tensor | None, batch: int, generator: Generator) -> Tensor:
        """Timesteps ``(B,)`` on the host."""
        total = self.num_train_timesteps
        if timesteps is None:
            return network_timesteps(self.noise_scheduler, random_timesteps(batch, total, generator))
        flows = is_flow(self.noise_scheduler)
        if timesteps.shape != (batch,) or (timesteps.is_floating_point() and not flows):
            raise ValueError(
                f"timesteps: got shape {tuple(timesteps.shape)} and dtype {timesteps.dtype}, expected {batch} "
                f"{'numbers' if flows else 'integers'}"
            )
        steps = timesteps.cpu()
        last, bracket = (total, "]") if flows else (total - 1, ")")
        if batch and not 0 <= float(steps.min()) <= float(steps.max()) <= last:
            raise ValueError(
                f"timesteps: got {float(steps.min()):g} to {float(steps.max()):g}, expected them in [0, {total}{bracket}"
            )
        return steps

    def _squared_error(self, prediction: Tensor, target: Tensor, steps: Tensor) -> Tensor:
        """Σ λ(t)·‖prediction − target‖² over the samples, in float32 or better."""
        error = (prediction - target).to(torch.promote_types(target.dtype, torch.float32)).square()
        if self.loss_weighting == "uniform":
            return error.sum()
        return (per_sample(loss_weights(self.noise_scheduler, steps, self.loss_weighting), error) * error).sum()

    def _predict(self, inputs: dict[str, Any]) -> Tensor:
        arguments = dict(inputs)
        sample = arguments.pop("sample")
        with first_order() if sample.device.type == "cpu" else nullcontext():
            return predict(self.network, sample, arguments.pop("timestep"), arguments)

    def _predict_and_encode(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Prediction, x_t and h with the graph between them, from one forward pass."""
        if self.metric == "isodiff":  # the released code's own pass, at the point it moves x_t to
            latent, feature = self._encode(inputs)
            return self._predict(inputs), latent, feature
        # Under no_grad (a validation loss) J still needs the encoder's graph.
        with torch.enable_grad(), self.h_space.capture() as captured:
            prediction = self._predict(inputs)
        return prediction, captured.x, captured.h

    def _encode(self, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """x_t (or the point that the released code moves it to) and h, from a pass of their own that ends at h."""
        arguments = dict(inputs)
        point = arguments.pop("sample")
        latent = (isodiff_point(point) if self.metric == "isodiff" else point).detach().requires_grad_()
        with torch.enable_grad(), differentiable_attention(), fused():
            return latent, self.h_space.encode(latent, arguments.pop("timestep"), **arguments)

    def _is_accumulating(self) -> bool:
        return self.regularizer.is_collecting or self.regularizer.share is not None

    def _recomputed(self, inputs: dict[str, Any], bins: Tensor | None, generator: Generator) -> georeg.LossOutput[Any]:
        """The isometry loss of the gated samples, by forward passes of its own."""
        count = len(inputs["sample"])
        latent = inputs["sample"]

        def encode(points: Tensor, index: Tensor) -> Tensor:
            arguments = rows_of(inputs, index, count)
            arguments.pop("sample")
            return self.h_space.encode(points, arguments.pop("timestep"), **arguments)

        points = (isodiff_point(latent) if self.metric == "isodiff" else latent).detach()
        return self.regularizer(encode, points, bins, generator=generator, context=(torch.arange(count),))

    def _join_without_samples(self, inputs: dict[str, Any], batch: int) -> georeg.LossOutput[Any]:
        """Every rank joins the all-reduce, also one whose samples all stayed outside the gate, or that has none."""
        if batch:
            arguments = rows_of(inputs, torch.zeros(1, dtype=torch.long), batch)
        else:  # the shape of h is that of any sample
            arguments = tree_map_only(Tensor, lambda t: t.new_zeros(1, *t.shape[1:]) if t.ndim and not len(t) else t, inputs)
        sample = arguments.pop("sample")
        with torch.no_grad():
            shape = self.h_space.encode(sample, arguments.pop("timestep"), **arguments).shape
        nobody = sample[:0].detach().requires_grad_()
        feature = nobody.flatten(1)[:, :1].expand(0, shape[1:].numel()).reshape(0, *shape[1:])
        return self.regularizer.of(georeg.linearize_graph(nobody, feature), self._bins(torch.zeros(0, dtype=torch.long)))

    def _bins(self, timesteps: Tensor) -> Tensor | None:
        if self.timestep_bins < 1:
            return None
        bins = (timesteps * self.timestep_bins // self.num_train_timesteps).long()
        return bins.clamp_max(self.timestep_bins - 1)  # a flow has t = T

    def extra_repr(self) -> str:
        return f"gate={self.gate}, metric={self.metric!r}, timestep_bins={self.timestep_bins}"
