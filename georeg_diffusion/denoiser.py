"""The sampling door: a model as one function (x_t, t) ↦ prediction, whatever its network and its conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from georeg_diffusion.backbones import family_of, predict, unwrapped
from georeg_diffusion.bundle import Bundle
from georeg_diffusion.conditioning import null_conditioning
from georeg_diffusion.errors import UsageError
from georeg_diffusion.schedule import coefficients, is_flow, per_sample, unknown_prediction


class Denoiser:
    """A model with its conditions, called as ``denoiser(x_t, t)``, in the scheduler's own parametrisation.

    Classifier-free guidance (Ho and Salimans 2022) with scale s: n + s·(c − n), where c is the prediction under the
    conditioning and n the one under ``negative``, both from one call of the network on 2B rows, the conditional ones
    first. At s = 1 only the conditional rows run, at s = 0 only the others.

    Args:
        bundle: the model.
        conditioning: tensors by the network's argument names, as :meth:`Bundle.conditioning` gives them, each with one
            row (for all samples) or one row for each sample.
        guidance_scale: s.
        negative: what guidance steers away from, as ``conditioning``; default the empty prompt or the null class.

    Raises:
        UsageError: guidance of a model that is not conditional, or that has no null class.
        RunError: guidance of a model on text without its text encoder, and without ``negative``.
        ValueError: conditioning whose tensors have different numbers of rows; a ``negative`` of other tensors.

    Example:
        >>> import torch
        >>> from georeg_diffusion import Bundle, Denoiser
        >>> from georeg_diffusion._compat import diffusers
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2, num_class_embeds=10)
        >>> bundle = Bundle(unet, diffusers.DDPMScheduler())
        >>> denoiser = Denoiser(bundle, bundle.conditioning(class_labels=[3]))
        >>> denoiser(torch.randn(4, 1, 8, 8), 500).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self,
        bundle: Bundle,
        conditioning: Mapping[str, Tensor] | None = None,
        guidance_scale: float = 1.0,
        negative: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not math.isfinite(guidance_scale):
            raise UsageError(f"--guidance-scale: got {guidance_scale}, expected a finite number")
        self.bundle, self.guidance_scale = bundle, float(guidance_scale)
        self.positive = dict(conditioning or {})
        self.negative = dict(negative or {})
        if self.guidance_scale != 1:
            # A part that `negative` leaves out, such as the image size of SDXL, is the same on both branches.
            null = null_conditioning(bundle.network, bundle.conditioner) if not self.negative else {}
            self.negative = {**self.positive, **null, **self.negative}
            if set(self.positive) != set(self.negative):
                raise ValueError(
                    f"negative: got {sorted(self.negative)}, expected the conditioning's {sorted(self.positive)}"
                )
        self.num_rows = _num_rows([*self.positive.values(), *self.negative.values()])

    def rows(self, index: slice | Sequence[int] | Tensor) -> Denoiser:
        """The same for some of the samples: conditions with one row for each are indexed, the others kept."""

        def some(part: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value if len(value) == 1 else value[index] for name, value in part.items()}

        return Denoiser(self.bundle, some(self.positive), self.guidance_scale, some(self.negative))

    def conditioning(self, batch: int, *, like: Tensor | None = None) -> dict[str, Tensor]:
        """The conditional branch's arguments, repeated to ``batch`` rows, such as ``HSpace.encode`` takes them."""
        return _repeated(self.positive, batch, next(self.bundle.network.parameters(), like))

    def __call__(self, x_t: Tensor, t: Tensor | float | int) -> Tensor:
        """Prediction ``(B, C, ...)`` at x_t ``(B, C, ...)`` and t, one for all or ``(B,)``; differentiable.

        The network keeps its precision, the prediction comes back in x_t's.
        """
        network = self.bundle.network
        batch, parameter = len(x_t), next(network.parameters(), x_t)
        x = x_t.to(parameter.dtype)
        steps = torch.as_tensor(t, device=x.device).expand(batch)
        scale = self.guidance_scale
        branches = {1.0: [self.positive], 0.0: [self.negative]}.get(scale, [self.positive, self.negative])
        parts = [_repeated(branch, batch, parameter) for branch in branches]
        if len(parts) == 1:
            return predict(network, x, steps, parts[0]).to(x_t.dtype)
        both = {name: _joined(name, parts[0][name], parts[1][name]) for name in parts[0]}
        conditional, negative = predict(network, torch.cat([x, x]), torch.cat([steps, steps]), both).to(x_t.dtype).chunk(2)
        return negative + scale * (conditional - negative)


def conditioned(
    bundle: Bundle,
    *,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str | None = None,
    guidance_scale: float | None = None,
    class_label: int | Sequence[int] | None = None,
    seeds: Sequence[int] = (0,),
) -> Denoiser:
    """The denoiser that ``--prompt --negative-prompt --guidance-scale --class-label`` ask for.

    Args:
        bundle: the model.
        prompt: one for all samples, or one for each; default the empty prompt.
        negative_prompt: what guidance steers away from; default the empty prompt.
        guidance_scale: default 7.5 with a prompt, otherwise 1.
        class_label: one for all samples, or one for each; by default sample i draws its own from seed i alone.
        seeds: of the samples, where each draws its class.

    Raises:
        UsageError: naming the option that this model cannot take, or that is missing.
        RunError: a prompt for a model without its text encoder.

    Example:
        >>> from georeg_diffusion import Bundle
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.denoiser import conditioned
        >>> unet = diffusers.UNet2DModel(sample_size=8, in_channels=1, out_channels=1, layers_per_block=1,
        ...     norm_num_groups=4, block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        ...     up_block_types=("UpBlock2D",) * 2, num_class_embeds=10)
        >>> conditioned(Bundle(unet, diffusers.DDPMScheduler()), seeds=range(4)).positive["class_labels"].shape
        torch.Size([4])
    """
    network = unwrapped(bundle.network)
    classes = family_of(network).num_classes(network)
    takes_text = family_of(network).takes_text(network)
    scale = guidance_scale if guidance_scale is not None else 7.5 if prompt is not None else 1.0
    if negative_prompt is not None and not takes_text:
        raise UsageError(
            f"--negative-prompt: this {type(network).__name__} is not conditioned on text; leave the option out"
        )
    if negative_prompt is not None and scale == 1:
        raise UsageError("--negative-prompt: has no effect at --guidance-scale 1; raise that, or leave this out")
    if class_label is None and classes is not None:
        labels: Sequence[int] | None = [
            int(torch.randint(classes, (1,), generator=torch.Generator().manual_seed(int(seed)))) for seed in seeds
        ]
    else:
        labels = [class_label] if isinstance(class_label, int) else class_label
    negative = None if negative_prompt is None else bundle.conditioning([negative_prompt], labels)
    return Denoiser(bundle, bundle.conditioning(prompt, labels), scale, negative)


