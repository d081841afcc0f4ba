"""Denoising and isometry in one forward pass: L = L_dsm + λ·(gated/B)·F (Eq. 7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import georeg
from georeg.linearize.base import differentiable_attention
from georeg.moments import Scope
from georeg.random import Generator
from georeg_diffusion._compat import diffusers
from georeg_diffusion.h_space import HSpace
from georeg_diffusion.latent_metrics import isodiff_point, latent_manifold
from georeg_diffusion.schedule import IsometryGate, alphas_cumprod, noised, training_target


@dataclass(frozen=True)
class ObjectiveOutput:
    """What one step of the objective gives.

    Attributes:
        loss: ``denoising + isometry``, the scalar to differentiate.
        denoising: mean-squared error of the prediction over the whole batch.
        isometry: the term λ·(gated/B)·F, whose expectation is λ E_t[1(t > pT) L_iso(t)]; an exact 0 with a graph
            when no sample passes the gate.
        functional: F itself, detached: the (normalised) isometry loss of the gated samples, 0 without any.
        gated: number of samples of this process past the gate.
        moments: spectral moments of the gated samples, None without any.
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
        scope: ``"batch"`` or ``"global"``, the expectations over this process's samples or over all ranks.
        momentum: decay of the running means that make small bins usable; None for none.
        metric: see :mod:`georeg_diffusion.latent_metrics`.
        codomain: manifold of h, default Euclidean.
        estimator: default one fixed-norm Hutchinson probe on the smaller side.
        at: name of the h-space module, see :class:`HSpace`.

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
        codomain: georeg.Manifold | None = None,
        estimator: georeg.Estimator | None = None,
        at: str | None = None,
    ) -> None:
        super().__init__()
        if timestep_bins < 0:
            raise ValueError(f"timestep_bins: got {timestep_bins}, expected 0 (pool over all t) or a number of bins")
        self.network = network
        self.noise_scheduler = noise_scheduler
        self.gate = gate or IsometryGate()
        self.metric = metric
        self.timestep_bins = timestep_bins
        self.h_space = HSpace(network, at)
        self.regularizer = georeg.IsometryLoss(
            domain=latent_manifold(metric),
            codomain=codomain,
            estimator=estimator,
            normalize=normalize,
            scope=scope,
            momentum=momentum,
            num_groups=max(timestep_bins, 1),
            degenerate="zero",
        )
        # Running means live where the network does, or each step would wait for a copy to the host.
        parameter = next(network.parameters(), None)
        if parameter is not None:
            self.regularizer.to(parameter.device)

    @property
    def num_train_timesteps(self) -> int:
        """T of the scheduler."""
        return int(self.noise_scheduler.config.num_train_timesteps)

    def forward(
        self,
        x0: Tensor,
        timesteps: Tensor | None = None,
        noise: Tensor | None = None,
        generator: Generator = None,
        *,
        isometry_scale: float = 1.0,
        **conditioning: Any,
    ) -> ObjectiveOutput:
        """One training step's losses.

        Args:
            x0: clean images or latents ``(B, ...)``.
            timesteps: ``(B,)`` in [0, T), best on the CPU (elsewhere the gate costs a synchronisation); default
                uniform.
            noise: ε, default standard normal.
            generator: seeds timesteps, noise and probes; a list of one per sample makes the step independent of
                how a batch is split.
            isometry_scale: factor of the isometry term; 0 leaves it out and costs nothing, which with weight k on
                every k-th step gives lazy regularisation.
            **conditioning: passed to the network; tensors with B rows are split along with the batch.

        Raises:
            ValueError: timesteps of the wrong shape or range.
        """
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self(
                    *map(_ordinary, (x0, timesteps, noise)),
                    generator,
                    isometry_scale=isometry_scale,
                    **_ordinary(conditioning),
                )
        batch, total = len(x0), self.num_train_timesteps
        if timesteps is None:
            timesteps = random_timesteps(batch, total, generator)
        if timesteps.shape != (batch,) or timesteps.is_floating_point():
            raise ValueError(
                f"timesteps: got shape {tuple(timesteps.shape)} and dtype {timesteps.dtype}, expected {batch} integers"
            )
        steps = timesteps.cpu()
        if batch and not 0 <= int(steps.min()) <= int(steps.max()) < total:
            raise ValueError(f"timesteps: got {int(steps.min())} to {int(steps.max())}, expected them in [0, {total})")
        if noise is None:
            noise = random_noise(x0, generator)
        alpha_bar = alphas_cumprod(self.noise_scheduler, steps)
        x_t = noised(x0, noise, alpha_bar)
        target = training_target(x0, noise, alpha_bar, self.noise_scheduler.config.prediction_type)

        is_open = self.gate.open(steps, total)
        if isometry_scale == 0 or self.gate.weight == 0:
            is_open = torch.zeros_like(is_open)
        active = isometry_scale != 0 and self.gate.weight != 0
        gated, rest = is_open.nonzero().flatten(), (~is_open).nonzero().flatten()

        squared_error = x0.new_zeros((), dtype=torch.promote_types(x0.dtype, torch.float32))
        prediction = x_t
        result = None
        for rows, with_isometry in ((rest, False), (gated, True)):
            if not len(rows):
                continue
            selected = {name: _rows(value, rows, batch) for name, value in conditioning.items()}
            arguments = (_rows(x_t, rows, batch), steps[rows].to(x0.device))
            if with_isometry and self.metric != "isodiff":
                # Under no_grad (a validation loss) J still needs the encoder's graph.
                with torch.enable_grad(), self.h_space.capture() as captured:
                    prediction = self.network(*arguments, **selected).sample
                latent, feature = captured.x, captured.h
            else:
                prediction = self.network(*arguments, **selected).sample
            squared_error = squared_error + (prediction.to(squared_error) - _rows(target, rows, batch)).square().sum()
            if with_isometry:
                if self.metric == "isodiff":
                    latent, feature = self._separate_pass(*arguments, **selected)
                probes = _rows_of_generators(generator, rows)
                result = self.regularizer.of_graph(latent, feature, self._bins(steps[rows]), generator=probes)
        denoising = squared_error / max(x0.numel(), 1)

        world = dist.get_world_size() if self._is_pooled_over_ranks() else 1
        if result is None and active and world > 1:
            # Every rank joins the all-reduce, also one whose samples all stayed outside the gate.
            with torch.no_grad():
                shape = self.h_space.encode(
                    x_t[:1],
                    steps[:1].to(x0.device),
                    **{name: _rows(value, torch.zeros(1, dtype=torch.long), batch) for name, value in conditioning.items()},
                ).shape
            nobody = prediction[:0]
            feature = nobody.flatten(1)[:, :1].expand(0, shape[1:].numel()).reshape(0, *shape[1:])
            result = self.regularizer.of_graph(nobody, feature, steps[:0])
        if result is None:
            isometry, functional = prediction[:0].sum().to(denoising), torch.zeros_like(denoising)
        else:
            share = result.count.to(denoising) / (batch * world)
            isometry = self.gate.weight * isometry_scale * share * result.loss.to(denoising)
            functional = result.loss.detach()
        return ObjectiveOutput(
            denoising + isometry,
            denoising,
            isometry,
            functional,
            len(gated),
            None if not len(gated) or result is None else result.moments,
        )

    def _bins(self, timesteps: Tensor) -> Tensor | None:
        if self.timestep_bins < 1:
            return None
        return timesteps * self.timestep_bins // self.num_train_timesteps

    def _is_pooled_over_ranks(self) -> bool:
        return self.regularizer.scope == "global" and dist.is_available() and dist.is_initialized()

    def _separate_pass(self, x_t: Tensor, t: Tensor, **conditioning: Any) -> tuple[Tensor, Tensor]:
        """The released code's own forward pass, at the point it moves x_t to."""
        latent = isodiff_point(x_t).detach().requires_grad_()
        with torch.enable_grad(), differentiable_attention():
            return latent, self.h_space.encode(latent, t, **conditioning)

    def extra_repr(self) -> str:
        return f"gate={self.gate}, metric={self.metric!r}, timestep_bins={self.timestep_bins}"