def predicted_x0(scheduler: Any, prediction: Tensor, x_t: Tensor, t: Tensor | float | int) -> Tensor:
    """x̂₀ from a network's prediction at x_t ``(B, ...)``.

    With x_t = a·x₀ + s·ε: (x_t − s·ε̂)/a for ε, a·x_t − s·v̂ for v = aε − sx₀ (a² + s² = 1), x_t − s·v̂ for
    flow matching's v = ε − x₀ (a + s = 1).

    Raises:
        ValueError: ε-prediction where a = 0, which says nothing about x₀; an unknown prediction type.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.denoiser import predicted_x0
        >>> x0, noise, t = torch.ones(2, 1), torch.randn(2, 1), torch.tensor([10, 900])
        >>> scheduler = diffusers.DDPMScheduler()
        >>> x_t = scheduler.add_noise(x0, noise, t)
        >>> torch.allclose(predicted_x0(scheduler, noise, x_t, t), x0, atol=1e-4)
        True
    """
    signal, noise = coefficients(scheduler, torch.as_tensor(t).reshape(-1))
    a, s = per_sample(signal, x_t), per_sample(noise, x_t)
    if is_flow(scheduler):
        return x_t - s * prediction
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        _check_nonzero(signal, "ᾱ_t = 0, and there ε-prediction says nothing about x₀", t)
        return (x_t - s * prediction) / a
    if kind == "sample":
        return prediction
    if kind == "v_prediction":
        return a * x_t - s * prediction
    raise ValueError(unknown_prediction(kind))


def predicted_noise(scheduler: Any, prediction: Tensor, x_t: Tensor, t: Tensor | float | int) -> Tensor:
    """ε̂ from a network's prediction at x_t ``(B, ...)``, the counterpart of :func:`predicted_x0`.

    (x_t − a·x̂₀)/s for x₀, a·v̂ + s·x_t for v, x_t + (1 − s)·v̂ for flow matching.

    Raises:
        ValueError: x₀-prediction where s = 0, which says nothing about ε; an unknown prediction type.

    Example:
        >>> import torch
        >>> from georeg_diffusion._compat import diffusers
        >>> from georeg_diffusion.denoiser import predicted_noise
        >>> x0, noise, t = torch.ones(2, 1), torch.randn(2, 1), torch.tensor([10, 900])
        >>> scheduler = diffusers.DDPMScheduler(prediction_type="sample")
        >>> x_t = scheduler.add_noise(x0, noise, t)
        >>> torch.allclose(predicted_noise(scheduler, x0, x_t, t), noise, atol=1e-4)
        True
    """
    signal, noise = coefficients(scheduler, torch.as_tensor(t).reshape(-1))
    a, s = per_sample(signal, x_t), per_sample(noise, x_t)
    if is_flow(scheduler):
        return x_t + a * prediction
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return prediction
    if kind == "sample":
        _check_nonzero(noise, "ᾱ_t = 1, and there x₀-prediction says nothing about ε", t)
        return (x_t - a * prediction) / s
    if kind == "v_prediction":
        return a * prediction + s * x_t
    raise ValueError(unknown_prediction(kind))


def _check_nonzero(coefficient: Tensor, consequence: str, t: Any) -> None:
    if not bool(coefficient.all()):
        raise ValueError(f"t: got {t}, where {consequence}; start one step from there")


def _num_rows(values: Sequence[Tensor]) -> int:
    counts = {len(value) for value in values} - {1}
    if len(counts) > 1:
        raise ValueError(f"conditioning: got tensors with {sorted(counts)} rows, expected one row or one for each sample")
    return counts.pop() if counts else 1


def _repeated(part: Mapping[str, Tensor], batch: int, like: Tensor | None) -> dict[str, Tensor]:
    """Each tensor with ``batch`` rows, on the network's device, floats in its precision."""
    out = {}
    for name, value in part.items():
        if len(value) not in (1, batch):
            raise ValueError(f"conditioning: {name} has {len(value)} rows for {batch} samples, expected 1 or {batch}")
        rows = value.expand(batch, *value.shape[1:])
        if like is not None:
            rows = rows.to(like.device, like.dtype if rows.is_floating_point() else None)
        out[name] = rows
    return out


def _joined(name: str, positive: Tensor, negative: Tensor) -> Tensor:
    if positive.shape[1:] != negative.shape[1:]:
        raise ValueError(
            f"negative: {name} has rows of {tuple(negative.shape[1:])}, the conditioning's are {tuple(positive.shape[1:])}; "
            "pad the prompts to one length"
        )
    return torch.cat([positive, negative])