def random_timesteps(batch: int, total: int, generator: Generator = None) -> Tensor:
    """Uniform timesteps ``(batch,)`` in [0, total), on the host."""
    if isinstance(generator, (list, tuple)):
        draws = [torch.randint(total, (1,), generator=g, device=g.device) for g in generator]
        return torch.cat(draws).cpu() if draws else torch.zeros(0, dtype=torch.long)
    device = "cpu" if generator is None else generator.device  # type: ignore[union-attr]
    return torch.randint(total, (batch,), generator=generator, device=device).cpu()  # type: ignore[arg-type]


def random_noise(like: Tensor, generator: Generator = None) -> Tensor:
    """Standard normal noise shaped like a batch."""
    if like.device.type == "meta":
        return torch.empty_like(like)
    source = list(generator) if isinstance(generator, (list, tuple)) else generator
    noise: Tensor = diffusers.utils.torch_utils.randn_tensor(
        tuple(like.shape), generator=source, device=like.device, dtype=like.dtype
    )
    return noise


def _rows(value: Any, rows: Tensor, batch: int) -> Any:
    """The given rows of a tensor with B rows; anything else as it is."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        return value if len(rows) == batch else value.index_select(0, rows.to(value.device))
    if isinstance(value, dict):
        return {name: _rows(item, rows, batch) for name, item in value.items()}
    return value


def _ordinary(value: Any) -> Any:
    """A copy of what was born in inference mode, which cannot enter a graph; anything else as it is."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {name: _ordinary(item) for name, item in value.items()}
    return value


def _rows_of_generators(generator: Generator, rows: Tensor) -> Generator:
    if isinstance(generator, (list, tuple)):
        return [generator[i] for i in rows.tolist()]
    return generator
